"""Heat maps of a ViT from attention, gradients or direct effects: the baselines of arXiv 2406.04341.

All of them use intermediate results of one forward pass with attention written out (`attention_pass`).

* Attention alone, which does not depend on the text: the last layer's raw attention, and rollout.
* Gradients of y = <M(I), t>: GradCAM, and the relevance of Chefer et al. through attention.
* Direct effects of attention heads (Gandelsman et al. 2024, whose method is known as TextSpan). The class token after the last
  layer is the sum over layers l, heads h and tokens i of a_i^{l,h} W_O^h (W_V^h x_i + b_V^h), besides what MLPs and biases add.
  The final LayerNorm is linear once its sigma is frozen, so <M(I), t> is a sum of the same shares. The score of a patch is the
  sum of its shares over all heads of the last layers.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cliptools.models.clip_parts import VisionTransformer
from cliptools.unit_effects.vit_second_order import norm_gain


class AttentionPass(NamedTuple):
    """Intermediate results of one forward pass, by layer."""

    embedding: Float[Tensor, "b d"]
    """M(I), not normalised."""
    attention: list[Float[Tensor, "b head token token"]]
    """A of every layer: a row per query, which sums to 1."""
    normed: list[Float[Tensor, "b token width"]]
    """Input of every layer's attention: the block's input after ln_1."""
    last: Float[Tensor, "b width"]
    """The class token after the last block, before the final LayerNorm."""
    grid: tuple[int, int]
    """Rows and columns of patches."""


def attention_pass(visual: VisionTransformer, image: Float[Tensor, "b 3 y x"], gradients: bool = False) -> AttentionPass:
    """Compute M(I) by open_clip's own modules, except attention, whose weights nn.MultiheadAttention does not return.

    Args:
        gradients: Keep the graph, so that M(I) can be differentiated with respect to every layer's A and normed.
    """
    x = visual._embeds(image)  # (b, token, width)
    if gradients:  # the weights do not require gradients, so the embeddings must
        x = x.detach().requires_grad_()
    attention, normed = [], []
    for block in visual.transformer.resblocks:
        u = block.ln_1(x)
        q, k, v = project(block.attn, u)  # each (b, head, token, e)
        A = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)  # (b, head, token, token)
        x = x + block.ls_1(block.attn.out_proj((A @ v).transpose(1, 2).flatten(2)))  # (b, head, token, e) -> (b, token, width)
        x = x + block.ls_2(block.mlp(block.ln_2(x)))
        attention.append(A)
        normed.append(u)
    last = x[:, 0]
    return AttentionPass(visual.ln_post(last) @ visual.proj, attention, normed, last, patch_grid(visual, image))


def project(attn: nn.MultiheadAttention, u: Float[Tensor, "b token width"]) -> list[Float[Tensor, "b head token e"]]:
    """Queries, keys and values of every head, from the normed input u."""
    qkv = nn.functional.linear(u, attn.in_proj_weight, attn.in_proj_bias)  # (b, token, 3 width)
    return [part.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1)]


def patch_grid(visual: VisionTransformer, image: Float[Tensor, "b 3 y x"]) -> tuple[int, int]:
    """Rows and columns of patches for images of this size."""
    rows, columns = visual.conv1.stride
    return image.shape[-2] // rows, image.shape[-1] // columns


def raw_attention(attention: Sequence[Float[Tensor, "b head token token"]]) -> Float[Tensor, "b patch"]:
    """The class token's attention to the patches in the last layer, mean over heads."""
    return attention[-1][:, :, 0, 1:].mean(1)


def rollout(attention: Sequence[Float[Tensor, "b head token token"]]) -> Float[Tensor, "b patch"]:
    """Attention rollout (Abnar and Zuidema 2020): R = A^L … A^1 with A^l = (mean over heads + I) / 2."""
    identity = torch.eye(attention[0].shape[-1], dtype=attention[0].dtype, device=attention[0].device)
    R = identity.expand(len(attention[0]), -1, -1)  # (b, token, token)
    for A in attention:
        R = (A.mean(1) + identity) / 2 @ R
    return R[:, 0, 1:]


def gradcam(forward: AttentionPass, t: Float[Tensor, "b d"]) -> Float[Tensor, "b patch"]:
    """GradCAM (Selvaraju et al. 2017) on the last block's input x after ln_1, the usual choice for ViTs.

    The weight of a channel is the mean of dy/dx over the patches. The map is the positive part of the weighted sum of channels.
    """
    x = forward.normed[-1]
    (gradient,) = torch.autograd.grad((forward.embedding * t).sum(), x, retain_graph=True)  # (b, token, width)
    weight = gradient[:, 1:].mean(1)  # (b, token, width) -> (b, width)
    return torch.einsum("bpw,bw->bp", x[:, 1:], weight).relu().detach()


def chefer(forward: AttentionPass, t: Float[Tensor, "b d"]) -> Float[Tensor, "b patch"]:
    """Generic attention explainability (Chefer et al. 2021, Eqs. 5 and 6): R = I, then R <- R + mean_h (dy/dA * A)^+ R."""
    gradients = torch.autograd.grad((forward.embedding * t).sum(), forward.attention, retain_graph=True)
    A = forward.attention[0]
    R = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device).expand(len(A), -1, -1)  # (b, token, token)
    for A, gradient in zip(forward.attention, gradients, strict=True):
        R = R + (gradient * A).relu().mean(1) @ R  # (b, head, token, token) -> (b, token, token)
    return R[:, 0, 1:].detach()


LAYERS = 4  # as in the paper: the direct effect of earlier attention layers is close to 0


def direct_effects(
    visual: VisionTransformer, forward: AttentionPass, t: Float[Tensor, "b text d"], layers: int = LAYERS
) -> Float[Tensor, "b text token"]:
    """Return each token's share of <M(I), t> through the last `layers` attention layers, with the shares of value biases."""
    u = readout(visual, forward, t)  # (b, text, width)
    total = torch.zeros(1, dtype=t.dtype, device=t.device)
    blocks = list(visual.transformer.resblocks)
    for block, A, normed in list(zip(blocks, forward.attention, forward.normed, strict=True))[-layers:]:
        v = project(block.attn, normed)[2]  # (b, head, token, e)
        text = (u * gain(block.ls_1)) @ block.attn.out_proj.weight  # (b, text, head e): in the space of the heads' values
        text = text.unflatten(-1, (block.attn.num_heads, -1))  # (b, text, head, e)
        total = total + torch.einsum("bhi,bhie,bthe->bti", A[:, :, 0], v, text)
    return total


def readout(visual: VisionTransformer, forward: AttentionPass, t: Float[Tensor, "b text d"]) -> Float[Tensor, "b text width"]:
    """Vector u for each text, such that <u, x> is the contribution to <M(I), t> of a share x of the last class token.

    u is t taken back through the projection P and the final LayerNorm, whose sigma is frozen.
    """
    norm = visual.ln_post
    sigma = (forward.last.var(-1, unbiased=False) + norm.eps).sqrt()  # (b,)
    u = t @ visual.proj.T * norm_gain(norm, t).to(t) / sigma[:, None, None]  # (b, text, d) -> (b, text, width)
    return u - u.mean(-1, keepdim=True)  # LayerNorm subtracts the mean over the width


def gain(scale: nn.Module) -> Tensor | float:
    """Gains of LayerScale; 1 for a tower without LayerScale."""
    return getattr(scale, "gamma", 1.0)
