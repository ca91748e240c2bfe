"""Ranks of images by centred norm: the order of the top images, T, and a threshold beyond the images that are kept.

The threshold tau of a unit is its norm of rank r = (1 - q) N: the r-th largest ||x D|| about the mean of all N images (paper 1,
Sec. 3.3: the 100th of 5,000). Where r exceeds the number of images kept, norms are counted in bins as they come, about a
reference that stays while the mean moves. About the mean, which is known at the end, no norm differs from its counted value by
more than the distance delta of mean and reference. So

    L = the largest value with  #{norm >= L + delta} >= r    and    U = the smallest with  #{norm > U - delta} < r

have the r-th largest norm between them, for any distribution of the norms.

Bins are those of a floating-point number's exponent and first six bits: 64 an octave, 0.8 to 1.6 % wide, the same for every
unit and every shard. Of each unit the twelve octaves below its largest norm are kept; smaller norms share the first bin.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

TOP_SHARE, LEAST_TOP, MOST_TOP = 0.02, 10, 100


def canonical_order(names: Sequence[str], seed: int) -> tuple[list[int], list[int]]:
    """Positions in `names` sorted by name, and a seeded shuffle of those ranks: the order in which images are read.

    Equal sets of images give equal bytes in any order of listing. With a folder per class, the first images are not all of the
    first class, which would put the running centre of the statistics far from the mean.
    """
    ranked = sorted(range(len(names)), key=lambda i: names[i])
    return ranked, np.random.default_rng((seed, len(names))).permutation(len(names)).tolist()


def top_count(images: int) -> int:
    """Default T: 2 % of the images, at least 10 and at most 100, and fewer than there are images.

    An effect has a heavy tail: a unit acts on few of many images (paper 1: T = 100 of 5,000).

    >>> [top_count(images) for images in (10_000, 5000, 2000, 501, 60, 8, 1)]
    [100, 100, 40, 11, 10, 7, 1]
    """
    share = math.ceil(TOP_SHARE * images - 1e-6)
    return max(1, min(max(share, LEAST_TOP), MOST_TOP, images - 1))


def rank_of(quantile: float, count: int) -> int:
    """The rank (1 = largest) of the threshold among `count` norms, of which a share 1 - q reaches it.

    >>> rank_of(0.98, 5000), rank_of(0.98, 40), rank_of(0.5, 40)
    (100, 1, 20)
    """
    return min(count, max(1, math.ceil((1 - quantile) * count - 1e-6)))


def ranking(norm: Float[Tensor, "n f"], image: Int[Tensor, "n f"]) -> Int[Tensor, "n f"]:
    """Places by norm, largest first; of equal norms the one with the smaller image number first."""
    order = torch.sort(image, dim=1, stable=True).indices
    return order.gather(1, torch.sort(norm.gather(1, order), dim=1, descending=True, stable=True).indices)


PER_OCTAVE = 64
BINS = 12 * PER_OCTAVE
DROPPED_BITS = 17  # of the 23 bits of float32's mantissa, so that 6 remain
ROUNDING = 1e-5  # largest relative error of a norm by float32
HALVINGS = 48  # bisections of an interval: past float32's digits


class Bracket(NamedTuple):
    """An interval that contains the r-th largest norm."""

    low: Float[Tensor, "n"]
    high: Float[Tensor, "n"]


class NormHistogram:
    """Counts of n units' norms."""

    def __init__(self, count: Int[Tensor, "n bins"], top: Int[Tensor, "n"]) -> None:
        """
        Args:
            count: Norms in each bin; the last bin is number `top` - 1.
            top: Number of the bin above the last, counted from norm 0 up; a multiple of PER_OCTAVE.
        """
        self.count, self.top = count, top

    @classmethod
    def empty(cls, n: int, device: torch.device) -> "NormHistogram":
        """Histograms without counts."""
        return cls(
            torch.zeros(n, BINS, dtype=torch.int32, device=device), torch.full((n,), BINS, dtype=torch.int32, device=device)
        )

    def add(self, part: slice, norm: Float[Tensor, "part b"]) -> None:
        """Count norms of a slice of units."""
        number = norm.float().view(torch.int32) >> DROPPED_BITS  # [part, b]: monotone, since norms are not negative
        above = (number.amax(1) // PER_OCTAVE + 1) * PER_OCTAVE
        self._raise_top(part, torch.maximum(above, self.top[part]))
        place = (number - (self.top[part, None] - BINS)).clamp(min=0)
        self.count[part].scatter_add_(1, place.long(), torch.ones_like(place))

    def _raise_top(self, part: slice, top: Int[Tensor, "part"]) -> None:
        moved = (top > self.top[part]).nonzero()[:, 0]
        if len(moved):
            rows = moved + (part.start or 0)
            self.count[rows] = _shifted(self.count[rows], top[moved] - self.top[rows])
            self.top[rows] = top[moved]

    def __add__(self, other: "NormHistogram") -> "NormHistogram":
        """Sum of both counts, for the same units; the operation is associative and commutative to the bit."""
        if not self.count.shape[1]:
            return self  # without bins nothing is counted
        top = torch.maximum(self.top, other.top)
        return NormHistogram(_shifted(self.count, top - self.top) + _shifted(other.count, top - other.top), top)

    def tail(self) -> "NormTail":
        """Counts added up from the largest norm down."""
        after = self.count.flip(1).cumsum(1).flip(1)  # [n, bins]
        return NormTail(torch.nn.functional.pad(after, (0, 1)), self.top)


class NormTail(NamedTuple):
    """Numbers of norms in each bin and the bins above it."""

    after: Int[Tensor, "n bins+1"]
    """The last column is 0."""
    top: Int[Tensor, "n"]

    def at_least(self, x: Float[Tensor, "n"]) -> Int[Tensor, "n"]:
        """Lower bound on the number of norms of at least x: those in the bins above x, and in the bin that begins with x."""
        place = self._place(x)
        first = self.top - BINS + place
        begins = x <= _lower_edge(torch.where(place == 0, torch.zeros_like(first), first))  # the first bin begins at 0
        return self._count_from(torch.where(begins, place, (place + 1).clamp(max=BINS)))

    def at_most_above(self, x: Float[Tensor, "n"]) -> Int[Tensor, "n"]:
        """Upper bound on the number of norms above x: all norms in the bin of x and above."""
        return self._count_from(self._place(x))

    def largest(self) -> Float[Tensor, "n"]:
        """Upper bound on all counted norms."""
        return _lower_edge(self.top)

    def _place(self, x: Float[Tensor, "n"]) -> Int[Tensor, "n"]:
        return ((x.clamp(min=0).float().view(torch.int32) >> DROPPED_BITS) - (self.top - BINS)).clamp(0, BINS)

    def _count_from(self, place: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
        return self.after.gather(1, place.long()[:, None])[:, 0]


def _shifted(count: Int[Tensor, "n bins"], shift: Int[Tensor, "n"]) -> Int[Tensor, "n bins"]:
    """Counts for tops that are higher by so many bins; counts that leave at the bottom join the first bin."""
    source = torch.arange(BINS, device=count.device) + shift[:, None]  # [n, bins]: the old place of each new bin
    moved = count.gather(1, source.clamp(max=BINS - 1)) * (source < BINS)
    moved[:, 0] = count.sum(1) - moved[:, 1:].sum(1)
    return moved.to(count.dtype)


def _lower_edge(number: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
    """The lower edge of a bin by its number, counted from norm 0 up; infinity past the last number of float32."""
    last = 255 * PER_OCTAVE  # infinity's own exponent
    return (number.clamp(max=last).int() << DROPPED_BITS).view(torch.float32)


def bracket(histogram: NormHistogram, delta: Float[Tensor, "n"], rank: int) -> Bracket:
    """Bounds on the rank-th largest norm about the mean.

    Args:
        histogram: Norms of at least `rank` images.
        delta: Distance of the mean from the reference of these norms.
    """
    tail, d = histogram.tail(), delta.float()
    most = (tail.largest() + d).clamp(max=torch.finfo(torch.float32).max / 4)  # [n]
    low, _ = _bisect(lambda x: tail.at_least(x + d) >= rank, most)  # L
    _, high = _bisect(lambda x: tail.at_most_above(x - d) >= rank, most)  # U
    return Bracket(low * (1 - ROUNDING), high * (1 + ROUNDING))


def _bisect(holds: Callable[[Tensor], Tensor], high: Float[Tensor, "n"]) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
    """Neighbouring values, at the lower of which a condition holds and at the upper of which it does not.

    Args:
        holds: True from 0 up to some value, false from there to `high`.
    """
    low = torch.zeros_like(high)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        inside = holds(middle)
        low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
    return low, high
