"""Statistics of the images of a shard, to be added up in any order.

All shards of a run use the same centre c, the mean over a sample of the whole list (`Basis`). A shard writes what its
`UnitStatistics` (statistics.py) hold: rounded sums of x = S - c and of x^T x, the list of top images with its near misses, and
the counts of norms. Adding the statistics of two shards adds the sums and ranks the images of both again: of C + T ranked images
the first C have their x, because no shard has an image without x before its own first C. Of equal norms, the smaller image number
comes first. All this is associative and commutative to the last bit.

The sum of all shards ends as a run over all images does, since that has the same statistics about the same centre.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cliptools.streaming.moments import Basis, Moments
from cliptools.streaming.principal import SymmetricStack
from cliptools.streaming.ranking import NormHistogram, ranking
from cliptools.streaming.statistics import UnitStatistics
from cliptools.unit_effects.factored import slices

APART = 0.01  # largest distance of two centres by rounding, also in half precision: this times the root-mean-square norm,
APART_MEAN = 1e-3  # plus this times the mean's norm


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


def shard_statistics_of(statistics: UnitStatistics) -> ShardStatistics:
    """Statistics of a shard about the centre, from those of its images before `finish`."""
    statistics.settle_all()
    basis, top = statistics.basis, statistics.list
    assert basis is not None  # as the centre is settled
    kept = slice(0, top.filled)
    order, near_order = ranking(top.norm[:, kept], top.image[:, kept]), ranking(top.near_norm, top.near_image)  # (n, f), (n, T)
    row, column = torch.triu_indices(statistics.G.k, statistics.G.k)
    n = len(order)
    counted = statistics.counted
    shard = ShardStatistics(
        statistics.moments.count,
        *basis,
        _lengths(statistics.G, n),
        statistics.moments.sum(),
        torch.cat([statistics.moments.square(part)[:, row, column] for part in slices(n, statistics.G.k)]),
        top.norm[:, kept].gather(1, order),
        top.image[:, kept].gather(1, order),
        top.x[:, kept].gather(1, order[..., None].expand(-1, -1, statistics.G.k)),
        top.near_norm.gather(1, near_order),
        top.near_image.gather(1, near_order),
        top.lost,
        top.image[:, :0].int() if counted is None else counted.count,
        top.image.new_zeros(n, dtype=torch.int32) if counted is None else counted.top,
        statistics.reach,
    )
    return ShardStatistics(shard.seen, *(column.cpu() for column in shard[1:]))


def add(a: ShardStatistics, b: ShardStatistics, capacity: int) -> ShardStatistics:
    """Statistics of the images of both, for the same units.

    Args:
        capacity: C.
    """
    centre = _first(a.centre, b.centre)
    a, b = recentred(a, centre), recentred(b, centre)
    norm, image, x = (torch.cat(pair, 1) for pair in ((a.norm, b.norm), (a.image, b.image), (a.x, b.x)))
    order = ranking(norm, image)  # (n, f of both)
    kept, rest = order[:, :capacity], order[:, capacity:]
    missed = torch.cat([norm.gather(1, rest), a.near_norm, b.near_norm], 1)
    missed_image = torch.cat([image.gather(1, rest), a.near_image, b.near_image], 1)
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
        norm.gather(1, kept),
        image.gather(1, kept),
        x.gather(1, kept[..., None].expand(-1, -1, x.shape[2])),
        missed.gather(1, near),
        missed_image.gather(1, near),
        lost,
        histogram.count,
        histogram.top,
        torch.maximum(a.histogram_reach, b.histogram_reach),
    )


def _first(a: Float[Tensor, "n k"], b: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """Row by row the first in lexical order, so that the order of a and b does not matter."""
    differs = a != b
    place = differs.int().argmax(1, keepdim=True)  # (n, 1)
    return torch.where(a.gather(1, place) <= b.gather(1, place), a, b)


def centres_differ(a: ShardStatistics, b: ShardStatistics) -> Bool[Tensor, " n"]:
    """True for units whose centres differ by more than rounding explains."""
    distance = ((a.centre - b.centre).abs() * a.length).sum(1)
    return distance > APART * a.scale + APART_MEAN * (a.centre.abs() * a.length).sum(1)


def recentred(shard: ShardStatistics, centre: Float[Tensor, "n k"]) -> ShardStatistics:
    """Move the statistics to a centre that differs by rounding, as it may between machines; norms become upper bounds."""
    if torch.equal(shard.centre, centre):
        return shard
    d = centre - shard.centre  # (n, k)
    row, column = torch.triu_indices(d.shape[1], d.shape[1])
    across = shard.sum[:, row] * d[:, column] + d[:, row] * shard.sum[:, column]  # (n, k (k + 1) / 2)
    reach = (d.abs() * shard.length).sum(1).to(shard.norm)[:, None]  # (n, 1): bound on ||d D||
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


def restored_statistics(shard: ShardStatistics, G: SymmetricStack, top: int, quantile: float, listed: int) -> UnitStatistics:
    """Statistics that `finish` can take to the mean, from the sum of all shards."""
    like, (n, filled) = G.blocks[0], shard.norm.shape
    columns = (column.to(like.device) for column in (shard.centre, shard.scale, shard.spread))
    statistics = UnitStatistics(G, top, filled, listed, quantile, Basis(*columns))
    moments, lists = Moments(n, G.k, statistics.centre, listed), statistics.list
    moments.count, moments.spread, statistics.moments = shard.seen, statistics.moments.spread, moments
    row, column = torch.triu_indices(G.k, G.k)
    for part in slices(n, G.k):
        packed = shard.moment[part].to(like.device)
        full = packed.new_zeros(len(packed), G.k, G.k)
        full[:, row, column] = packed
        full[:, column, row] = packed
        moments.put(part, shard.sum[part].to(like.device), full)
    lists.norm, lists.x = shard.norm.to(like), shard.x.to(like)
    lists.image, lists.filled = shard.image.to(like.device), filled
    lists.near_norm, lists.near_image = shard.near_norm.to(like), shard.near_image.to(like.device)
    lists.lost, statistics.reach = shard.lost.to(like), shard.histogram_reach.to(like)
    statistics.counted = None
    if shard.histogram.shape[1]:
        statistics.counted = NormHistogram(shard.histogram.to(like.device), shard.histogram_top.to(like.device))
    return statistics


def _lengths(G: SymmetricStack, n: int) -> Float[Tensor, "n k"]:
    """Norms of the rows of D, from G = D D^T."""
    diagonals = [G.full(part).diagonal(dim1=1, dim2=2) for part in slices(n, G.k)]
    return torch.cat(diagonals).clamp(min=0).sqrt()
