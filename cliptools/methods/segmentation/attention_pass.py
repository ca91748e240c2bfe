"""A ViT's forward pass with its attention written out, for the methods that look inside it."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from cliptools.ground.clip_parts import VisionTransformer


class AttentionPass(NamedTuple):
    """What one forward pass computes on its way, by layer."""

    embedding: Float[Tensor, "b d"]
    """M(I), not normalised."""
    attention: list[Float[Tensor, "b head token token"]]
    """A: a row per query, which sums to 1."""
    normed: list[Float[Tensor, "b token width"]]
    """What attention reads: the block's input after ln_1."""
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
