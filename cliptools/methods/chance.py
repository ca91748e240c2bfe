"""What guessing would make of images with labels, to hold an accuracy against.

A name drawn from those of the classes is right on one image of so many. Two things change that. Predictions that have nothing to
do with unbalanced labels, but prefer the same classes, are right as often as the labels dealt to the images anew: the agreement
expected in Cohen's kappa. And classes of one name have one text, so that images are only ever taken for the first of them.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from cliptools.methods.zero_shot import Share, Standing, standing

Z = 1.644854  # the normal quantile of a one-sided 5 %


class Guessing:
    """What guessing makes of images with labels, by the counts of labels and predictions.

    Args:
        names: Of the classes; those of one name are one to a model.
    """

    def __init__(self, names: Sequence[str]) -> None:
        first = {name: number for number, name in reversed(list(enumerate(names)))}
        self._first = np.isin(np.arange(len(names)), list(first.values()))
        self._distinct = len(first)
        self._label, self._best = (np.zeros(len(names), np.int64) for _ in range(2))
        self._hits = 0

    def add(self, label: Int[np.ndarray, " b"], best: Int[np.ndarray, " b"]) -> None:
        """One batch: the images' classes, and what they are taken for."""
        self._label += np.bincount(label, minlength=len(self._label))
        self._best += np.bincount(best, minlength=len(self._best))
        self._hits += int((label == best).sum())

    @property
    def share(self) -> Share:
        """Images taken for what they are."""
        return Share(self._hits, int(self._label.sum()))

    @property
    def guess(self) -> float:
        """Probability that a name drawn from the classes' is right."""
        return float(self._label[self._first].sum() / (self._distinct * self._label.sum()))

    @property
    def expected(self) -> float:
        """Images on which guessing is right: the greater of names drawn, and of labels dealt anew where those tell."""
        dealt, spread = self._dealt()
        return max(self.guess * self.share.trials, dealt if self._tells(dealt, spread) else 0.0)

    def standing(self) -> Standing:
        """How the model stands to guessing."""
        dealt, spread = self._dealt()
        related = not self._tells(dealt, spread) or self._hits >= dealt + Z * spread
        return standing(self.share, self.guess, related)

    def _tells(self, dealt: float, spread: float) -> bool:
        """Whether dealing labels anew tells anything: not if they are all of one class, or all images are taken for one."""
        return spread > 0 and int(np.minimum(self._label, self._best).sum()) >= dealt + Z * spread

    def _dealt(self) -> tuple[float, float]:
        """Mean and deviation of the right answers when the labels are dealt to the images anew."""
        n, label, best = int(self._label.sum()), self._label.astype(np.float64), self._best.astype(np.float64)
        pairs = float(label @ best)
        variance = pairs - float(best @ label**2 + label @ best**2) / n + (pairs / n) ** 2
        return pairs / n, math.sqrt(max(variance, 0.0) / max(n - 1, 1))
