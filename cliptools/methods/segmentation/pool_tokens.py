"""A CLIP-ResNet's last block and its attention pooling, token by token of the grid, for the methods that read them."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from cliptools.ground.clip_parts import ModifiedResNet
from cliptools.ground.position_grid import token_stride
from cliptools.methods.resnet_paths import trace_pool


class PoolTokens(NamedTuple):
    """What one forward pass leaves of each token. Of `x` and `a`, token 0 is the mean; `Z` has the grid alone."""

    Z: Float[Tensor, "b patch neuron"]
    """Channels of the last block after ReLU, without positional embeddings."""
    x: Float[Tensor, "b token neuron"]
    """With them."""
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
