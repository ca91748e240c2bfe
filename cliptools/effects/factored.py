"""What a factored effect is to everything that measures or uses it.

An effect is factored when phi_n(I) = sum over k of S[n, k](I) D[n, k, :], the image in S and the weights in D. What S and D
are is the business of `FactoredEffect`, one class for each kind of unit and effect.

Sums of effects over units, without a vector for each unit.

    sum over n of phi_n(I) = sum over n and k of S[n, k](I) D[n, k, :]

What carries each path's share to the output is linear and the same for all units of a layer. So the shares are added up before
they are carried: of a ViT's neurons first over n, [b, k, width], then through W_V of each later head and on to the joint
space. Paths that can do so say it (paths.Sums); of others D is formed, a few units at a time.

Norms and projections of effects, from their scalars alone.

Of phi_n(I) = sum_k S[n, k] D[n, k, :] this file gives ||phi_n - b_n|| and <phi_n - b_n, r_n> without forming phi. With D = L Q,
the rows of Q [k, d] orthonormal (so that L L^T = D D^T is the Gram matrix),

    phi - b      = (S L - b Q^T) Q - b_rest,       b_rest = b - b Q^T Q
    ||phi - b||^2 = ||S L - b Q^T||^2 + ||b_rest||^2
    <phi - b, r>  = S (D r) - <b, r>

A unit keeps k x k numbers for it. Differences are taken before squares, so that float32 loses nothing where an image does
little to a unit; b is a mean of effects, so b_rest is rounding.

How much units act on an image beyond their mean, ||phi_n - b_n||, and how far along their direction, <phi_n - b_n, r_n>.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cliptools.devices import back, home
from cliptools.errors import StreamError

UNITS_AT_ONCE = 256  # for which D is held
ROWS_AT_ONCE = 8192  # of D, where units have few


Hooks = list[tuple[nn.Module, Callable[..., Tensor | None]]]
"""Forward hooks, and the modules they are for."""


class UnitBlock(NamedTuple):
    """Some units of one layer."""

    layer: int
    neurons: Int[Tensor, "n"]
    """By their numbers within the layer, which are those of neurons where units are neurons."""


@runtime_checkable
class FactoredEffect(Protocol):
    """A factored effect on one model."""

    def size(self, layer: int) -> tuple[int, int]:
        """Units of the layer and paths per unit."""
        ...

    def units(self, layer: int) -> Int[Tensor, "n 3"]:
        """Layer, neuron and head of the layer's units in order, ascending; -1 for what a unit has not; none of other layers."""
        ...

    def read(
        self, image: Float[Tensor, "b 3 y x"], slabs: Sequence[UnitBlock]
    ) -> tuple[Iterable[Float[Tensor, "b n k"]], Float[Tensor, "b d"]]:
        """S of every slab, each made when its turn comes, and M(I), from one forward pass."""
        ...

    def directions(self, slab: UnitBlock) -> Float[Tensor, "n k d"]:
        """D."""
        ...


@runtime_checkable
class KnowsGram(Protocol):
    """Paths that have the Gram matrices of D without D."""

    def gram(self, slab: UnitBlock) -> Float[Tensor, "n k k"]:
        """G = D D^T."""
        ...


class Listener(NamedTuple):
    """What overhears a forward pass that others may overhear too."""

    hooks: Hooks
    scalars: Callable[[Float[Tensor, "b d"]], Iterable[Float[Tensor, "b n k"]]]
    """Of M(I), when the pass has run: S of every slab, each made when its turn comes."""


@runtime_checkable
class Listens(Protocol):
    """FactoredEffect whose S come from hooks on any forward pass."""

    def listen(self, slabs: Sequence[UnitBlock]) -> Listener:
        """What to hook for these slabs."""
        ...


@runtime_checkable
class Sums(Protocol):
    """Paths that have sums of effects over units without D."""

    def total(self, slab: UnitBlock, S: Float[Tensor, "b n k"]) -> Float[Tensor, "b d"]:
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


def gram_of(paths: FactoredEffect, slab: UnitBlock) -> Float[Tensor, "n k k"]:
    """G = D D^T of a slab whose D may be formed."""
    if isinstance(paths, KnowsGram):
        return paths.gram(slab)
    D = paths.directions(slab)
    return D @ D.transpose(1, 2)


def total_of(paths: FactoredEffect, slab: UnitBlock, S: Float[Tensor, "b n k"]) -> Float[Tensor, "b d"]:
    """Sum over the slab's units of phi_n = sum_k S[n, k] D[n, k], in the type of S."""
    if isinstance(paths, Sums):
        return paths.total(slab, S)
    total: Tensor | float = 0.0
    for of in slices(S.shape[1], S.shape[2]):
        D = paths.directions(UnitBlock(slab.layer, slab.neurons[of])).to(S)  # (n, k, d)
        total = total + S[:, of].flatten(1) @ D.flatten(0, 1)
    assert isinstance(total, Tensor)  # a slab has units
    return total


class Norms(NamedTuple):
    """What centred norms of some units of a layer need; j = min(k, d)."""

    L: Float[Tensor, "n k j"]
    """Of D = L Q."""
    b: Float[Tensor, "n j"]
    """b Q^T."""
    rest: Float[Tensor, " n"]
    """||b_rest||^2."""

    def __call__(self, S: Float[Tensor, "b n k"], scale: Float[Tensor, " b"]) -> Float[Tensor, "b n"]:
        """||phi - b||, phi times the image's scale."""
        inner = (S.transpose(0, 1) @ self.L).transpose(0, 1) * scale[:, None, None] - self.b  # (b, n, j): phi - b in the frame Q
        return (inner.square().sum(-1) + self.rest).sqrt()


class Along(NamedTuple):
    """What projections of some units of a layer on c directions each need."""

    Dr: Float[Tensor, "n k c"]
    """<D[n, k], r_nc>."""
    br: Float[Tensor, "n c"]
    """<b_n, r_nc>."""

    def __call__(self, S: Float[Tensor, "b n k"], scale: Float[Tensor, " b"]) -> Float[Tensor, "b n c"]:
        """<phi - b, r>, phi times the image's scale."""
        return (S.transpose(0, 1) @ self.Dr).transpose(0, 1) * scale[:, None, None] - self.br


Frame = TypeVar("Frame", Norms, Along)


def norms_of(paths: FactoredEffect, slab: UnitBlock, b: Float[Tensor, "n d"]) -> Norms:
    """From D, a few units at a time."""
    return _joined(_norms(D, b[of]) for of, D in _directions(paths, slab))


def along_of(paths: FactoredEffect, slab: UnitBlock, b: Float[Tensor, "n d"], r: Float[Tensor, "n c d"]) -> Along:
    """From D, a few units at a time."""
    return _joined(_along(D, b[of], r[of]) for of, D in _directions(paths, slab))


def overlaps_of(paths: FactoredEffect, slab: UnitBlock, r: Float[Tensor, "n c d"]) -> Float[Tensor, "n k c"]:
    """<D[n, k], r_nc>, a few units at a time."""
    return torch.cat([D @ r[of].to(D).transpose(1, 2) for of, D in _directions(paths, slab)])


def frames_of(paths: FactoredEffect, slab: UnitBlock, b: Float[Tensor, "n d"], r: Float[Tensor, "n c d"]) -> tuple[Norms, Along]:
    """Both, from D formed once."""
    norms, alongs = zip(*((_norms(D, b[of]), _along(D, b[of], r[of])) for of, D in _directions(paths, slab)), strict=True)
    return _joined(norms), _joined(alongs)


def _directions(paths: FactoredEffect, slab: UnitBlock) -> Iterator[tuple[slice, Float[Tensor, "n k d"]]]:
    """D, a few units at a time, and which these are."""
    for of in slices(len(slab.neurons), paths.size(slab.layer)[1]):
        yield of, paths.directions(UnitBlock(slab.layer, slab.neurons[of]))


def _norms(D: Float[Tensor, "n k d"], b: Float[Tensor, "n d"]) -> Norms:
    b = b.to(D)
    Q, L = (back(part, D) for part in torch.linalg.qr(home(D.transpose(1, 2))))  # (n, d, j), (n, j, k)
    inner = torch.einsum("nd,ndj->nj", b, Q)
    rest = b - torch.einsum("nj,ndj->nd", inner, Q)
    return Norms(L.transpose(1, 2), inner, rest.square().sum(-1))


def _along(D: Float[Tensor, "n k d"], b: Float[Tensor, "n d"], r: Float[Tensor, "n c d"]) -> Along:
    r = r.to(D)
    return Along(D @ r.transpose(1, 2), torch.einsum("nd,ncd->nc", b.to(D), r))


def _joined(parts: Iterable[Frame]) -> Frame:
    """Of some units, then the next."""
    some = list(parts)
    return type(some[0])(*(torch.cat(column) for column in zip(*some, strict=True)))


class Activity(NamedTuple):
    """What u units do on b images; the effects times 100 / ||M(I)|| where so asked."""

    norm: Float[Tensor, "b u"]
    """||phi_n(I) - b_n||."""
    along: Float[Tensor, "b u"]
    """<phi_n(I) - b_n, r_n>."""
    embedding: Float[Tensor, "b d"]
    """M(I), not normalised."""


class UnitActivity:
    """Centred norms and projections of a bundle's units, for one batch of images after the other."""

    def __init__(
        self,
        paths: FactoredEffect,
        unit: Int[Tensor, "u 3"],
        b: Float[Tensor, "u d"],
        r: Float[Tensor, "u d"],
        scale: bool = True,
    ) -> None:
        """
        Args:
            unit: Layer, neuron and head of each unit, in any order; of layers that the paths know.
            b: Their mean effects, in the scale asked for.
            r: Their directions.
            scale: Multiply effects by 100 / ||M(I)||, as b was.
        """
        self.paths, self.scale = paths, scale
        self.slabs, rows = unit_blocks_of(paths, unit)
        self.frames = [frames_of(paths, slab, b[row], r[row, None]) for slab, row in zip(self.slabs, rows, strict=True)]
        self.place = torch.cat(rows).argsort()  # from the slabs' order back to the units'

    def __call__(self, image: Float[Tensor, "i 3 y x"]) -> Activity:
        """What the units do on these images."""
        S, embedding = self.paths.read(image, self.slabs)
        scale = scale_of(embedding, self.scale)
        norms, alongs = [], []
        for s, (norm, along) in zip(S, self.frames, strict=True):
            norms.append(norm(s, scale))
            alongs.append(along(s, scale)[..., 0])
        place = self.place.to(embedding.device)
        return Activity(torch.cat(norms, 1)[:, place], torch.cat(alongs, 1)[:, place], embedding)


def unit_blocks_of(paths: FactoredEffect, unit: Int[Tensor, "u 3"]) -> tuple[list[UnitBlock], list[Int[Tensor, " n"]]]:
    """The units by layer, in order of their numbers within it, and which rows of `unit` they are.

    Raises:
        StreamError: a unit that the paths do not know.
    """
    slabs, rows = [], []
    for layer in unit[:, 0].unique().tolist():
        row = (unit[:, 0] == layer).nonzero()[:, 0]
        known, asked = (_key(each) for each in (paths.units(layer), unit[row].long()))
        number = torch.searchsorted(known, asked)
        found = torch.cat([known, known.new_full((1,), -1)])[number]
        if len(strange := (found != asked).nonzero()[:, 0]):
            _, neuron, head = unit[row[strange[0]]].tolist()
            name = f"neuron {layer}:{neuron}" if head < 0 else f"unit {layer}:{neuron}.{head}"
            raise StreamError(f"the bundle has a {name}, which the model has not")
        order = number.argsort(stable=True)
        slabs.append(UnitBlock(layer, number[order]))
        rows.append(row[order])
    return slabs, rows


def _key(unit: Int[Tensor, "n 3"]) -> Int[Tensor, " n"]:
    """One number for neuron and head, in the order of units."""
    return ((unit[:, 1] + 1) << 32) + unit[:, 2] + 1
