"""Batches of scalars that wait to be taken in together."""

from typing import NamedTuple

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
