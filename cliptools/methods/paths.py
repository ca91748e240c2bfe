"""What a factored effect is to everything that measures or uses it.

An effect is factored when phi_n(I) = sum over k of S[n, k](I) D[n, k, :], the image in S and the weights in D. What S and D
are is the business of `Paths`, one class for each kind of unit and effect.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

UNITS_AT_ONCE = 256  # for which D is held
ROWS_AT_ONCE = 8192  # of D, where units have few


Hooks = list[tuple[nn.Module, Callable[..., Tensor | None]]]
"""Forward hooks, and the modules they are for."""


class Slab(NamedTuple):
    """Some units of one layer."""

    layer: int
    neurons: Int[Tensor, "n"]
    """By their numbers within the layer, which are those of neurons where units are neurons."""


@runtime_checkable
class Paths(Protocol):
    """A factored effect on one model."""

    def size(self, layer: int) -> tuple[int, int]:
        """Units of the layer and paths per unit."""
        ...

    def units(self, layer: int) -> Int[Tensor, "n 3"]:
        """Layer, neuron and head of the layer's units in order, ascending; -1 for what a unit has not; none of other layers."""
        ...

    def read(
        self, image: Float[Tensor, "b 3 y x"], slabs: Sequence[Slab]
    ) -> tuple[Iterable[Float[Tensor, "b n k"]], Float[Tensor, "b d"]]:
        """S of every slab, each made when its turn comes, and M(I), from one forward pass."""
        ...

    def directions(self, slab: Slab) -> Float[Tensor, "n k d"]:
        """D."""
        ...


@runtime_checkable
class KnowsGram(Protocol):
    """Paths that have the Gram matrices of D without D."""

    def gram(self, slab: Slab) -> Float[Tensor, "n k k"]:
        """G = D D^T."""
        ...


class Listener(NamedTuple):
    """What overhears a forward pass that others may overhear too."""

    hooks: Hooks
    scalars: Callable[[Float[Tensor, "b d"]], Iterable[Float[Tensor, "b n k"]]]
    """Of M(I), when the pass has run: S of every slab, each made when its turn comes."""


@runtime_checkable
class Listens(Protocol):
    """Paths whose S come from hooks on any forward pass."""

    def listen(self, slabs: Sequence[Slab]) -> Listener:
        """What to hook for these slabs."""
        ...


@runtime_checkable
class Sums(Protocol):
    """Paths that have sums of effects over units without D."""

    def total(self, slab: Slab, S: Float[Tensor, "b n k"]) -> Float[Tensor, "b d"]:
        """Sum over the slab's units of sum over k of S[n, k] D[n, k], in the type of S."""
        ...


def wide(x: Tensor) -> Tensor:
    """At least float32: the effects are computed in it even where the model runs in half precision."""
    return x if x.dtype == torch.float64 else x.float()


def scale_of(embedding: Float[Tensor, "b d"], scaled: bool) -> Float[Tensor, "b"]:
    """100 / ||M(I)||, by which effects are multiplied, or ones. In float32 at least."""
    embedding = wide(embedding)
    return 100 / embedding.norm(dim=-1) if scaled else embedding.new_ones(len(embedding))


def slices(units: int, k: int) -> Iterator[slice]:
    """Units a few at a time, with k rows of D each."""
    step = max(UNITS_AT_ONCE, ROWS_AT_ONCE // k)
    return (slice(start, min(start + step, units)) for start in range(0, units, step))


def index_of(numbers: Int[Tensor, "n"], device: torch.device) -> slice | Int[Tensor, "n"]:
    """A slice where the numbers are consecutive: it copies nothing."""
    first, last = int(numbers[0]), int(numbers[-1])
    if last >= first and torch.equal(numbers.cpu(), torch.arange(first, last + 1)):
        return slice(first, last + 1)
    return numbers.to(device)


def neuron_units(layer: int, neurons: Int[Tensor, "n"]) -> Int[Tensor, "n 3"]:
    """Neurons without heads, as units are named."""
    return torch.stack([torch.full_like(neurons, layer), neurons, torch.full_like(neurons, -1)], 1)


def head_units(layer: int, heads: Int[Tensor, "n"]) -> Int[Tensor, "n 3"]:
    """Whole heads, as units are named."""
    return torch.stack([torch.full_like(heads, layer), torch.full_like(heads, -1), heads], 1)


def gram_of(paths: Paths, slab: Slab) -> Float[Tensor, "n k k"]:
    """G = D D^T of a slab whose D may be formed."""
    if isinstance(paths, KnowsGram):
        return paths.gram(slab)
    D = paths.directions(slab)
    return D @ D.transpose(1, 2)
