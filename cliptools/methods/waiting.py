"""Batches of scalars that wait to be taken in together, and what is made of them then."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


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
