"""What norms are taken about while images come in, and what that bounds.

The mean is known only at the end. Until then norms are about the mean so far, which stays for an epoch. An image dropped in
one has, about the mean of all, a norm of at most what it had plus the distance of the two means.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from cliptools.methods.symmetric import SymmetricStack

GROWTH = 1.25  # of the count, from one epoch to the next
LAST, LEAST = 3, 96  # towards the end epochs are a third of what is left (its end costs as much as ten images), but no shorter


class Offset(NamedTuple):
    """Where norms are taken about, from the centre."""

    o: Float[Tensor, "n k"]
    pull: Float[Tensor, "n k"]
    """G o."""
    square: Float[Tensor, "n"]
    """o G o^T."""


def next_epoch(count: int, expected: int) -> int:
    """The count of images at which the epoch ends that begins now.

    Args:
        expected: The number of images in all, roughly.
    """
    longest = math.ceil((GROWTH - 1) * count)
    return count + max(min(longest, LEAST), min(longest, (expected - count) // LAST))


class Epochs:
    """By epoch, what norms were about and the largest that was dropped: bounds on all dropped, without their names."""

    MOST = 8  # told apart; the oldest, whose bounds are lowest, are joined

    def __init__(self, o: Float[Tensor, "n k"], G: SymmetricStack) -> None:
        """
        Args:
            o: Offset of the first.
            G: Gram matrices of the units' directions.
        """
        self.G = G
        self.offset = [o]
        self.largest = [torch.full_like(o[:, 0], -torch.inf)]

    def drop(self, norm: Float[Tensor, "n b"]) -> None:
        """Images of these norms are dropped."""
        self.largest[-1] = torch.maximum(self.largest[-1], norm.amax(1))

    def end(self, o: Float[Tensor, "n k"]) -> None:
        """Another epoch begins, about another offset."""
        self.offset.append(o)
        self.largest.append(torch.full_like(o[:, 0], -torch.inf))
        if len(self.offset) > self.MOST:
            moved = self.largest.pop(0) + self.G.length(self.offset[1] - self.offset.pop(0))
            self.largest[0] = torch.maximum(self.largest[0], moved)

    def bound(self) -> Float[Tensor, "n"]:
        """No dropped image has a larger norm about the present offset."""
        bounds = [largest + self.G.length(self.offset[-1] - o) for o, largest in zip(self.offset, self.largest, strict=True)]
        return torch.stack(bounds).amax(0)
