"""Sums of scalars over images, about a fixed centre, such that sums of shards are exact in any order.

With x = S - c, the sums of x and of x^T x give the mean c + o of S and its second moment about the mean:

    o = mean of x,        mean of (x - o)^T (x - o) = mean of x^T x - o^T o

The centre is the mean of a sample of the images, so that o is small and the difference loses no digit that counts.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cliptools.streaming.principal import SymmetricStack
from cliptools.streaming.storage import Storage

HEADROOM = 6  # octaves by which sums may exceed those of N images of the sample's spread, and are still exact
DIGITS = 52  # binary digits of float64
SILENT = 1e-3  # stands for the spread of units that no image of the sample activates


class Basis(NamedTuple):
    """The centre of n units and the size of their scalars, from a sample of the images; all shards of a run share it."""

    centre: Float[Tensor, "n k"]
    """c, in float64 but with no more digits than S has."""
    scale: Float[Tensor, "n"]
    """Root mean square of ||x D||."""
    spread: Float[Tensor, "n"]
    """Largest root mean square among the columns of x."""


class Moments:
    """Sums of x and x^T x of n units over the images, rounded so that the sums of shards can be added in any order.

    Floating-point sums are associative only where nothing is rounded. So at the end sums are rounded to multiples of a power of
    two, coarse enough that float64 holds all sums of them exactly and fine enough (2^-46 of N times the spread) to lose no digit
    that counts.
    """

    def __init__(self, n: int, k: int, like: Tensor, listed: int, storage: Storage | None = None) -> None:
        """
        Args:
            like: A tensor of the type in which x^T x is summed, and of the device.
            listed: N, the number of images in the whole list.
            storage: Memory for the sums of x^T x.
        """
        self.count, self.listed = 0, listed
        self._sum = torch.zeros(n, k, dtype=torch.float64, device=like.device)
        self._square = SymmetricStack(n, k, like, storage)
        self.spread = self._sum.new_zeros(n)
        """Spread of the sample."""

    def add(self, part: slice, x: Float[Tensor, "some b k"]) -> None:
        """Add x of a slice of units; `count` is the caller's to raise."""
        self._sum[part] += x.sum(1, dtype=torch.float64)
        self._square.add_outer(part, x)

    def put(self, part: slice, total: Float[Tensor, "some k"], square: Float[Tensor, "some k k"]) -> None:
        """Set the sums of a slice of units."""
        self._sum[part] = total
        self._square.put(part, square)

    def sum(self, part: slice = slice(None)) -> Float[Tensor, "some k"]:
        """Sum of x, in float64."""
        return _rounded(self._sum[part], self._bound(part, 1)[:, None])

    def square(self, part: slice) -> Float[Tensor, "some k k"]:
        """Sum of x^T x, in float64."""
        return _rounded(self._square.full(part).double(), self._bound(part, 2)[:, None, None])

    def mean(self, part: slice = slice(None)) -> Float[Tensor, "some k"]:
        """o, the mean of x, in float64."""
        return self.sum(part) / max(self.count, 1)

    def about_mean(self, part: slice) -> Float[Tensor, "some k k"]:
        """Mean of (x - o)^T (x - o), in float64."""
        o = self.mean(part)
        return self.square(part).div_(max(self.count, 1)).baddbmm_(o[:, :, None], o[:, None], alpha=-1)

    def along_and_total(
        self, part: slice, Dr: Float[Tensor, "some k"], G: Float[Tensor, "some k k"]
    ) -> tuple[Float[Tensor, " some"], Float[Tensor, " some"]]:
        """Means of <(x - o) D, r>^2 and of ||(x - o) D||^2, with Dr = D r and G = D D^T."""
        square, o, count = self.square(part), self.mean(part), max(self.count, 1)
        along = (Dr * (square @ Dr[..., None])[..., 0]).sum(1) / count - (o * Dr).sum(1).square()
        total = square.mul_(G).sum((1, 2)) / count - (o * (G @ o[..., None])[..., 0]).sum(1)
        return along.clamp(min=0), total

    def pick(self, units: Int[Tensor, "r"]) -> "Moments":
        """The moments of some of the units."""
        picked = Moments(0, self._sum.shape[1], self._sum, self.listed)
        picked.count, picked.spread = self.count, self.spread[units]
        picked._sum, picked._square = self._sum[units], self._square.pick(units)
        return picked

    def _bound(self, part: slice, power: int) -> Float[Tensor, "some"]:
        """N times a power of the spread."""
        spread = self.spread[part].double()
        return self.listed * torch.where(spread > 0, spread, SILENT) ** power


def _rounded(total: Float[Tensor, "n *k"], bound: Float[Tensor, "n *one"]) -> Float[Tensor, "n *k"]:
    """Sums rounded to multiples of a power of two, such that further sums up to 2^HEADROOM times the bound are exact."""
    quantum = torch.exp2(bound.clamp(min=torch.finfo(torch.float64).tiny).log2().ceil() + HEADROOM - DIGITS)
    return (total / quantum).round_().mul_(quantum)
