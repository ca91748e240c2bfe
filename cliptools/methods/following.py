"""How far the share of a concept's units follows the concept on the images at hand, as the model itself sees it.

It is the correlation over images of the share with <M(I), t> / ||M(I)||, from which the units' own part, <sum phi_n, t> /
||M(I)||, is taken: they are part of M(I), and would follow themselves. What chance gives is the same of sets of units drawn
at random. Only sums are kept: of parts of the images, for an interval by jackknife.py, parts being blocks or, of independent
images, every hundredth image.

Units chosen by what they see on the very images (concept_choice.py) follow these better than others, the more so the fewer: on
emoji-vit, with 20 directions as concepts, by 0.23 over 20 images, 0.14 over 50, 0.08 over 100 and 0.03 over 300.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from cliptools.methods.jackknife import NEAR_ONE, SUMS, correlations, interval_of

SETS = 20  # drawn at random
PARTS = 100  # of independent images
SIGMAS = 1.959964  # above the mean of the sets: what one in forty exceeds


class Followed(NamedTuple):
    """A correlation with its 95 % interval, and what one set of random units in forty exceeds."""

    value: float
    low: float | None
    high: float | None
    size: int
    chance: float | None
    """None where there are too few units to draw from."""


class Following:
    """Sums for it, of c concepts and s random sets."""

    def __init__(self, concepts: int, sets: int, parts: int) -> None:
        self.sums = np.zeros((parts, concepts, SUMS))
        self.random = np.zeros((sets, concepts, SUMS))
        self.shift: tuple[np.ndarray, ...] | None = None

    def add(
        self,
        part: Int[np.ndarray, " b"],
        share: Float[np.ndarray, "b c"],
        rest: Float[np.ndarray, "b c"],
        random_share: Float[np.ndarray, "b s c"],
        random_rest: Float[np.ndarray, "b s c"],
    ) -> None:
        """Some images.

        Args:
            part: Which part each is of.
            share: What is asked whether it follows.
            rest: The model's own similarity less the units' part.
            random_share: The same of the sets drawn at random, whatever the concept.
            random_rest: Likewise.
        """
        values = (share, rest, random_share, random_rest)
        if self.shift is None:  # near 0, sums of squares lose no digits
            self.shift = tuple(value.mean(0) for value in values)
        x, y, random_x, random_y = (value - mean for value, mean in zip(values, self.shift, strict=True))
        np.add.at(self.sums, part, _terms(x, y))
        self.random += _terms(random_x, random_y).sum(0)

    def of(self, concept: int) -> Followed | None:
        """None where the correlation is not defined."""
        sums = self.sums[:, concept]
        if np.isnan(value := float(correlations(sums.sum(0)))):
            return None
        interval = interval_of(sums)
        by_chance = correlations(self.random[:, concept])
        by_chance = by_chance[~np.isnan(by_chance)]
        chance = _exceeded(by_chance) if len(by_chance) > 2 else None
        low, high = (None, None) if interval is None else interval[1:]
        return Followed(value, low, high, int(sums[:, 0].sum()), chance)


def _exceeded(by_chance: Float[np.ndarray, " s"]) -> float:
    """The correlation that one set in forty exceeds, by the spread of artanh r: below 1, with few images too."""
    z = np.arctanh(np.clip(by_chance, -NEAR_ONE, NEAR_ONE))
    return float(np.tanh(z.mean() + SIGMAS * z.std(ddof=1)))


def _terms(x: Float[np.ndarray, "*some"], y: Float[np.ndarray, "*some"]) -> Float[np.ndarray, "*some 6"]:
    return np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], -1)
