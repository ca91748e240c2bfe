"""Norms counted for a threshold beyond the images kept: about three references, since the mean is known only at the end."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from cliptools.methods.epochs import Offset
from cliptools.methods.norm_histogram import Bracket, NormHistogram, bracket
from cliptools.methods.symmetric import SymmetricStack

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
