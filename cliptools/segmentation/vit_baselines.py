"""A ViT's forward pass with its attention written out, for the methods that look inside it.

Heat maps from attention alone, which know nothing of the text: the last layer's raw attention, and rollout.

Heat maps from gradients of y = <M(I), t>: GradCAM, and Chefer et al.'s relevance through attention.

Heat maps from the direct effects of attention heads (Gandelsman et al. 2024, whose method is known as TextSpan).

The class token after layer l is a sum over layers, heads and tokens of a_i^{l,h} W_O^h (W_V^h x_i + b_V^h), besides what MLPs and
biases add. The final LayerNorm is linear once its sigma is held, so <M(I), t> falls into the same shares; a patch's score is
the sum of its own over all heads of the last layers.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cliptools.effects.vit_second_order import norm_gain
from cliptools.models.clip_parts import VisionTransformer


class AttentionPass(NamedTuple):
    """Intermediate results of one forward pass, by layer."""

    embedding: Float[Tensor, "b d"]
    """M(I), not normalised."""
    attention: list[Float[Tensor, "b head token token"]]
    """A: a row per query, which sums to 1."""
    normed: list[Float[Tensor, "b token width"]]
    """Input of the attention: the block's input after ln_1."""
    last: Float[Tensor, "b width"]
    """The class token after the last block, before the final LayerNorm."""
    grid: tuple[int, int]
    """Rows and columns of patches."""


def attention_pass(visual: VisionTransformer, image: Float[Tensor, "b 3 y x"], gradients: bool = False) -> AttentionPass:
    """M(I) by open_clip's own modules, but for attention, which nn.MultiheadAttention keeps to itself.

    Args:
        gradients: Leave a graph by which M(I) can be differentiated by every layer's A and normed.
    """
    x = visual._embeds(image)  # (b, token, width)
    if gradients:  # the weights want no gradients, so something must
        x = x.detach().requires_grad_()
    attention, normed = [], []
    for block in visual.transformer.resblocks:
        read = block.ln_1(x)
        q, k, v = project(block.attn, read)  # each (b, head, token, e)
        A = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)  # (b, head, token, token)
        x = x + block.ls_1(block.attn.out_proj((A @ v).transpose(1, 2).flatten(2)))
        x = x + block.ls_2(block.mlp(block.ln_2(x)))
        attention.append(A)
        normed.append(read)
    last = x[:, 0]
    return AttentionPass(visual.ln_post(last) @ visual.proj, attention, normed, last, patch_grid(visual, image))


def project(attn: nn.MultiheadAttention, read: Float[Tensor, "b token width"]) -> list[Float[Tensor, "b head token e"]]:
    """Queries, keys and values of every head."""
    qkv = nn.functional.linear(read, attn.in_proj_weight, attn.in_proj_bias)  # (b, token, 3 width)
    return [part.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1)]


def patch_grid(visual: VisionTransformer, image: Float[Tensor, "b 3 y x"]) -> tuple[int, int]:
    """Rows and columns of patches that the tower makes of these images."""
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


def gradcam(seen: AttentionPass, t: Float[Tensor, "b d"]) -> Float[Tensor, "b patch"]:
    """GradCAM (Selvaraju et al. 2017) on the last block's input x after ln_1, as it is applied to ViTs.

    The weight of a channel is the mean of dy/dx over the patches; the map is the positive part of the weighted channels' sum.
    """
    x = seen.normed[-1]
    (gradient,) = torch.autograd.grad((seen.embedding * t).sum(), x, retain_graph=True)  # (b, token, width)
    weight = gradient[:, 1:].mean(1)
    return torch.einsum("bpw,bw->bp", x[:, 1:], weight).relu().detach()


def chefer(seen: AttentionPass, t: Float[Tensor, "b d"]) -> Float[Tensor, "b patch"]:
    """Generic attention explainability (Chefer et al. 2021, Eqs. 5 and 6): R = I, then R <- R + mean_h (dy/dA * A)^+ R."""
    gradients = torch.autograd.grad((seen.embedding * t).sum(), seen.attention, retain_graph=True)
    A = seen.attention[0]
    R = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device).expand(len(A), -1, -1)  # (b, token, token)
    for A, gradient in zip(seen.attention, gradients, strict=True):
        R = R + (gradient * A).relu().mean(1) @ R
    return R[:, 0, 1:].detach()


LAYERS = 4  # as the paper: earlier attention layers have next to no direct effect


def direct_effects(
    visual: VisionTransformer, seen: AttentionPass, t: Float[Tensor, "b text d"], layers: int = LAYERS
) -> Float[Tensor, "b text token"]:
    """Return each token's contribution to <M(I), t> through the last `layers` attention layers, value biases included."""
    u = readout(visual, seen, t)  # (b, text, width)
    total = torch.zeros(1, dtype=t.dtype, device=t.device)
    blocks = list(visual.transformer.resblocks)
    for block, A, read in list(zip(blocks, seen.attention, seen.normed, strict=True))[-layers:]:
        v = project(block.attn, read)[2]  # (b, head, token, e)
        back = (u * gain(block.ls_1)) @ block.attn.out_proj.weight  # (b, text, head e): the text as each head's values see it
        back = back.unflatten(-1, (block.attn.num_heads, -1))
        total = total + torch.einsum("bhi,bhie,bthe->bti", A[:, :, 0], v, back)
    return total


def readout(visual: VisionTransformer, seen: AttentionPass, t: Float[Tensor, "b text d"]) -> Float[Tensor, "b text width"]:
    """u such that <u, x> is what x, a share of the last class token, adds to <M(I), t>: P, then LayerNorm with its sigma held."""
    norm = visual.ln_post
    sigma = (seen.last.var(-1, unbiased=False) + norm.eps).sqrt()  # (b,)
    u = t @ visual.proj.T * norm_gain(norm, t).to(t) / sigma[:, None, None]
    return u - u.mean(-1, keepdim=True)  # LayerNorm subtracts the mean over the width


def gain(scale: nn.Module) -> Tensor | float:
    """LayerScale's gains, 1 where there is none."""
    return getattr(scale, "gamma", 1.0)
