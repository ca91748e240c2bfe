"""The orders in which images are worked on and in which they rank: the order of the list leaves no trace in either.

Counts of norms in narrow bins, and what they tell of a rank beyond the images kept.

The threshold tau of a unit is its r-th largest norm ||x D|| about the mean of all images. Where r exceeds the number of images
kept, norms are counted in bins as they come, about a reference that stays while the mean moves. About the mean, which is known
at the end, no norm differs from its counted value by more than the distance delta of mean and reference. So

    L = the largest value with  #{norm >= L + delta} >= r    and    U = the smallest with  #{norm > U - delta} < r

hold the r-th largest norm between them, whatever the law of the norms. Several histograms, each about a reference of its own,
add their counts with a delta each: the later the reference, the closer it is to the mean.

Bins are those of a floating-point number's exponent and first six bits: 64 an octave, 0.8 to 1.6 % wide, the same for every
unit and every shard. Of each unit the twelve octaves below its largest norm are kept; what is smaller shares the first bin.

Norms counted for a threshold beyond the images kept: about three references, since the mean is known only at the end.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cliptools.streaming.batch_buffer import Offset
from cliptools.streaming.principal import SymmetricStack


def canonical_order(names: Sequence[str], seed: int) -> tuple[list[int], list[int]]:
    """Positions in `names` sorted by name, and a seeded shuffle of those ranks.

    A folder per class would otherwise show one class first, which the running centre of the statistics would have to
    make good; and equal sets of images, however listed, now give equal bytes.
    """
    ranked = sorted(range(len(names)), key=lambda i: names[i])
    return ranked, np.random.default_rng((seed, len(names))).permutation(len(names)).tolist()


def ranking(norm: Float[Tensor, "n f"], image: Int[Tensor, "n f"]) -> Int[Tensor, "n f"]:
    """Places by norm, largest first; equal norms are told apart by their image's number."""
    order = torch.sort(image, dim=1, stable=True).indices
    return order.gather(1, torch.sort(norm.gather(1, order), dim=1, descending=True, stable=True).indices)


PER_OCTAVE = 64
BINS = 12 * PER_OCTAVE
DROPPED_BITS = 17  # of float32's 23 of the mantissa, so that 6 remain
ROUNDING = 1e-5  # of a norm: what float32 may have done to it
HALVINGS = 48  # of an interval: past float32's digits


class Bracket(NamedTuple):
    """An interval that holds the r-th largest norm."""

    low: Float[Tensor, "n"]
    high: Float[Tensor, "n"]


class NormHistogram:
    """Counts of n units' norms."""

    def __init__(self, count: Int[Tensor, "n bins"], top: Int[Tensor, "n"]) -> None:
        """
        Args:
            count: The last bin is the one below the number `top`.
            top: In bins from 0 up, a multiple of PER_OCTAVE.
        """
        self.count, self.top = count, top

    @classmethod
    def empty(cls, n: int, device: torch.device) -> "NormHistogram":
        """No norm yet."""
        return cls(
            torch.zeros(n, BINS, dtype=torch.int32, device=device), torch.full((n,), BINS, dtype=torch.int32, device=device)
        )

    def add(self, of: slice, norm: Float[Tensor, "some b"]) -> None:
        """Count norms of some units."""
        number = norm.float().view(torch.int32) >> DROPPED_BITS  # (some, b): monotone, since norms are not negative
        above = (number.amax(1) // PER_OCTAVE + 1) * PER_OCTAVE
        self._raise_top(of, torch.maximum(above, self.top[of]))
        place = (number - (self.top[of, None] - BINS)).clamp(min=0)
        self.count[of].scatter_add_(1, place.long(), torch.ones_like(place))

    def _raise_top(self, of: slice, top: Int[Tensor, "some"]) -> None:
        moved = (top > self.top[of]).nonzero()[:, 0]
        if len(moved):
            rows = moved + (of.start or 0)
            self.count[rows] = _shifted(self.count[rows], top[moved] - self.top[rows])
            self.top[rows] = top[moved]

    def __add__(self, other: "NormHistogram") -> "NormHistogram":
        """Counts of other norms of the same units joined: associative and commutative to the bit."""
        if not self.count.shape[1]:
            return self  # nothing is counted
        top = torch.maximum(self.top, other.top)
        return NormHistogram(_shifted(self.count, top - self.top) + _shifted(other.count, top - other.top), top)

    def tail(self) -> "NormTail":
        """The counts added up from the largest norm down."""
        after = self.count.flip(1).cumsum(1).flip(1)  # (n, bins)
        return NormTail(torch.nn.functional.pad(after, (0, 1)), self.top)


class NormTail(NamedTuple):
    """Numbers of norms from each bin on."""

    after: Int[Tensor, "n bins+1"]
    """Norms in a bin and those above it; the last column is 0."""
    top: Int[Tensor, "n"]

    def at_least(self, x: Float[Tensor, "n"]) -> Int[Tensor, "n"]:
        """A number of norms that are certainly at least x: those in the bins above x, and in the bin that begins with x."""
        place = self._place(x)
        first = self.top - BINS + place
        begins = x <= _value(torch.where(place == 0, torch.zeros_like(first), first))  # the first bin begins at 0
        return self._from(torch.where(begins, place, (place + 1).clamp(max=BINS)))

    def at_most_above(self, x: Float[Tensor, "n"]) -> Int[Tensor, "n"]:
        """A number that the norms above x do not exceed: all from the bin that holds x."""
        return self._from(self._place(x))

    def largest(self) -> Float[Tensor, "n"]:
        """A value that no counted norm reaches."""
        return _value(self.top)

    def _place(self, x: Float[Tensor, "n"]) -> Int[Tensor, "n"]:
        return ((x.clamp(min=0).float().view(torch.int32) >> DROPPED_BITS) - (self.top - BINS)).clamp(0, BINS)

    def _from(self, place: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
        return self.after.gather(1, place.long()[:, None])[:, 0]


def _shifted(count: Int[Tensor, "n bins"], by: Int[Tensor, "n"]) -> Int[Tensor, "n bins"]:
    """Counts for tops that are higher by so many bins; what leaves at the bottom joins the first bin."""
    source = torch.arange(BINS, device=count.device) + by[:, None]  # (n, bins): the old place of each new bin
    moved = count.gather(1, source.clamp(max=BINS - 1)) * (source < BINS)
    moved[:, 0] = count.sum(1) - moved[:, 1:].sum(1)
    return moved.to(count.dtype)


def _value(number: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
    """The lower edge of a bin, by its number from 0 up; infinity past the last number of float32."""
    last = 255 * PER_OCTAVE  # infinity's own exponent
    return (number.clamp(max=last).int() << DROPPED_BITS).view(torch.float32)


def bracket(histograms: Sequence[NormHistogram], delta: Sequence[Float[Tensor, "n"]], rank: int) -> Bracket:
    """Bounds on the rank-th largest norm about the mean.

    Args:
        histograms: Of the same units, other images each; together at least `rank` images.
        delta: For each, the distance of the mean from what its norms are about.
    """
    parts = [(each.tail(), far.float()) for each, far in zip(histograms, delta, strict=True)]
    most = torch.stack([tail.largest() + far for tail, far in parts]).amax(0).clamp(max=torch.finfo(torch.float32).max / 4)
    low, _ = _bisect(lambda x: torch.stack([tail.at_least(x + far) for tail, far in parts]).sum(0) >= rank, most)
    _, high = _bisect(lambda x: torch.stack([tail.at_most_above(x - far) for tail, far in parts]).sum(0) >= rank, most)
    return Bracket(low * (1 - ROUNDING), high * (1 + ROUNDING))


def _bisect(holds: Callable[[Tensor], Tensor], high: Float[Tensor, "n"]) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
    """Neighbouring values between which a condition that holds from 0 up ceases to; it does not hold at `high`."""
    low = torch.zeros_like(high)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        yes = holds(middle)
        low, high = torch.where(yes, middle, low), torch.where(yes, high, middle)
    return low, high


SHARES = (0, 1 / 16, 1 / 4)  # of the images, after which norms are counted about another reference, the mean so far


class Reference(NamedTuple):
    """Norms of some of the images, counted about one place."""

    histogram: NormHistogram
    about: Offset | None
    """The place, from the centre; None: the centre itself."""
    reach: Float[Tensor, "n"] | None = None
    """How far the place itself may be off, by rounding."""


class CountedNorms:
    """Counts of n units' norms, in batches."""

    def __init__(self, n: int, device: torch.device, expected: int) -> None:
        """
        Args:
            expected: The number of images to come, roughly.
        """
        self.n, self.device, self.expected = n, device, expected
        self.references: list[Reference] = []

    def refer_to(self, about: Offset | None, count: int) -> None:
        """Take a place for the next reference, where so many of the images are counted that it is due."""
        due = len(self.references)
        if due < len(SHARES) and count >= SHARES[due] * self.expected:
            self.references.append(Reference(NormHistogram.empty(self.n, self.device), about))

    def add(self, of: slice, x: Float[Tensor, "some b k"], norm: Float[Tensor, "some b"], offset: Offset | None) -> None:
        """Count images of some units.

        Args:
            norm: ||(x - o) D|| with the offset's o.
            offset: As `refer_to` takes it.
        """
        histogram, about, _ = self.references[-1]
        if offset is not None and about is not None and about is not offset:
            # ||(x - p) D||^2 = ||(x - o) D||^2 + 2 <x D, (o - p) D> + ||p D||^2 - ||o D||^2 about the reference's p
            across = torch.bmm(x, (offset.pull[of] - about.pull[of])[..., None])[..., 0]  # (some, b)
            square = about.square[of] - offset.square[of]
            norm = (norm.square() + 2 * across + square[:, None]).clamp(min=0).sqrt()
        histogram.add(of, norm)

    def bracket(self, mean: Float[Tensor, "n k"], G: SymmetricStack, rank: int) -> Bracket:
        """Bounds on the norm of this rank about the mean, which is given from the centre."""
        delta = []
        for _, about, reach in self.references:
            distance = G.length(mean if about is None else mean - about.o)
            delta.append(distance if reach is None else distance + reach)
        return bracket([each.histogram for each in self.references], delta, rank)


def rank_of(quantile: float, count: int) -> int:
    """Of `count` norms, the rank (1 = largest) of the threshold, which a share 1 - q of them reaches.

    >>> rank_of(0.98, 5000), rank_of(0.98, 40), rank_of(0.5, 40)
    (100, 1, 20)
    """
    return min(count, max(1, math.ceil((1 - quantile) * count - 1e-6)))
