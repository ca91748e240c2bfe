"""Statistics of parts of a list of images, to be added up in any order.

All parts are about the same provisional centre c0, the mean over a sample of the whole list: x = S - c0. Of each unit a part has

* sums of x and of x^T x in float64,
* the C = T + margin images of largest ||x D||, with their x; of the next T the norms alone; a bound on all others,
* where the threshold's rank lies beyond C, a histogram of norms, in bins that are the same for all parts.

Adding two parts adds the sums and ranks the images of both again: of C + T ranked images the first C bring their x, because
no part has an image without x before its own first C. Images of equal norm are ranked by number. So much is associative and
commutative to the last bit. Sums in floating point are so only where nothing is rounded: each part's are multiples of a
power of two, coarse enough that float64 holds all sums of them exactly and fine enough (2^-46 of N times the spread, of N
images) to cost no digit that counts.

With all parts the mean is known, no norm has moved by more than ||(mean - c0) D||, and the statistics end as those of one run.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cliptools.effects.factored import slices
from cliptools.streaming.principal import SymmetricStack
from cliptools.streaming.ranking import CountedNorms, NormHistogram, Reference, ranking
from cliptools.streaming.statistics import UnitStatistics

HEADROOM = 6  # sums may be so many octaves larger than N images of the sample's spread give, and are still exact
DIGITS = 52  # of float64
SILENT = 1e-3  # stands for the spread of units that no image of the sample made act
APART = 0.01  # of a unit's root-mean-square norm, and
APART_MEAN = 1e-3  # of its mean's norm: what rounding, also in half precision, may do to c0


class Basis(NamedTuple):
    """What all parts share, from a sample of the whole list."""

    centre: Float[Tensor, "n k"]
    """c0, in float64 but with no more digits than S has."""
    scale: Float[Tensor, "n"]
    """Root mean square of ||x D||."""
    spread: Float[Tensor, "n"]
    """Largest root mean square among the columns of x."""


class Partial(NamedTuple):
    """What n units with k paths are known by from some of the images; f are kept, at most C. -1 stands where nothing is."""

    seen: int
    """Images."""
    centre: Float[Tensor, "n k"]
    scale: Float[Tensor, "n"]
    spread: Float[Tensor, "n"]
    length: Float[Tensor, "n k"]
    """Of the rows of D."""
    sum: Float[Tensor, "n k"]
    moment: Float[Tensor, "n k_k+1_/2"]
    """Sum of x^T x, on and above the diagonal."""
    norm: Float[Tensor, "n f"]
    """||x D||, largest first."""
    image: Int[Tensor, "n f"]
    x: Float[Tensor, "n f k"]
    near_norm: Float[Tensor, "n T"]
    near_image: Int[Tensor, "n T"]
    lost: Float[Tensor, "n"]
    """Bound on the norms of all others."""
    histogram: Int[Tensor, "n bins"]
    """Norms about the centre counted (norm_histogram.py); no bins where C suffices."""
    histogram_top: Int[Tensor, "n"]
    histogram_reach: Float[Tensor, "n"]
    """The centre of some of the counted norms may be off by so much."""


def basis_of(sample: UnitStatistics) -> Basis:
    """From statistics of the sample, finished."""
    n, moment, G = len(sample.centre), sample.moment, sample.G
    square, spread = torch.zeros_like(sample.centre[:, 0]), torch.zeros_like(sample.centre[:, 0])
    for of in slices(n, G.k):
        M = moment.full(of).double() / sample.count  # (some, k, k)
        square[of] = (M * G.full(of).double()).sum((1, 2))
        spread[of] = M.diagonal(dim1=1, dim2=2).amax(1).clamp(min=0).sqrt()
    like = G.blocks[0]
    scale = square.clamp(min=0).sqrt().to(like).clamp(min=torch.finfo(like.dtype).tiny)
    return Basis(sample.centre.to(like.dtype).double(), scale, spread.to(like))


def partial_of(measured: UnitStatistics, basis: Basis, listed: int) -> Partial:
    """From statistics about the basis' centre.

    Args:
        listed: N, images of all parts together, from which the rounding of sums follows.
    """
    measured.take_all()
    near, kept = measured.near, slice(0, measured.filled)
    assert near is not None  # as there is a scale
    near.settle()
    order = ranking(measured.norm[:, kept], measured.image[:, kept])
    near_order = ranking(near.norm, near.image)
    packed = _upper(measured.moment, measured.G.k)
    spread = torch.where(basis.spread > 0, basis.spread, SILENT).double().to(near.norm.device)[:, None]
    found = Partial(
        measured.count,
        basis.centre.to(near.norm.device),
        basis.scale.to(near.norm),
        basis.spread.to(near.norm),
        _lengths(measured.G, len(order)),
        _rounded(measured.sum, listed * spread),
        _rounded(packed, listed * spread.square()),
        measured.norm[:, kept].gather(1, order),
        measured.image[:, kept].gather(1, order),
        measured.x[:, kept].gather(1, order[..., None].expand(-1, -1, measured.G.k)),
        near.norm.gather(1, near_order).clamp(min=-1),
        near.image.gather(1, near_order),
        near.lost.clamp(min=-1),
        *_histogram(measured),
    )
    return Partial(measured.count, *(column.cpu() for column in found[1:]))


def _histogram(measured: UnitStatistics) -> tuple[Int[Tensor, "n bins"], Int[Tensor, "n"], Float[Tensor, "n"]]:
    """The three fields of a partial that say how the norms are counted."""
    reach = torch.zeros_like(measured.floor)
    if measured.counted is None:
        return measured.image[:, :0].int(), measured.image.new_zeros(len(reach), dtype=torch.int32), reach
    histogram = measured.counted.references[0].histogram
    return histogram.count, histogram.top, reach


def _lengths(G: SymmetricStack, n: int) -> Float[Tensor, "n k"]:
    """Of the rows of D, from G = D D^T."""
    diagonals = [G.full(of).diagonal(dim1=1, dim2=2) for of in slices(n, G.k)]
    return torch.cat(diagonals).clamp(min=0).sqrt()


def _upper(stack: SymmetricStack, k: int) -> Float[Tensor, "n m"]:
    """On and above the diagonal, row by row."""
    row, column = torch.triu_indices(k, k)
    return torch.cat([stack.full(of)[:, row, column] for of in slices(len(stack.blocks[0]), k)]).double()


def _rounded(total: Float[Tensor, "n m"], bound: Float[Tensor, "n 1"]) -> Float[Tensor, "n m"]:
    """To multiples of a power of two, of which sums up to 2^HEADROOM times the bound are exact."""
    quantum = torch.exp2(bound.clamp(min=torch.finfo(torch.float64).tiny).log2().ceil() + HEADROOM - DIGITS)
    return (total / quantum).round() * quantum


def apart(a: Partial, b: Partial) -> Bool[Tensor, " n"]:
    """Of which units the centres differ by more than rounding does."""
    between = ((a.centre - b.centre).abs() * a.length).sum(1)
    return between > APART * a.scale + APART_MEAN * (a.centre.abs() * a.length).sum(1)


def add(a: Partial, b: Partial, capacity: int) -> Partial:
    """Of the same units, other images.

    Args:
        capacity: C.
    """
    centre = _first(a.centre, b.centre)
    a, b = moved(a, centre), moved(b, centre)
    norm, image, x = (torch.cat(pair, 1) for pair in ((a.norm, b.norm), (a.image, b.image), (a.x, b.x)))
    order = ranking(norm, image)
    kept, rest = order[:, :capacity], order[:, capacity:]
    missed = torch.cat([norm.gather(1, rest), a.near_norm, b.near_norm], 1)
    whose = torch.cat([image.gather(1, rest), a.near_image, b.near_image], 1)
    order = ranking(missed, whose)
    near, places = order[:, : a.near_norm.shape[1]], a.near_norm.shape[1]
    lost = torch.maximum(torch.maximum(a.lost, b.lost), missed.gather(1, order[:, places:]).amax(1))
    histogram = NormHistogram(a.histogram, a.histogram_top) + NormHistogram(b.histogram, b.histogram_top)
    return Partial(
        a.seen + b.seen,
        centre,
        torch.minimum(a.scale, b.scale),
        torch.minimum(a.spread, b.spread),
        torch.minimum(a.length, b.length),
        a.sum + b.sum,
        a.moment + b.moment,
        norm.gather(1, kept),
        image.gather(1, kept),
        x.gather(1, kept[..., None].expand(-1, -1, x.shape[2])),
        missed.gather(1, near),
        whose.gather(1, near),
        lost,
        histogram.count,
        histogram.top,
        torch.maximum(a.histogram_reach, b.histogram_reach),
    )


def _first(a: Float[Tensor, "n k"], b: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """Row by row the one that a dictionary has first: the same whatever the order of the two."""
    differs = a != b
    place = differs.int().argmax(1, keepdim=True)
    return torch.where(a.gather(1, place) <= b.gather(1, place), a, b)


def moved(part: Partial, centre: Float[Tensor, "n k"]) -> Partial:
    """About a centre that differs by rounding, as it may between machines. Norms become upper bounds."""
    if torch.equal(part.centre, centre):
        return part
    d = centre - part.centre
    row, column = torch.triu_indices(d.shape[1], d.shape[1])
    across = part.sum[:, row] * d[:, column] + d[:, row] * part.sum[:, column]
    reach = (d.abs() * part.length).sum(1).to(part.norm)[:, None]
    return part._replace(
        centre=centre,
        sum=part.sum - part.seen * d,
        moment=part.moment - across + part.seen * d[:, row] * d[:, column],
        norm=part.norm + reach,
        x=part.x - d.to(part.x.dtype)[:, None],
        near_norm=torch.where(part.near_image >= 0, part.near_norm + reach, -1),
        lost=torch.where(part.lost >= 0, part.lost + reach[:, 0], -1),
        histogram_reach=part.histogram_reach + reach[:, 0],
    )


def restored(part: Partial, G: SymmetricStack, top: int, quantile: float, capacity: int) -> UnitStatistics:
    """The statistics that all parts together are, their centre free to move to the mean."""
    like, filled = G.blocks[0], part.norm.shape[1]
    made = UnitStatistics(G, top, 0, quantile, capacity - top, part.centre.to(like.device), shared=True)
    made.fixed = False
    made.count, made.filled = part.seen, filled
    made.sum = part.sum.to(like.device)
    row, column = torch.triu_indices(G.k, G.k)
    for of in slices(len(part.sum), G.k):
        packed = part.moment[of].to(like.device)
        full = packed.new_zeros(len(packed), G.k, G.k)
        full[:, row, column] = packed
        full[:, column, row] = packed
        made.moment.put(of, full)
    made.norm[:, :filled], made.image[:, :filled], made.x[:, :filled] = (
        each.to(like.device) for each in (part.norm, part.image, part.x)
    )
    assert made.near is not None  # as there is a scale
    known = (part.near_image >= 0).to(like.device)
    made.near.norm = torch.where(known, part.near_norm.to(like), -torch.inf)
    made.near.image = part.near_image.to(like.device)
    made.near.lost = torch.where(part.lost >= 0, part.lost, -torch.inf).to(like)
    if part.histogram.shape[1]:
        histogram = NormHistogram(part.histogram.to(like.device), part.histogram_top.to(like.device))
        made.counted = CountedNorms(len(part.sum), like.device, part.seen)
        made.counted.references.append(Reference(histogram, None, part.histogram_reach.to(like)))
    return made
