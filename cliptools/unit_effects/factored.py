"""Factored effects: every effect of both papers is S[n, k](I) on the image's side times D[n, k] on the weights' side.

    phi_n(I) = sum over k of S[n, k](I) D[n, k, :]                                                  (1)

phi_n(I), a vector of the joint space [d], is what unit n adds to M(I). `FactoredEffect` is the interface to S and D, with one
class for each kind of unit and effect:

    paper 1 (arXiv 2406.04341), Eq. 5: second-order effects of a ViT's neurons    K = later heads     vit_second_order.py
    paper 1, Sec. 3.2: first-order effects of a ViT's neurons                     K = 1               vit_direct.py
    arXiv 2310.05916, Sec. 3: direct effects of a ViT's heads                     K = head width      vit_direct.py
    paper 2 (arXiv 2509.19943): neuron-head pairs of a ResNet's pooling           K = 1               resnet_pooling.py
    paper 2: neurons of it, and heads of it                          K = heads, K = head width        resnet_pooling.py

Nothing here forms phi, a tensor of [images, units, d]. With D = L Q, the rows of Q [j, d] orthonormal, so that L L^T = D D^T is
the Gram matrix G, centred norms and projections are

    phi - b       = (S L - b Q^T) Q - b_rest,          b_rest = b - b Q^T Q
    ||phi - b||^2 = ||S L - b Q^T||^2 + ||b_rest||^2                                                 (2)
    <phi - b, r>  = S (D r) - <b, r>                                                                 (3)

Differences are taken before squares, so that float32 loses nothing where an image does little to a unit; b is a mean of
effects, so b_rest is rounding. Sums over units, sum over n and k of S[n, k] D[n, k], also need no phi (`total_of`).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from cliptools.devices import to_float64_device, to_like
from cliptools.errors import StreamError

UNITS_AT_ONCE = 256  # units for which D is formed at a time
ROWS_AT_ONCE = 8192  # rows of D formed at a time, if these belong to more units
MOST_ROWS = 32_768  # rows of D formed at a time, if these belong to fewer units


class UnitBlock(NamedTuple):
    """Some units of one layer, for which S and D are computed: those of all units of a layer may not fit into memory."""

    layer: int
    neurons: Int[Tensor, "n"]
    """Positions of the units within the layer, from 0 to size(layer)[0] - 1; neuron numbers where units are neurons."""

    def part(self, rows: slice | Int[Tensor, "r"]) -> "UnitBlock":
        """Block of some of these units, by their positions in `neurons`."""
        return UnitBlock(self.layer, self.neurons[rows if isinstance(rows, slice) else rows.to(self.neurons.device)])


@runtime_checkable
class FactoredEffect(Protocol):
    """A factored effect (Eq. 1) on one model: four methods, after which measuring, ablation and reconstruction work.

    The smallest effect has a unit for each coordinate of the output, phi_n(I) = M(I)[n] e_n, and one path (K = 1):

        class Coordinates:
            def __init__(self, visual):
                self.visual = visual

            def size(self, layer):
                return self.visual.output_dim, 1  # N, K

            def units(self, layer):
                return neuron_units(layer, torch.arange(self.visual.output_dim))  # [N, 3]

            def read(self, image, blocks):
                M = self.visual(image)  # [b, d]
                return [M[:, block.neurons, None] for block in blocks], M  # S [b, n, 1] of every block, and M(I)

            def directions(self, block):
                return torch.eye(self.visual.output_dim)[block.neurons, None]  # D [n, 1, d]

    `measure(Coordinates(visual), batches, layers=[0], ...)` of streaming.measure then gives its statistics.
    `KnowsGram`, `KnowsOverlaps`, `Sums` and `Listens` below are optional, for effects that can do more than form D.
    """

    def size(self, layer: int) -> tuple[int, int]:
        """Number of units in the layer, N, and number of paths of each unit, K."""
        ...

    def units(self, layer: int) -> Int[Tensor, "n 3"]:
        """Names (layer, neuron, head) of the layer's units, ascending, -1 where not applicable; empty for other layers."""
        ...

    def read(
        self, image: Float[Tensor, "b 3 y x"], blocks: Sequence[UnitBlock]
    ) -> tuple[Iterable[Float[Tensor, "b n k"]], Float[Tensor, "b d"]]:
        """S of every block, in their order, and M(I), not normalised, from one forward pass.

        S may be an iterator that computes a block's scalars when they are asked for, so that one block is in memory at a time.
        """
        ...

    def directions(self, block: UnitBlock) -> Float[Tensor, "n k d"]:
        """D of the block's units, from the weights alone, in float32 at least."""
        ...


@runtime_checkable
class KnowsGram(Protocol):
    """A factored effect that computes the Gram matrices of D without D."""

    def gram(self, block: UnitBlock) -> Float[Tensor, "n k k"]:
        """G = D D^T of the block's units."""
        ...


@runtime_checkable
class KnowsOverlaps(Protocol):
    """A factored effect that computes the inner products of D with one vector without D."""

    def along(self, block: UnitBlock, v: Float[Tensor, " d"]) -> Float[Tensor, "n k"]:
        """<D[n, k], v> of the block's units."""
        ...


@runtime_checkable
class Sums(Protocol):
    """A factored effect that sums effects over units without D."""

    def total(self, block: UnitBlock, S: Float[Tensor, "b n k"]) -> Float[Tensor, "b d"]:
        """Sum over the block's units and over k of S[n, k] D[n, k], in the type of S."""
        ...


Hooks = list[tuple[nn.Module, Callable[..., Any]]]
"""Forward hooks, with the modules they belong to."""


class Listener(NamedTuple):
    """Hooks that collect S during a forward pass, which several listeners may share."""

    hooks: Hooks
    scalars: Callable[[Float[Tensor, "b d"]], Iterable[Float[Tensor, "b n k"]]]
    """Given M(I) after the pass, S of every block, computed one block at a time."""


@runtime_checkable
class Listens(Protocol):
    """A factored effect whose S come from hooks on any forward pass."""

    def listen(self, blocks: Sequence[UnitBlock]) -> Listener:
        """Hooks for the S of these blocks."""
        ...


def gram_of(effect: FactoredEffect, block: UnitBlock) -> Float[Tensor, "n k k"]:
    """G = D D^T of a block that is small enough to form D."""
    if isinstance(effect, KnowsGram):
        return effect.gram(block)
    D = effect.directions(block)
    return D @ D.transpose(1, 2)


def along_of(effect: FactoredEffect, block: UnitBlock, v: Float[Tensor, " d"]) -> Float[Tensor, "n k"]:
    """<D[n, k], v> of a block, in the type of D."""
    if isinstance(effect, KnowsOverlaps):
        return effect.along(block, v)
    return torch.cat([D @ v.to(D) for _, D in _directions(effect, block)])


def total_of(effect: FactoredEffect, block: UnitBlock, S: Float[Tensor, "b n k"]) -> Float[Tensor, "b d"]:
    """Sum over the block's units of phi_n = sum_k S[n, k] D[n, k], in the type of S."""
    if isinstance(effect, Sums):
        return effect.total(block, S)
    total: Tensor | float = 0.0
    for rows in slices(S.shape[1], S.shape[2]):
        D = effect.directions(block.part(rows)).to(S)  # [n, k, d]
        total = total + S[:, rows].flatten(1) @ D.flatten(0, 1)  # [b, n k] @ [n k, d]
    assert isinstance(total, Tensor)  # a block has units
    return total


class Norms(NamedTuple):
    """Centred norms of n units by Eq. 2, from k x j numbers a unit; j = min(k, d)."""

    L: Float[Tensor, "n k j"]
    """L of D = L Q."""
    b: Float[Tensor, "n j"]
    """b Q^T."""
    rest_square: Float[Tensor, " n"]
    """||b_rest||^2."""

    def __call__(self, S: Float[Tensor, "b n k"], scale: Float[Tensor, " b"]) -> Float[Tensor, "b n"]:
        """||phi - b||, where phi is multiplied by the image's scale."""
        inner = (S.transpose(0, 1) @ self.L).transpose(0, 1) * scale[:, None, None] - self.b  # [b, n, j]: (phi - b) Q^T
        return (inner.square().sum(-1) + self.rest_square).sqrt()


class Projections(NamedTuple):
    """Projections of n units on c directions a unit by Eq. 3."""

    Dr: Float[Tensor, "n k c"]
    """<D[n, k], r_nc>."""
    br: Float[Tensor, "n c"]
    """<b_n, r_nc>."""

    def __call__(self, S: Float[Tensor, "b n k"], scale: Float[Tensor, " b"]) -> Float[Tensor, "b n c"]:
        """<phi - b, r>, where phi is multiplied by the image's scale."""
        return (S.transpose(0, 1) @ self.Dr).transpose(0, 1) * scale[:, None, None] - self.br


Coefficients = TypeVar("Coefficients", Norms, Projections)


def norms_of(effect: FactoredEffect, block: UnitBlock, b: Float[Tensor, "n d"]) -> Norms:
    """Coefficients of ||phi - b||, from D of a few units at a time."""
    return _concatenated(_norms(D, b[rows]) for rows, D in _directions(effect, block))


def projections_of(effect: FactoredEffect, block: UnitBlock, b: Float[Tensor, "n d"], r: Float[Tensor, "n c d"]) -> Projections:
    """Coefficients of <phi - b, r>, from D of a few units at a time."""
    return _concatenated(_projections(D, b[rows], r[rows]) for rows, D in _directions(effect, block))


def overlaps_of(effect: FactoredEffect, block: UnitBlock, r: Float[Tensor, "n c d"]) -> Float[Tensor, "n k c"]:
    """<D[n, k], r_nc>, from D of a few units at a time."""
    return torch.cat([D @ r[rows].to(D).transpose(1, 2) for rows, D in _directions(effect, block)])


def norms_and_projections_of(
    effect: FactoredEffect, block: UnitBlock, b: Float[Tensor, "n d"], r: Float[Tensor, "n c d"]
) -> tuple[Norms, Projections]:
    """Coefficients of ||phi - b|| and of <phi - b, r>, from D formed once, a few units at a time."""
    parts = ((_norms(D, b[rows]), _projections(D, b[rows], r[rows])) for rows, D in _directions(effect, block))
    norms, projections = zip(*parts, strict=True)
    return _concatenated(norms), _concatenated(projections)


def _directions(effect: FactoredEffect, block: UnitBlock) -> Iterator[tuple[slice, Float[Tensor, "n k d"]]]:
    """D of a few units at a time, with the rows of the block that these are."""
    for rows in slices(len(block.neurons), effect.size(block.layer)[1]):
        yield rows, effect.directions(block.part(rows))


def _norms(D: Float[Tensor, "n k d"], b: Float[Tensor, "n d"]) -> Norms:
    b = b.to(D)
    Q, L = (
        to_like(factor, D) for factor in torch.linalg.qr(to_float64_device(D.transpose(1, 2)))
    )  # [n, d, j], [n, j, k]: both transposed
    inner = torch.einsum("nd,ndj->nj", b, Q)  # [n, j]
    b_rest = b - torch.einsum("nj,ndj->nd", inner, Q)  # [n, d]
    return Norms(L.transpose(1, 2), inner, b_rest.square().sum(-1))


def _projections(D: Float[Tensor, "n k d"], b: Float[Tensor, "n d"], r: Float[Tensor, "n c d"]) -> Projections:
    r = r.to(D)
    return Projections(D @ r.transpose(1, 2), torch.einsum("nd,ncd->nc", b.to(D), r))


def _concatenated(parts: Iterable[Coefficients]) -> Coefficients:
    """Coefficients of all units from those of consecutive parts of them."""
    pieces = list(parts)
    return type(pieces[0])(*(torch.cat(column) for column in zip(*pieces, strict=True)))


class Activity(NamedTuple):
    """Effects of u units on b images as two numbers each, in the scale of the `UnitActivity`."""

    norm: Float[Tensor, "b u"]
    """||phi_n(I) - b_n||."""
    along: Float[Tensor, "b u"]
    """<phi_n(I) - b_n, r_n>."""
    embedding: Float[Tensor, "b d"]
    """M(I), not normalised."""


EQUAL = 1e-5  # relative distance of norms that may be equal but for rounding


def acts(norm: Float[Tensor, "*b u"], tau: Float[Tensor, " u"]) -> Bool[Tensor, "*b u"]:
    """Mark the norms above the units' thresholds by more than rounding.

    A sparse unit has one norm on all images on which it is silent, that of its mean. If it acts on fewer images than the
    threshold's rank, this norm is the threshold.
    """
    return norm > (1 + EQUAL) * tau.to(norm)


class UnitActivity:
    """Centred norms and projections of a bundle's units, batch after batch of images."""

    def __init__(
        self,
        effect: FactoredEffect,
        unit: Int[Tensor, "u 3"],
        b: Float[Tensor, "u d"],
        r: Float[Tensor, "u d"],
        scale: bool = True,
    ) -> None:
        """
        Args:
            unit: Layer, neuron and head of each unit, in any order.
            b: Mean effects of the units.
            r: Directions of the units.
            scale: Multiply effects by 100 / ||M(I)||; b must be in the same scale.

        Raises:
            StreamError: a unit that the model does not have.
        """
        self.effect, self.scale = effect, scale
        self.blocks, rows = unit_blocks_of(effect, unit)
        pairs = zip(self.blocks, rows, strict=True)
        self.coefficients = [norms_and_projections_of(effect, block, b[row], r[row, None]) for block, row in pairs]
        self.order = torch.cat(rows).argsort()  # [u]: from the order of the blocks back to that of `unit`

    def __call__(self, image: Float[Tensor, "i 3 y x"]) -> Activity:
        """Norms and projections of all units on these images."""
        S, embedding = self.effect.read(image, self.blocks)
        scale = scale_of(embedding, self.scale)
        norm, along = [], []
        for scalars, (norms, projections) in zip(S, self.coefficients, strict=True):
            norm.append(norms(scalars, scale))  # [b, n]
            along.append(projections(scalars, scale)[..., 0])  # [b, n]
        order = self.order.to(embedding.device)
        return Activity(torch.cat(norm, 1)[:, order], torch.cat(along, 1)[:, order], embedding)


def unit_blocks_of(effect: FactoredEffect, unit: Int[Tensor, "u 3"]) -> tuple[list[UnitBlock], list[Int[Tensor, " n"]]]:
    """Blocks of these units, one a layer and ordered within it, and for each block its units' rows in `unit`.

    Raises:
        StreamError: a unit that the model does not have.
    """
    blocks, rows = [], []
    for layer in unit[:, 0].unique().tolist():
        row = (unit[:, 0] == layer).nonzero()[:, 0]  # [n]
        layer_keys, keys = _key(effect.units(layer)), _key(unit[row].long())  # [N], [n]
        number = torch.searchsorted(layer_keys, keys)  # [n]: position within the layer, if the unit exists
        nearest = torch.cat([layer_keys, layer_keys.new_full((1,), -1)])[number]  # [n]
        if len(missing := (nearest != keys).nonzero()[:, 0]):
            _, neuron, head = unit[row[missing[0]]].tolist()
            name = f"neuron {layer}:{neuron}" if head < 0 else f"unit {layer}:{neuron}.{head}"
            raise StreamError(f"the bundle has a {name}, which the model does not have")
        order = number.argsort(stable=True)
        blocks.append(UnitBlock(layer, number[order]))
        rows.append(row[order])
    return blocks, rows


def _key(unit: Int[Tensor, "n 3"]) -> Int[Tensor, " n"]:
    """A single number for neuron and head, ascending in the order of units."""
    return ((unit[:, 1] + 1) << 32) + unit[:, 2] + 1


def neuron_units(layer: int, neurons: Int[Tensor, "n"]) -> Int[Tensor, "n 3"]:
    """Names (layer, neuron, -1) of whole neurons."""
    return torch.stack([torch.full_like(neurons, layer), neurons, torch.full_like(neurons, -1)], 1)


def head_units(layer: int, heads: Int[Tensor, "n"]) -> Int[Tensor, "n 3"]:
    """Names (layer, -1, head) of whole heads."""
    return torch.stack([torch.full_like(heads, layer), torch.full_like(heads, -1), heads], 1)


def scale_of(embedding: Float[Tensor, "b d"], scaled: bool) -> Float[Tensor, "b"]:
    """100 / ||M(I)||, by which paper 1 multiplies effects, or ones; in float32 at least."""
    embedding = wide(embedding)
    return 100 / embedding.norm(dim=-1) if scaled else embedding.new_ones(len(embedding))


def wide(x: Tensor) -> Tensor:
    """The tensor in float32 at least: effects are computed in it even where the model runs in half precision."""
    return x if x.dtype == torch.float64 else x.float()


def slices(units: int, k: int, at_once: int = UNITS_AT_ONCE) -> Iterator[slice]:
    """Slices of the units, each small enough to form D, with k rows a unit."""
    step = max(1, min(at_once, MOST_ROWS // k), ROWS_AT_ONCE // k)
    return (slice(start, min(start + step, units)) for start in range(0, units, step))


def index_of(numbers: Int[Tensor, "n"], device: torch.device) -> slice | Int[Tensor, "n"]:
    """The numbers as an index; a slice, which copies nothing, where they are consecutive."""
    first, last = int(numbers[0]), int(numbers[-1])
    if last >= first and torch.equal(numbers.cpu(), torch.arange(first, last + 1)):
        return slice(first, last + 1)
    return numbers.to(device)
