"""Heat maps of a ViT from attention, gradients or direct effects: the baselines of arXiv 2406.04341.

All of them use intermediate results of one forward pass with attention written out (`attention_pass`).

* Attention alone, which does not depend on the text: the last layer's raw attention, and rollout.
* Gradients of y = <M(I), t>: GradCAM, and the relevance of Chefer et al. through attention.
* Direct effects of attention heads (Gandelsman et al. 2024, whose method is known as TextSpan). The class token after the last
  layer is the sum over layers l, heads h and tokens i of a_i^{l,h} W_O^h (W_V^h x_i + b_V^h), besides what MLPs and biases add.
  The final LayerNorm is linear once its sigma is frozen, so <M(I), t> is a sum of the same shares. The score of a patch is the
  sum of its shares over all heads of the last layers.

In a tower whose output is read from the mean of tokens, the mean of these tokens' attention stands for the class token's, and in
direct effects the sum of their rows by beta_j (towers/readout.py).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cliptools.towers.hooks import deviation
from cliptools.towers.kinds import tower_of
from cliptools.towers.tower import Block, Tower, norm_gain


class AttentionPass(NamedTuple):
    """Intermediate results of one forward pass, by layer."""

    embedding: Float[Tensor, "b d"]
    """M(I), not normalised."""
    attention: list[Float[Tensor, "b head token token"]]
    """A of every layer: a row per query, which sums to 1."""
    normed: list[Float[Tensor, "b token width"]]
    """Input of every layer's attention: the block's input after ln_1."""
    beta: Float[Tensor, "b j"]
    """beta of the tokens that the output is read from (towers/tower.py)."""
    grid: tuple[int, int]
    """Rows and columns of patches."""
    prefix: int = 1
    """Number of tokens before the patches."""
    tokens: slice = slice(0, 1)
    """The tokens that the output is read from."""


def attention_pass(visual: nn.Module | Tower, image: Float[Tensor, "b 3 y x"], gradients: bool = False) -> AttentionPass:
    """Compute M(I) by the tower's own modules, except attention, whose weights modules do not return.

    Args:
        gradients: Keep the graph, so that M(I) can be differentiated with respect to every layer's A and normed.
    """
    tower = tower_of(visual)
    x = tower.embed(image)  # (b, token, width)
    if gradients:  # the weights do not require gradients, so the embeddings must
        x = x.detach().requires_grad_()
    attention, normed = [], []
    for block in tower.blocks:
        u = x if block.norm_1 is None else block.norm_1(x)
        q, k, v = block.attention.qkv(u)  # each (b, head, token, e)
        A = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)  # (b, head, token, token)
        x = block.add_attention(x, (A @ v).transpose(1, 2).flatten(2))  # (b, head, token, e) -> (b, token, width)
        x = block.add_mlp(x)
        attention.append(A)
        normed.append(u)
    beta, grid = tower.readout.beta(x.detach(), tower.final_norm), patch_grid(tower, image)
    return AttentionPass(tower.finish(x), attention, normed, beta, grid, tower.prefix, tower.readout.tokens)


def patch_grid(tower: Tower, image: Float[Tensor, "b 3 y x"]) -> tuple[int, int]:
    """Rows and columns of patches for images of this size."""
    rows, columns = tower.stride
    return image.shape[-2] // rows, image.shape[-1] // columns


def raw_attention(
    attention: Sequence[Float[Tensor, "b head token token"]], prefix: int = 1, tokens: slice = slice(0, 1)
) -> Float[Tensor, "b patch"]:
    """Attention to the patches in the last layer, mean over heads and over the tokens that the output is read from."""
    return attention[-1][:, :, tokens, prefix:].mean((1, 2))


def rollout(
    attention: Sequence[Float[Tensor, "b head token token"]], prefix: int = 1, tokens: slice = slice(0, 1)
) -> Float[Tensor, "b patch"]:
    """Attention rollout (Abnar and Zuidema 2020): R = A^L … A^1 with A^l = (mean over heads + I) / 2."""
    identity = torch.eye(attention[0].shape[-1], dtype=attention[0].dtype, device=attention[0].device)
    R = identity.expand(len(attention[0]), -1, -1)  # (b, token, token)
    for A in attention:
        R = (A.mean(1) + identity) / 2 @ R
    return R[:, tokens, prefix:].mean(1)


def gradcam(forward: AttentionPass, t: Float[Tensor, "b d"]) -> Float[Tensor, "b patch"]:
    """GradCAM (Selvaraju et al. 2017) on the last block's input x after ln_1, the usual choice for ViTs.

    The weight of a channel is the mean of dy/dx over the patches. The map is the positive part of the weighted sum of channels.
    """
    x = forward.normed[-1]
    (gradient,) = torch.autograd.grad((forward.embedding * t).sum(), x, retain_graph=True)  # (b, token, width)
    weight = gradient[:, forward.prefix :].mean(1)  # (b, token, width) -> (b, width)
    return torch.einsum("bpw,bw->bp", x[:, forward.prefix :], weight).relu().detach()


def chefer(forward: AttentionPass, t: Float[Tensor, "b d"]) -> Float[Tensor, "b patch"]:
    """Generic attention explainability (Chefer et al. 2021, Eqs. 5 and 6): R = I, then R <- R + mean_h (dy/dA * A)^+ R."""
    gradients = torch.autograd.grad((forward.embedding * t).sum(), forward.attention, retain_graph=True)
    A = forward.attention[0]
    R = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device).expand(len(A), -1, -1)  # (b, token, token)
    for A, gradient in zip(forward.attention, gradients, strict=True):
        R = R + (gradient * A).relu().mean(1) @ R  # (b, head, token, token) -> (b, token, token)
    return R[:, forward.tokens, forward.prefix :].mean(1).detach()


LAYERS = 4  # as in the paper: the direct effect of earlier attention layers is close to 0


def direct_effects(
    visual: nn.Module | Tower, forward: AttentionPass, t: Float[Tensor, "b text d"], layers: int = LAYERS
) -> Float[Tensor, "b text token"]:
    """Return each token's share of <M(I), t> through the last `layers` attention layers, with the shares of value biases."""
    tower = tower_of(visual)
    u = readout(tower, t)  # (b, text, width)
    total = torch.zeros(1, dtype=t.dtype, device=t.device)
    for block, A, normed in list(zip(tower.blocks, forward.attention, forward.normed, strict=True))[-layers:]:
        v = block.attention.qkv(normed)[2]  # (b, head, token, e)
        rows = A[:, :, forward.tokens]  # (b, head, j, token)
        text, sigma = _readout_of_values(block, u, (rows @ v).transpose(1, 2).flatten(2))
        a = torch.einsum("bj,bhji->bhi", (forward.beta / sigma).to(v), rows)
        text = text.unflatten(-1, (block.attention.heads, -1))  # (b, text, head, e)
        total = total + torch.einsum("bhi,bhie,bthe->bti", a, v, text)
    return total


def _readout_of_values(
    block: Block, u: Float[Tensor, "b text width"], values: Float[Tensor, "b j e"]
) -> tuple[Float[Tensor, "b text e"], Float[Tensor, "b j"]]:
    """u taken back through LayerScale, W_O and the gains of the LayerNorms around it, and the product of their sigmas.

    Args:
        values: Of all heads, one after the other, at the tokens j.
    """
    inner, norm = block.attention.inner, block.norm_attn
    sigma = values.new_ones(values.shape[:2])
    u = u if block.ls_1 is None else u * block.ls_1
    if norm is not None:
        u = _through_norm(norm, u)
        sigma = sigma * deviation(block.attention.output(values if inner is None else inner(values)), norm)
    text = u @ block.attention.output.weight  # (b, text, head e): in the space of the heads' values
    if inner is None:
        return text, sigma
    return _through_norm(inner, text), sigma * deviation(values, inner)


def _through_norm(norm: nn.LayerNorm, u: Float[Tensor, "b text w"]) -> Float[Tensor, "b text w"]:
    """u taken back through a LayerNorm without its sigma."""
    u = u * norm_gain(norm, u).to(u)
    return u - u.mean(-1, keepdim=True)  # LayerNorm subtracts the mean over the width


def readout(tower: Tower, t: Float[Tensor, "b text d"]) -> Float[Tensor, "b text width"]:
    """Vector u for each text, such that beta_j <u, x_j> is the contribution to <M(I), t> of a share x_j of the last tokens.

    u is t taken back through the projection P and the final LayerNorm, whose sigma is in beta.
    """
    return _through_norm(tower.final_norm, t @ tower.projection.T.to(t))  # (b, text, d) -> (b, text, width)
