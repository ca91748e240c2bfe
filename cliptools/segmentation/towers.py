"""Image towers as segmentation sees them: methods by kind of tower, picture sizes, and a CLIP-ResNet's pooling token by token.

Positional embeddings are resized for pictures of other sizes than the tower was trained on. Three baselines give every token of
the pooling a feature of its own and compare it with texts.

The attention sink of CLIP-ResNets (arXiv 2509.19943) is a corner token that stands out in every image and depends on none; in
RN50x16 the bottom-right one. Whether a model has it is measured over images, not assumed: a sink is the token of largest norm, or
of most attention, in nearly every image, and far above the middle one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from cliptools.devices import to_float64
from cliptools.effects.resnet_pooling import supported_resnet, trace_pool
from cliptools.effects.select import pools_by_attention
from cliptools.effects.vit_second_order import supported_tower
from cliptools.errors import UsageError
from cliptools.models.clip_parts import ModifiedResNet
from cliptools.segmentation import RESNET, VIT


def is_resnet(clip: nn.Module) -> bool:
    """Return whether the methods are those of neuron-head pairs; else they are those of a ViT's neurons.

    Raises:
        ModelError: a tower that neither is for.
    """
    if pools_by_attention(clip):
        supported_resnet(clip)
        return True
    supported_tower(clip)
    return False


def method_of(asked: str | None, resnet: bool) -> str:
    """The method asked for, by default the first of the tower's own.

    Raises:
        UsageError: a method of the other kind of tower.
    """
    own, kind = (RESNET, "CLIP-ResNet") if resnet else (VIT, "CLIP-ViT")
    if asked is not None and asked not in own:
        raise UsageError(f"--method {asked}: the bundle's model is a {kind}, expected one of {', '.join(own)}")
    return asked or own[0]


RESNET_STRIDE = 32  # pixels to a token of the attention pooling, whatever the depth and width


def native_size(visual: Any) -> tuple[int, int]:
    """Height and width of the pictures that the tower was trained on."""
    size = visual.image_size
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def token_stride(visual: Any) -> tuple[int, int]:
    """Pixels of a picture, down and across, that a token stands for."""
    if isinstance(visual, ModifiedResNet):
        return RESNET_STRIDE, RESNET_STRIDE
    down, across = visual.patch_size
    return int(down), int(across)


def resized_positions(
    positions: Float[Tensor, "token width"], grid: tuple[int, int], rows: int, columns: int
) -> Float[Tensor, "new_token width"]:
    """The first token (class or mean) as it is, the embeddings of the others brought from one grid to another (bicubic)."""
    wide = positions if positions.dtype == torch.float64 else positions.float()  # half precision has no bicubic
    patches = wide[1:].T.unflatten(1, grid)[None]  # (1, width, row, column)
    wanted = torch.nn.functional.interpolate(patches, size=(rows, columns), mode="bicubic", antialias=True)
    return torch.cat([positions[:1], wanted[0].flatten(1).T.to(positions.dtype)])


@contextmanager
def on_grid(visual: Any, rows: int, columns: int) -> Iterator[None]:
    """The tower (open_clip's VisionTransformer or ModifiedResNet) takes pictures of rows × columns tokens within the block."""
    holder = visual.attnpool if isinstance(visual, ModifiedResNet) else visual
    height, width = native_size(visual)
    down, across = token_stride(visual)
    grid = height // down, width // across
    if grid == (rows, columns):
        yield
        return
    kept = holder.positional_embedding
    resized = resized_positions(kept.detach(), grid, rows, columns)
    holder.positional_embedding = nn.Parameter(resized, requires_grad=False)
    try:
        yield
    finally:
        holder.positional_embedding = kept


class PoolTokens(NamedTuple):
    """Tokens after one forward pass. Token 0 of `x` and `a` is the mean token; `Z` has the grid alone."""

    Z: Float[Tensor, "b patch neuron"]
    """Channels of the last block after ReLU, without positional embeddings."""
    x: Float[Tensor, "b token neuron"]
    """The same channels with positional embeddings."""
    a: Float[Tensor, "b head token"]
    """The mean token's attention."""
    embedding: Float[Tensor, "b d"]
    """M(I), not normalised."""
    grid: tuple[int, int]
    """Rows and columns of tokens."""


def pool_tokens(visual: ModifiedResNet, image: Float[Tensor, "b 3 y x"]) -> PoolTokens:
    """One forward pass up to the pooling.

    Raises:
        ModelError: pictures of another size than the positional embeddings are for.
    """
    traced = trace_pool(visual, image)
    Z = traced.x[:, 1:] - visual.attnpool.positional_embedding[1:].to(traced.x.dtype)
    return PoolTokens(Z, traced.x, traced.attention, traced.embedding, token_grid(visual, image))


def token_grid(visual: ModifiedResNet, image: Float[Tensor, "b 3 y x"]) -> tuple[int, int]:
    """Rows and columns of tokens that the tower makes of these images."""
    down, across = token_stride(visual)
    return image.shape[-2] // down, image.shape[-1] // across


def maskclip(visual: ModifiedResNet, seen: PoolTokens) -> Float[Tensor, "b patch d"]:
    """MaskCLIP (Zhou et al. 2022): each token by the value path alone, W_O (W_V z_i + b_V) + b_O, at unit norm.

    Without positional embeddings, which its public code leaves out for ResNets.
    """
    return _by_value(visual, seen.Z)


def values(visual: ModifiedResNet, seen: PoolTokens) -> Float[Tensor, "b patch d"]:
    """Each token x_i, with positional embeddings, by the value path: the pooling's output if all heads attended to it alone."""
    return _by_value(visual, seen.x[:, 1:])


def qqkk(visual: ModifiedResNet, seen: PoolTokens) -> Float[Tensor, "b patch d"]:
    """Correlative self-attention (SCLIP, Wang et al. 2024): values gathered by softmax(q q') + softmax(k k'), at unit norm."""
    pool = visual.attnpool
    q, k, v = (_heads(pool, layer, seen.x) for layer in (pool.q_proj, pool.k_proj, pool.v_proj))
    scale = q.shape[-1] ** -0.5
    A = sum((y @ y.transpose(-1, -2) * scale).softmax(-1) for y in (q, k))  # (b, head, token, token)
    gathered = (A @ v).transpose(1, 2).flatten(2)  # (b, token, neuron)
    return F.normalize(_linear(pool.c_proj, gathered[:, 1:]), dim=-1)


def _by_value(visual: ModifiedResNet, tokens: Float[Tensor, "b patch neuron"]) -> Float[Tensor, "b patch d"]:
    pool = visual.attnpool
    return F.normalize(_linear(pool.c_proj, _linear(pool.v_proj, tokens)), dim=-1)


def _heads(pool: nn.Module, layer: nn.Linear, x: Float[Tensor, "b token neuron"]) -> Float[Tensor, "b head token e"]:
    return _linear(layer, x).unflatten(-1, (pool.num_heads, -1)).transpose(1, 2)


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """In the type of x: what is computed of the tokens is in float32 at least, the model may be in less."""
    return F.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))


MOSTLY = 0.75  # of the images: there the corner is ahead of all other tokens
FAR_OUT = 2.0  # times the middle token


class Corner(NamedTuple):
    """Comparison of the bottom-right token with the others, over images."""

    norm: float
    """Median over images of its norm over the middle token's."""
    norm_first: float
    """Share of the images in which no token has a larger norm."""
    attention: float
    """As `norm`, of the mean token's attention, mean over heads."""
    attention_first: float

    @property
    def is_sink(self) -> bool:
        """True if the token stands far out, by norm or by attention."""
        norm, attention = self.norm_first >= MOSTLY, self.attention_first >= MOSTLY
        return bool((norm and self.norm >= FAR_OUT) or (attention and self.attention >= FAR_OUT))


def corner_of(seen: PoolTokens) -> Corner:
    """Measure the bottom-right token."""
    norm, attention = seen.Z.norm(dim=-1), seen.a[..., 1:].mean(1)  # (b, patch)
    return Corner(*_stands_out(norm), *_stands_out(attention))


def _stands_out(value: Float[Tensor, "b patch"]) -> tuple[float, float]:
    """The last token's value over the middle one's, and how often none is larger."""
    last, middle = value[:, -1], value.median(1).values
    ratio = torch.where(middle > 0, last / middle.clamp(min=1e-30), 1.0)
    return float(ratio.median()), float(to_float64(last >= value.amax(1)).mean())


def repaired(maps: Float[Tensor, "b patch channel"], grid: tuple[int, int]) -> Float[Tensor, "b patch channel"]:
    """The bottom-right token replaced by the mean of its west, north and north-west neighbours.

    Raises:
        UsageError: a grid without such neighbours.
    """
    rows, columns = grid
    if min(grid) < 2:
        raise UsageError(f"--sink: a grid of {rows} × {columns} tokens has no neighbours to repair the corner from")
    maps = maps.clone()
    maps[:, -1] = (maps[:, -2] + maps[:, -1 - columns] + maps[:, -2 - columns]) / 3
    return maps
