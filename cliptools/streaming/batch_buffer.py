"""The batch buffer of the streaming statistics, and bounds on the norms of the images that their lists drop.

Batches of scalars are buffered (`BatchBuffer`) and processed together, since updating the lists costs nearly the same for few
images as for many.

The mean is known only after the last image. Until then norms are about the mean so far, which stays fixed for an epoch. About the
mean of all images, an image dropped in an epoch has a norm of at most

    ||x D|| about the offset o of that epoch  +  ||(mean - o) D||

`Epochs` has the largest such bound, without the numbers of the images. A list about a provisional centre may be wrong about the
mean; the images that could correct it are those dropped with a norm near the end of the list. `NearMisses` has the norm and
number of these alone, so hundreds of them cost little: only they need a second look.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cliptools.streaming.principal import SymmetricStack

GROWTH = 1.25  # growth of the count from one epoch to the next
LAST, LEAST = 3, 96  # near the end an epoch is a third of the remaining images, but 96 at least: its end costs as much as ten
NORMS_AT_ONCE = 500_000  # norms sorted at a time, so that temporaries stay small for any number of units


class Batch(NamedTuple):
    """Scalars of b images as an effect reads them."""

    S: Float[Tensor, "b n k"]
    image: Int[Tensor, "b"]
    """Numbers of the images."""
    scale: Float[Tensor, "b"]
    """Factor by which S is to be multiplied."""


class BatchBuffer:
    """Batches to process together, in order of arrival."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []

    def add(self, batch: Batch) -> None:
        """Append a batch."""
        self.batches.append(batch)

    def __len__(self) -> int:
        """Number of images in the buffer."""
        return sum(len(batch.image) for batch in self.batches)

    def take(self, count: int) -> list[Batch]:
        """Remove and return the first images, at most `count`."""
        first, remaining = [], []
        for batch in self.batches:
            size = min(count, len(batch.image))
            count -= size
            first += [Batch(*(column[:size] for column in batch))] if size else []
            remaining += [Batch(*(column[size:] for column in batch))] if size < len(batch.image) else []
        self.batches = remaining
        return first


class Centred:
    """x = S - centre of buffered batches [n, b, k], too large to form at once: computed for a slice of units or single rows."""

    def __init__(self, batches: Sequence[Batch], centre: Float[Tensor, "n k"]) -> None:
        self.batches = batches
        self.minus = -centre.to(batches[0].S.dtype)  # [n, k]

    def block(self, part: slice) -> Float[Tensor, "part b k"]:
        """x of a slice of units, for all images."""
        sizes = [len(batch.image) for batch in self.batches]
        x = self.minus.new_empty(len(self.minus[part]), sum(sizes), self.minus.shape[1])
        for batch, columns in zip(self.batches, x.split(sizes, 1), strict=True):
            torch.addcmul(self.minus[part, None], batch.S[:, part].transpose(0, 1), batch.scale[:, None], out=columns)
        return x

    def rows(self, unit: Int[Tensor, "s"], number: Int[Tensor, "s"]) -> Float[Tensor, "s k"]:
        """Rows of x for (unit, image) pairs; image numbers run across the batches."""
        x = self.minus.new_empty(len(unit), self.minus.shape[1])
        for batch in self.batches:
            pairs = ((number >= 0) & (number < len(batch.image))).nonzero()[:, 0]  # pairs whose image is in this batch
            n, b = unit[pairs], number[pairs]
            S = batch.S.flatten(0, 1).index_select(0, b * len(self.minus) + n)  # [b n, k] -> [pairs, k]
            x.index_copy_(0, pairs, torch.addcmul(self.minus.index_select(0, n), S, batch.scale[b, None]))
            number = number - len(batch.image)
        return x


class Offset(NamedTuple):
    """The point of S space that norms are about, as an offset o from the centre: ||(x - o) D||^2 = x G x^T - 2 x G o + o G o."""

    o: Float[Tensor, "n k"]
    pull: Float[Tensor, "n k"]
    """G o."""
    square: Float[Tensor, "n"]
    """o G o^T."""


def next_epoch(count: int, expected: int) -> int:
    """The count of images at which the epoch that begins now will end.

    Args:
        expected: Approximate number of images in all.
    """
    longest = math.ceil((GROWTH - 1) * count)
    return count + max(min(longest, LEAST), min(longest, (expected - count) // LAST))


class Epochs:
    """For each epoch its offset and the largest norm that was dropped in it: bounds on all dropped images."""

    MOST = 8  # epochs kept; the oldest, whose bounds are lowest, are joined

    def __init__(self, o: Float[Tensor, "n k"], G: SymmetricStack) -> None:
        """
        Args:
            o: Offset of the first epoch.
            G: Gram matrices of the units' directions.
        """
        self.G = G
        self.offset = [o]  # [n, k] an epoch
        self.largest = [torch.full_like(o[:, 0], -torch.inf)]  # [n] an epoch

    def drop(self, norm: Float[Tensor, "n b"]) -> None:
        """Count images of these norms as dropped in the present epoch."""
        self.largest[-1] = torch.maximum(self.largest[-1], norm.amax(1))

    def end(self, o: Float[Tensor, "n k"]) -> None:
        """End the present epoch and begin one about another offset."""
        self.offset.append(o)
        self.largest.append(torch.full_like(o[:, 0], -torch.inf))
        if len(self.offset) > self.MOST:
            moved = self.largest.pop(0) + self.G.length(self.offset[1] - self.offset.pop(0))
            self.largest[0] = torch.maximum(self.largest[0], moved)

    def bound(self) -> Float[Tensor, "n"]:
        """Bound on the norm of every dropped image about the present offset."""
        bounds = [largest + self.G.length(self.offset[-1] - o) for o, largest in zip(self.offset, self.largest, strict=True)]
        return torch.stack(bounds).amax(0)  # [epochs, n] -> [n]


class Exchange(NamedTuple):
    """The b smallest of m listed and b new norms in each of n rows, which leave the list."""

    leaves: Int[Tensor, "n b"]
    """Places of the norms that leave; those of new norms are counted from m."""
    dropped: Float[Tensor, "n b"]
    """The norms that leave, smallest first."""
    floor: Float[Tensor, "n"]
    """The smallest norm that stays."""

    def places(self, m: int) -> tuple[Int[Tensor, "s"], Int[Tensor, "s"], Int[Tensor, "s"]]:
        """Row and place of every listed norm that leaves, and the column of the new norm that takes its place."""
        old = self.leaves < m
        n, b = old.shape
        stays = old.new_ones(n, b + 1).scatter_(1, torch.where(old, b, self.leaves - m), False)[:, :b]  # column b is a dummy
        row, column = old.nonzero(as_tuple=True)
        return row, self.leaves[row, column], stays.nonzero(as_tuple=True)[1]

    def pick(self, listed: Int[Tensor, "n m"], new: Int[Tensor, "n b"]) -> Int[Tensor, "n b"]:
        """The entries that belong to the norms that leave."""
        m = listed.shape[1]
        from_new = new.gather(1, (self.leaves - m).clamp(min=0))
        return listed.gather(1, self.leaves.clamp(max=m - 1)).where(self.leaves < m, from_new)


def exchange(listed: Float[Tensor, "n m"], new: Float[Tensor, "n b"]) -> Exchange:
    """The exchange that keeps the m largest norms of every row."""
    values, order = torch.cat([listed, new], 1).topk(new.shape[1] + 1, largest=False)  # [n, b + 1]
    return Exchange(order[:, :-1], values[:, :-1], values[:, -1])


def exchanges(
    listed: Float[Tensor, "n m"], new: Float[Tensor, "n b"], rows: Int[Tensor, "r"]
) -> Iterator[tuple[Int[Tensor, "part"], Exchange]]:
    """Exchanges of these rows, a few rows at a time."""
    for part in rows.split(max(1, NORMS_AT_ONCE // (listed.shape[1] + new.shape[1]))):
        yield part, exchange(listed[part], new[part])


class NearMisses:
    """The R largest norms that n units have dropped, with their images: upper bounds about the present centre."""

    def __init__(self, n: int, places: int, like: Tensor) -> None:
        self.norm = like.new_full((n, places), -torch.inf)
        self.image = torch.full((n, places), -1, dtype=torch.int64, device=like.device)
        self.least = like.new_full((n,), -torch.inf)
        """The smallest of the R norms."""
        self.lost = like.new_full((n,), -torch.inf)
        """Bound on the norms of dropped images that are not among the R either."""
        self.pending: list[tuple[Tensor, Tensor]] = []

    def take(self, norm: Float[Tensor, "n b"], image: Int[Tensor, "n b"]) -> None:
        """Add images that units drop; they are buffered until there are R of them."""
        self.pending.append((norm, image))
        if sum(norm.shape[1] for norm, _ in self.pending) >= self.norm.shape[1]:
            self.settle()

    def settle(self) -> None:
        """Process the buffered images."""
        if not self.pending:
            return
        norm, image = (torch.cat(columns, 1) for columns in zip(*self.pending, strict=True))  # [n, b] both
        self.pending = []
        largest = norm.amax(1)
        self.lost = torch.where(largest > self.least, self.lost, torch.maximum(self.lost, largest))
        units = (largest > self.least).nonzero()[:, 0]
        for part, exchanged in exchanges(self.norm, norm, units):
            row, place, newcomer = exchanged.places(self.norm.shape[1])
            self.norm[part[row], place] = norm[part[row], newcomer]
            self.image[part[row], place] = image[part[row], newcomer]
            self.least[part] = exchanged.floor
            self.lost[part] = torch.maximum(self.lost[part], exchanged.dropped[:, -1])

    def move(self, distance: Float[Tensor, "n"]) -> None:
        """Raise all bounds for a centre that moves by this distance: no norm grows by more."""
        self.settle()
        self.norm += distance[:, None]
        self.least += distance
        self.lost += distance

    def above(
        self, part: slice, norm: Float[Tensor, "n"], bound: Float[Tensor, "n"]
    ) -> tuple[Int[Tensor, "n R"], Bool[Tensor, "n"]]:
        """Dropped images of a slice of units that may exceed this norm, else -1; and true where further images may exceed it.

        Args:
            bound: Another bound on the norms of all dropped images.
        """
        self.settle()
        image = self.image[part]
        possible = (self.norm[part] > norm[:, None]) & (bound > norm)[:, None]  # [n, R]
        return image.where(possible, torch.full_like(image, -1)), (self.lost[part] > norm) & (bound > norm)
