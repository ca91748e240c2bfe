"""Image towers as the shares of a margin need them: passes with the scalars of units and heads, and maps of where a unit acts.

An `ExplainedTower` has the effect of the units and the direct effects of all heads. Its pass over some images has the scalars S
of units (unit_effects/factored.py, Eq. 1), also of each token alone: S is a sum over tokens, so that a pass with a single token
gives that token's part. Heads are numbered through the tower, and `path_heads` names the head of each path of a unit.
margin_passes.py has the towers.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from cliptools.unit_effects.factored import FactoredEffect, UnitBlock, along_of, unit_blocks_of


class HeadName(NamedTuple):
    """A head of a tower."""

    layer: int
    head: int


class ForwardPass(ABC):
    """One forward pass over b images."""

    embedding: Float[Tensor, "b d"]
    """M(I), not normalised; in float32 at least."""
    head_scalars: list[Float[Tensor, "b head e"]]
    """S of the direct effects of all heads, one tensor for each layer of `ExplainedTower.head_blocks`."""
    parts: dict[str, Float[Tensor, "b d"]]
    """Sums of the effects of the parts that are neither units nor, where heads carry the units' effects, heads."""

    @abstractmethod
    def scalars(self, block: UnitBlock) -> Float[Tensor, "b n k"]:
        """S of the block's units."""

    @abstractmethod
    def token_scalars(self, image: int, block: UnitBlock) -> Float[Tensor, "token n k"]:
        """Parts of S that come from each token of one image; a class token or mean token is the first."""


class ExplainedTower(ABC):
    """An image tower, with the units to explain by and its heads."""

    effect: FactoredEffect
    """The effect of the units."""
    layers: Sequence[int]
    """All layers that have units."""
    heads: list[HeadName]
    head_effect: FactoredEffect
    """Direct effects of the heads."""
    head_blocks: list[UnitBlock]
    """All heads, in the order of `heads`."""
    grid: tuple[int, int]
    """Rows and columns of tokens."""
    prefix: int = 1
    """Number of tokens before those of the grid: a class token with registers, a mean token, or none."""
    carried: bool = False
    """True if the effects of the units are parts of what `heads` add to the output, as second-order effects are."""

    @abstractmethod
    def read(self, image: Float[Tensor, "b 3 y x"]) -> ForwardPass:
        """One forward pass over these images."""

    @abstractmethod
    def path_heads(self, block: UnitBlock) -> Int[Tensor, "n k"]:
        """Number in `heads` of the head of each path."""


@torch.inference_mode()
def unit_maps(
    tower: ExplainedTower, forward: ForwardPass, unit: Int[Tensor, " 3"], r: Float[Tensor, " d"] | None
) -> Float64[Tensor, "b row column"]:
    """Where a unit acts: parts of <phi, r> from every token of the grid, with the sign by which the sum over them is positive.

    Together with the parts of the tokens before the grid, these add up to <phi, r>, times the sign.

    Args:
        forward: The tower's pass over the b images.
        r: Direction of the unit; None for a unit with a single path, whose D is its direction.

    Raises:
        StreamError: a unit that the model does not have.
    """
    blocks, _ = unit_blocks_of(tower.effect, unit[None])
    weight = torch.ones(1, dtype=torch.float64) if r is None else along_of(tower.effect, blocks[0], r)[0]  # (k,)
    tokens = [
        forward.token_scalars(number, blocks[0])[:, 0].cpu().double() @ weight.cpu().double()
        for number in range(len(forward.embedding))
    ]
    maps = torch.stack(tokens)[:, tower.prefix :]  # (b, row column)
    sign = torch.where(maps.sum(1, keepdim=True) < 0, -1.0, 1.0)
    return (maps * sign).unflatten(1, tower.grid)
