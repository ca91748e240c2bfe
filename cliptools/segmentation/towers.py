"""Image towers for segmentation: kind and sizes of a tower, and the tokens of a CLIP-ResNet's attention pooling.

Both kinds. `is_resnet` and `choose_method` choose methods by the kind of tower. `on_grid` resizes positional embeddings for
pictures of another size than the tower was trained on.

CLIP-ResNets. `pool_tokens` returns the tokens of the attention pooling, from which the methods of resnet_methods.py compute their
maps. Three baselines, `maskclip`, `values` and `qqkk`, compute a feature of every token, which is compared with texts.

Attention sink of CLIP-ResNets (arXiv 2509.19943): a corner token that stands out in every image, whatever the image shows; in
RN50x16 the bottom-right one. Whether a model has a sink is measured over images, not assumed. A sink has the largest norm, or the
most attention, of all tokens in nearly every image, and far more than the middle token. `repair_corner` replaces that token.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from cliptools.devices import to_float64
from cliptools.errors import UsageError
from cliptools.models.clip_parts import ModifiedResNet
from cliptools.segmentation import BY_NEURONS, PAIRS_OF_TOKENS, RESNET, VIT
from cliptools.towers.kinds import supported_tower, tower_of
from cliptools.towers.open_clip_vit import with_positions
from cliptools.unit_effects.resnet_pooling import supported_resnet, trace_pool
from cliptools.unit_effects.select import pools_by_attention


def is_resnet(clip: nn.Module) -> bool:
    """Return True if the tower is a CLIP-ResNet, whose methods use neuron-head pairs; False if it is a ViT.

    Raises:
        ModelError: neither kind of method supports the tower.
    """
    if pools_by_attention(clip):
        supported_resnet(clip)
        return True
    supported_tower(clip)
    return False


def choose_method(name: str | None, clip: nn.Module, pairs: bool = False) -> str:
    """The name of a method, by default the first one of the kind of tower.

    Args:
        name: The value of --method.
        pairs: The units are neuron-head pairs, which towers of two kinds have.

    Raises:
        UsageError: a method of another kind of tower.
    """
    methods: tuple[str, ...] = RESNET
    kind = "CLIP-ResNet"
    if not is_resnet(clip):
        methods, kind = VIT, "CLIP-ViT"
        if supported_tower(clip).pooling is not None:
            methods, units = (PAIRS_OF_TOKENS, "pairs") if pairs else (BY_NEURONS, "neurons")
            kind = f"ViT that pools by attention, with {units}"
    if name is not None and name not in methods:
        raise UsageError(f"--method {name}: the bundle's model is a {kind}, expected one of {', '.join(methods)}")
    return name or methods[0]


RESNET_STRIDE = 32  # pixels per token of the attention pooling, at any depth and width


def native_size(visual: Any) -> tuple[int, int]:
    """Height and width of the pictures that the tower was trained on."""
    size = visual.image_size
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def token_stride(visual: Any) -> tuple[int, int]:
    """Pixels per token, down and across."""
    if isinstance(visual, ModifiedResNet):
        return RESNET_STRIDE, RESNET_STRIDE
    return tower_of(visual).stride


@contextmanager
def on_grid(visual: Any, rows: int, columns: int) -> Iterator[None]:
    """Within the block, the tower takes pictures of rows × columns tokens."""
    if not isinstance(visual, ModifiedResNet):
        with tower_of(visual).on_grid(rows, columns):
            yield
        return
    height, width = native_size(visual)
    with with_positions(visual.attnpool, (height // RESNET_STRIDE, width // RESNET_STRIDE), rows, columns):
        yield


class PoolTokens(NamedTuple):
    """Tokens of one forward pass. Token 0 of `x` and `a` is the mean token; `Z` has no mean token."""

    Z: Float[Tensor, "b patch neuron"]
    """Channels of the last block after ReLU, without positional embeddings."""
    x: Float[Tensor, "b token neuron"]
    """The same channels with positional embeddings."""
    a: Float[Tensor, "b head token"]
    """Attention of the mean token to every token."""
    embedding: Float[Tensor, "b d"]
    """M(I), not normalised."""
    grid: tuple[int, int]
    """Rows and columns of tokens."""


def pool_tokens(visual: ModifiedResNet, image: Float[Tensor, "b 3 y x"]) -> PoolTokens:
    """The tokens of the attention pooling, from one forward pass.

    Raises:
        ModelError: the size of the pictures does not fit the positional embeddings.
    """
    traced = trace_pool(visual, image)
    Z = traced.x[:, 1:] - visual.attnpool.positional_embedding[1:].to(traced.x.dtype)  # (b, patch, neuron)
    return PoolTokens(Z, traced.x, traced.attention, traced.embedding, token_grid(visual, image))


def token_grid(visual: ModifiedResNet, image: Float[Tensor, "b 3 y x"]) -> tuple[int, int]:
    """Rows and columns of tokens for images of this size."""
    down, across = token_stride(visual)
    return image.shape[-2] // down, image.shape[-1] // across


def maskclip(visual: ModifiedResNet, tokens: PoolTokens) -> Float[Tensor, "b patch d"]:
    """MaskCLIP (Zhou et al. 2022): each token through the value path alone, W_O (W_V z_i + b_V) + b_O, at unit norm.

    z_i has no positional embedding, as in the public code of MaskCLIP for ResNets.
    """
    return _by_value(visual, tokens.Z)


def values(visual: ModifiedResNet, tokens: PoolTokens) -> Float[Tensor, "b patch d"]:
    """Each token x_i, with positional embedding, through the value path, at unit norm.

    This is the direction of the pooling's output if all heads attended to that token alone.
    """
    return _by_value(visual, tokens.x[:, 1:])


def qqkk(visual: ModifiedResNet, tokens: PoolTokens) -> Float[Tensor, "b patch d"]:
    """Correlative self-attention (SCLIP, Wang et al. 2024): values weighted by softmax(q q') + softmax(k k'), at unit norm."""
    pool = visual.attnpool
    q, k, v = (_heads(pool, layer, tokens.x) for layer in (pool.q_proj, pool.k_proj, pool.v_proj))  # each (b, head, token, e)
    scale = q.shape[-1] ** -0.5
    A = sum((y @ y.transpose(-1, -2) * scale).softmax(-1) for y in (q, k))  # (b, head, token, token)
    gathered = (A @ v).transpose(1, 2).flatten(2)  # (b, head, token, e) -> (b, token, neuron)
    return F.normalize(_linear(pool.c_proj, gathered[:, 1:]), dim=-1)  # (b, token, neuron) -> (b, patch, d)


def _by_value(visual: ModifiedResNet, tokens: Float[Tensor, "b patch neuron"]) -> Float[Tensor, "b patch d"]:
    pool = visual.attnpool
    return F.normalize(_linear(pool.c_proj, _linear(pool.v_proj, tokens)), dim=-1)


def _heads(pool: nn.Module, layer: nn.Linear, x: Float[Tensor, "b token neuron"]) -> Float[Tensor, "b head token e"]:
    # (b, token, neuron) -> (b, head, token, e)
    return _linear(layer, x).unflatten(-1, (pool.num_heads, -1)).transpose(1, 2)


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """Apply a layer in the type of x: tokens are float32 or float64, while the model may have half precision."""
    return F.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))


SINK_SHARE = 0.75  # share of the images in which a sink has the largest value of all tokens
SINK_RATIO = 2.0  # value of a sink over that of the middle token


class Corner(NamedTuple):
    """Comparison of the bottom-right token with the other tokens, over images."""

    norm: float
    """Median over images of the ratio of its norm to the median norm of the tokens."""
    norm_first: float
    """Share of the images in which no token has a larger norm."""
    attention: float
    """As `norm`, for the attention of the mean token, averaged over heads."""
    attention_first: float
    """As `norm_first`, for the same attention."""

    @property
    def is_sink(self) -> bool:
        """True if norm or attention reaches both SINK_SHARE and SINK_RATIO."""
        norm, attention = self.norm_first >= SINK_SHARE, self.attention_first >= SINK_SHARE
        return bool((norm and self.norm >= SINK_RATIO) or (attention and self.attention >= SINK_RATIO))


def corner_of(tokens: PoolTokens) -> Corner:
    """Compare the bottom-right token with the other tokens, by norm and by attention."""
    norm, attention = tokens.Z.norm(dim=-1), tokens.a[..., 1:].mean(1)  # both (b, patch)
    return Corner(*_compare_last(norm), *_compare_last(attention))


def _compare_last(value: Float[Tensor, "b patch"]) -> tuple[float, float]:
    """Median ratio of the last token's value to the middle one's, and share of the images in which no value is larger."""
    last, middle = value[:, -1], value.median(1).values
    ratio = torch.where(middle > 0, last / middle.clamp(min=1e-30), 1.0)
    return float(ratio.median()), float(to_float64(last >= value.amax(1)).mean())


def repair_corner(maps: Float[Tensor, "b patch channel"], grid: tuple[int, int]) -> Float[Tensor, "b patch channel"]:
    """Maps whose bottom-right token is the mean of its west, north and north-west neighbours.

    Raises:
        UsageError: a grid of a single row or column, which has no such neighbours.
    """
    rows, columns = grid
    if min(grid) < 2:
        raise UsageError(f"--sink: a grid of {rows} × {columns} tokens has no neighbours to repair the corner from")
    maps = maps.clone()
    maps[:, -1] = (maps[:, -2] + maps[:, -1 - columns] + maps[:, -2 - columns]) / 3
    return maps
