"""Images that just missed a list of top images: by norm and number alone, so that hundreds cost little.

A list kept about a provisional centre may be wrong about the mean. The images that could set it right are those dropped
with a norm near the list's end: these few are remembered, and need to be looked at again, all others need not.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

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
