"""Forward pass of the image tower in training: on fewer tokens, and with the inner paths that the loss needs.

The modules are open_clip's; only the order of computation differs, so that a training step can drop background tokens, skip
tokens that the class token of the last block never reads, and return the second-order path.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from cliptools.models.clip_parts import ResidualAttentionBlock, VisionTransformer

READERS = 2  # number of last blocks whose attention reads the output of the late MLPs


class Reader(NamedTuple):
    """The input of a block's attention, normalised, and the class token's attention row."""

    block: ResidualAttentionBlock
    normed: Float[Tensor, "b token width"]
    sigma: Float[Tensor, "b token 1"]
    attention: Float[Tensor, "b head token"]


class Trace(NamedTuple):
    """The embedding and the inner values of a forward pass."""

    embedding: Float[Tensor, "b d"]
    sigma_post: Float[Tensor, "b 1"]
    readers: list[Reader]
    neurons: list[Float[Tensor, "b token neuron"]]
    """Activations of the MLPs that the readers read: layers L-3 and L-2."""
    mlps: list[Float[Tensor, "b token width"]]
    """The outputs of these MLPs."""


def forward(visual: VisionTransformer, image: Float[Tensor, "b 3 y x"], kept: Int[Tensor, "b kept"] | None = None) -> Trace:
    """Run the tower on the class token and the patch tokens `kept` (all if None)."""
    x = visual._embeds(image)  # (b, 1 + patches, width)
    if kept is not None:
        x = torch.cat([x[:, :1], x[:, 1:].gather(1, kept[..., None].expand(-1, -1, x.shape[-1]))], 1)  # (b, token, width)
    blocks = list(visual.transformer.resblocks)
    readers, neurons, mlps = [], [], []
    for layer, block in enumerate(blocks):
        last = layer == len(blocks) - 1
        normed = block.ln_1(x)
        q, k, v = _heads(block.attn, normed)  # each (b, head, token, width / head)
        if layer >= len(blocks) - READERS:
            row = (q[:, :, :1] @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).float().softmax(-1)[:, :, 0]  # (b, head, token)
            readers.append(Reader(block, normed, _sigma(x, block.ln_1), row))
        if last:  # nothing reads the patch tokens after this block
            x, q = x[:, :1], q[:, :, :1]
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # (b, token, width)
        x = x + block.attn.out_proj(mixed)
        p = block.mlp.gelu(block.mlp.c_fc(block.ln_2(x)))  # (b, token, neuron)
        written = block.mlp.c_proj(p)  # (b, token, width)
        x = x + written
        if not last and layer >= len(blocks) - READERS - 1:
            neurons.append(p)
            mlps.append(written)
    class_token = x[:, 0]
    return Trace(visual.ln_post(class_token) @ visual.proj, _sigma(class_token, visual.ln_post), readers, neurons, mlps)


def token_readout(visual: VisionTransformer, reader: Reader) -> Float[Tensor, "b token d"]:
    """Return each token's whole residual state in the joint space, through the reader's value and output matrices."""
    width = reader.normed.shape[-1]
    attn = reader.block.attn
    value = F.linear(reader.normed, attn.in_proj_weight[2 * width :], attn.in_proj_bias[2 * width :])
    return visual.ln_post(attn.out_proj(value)) @ visual.proj


def path_values(reader: Reader, written: Float[Tensor, "b token width"]) -> Float[Tensor, "b token width"]:
    """Return W_V (gamma * m / sigma): one MLP's output at each token as the reader's value vectors, heads concatenated."""
    width = written.shape[-1]
    scaled = written.float() * (reader.block.ln_1.weight / reader.sigma)
    return F.linear(scaled, reader.block.attn.in_proj_weight[2 * width :])


def path_output(visual: VisionTransformer, reader: Reader, value: Float[Tensor, "*b width"]) -> Float[Tensor, "*b d"]:
    """Return P (gamma_post * W_O v): value vectors in the joint space, without the final factor 1 / sigma."""
    return (F.linear(value, reader.block.attn.out_proj.weight) * visual.ln_post.weight) @ visual.proj


def reader_matrix(visual: VisionTransformer, block: ResidualAttentionBlock) -> Float[Tensor, "d width"]:
    """Return P gamma_post W_O W_V gamma: a block's path from its input to the joint space, without attention and divisors."""
    width = block.attn.out_proj.weight.shape[0]
    value = block.attn.in_proj_weight[2 * width :] * block.ln_1.weight  # (width, width)
    return visual.proj.T @ (visual.ln_post.weight[:, None] * (block.attn.out_proj.weight @ value))


def second_order_sum(visual: VisionTransformer, trace: Trace) -> Float[Tensor, "b d"]:
    """Return the sum of the second-order effects of the traced MLPs' neurons (paper 1, Eq. 5): the path's part of the output."""
    total = torch.zeros_like(trace.embedding, dtype=torch.float32)
    for i, written in enumerate(trace.mlps):
        for reader in trace.readers[i:]:  # MLP L-3 is read by the last two blocks, MLP L-2 by the last
            value = path_values(reader, written).unflatten(-1, (reader.attention.shape[1], -1))  # (b, token, head, e)
            mixed = torch.einsum("bht,bthe->bhe", reader.attention, value.float()).flatten(1)  # (b, width)
            total = total + path_output(visual, reader, mixed)
    return total / trace.sigma_post


def _heads(attn: nn.MultiheadAttention, normed: Float[Tensor, "b token width"]) -> tuple[Tensor, Tensor, Tensor]:
    qkv = F.linear(normed, attn.in_proj_weight, attn.in_proj_bias)
    q, k, v = qkv.unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)  # each (b, head, token, e)
    return q, k, v


def _sigma(x: Float[Tensor, "*b width"], norm: nn.LayerNorm) -> Float[Tensor, "*b 1"]:
    return (x.float().var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
