"""Statistics of the images of a shard, which can be added up in any order.

All shards of a run use the same provisional centre c0, the mean over a sample of the whole list: x = S - c0. For every unit a
shard keeps

* sums of x and of x^T x, in float64;
* the C = T + margin images of largest ||x D||, with their x; the norms alone of the next T; a bound on all others;
* a histogram of norms, if the threshold's rank is beyond C, in bins that are the same for all shards.

Adding the statistics of two shards adds the sums and ranks the images of both again: of C + T ranked images the first C have
their x, because no shard has an image without x before its own first C. Of equal norms, the smaller image number comes first.
Both operations are associative and commutative to the last bit. Floating-point sums are so only if no sum is rounded: the sums of
a shard are multiples of a power of two, coarse enough that float64 holds all sums of them exactly and fine enough (2^-46 of N
times the spread, for N images) to lose no digit that counts.

After all shards the mean is known, no norm changes by more than ||(mean - c0) D||, and the statistics are finished as those of a
run over all images (statistics.py).
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cliptools.effects.factored import slices
from cliptools.streaming.principal import SymmetricStack
from cliptools.streaming.ranking import CountedNorms, NormHistogram, Reference, ranking
from cliptools.streaming.statistics import UnitStatistics

HEADROOM = 6  # octaves by which sums may exceed those of N images of the sample's spread, and are still exact
DIGITS = 52  # binary digits of float64
SILENT = 1e-3  # stands for the spread of units that no image of the sample activates
APART = 0.01  # two centres c0 differ by rounding, even in half precision, by at most this times the root-mean-square norm,
APART_MEAN = 1e-3  # plus this times the norm of the mean


class Basis(NamedTuple):
    """Values that all shards share, computed from a sample of the whole list."""

    centre: Float[Tensor, "n k"]
    """c0, in float64 but with no more digits than S has."""
    scale: Float[Tensor, "n"]
    """Root mean square of ||x D||."""
    spread: Float[Tensor, "n"]
    """Largest root mean square among the columns of x."""


class ShardStatistics(NamedTuple):
    """Statistics of n units with k paths over the images of a shard; f <= C images are kept. -1 marks empty places."""

    seen: int
    """Number of images."""
    centre: Float[Tensor, "n k"]
    scale: Float[Tensor, "n"]
    spread: Float[Tensor, "n"]
    length: Float[Tensor, "n k"]
    """||D[n, k]||."""
    sum: Float[Tensor, "n k"]
    moment: Float[Tensor, "n k_k+1_/2"]
    """Sum of x^T x, on and above the diagonal."""
    norm: Float[Tensor, "n f"]
    """||x D||, largest first."""
    image: Int[Tensor, "n f"]
    x: Float[Tensor, "n f k"]
    near_norm: Float[Tensor, "n T"]
    """Norms of the next T images."""
    near_image: Int[Tensor, "n T"]
    lost: Float[Tensor, "n"]
    """Bound on the norms of all other images."""
    histogram: Int[Tensor, "n bins"]
    """Counts of norms about the centre (ranking.py); no bins where C suffices."""
    histogram_top: Int[Tensor, "n"]
    histogram_reach: Float[Tensor, "n"]
    """Largest error of the centre that norms were counted about."""


def basis_of(sample: UnitStatistics) -> Basis:
    """The basis, from finished statistics of the sample."""
    n, moment, G = len(sample.centre), sample.moment, sample.G
    square, spread = torch.zeros_like(sample.centre[:, 0]), torch.zeros_like(sample.centre[:, 0])
    for part in slices(n, G.k):
        M = moment.full(part).double() / sample.count  # [part, k, k]
        square[part] = (M * G.full(part).double()).sum((1, 2))
        spread[part] = M.diagonal(dim1=1, dim2=2).amax(1).clamp(min=0).sqrt()
    like = G.blocks[0]
    scale = square.clamp(min=0).sqrt().to(like).clamp(min=torch.finfo(like.dtype).tiny)
    return Basis(sample.centre.to(like.dtype).double(), scale, spread.to(like))


def shard_statistics_of(statistics: UnitStatistics, basis: Basis, listed: int) -> ShardStatistics:
    """Statistics of a shard, from those about the basis' centre.

    Args:
        listed: N, the number of images of all shards together, for the rounding of sums.
    """
    statistics.take_all()
    near, filled = statistics.near, slice(0, statistics.filled)
    assert near is not None  # as the centre is shared
    near.settle()
    order = ranking(statistics.norm[:, filled], statistics.image[:, filled])  # [n, f]
    near_order = ranking(near.norm, near.image)  # [n, T]
    packed = _upper(statistics.moment, statistics.G.k)
    spread = torch.where(basis.spread > 0, basis.spread, SILENT).double().to(near.norm.device)[:, None]
    shard = ShardStatistics(
        statistics.count,
        basis.centre.to(near.norm.device),
        basis.scale.to(near.norm),
        basis.spread.to(near.norm),
        _lengths(statistics.G, len(order)),
        _rounded(statistics.sum, listed * spread),
        _rounded(packed, listed * spread.square()),
        statistics.norm[:, filled].gather(1, order),
        statistics.image[:, filled].gather(1, order),
        statistics.x[:, filled].gather(1, order[..., None].expand(-1, -1, statistics.G.k)),
        near.norm.gather(1, near_order).clamp(min=-1),
        near.image.gather(1, near_order),
        near.lost.clamp(min=-1),
        *_histogram(statistics),
    )
    return ShardStatistics(statistics.count, *(column.cpu() for column in shard[1:]))


def add(a: ShardStatistics, b: ShardStatistics, capacity: int) -> ShardStatistics:
    """Statistics of the images of both, for the same units.

    Args:
        capacity: C.
    """
    centre = _lexically_first(a.centre, b.centre)
    a, b = recentred(a, centre), recentred(b, centre)
    norm, image, x = (torch.cat(pair, 1) for pair in ((a.norm, b.norm), (a.image, b.image), (a.x, b.x)))
    order = ranking(norm, image)  # [n, f of both]
    first, surplus = order[:, :capacity], order[:, capacity:]
    missed = torch.cat([norm.gather(1, surplus), a.near_norm, b.near_norm], 1)
    missed_image = torch.cat([image.gather(1, surplus), a.near_image, b.near_image], 1)
    missed_order = ranking(missed, missed_image)
    T = a.near_norm.shape[1]
    near = missed_order[:, :T]
    lost = torch.maximum(torch.maximum(a.lost, b.lost), missed.gather(1, missed_order[:, T:]).amax(1))
    histogram = NormHistogram(a.histogram, a.histogram_top) + NormHistogram(b.histogram, b.histogram_top)
    return ShardStatistics(
        a.seen + b.seen,
        centre,
        torch.minimum(a.scale, b.scale),
        torch.minimum(a.spread, b.spread),
        torch.minimum(a.length, b.length),
        a.sum + b.sum,
        a.moment + b.moment,
        norm.gather(1, first),
        image.gather(1, first),
        x.gather(1, first[..., None].expand(-1, -1, x.shape[2])),
        missed.gather(1, near),
        missed_image.gather(1, near),
        lost,
        histogram.count,
        histogram.top,
        torch.maximum(a.histogram_reach, b.histogram_reach),
    )


def _lexically_first(a: Float[Tensor, "n k"], b: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """The first row of a and b in lexical order, for each unit: the order of a and b does not matter."""
    differs = a != b
    place = differs.int().argmax(1, keepdim=True)  # [n, 1]
    return torch.where(a.gather(1, place) <= b.gather(1, place), a, b)


def centres_differ(a: ShardStatistics, b: ShardStatistics) -> Bool[Tensor, " n"]:
    """True for units whose centres differ by more than rounding explains."""
    distance = ((a.centre - b.centre).abs() * a.length).sum(1)
    return distance > APART * a.scale + APART_MEAN * (a.centre.abs() * a.length).sum(1)


def recentred(shard: ShardStatistics, centre: Float[Tensor, "n k"]) -> ShardStatistics:
    """Move the statistics to a centre that differs by rounding, as it may between machines; norms become upper bounds."""
    if torch.equal(shard.centre, centre):
        return shard
    d = centre - shard.centre  # [n, k]
    row, column = torch.triu_indices(d.shape[1], d.shape[1])
    across = shard.sum[:, row] * d[:, column] + d[:, row] * shard.sum[:, column]  # [n, k (k + 1) / 2]
    reach = (d.abs() * shard.length).sum(1).to(shard.norm)[:, None]  # [n, 1]: bound on ||d D||
    return shard._replace(
        centre=centre,
        sum=shard.sum - shard.seen * d,
        moment=shard.moment - across + shard.seen * d[:, row] * d[:, column],
        norm=shard.norm + reach,
        x=shard.x - d.to(shard.x.dtype)[:, None],
        near_norm=torch.where(shard.near_image >= 0, shard.near_norm + reach, -1),
        lost=torch.where(shard.lost >= 0, shard.lost + reach[:, 0], -1),
        histogram_reach=shard.histogram_reach + reach[:, 0],
    )


def restored_statistics(shard: ShardStatistics, G: SymmetricStack, top: int, quantile: float, capacity: int) -> UnitStatistics:
    """Statistics of a run over all images, not finished yet, from the sum of all shards."""
    like, filled = G.blocks[0], shard.norm.shape[1]
    statistics = UnitStatistics(G, top, 0, quantile, capacity - top, shard.centre.to(like.device), shared=True)
    statistics.fixed = False  # the centre may move to the mean
    statistics.count, statistics.filled = shard.seen, filled
    statistics.sum = shard.sum.to(like.device)
    row, column = torch.triu_indices(G.k, G.k)
    for part in slices(len(shard.sum), G.k):
        packed = shard.moment[part].to(like.device)
        full = packed.new_zeros(len(packed), G.k, G.k)
        full[:, row, column] = packed
        full[:, column, row] = packed
        statistics.moment.put(part, full)
    statistics.norm[:, :filled] = shard.norm.to(like.device)
    statistics.image[:, :filled] = shard.image.to(like.device)
    statistics.x[:, :filled] = shard.x.to(like.device)
    assert statistics.near is not None  # as the centre is shared
    occupied = (shard.near_image >= 0).to(like.device)
    statistics.near.norm = torch.where(occupied, shard.near_norm.to(like), -torch.inf)
    statistics.near.image = shard.near_image.to(like.device)
    statistics.near.lost = torch.where(shard.lost >= 0, shard.lost, -torch.inf).to(like)
    if shard.histogram.shape[1]:
        histogram = NormHistogram(shard.histogram.to(like.device), shard.histogram_top.to(like.device))
        statistics.counted = CountedNorms(len(shard.sum), like.device, shard.seen)
        statistics.counted.references.append(Reference(histogram, None, shard.histogram_reach.to(like)))
    return statistics


def _histogram(statistics: UnitStatistics) -> tuple[Int[Tensor, "n bins"], Int[Tensor, "n"], Float[Tensor, "n"]]:
    """The fields histogram, histogram_top and histogram_reach."""
    reach = torch.zeros_like(statistics.floor)
    if statistics.counted is None:
        return statistics.image[:, :0].int(), statistics.image.new_zeros(len(reach), dtype=torch.int32), reach
    histogram = statistics.counted.references[0].histogram
    return histogram.count, histogram.top, reach


def _lengths(G: SymmetricStack, n: int) -> Float[Tensor, "n k"]:
    """Norms of the rows of D, from G = D D^T."""
    diagonals = [G.full(part).diagonal(dim1=1, dim2=2) for part in slices(n, G.k)]
    return torch.cat(diagonals).clamp(min=0).sqrt()


def _upper(stack: SymmetricStack, k: int) -> Float[Tensor, "n m"]:
    """The entries on and above the diagonal, row by row."""
    row, column = torch.triu_indices(k, k)
    return torch.cat([stack.full(part)[:, row, column] for part in slices(len(stack.blocks[0]), k)]).double()


def _rounded(total: Float[Tensor, "n m"], bound: Float[Tensor, "n 1"]) -> Float[Tensor, "n m"]:
    """Sums rounded to multiples of a power of two, such that further sums up to 2^HEADROOM times the bound are exact."""
    quantum = torch.exp2(bound.clamp(min=torch.finfo(torch.float64).tiny).log2().ceil() + HEADROOM - DIGITS)
    return (total / quantum).round() * quantum
