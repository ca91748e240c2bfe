"""Batches of scalars that wait to be taken in together, and what is made of them then.

What norms are taken about while images come in, and what that bounds.

The mean is known only at the end. Until then norms are about the mean so far, which stays for an epoch. An image dropped in
one has, about the mean of all, a norm of at most what it had plus the distance of the two means.

Images that just missed a list of top images: by norm and number alone, so that hundreds cost little.

A list kept about a provisional centre may be wrong about the mean. The images that could set it right are those dropped
with a norm near the list's end: these few are remembered, and need to be looked at again, all others need not.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cliptools.streaming.principal import SymmetricStack


class Batch(NamedTuple):
    """Images as they come in."""

    S: Float[Tensor, "b n k"]
    image: Int[Tensor, "b"]
    scale: Float[Tensor, "b"]
    """What S is to be multiplied by."""


class Waiting:
    """Batches in the order in which they came."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []

    def add(self, batch: Batch) -> None:
        """One more."""
        self.batches.append(batch)

    def __len__(self) -> int:
        """Images."""
        return sum(len(batch.image) for batch in self.batches)

    def take(self, count: int) -> list[Batch]:
        """At most so many images, which no longer wait."""
        taken, rest = [], []
        for batch in self.batches:
            some = min(count, len(batch.image))
            count -= some
            taken += [Batch(*(column[:some] for column in batch))] if some else []
            rest += [Batch(*(column[some:] for column in batch))] if some < len(batch.image) else []
        self.batches = rest
        return taken


class Centred:
    """x = S - centre of batches taken in together: too large to be whole, made for some units or for single rows."""

    def __init__(self, batches: Sequence[Batch], centre: Float[Tensor, "n k"]) -> None:
        self.batches = batches
        self.minus = -centre.to(batches[0].S.dtype)

    def block(self, of: slice) -> Float[Tensor, "some b k"]:
        """Of some units, all images."""
        sizes = [len(batch.image) for batch in self.batches]
        x = self.minus.new_empty(len(self.minus[of]), sum(sizes), self.minus.shape[1])
        for batch, columns in zip(self.batches, x.split(sizes, 1), strict=True):
            torch.addcmul(self.minus[of, None], batch.S[:, of].transpose(0, 1), batch.scale[:, None], out=columns)
        return x

    def rows(self, unit: Int[Tensor, "s"], number: Int[Tensor, "s"]) -> Float[Tensor, "s k"]:
        """Of single units single images, these counted through the batches."""
        x = self.minus.new_empty(len(unit), self.minus.shape[1])
        for batch in self.batches:
            mine = ((number >= 0) & (number < len(batch.image))).nonzero()[:, 0]
            of, which = unit[mine], number[mine]
            S = batch.S.flatten(0, 1).index_select(0, which * len(self.minus) + of)
            x.index_copy_(0, mine, torch.addcmul(self.minus.index_select(0, of), S, batch.scale[which, None]))
            number = number - len(batch.image)
        return x


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


SORTED = 500_000  # norms at a time: what is made of them stays small, whatever the number of units


class Exchange(NamedTuple):
    """Of m kept and b new norms in each of n rows, the b smallest leave."""

    leaves: Int[Tensor, "n b"]
    """Their places, new ones counted from m."""
    dropped: Float[Tensor, "n b"]
    """Their norms, smallest first."""
    floor: Float[Tensor, "n"]
    """The smallest that stays."""

    def places(self, m: int) -> tuple[Int[Tensor, "s"], Int[Tensor, "s"], Int[Tensor, "s"]]:
        """Row, place that becomes free, newcomer that takes it."""
        old = self.leaves < m
        n, b = old.shape
        stays = old.new_ones(n, b + 1).scatter_(1, torch.where(old, b, self.leaves - m), False)[:, :b]
        row, column = old.nonzero(as_tuple=True)
        return row, self.leaves[row, column], stays.nonzero(as_tuple=True)[1]

    def pick(self, kept: Int[Tensor, "n m"], new: Int[Tensor, "n b"]) -> Int[Tensor, "n b"]:
        """Whatever belongs to the norms that leave."""
        m = kept.shape[1]
        of_new = new.gather(1, (self.leaves - m).clamp(min=0))
        return kept.gather(1, self.leaves.clamp(max=m - 1)).where(self.leaves < m, of_new)


def exchange(kept: Float[Tensor, "n m"], new: Float[Tensor, "n b"]) -> Exchange:
    """Which norms leave."""
    values, order = torch.cat([kept, new], 1).topk(new.shape[1] + 1, largest=False)
    return Exchange(order[:, :-1], values[:, :-1], values[:, -1])


def exchanges(
    kept: Float[Tensor, "n m"], new: Float[Tensor, "n b"], rows: Int[Tensor, "r"]
) -> Iterator[tuple[Int[Tensor, "some"], Exchange]]:
    """Which norms leave some of the rows, a few of these at a time."""
    for some in rows.split(max(1, SORTED // (kept.shape[1] + new.shape[1]))):
        yield some, exchange(kept[some], new[some])


class NearMisses:
    """The R largest of what n units have dropped. Norms are upper bounds, about the present centre."""

    def __init__(self, n: int, places: int, like: Tensor) -> None:
        self.norm = like.new_full((n, places), -torch.inf)
        self.image = torch.full((n, places), -1, dtype=torch.int64, device=like.device)
        self.least = like.new_full((n,), -torch.inf)
        self.lost = like.new_full((n,), -torch.inf)
        """Bound on what is not even remembered."""
        self.pending: list[tuple[Tensor, Tensor]] = []

    def take(self, norm: Float[Tensor, "n b"], image: Int[Tensor, "n b"]) -> None:
        """Remember what units drop, or forget what is smaller; not at once, which costs nearly the same for few and for many."""
        self.pending.append((norm, image))
        if sum(norm.shape[1] for norm, _ in self.pending) >= self.norm.shape[1]:
            self.settle()

    def settle(self) -> None:
        """Bring everything up to date."""
        if not self.pending:
            return
        norm, image = (torch.cat(columns, 1) for columns in zip(*self.pending, strict=True))
        self.pending = []
        largest = norm.amax(1)
        self.lost = torch.where(largest > self.least, self.lost, torch.maximum(self.lost, largest))
        units = (largest > self.least).nonzero()[:, 0]
        for some, exchanged in exchanges(self.norm, norm, units):
            row, place, newcomer = exchanged.places(self.norm.shape[1])
            self.norm[some[row], place] = norm[some[row], newcomer]
            self.image[some[row], place] = image[some[row], newcomer]
            self.least[some] = exchanged.floor
            self.lost[some] = torch.maximum(self.lost[some], exchanged.dropped[:, -1])

    def move(self, distance: Float[Tensor, "n"]) -> None:
        """The centre moves by so much, and no norm grows by more."""
        self.settle()
        self.norm += distance[:, None]
        self.least += distance
        self.lost += distance

    def above(
        self, of: slice, norm: Float[Tensor, "n"], bound: Float[Tensor, "n"]
    ) -> tuple[Int[Tensor, "n R"], Bool[Tensor, "n"]]:
        """Of some units the images, else -1, that may have more than this norm; and whether any may that is not remembered.

        Args:
            bound: Another bound on the norm of everything dropped.
        """
        self.settle()
        image = self.image[of]
        may = (self.norm[of] > norm[:, None]) & (bound > norm)[:, None]
        return image.where(may, torch.full_like(image, -1)), (self.lost[of] > norm) & (bound > norm)
