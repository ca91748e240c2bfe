"""Zero-shot classification of outputs in several settings at once: hits among the best 1 and 5, with Wilson's 95 % interval.

What guessing would make of images with labels, to hold an accuracy against.

A name drawn from those of the classes is right on one image of so many. Two things change that. Predictions that have nothing to
do with unbalanced labels, but prefer the same classes, are right as often as the labels dealt to the images anew: the agreement
expected in Cohen's kappa. And classes of one name have one text, so that images are only ever taken for the first of them.

Whether a model is fooled (paper 1, section 5.1): the margin of an image along v, and its share above zero.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import binomtest
from torch import Tensor
from torch.nn import functional as F

from cliptools.devices import to_float64

Z = 1.959964  # the normal quantile of a 95 % interval
BEST = 5
ALPHA = 0.05  # a share that guessing reaches less often is above chance
RARE = 0.01  # a share that a model half way to perfect falls to less often is that of no such model

Standing = Literal["above", "chance", "open"]
"""Better than guessing; no better, and worse than a model that knows the classes would be; or too few images to tell."""


class Share(NamedTuple):
    """Successes among trials.

    >>> Share(874, 1000).value, [round(end, 3) for end in Share(874, 1000).interval()]
    (0.874, [0.852, 0.893])
    """

    hits: int
    trials: int

    @property
    def value(self) -> float:
        return self.hits / self.trials

    def interval(self) -> tuple[float, float]:
        """Wilson's score interval, 95 %."""
        p, n = self.value, self.trials
        centre = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
        half = Z * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2)) / (1 + Z**2 / n)
        return max(0.0, centre - half), min(1.0, centre + half)


class Scored(NamedTuple):
    """One batch: which classes won."""

    best: Int[Tensor, "s b"]
    rank: Int[Tensor, "s b"]
    """Classes that score higher than the true one; of equal scores, the class first in the list is higher (as argmax has it).

    Beyond all classes where they all score alike or no score is a number: such an output names none of them.
    """
    cosine: Float[Tensor, "s b"]
    """Cosine of the output with that of the first setting."""


def score(output: Float[Tensor, "s b d"], text: Float[Tensor, "class d"], label: Int[Tensor, " b"]) -> Scored:
    """Outputs, of any length, against the classes' embeddings; in float64."""
    z = to_float64(output)
    t = to_float64(text).to(z.device)
    scores = z @ t.T  # (s, b, class)
    scores = torch.where(scores.isfinite(), scores, -torch.inf)  # no comparison holds of NaN, so it would rank first
    own = scores.gather(2, label.to(z.device).expand(len(z), -1)[..., None])
    before = torch.arange(len(t), device=z.device) < label.to(z.device)[:, None]  # (b, class)
    rank = ((scores > own) | ((scores == own) & before)).sum(-1)
    alike = (scores == own).all(-1) & (len(t) > 1)  # (s, b)
    rank = torch.where(alike, len(t) + BEST, rank)
    return Scored(scores.argmax(-1), rank, torch.nn.functional.cosine_similarity(z, z[:1], dim=-1))


class Tally:
    """Sums over the images of what settings, the untouched one first, make of them."""

    def __init__(self, settings: int) -> None:
        self.count = 0
        self._top1, self._top5, self._agree = (torch.zeros(settings, dtype=torch.int64) for _ in range(3))
        self._cosine = torch.zeros(settings, dtype=torch.float64)

    def add(self, scored: Scored) -> None:
        """One batch."""
        self.count += scored.best.shape[1]
        self._top1 += (scored.rank == 0).sum(1).cpu()
        self._top5 += (scored.rank < BEST).sum(1).cpu()
        self._agree += (scored.best == scored.best[:1]).sum(1).cpu()
        self._cosine += scored.cosine.sum(1).cpu()

    def top1(self, setting: int) -> Share:
        """Images whose best class is the true one."""
        return Share(int(self._top1[setting]), self.count)

    def top5(self, setting: int) -> Share:
        """Images whose true class is among the best five."""
        return Share(int(self._top5[setting]), self.count)

    def agreement(self, setting: int) -> float:
        """Share of images whose best class is the untouched output's."""
        return int(self._agree[setting]) / self.count

    def cosine(self, setting: int) -> float:
        """Mean cosine of the output and the untouched one."""
        return float(self._cosine[setting]) / self.count


def standing(share: Share, guess: float, related: bool = True) -> Standing:
    """Compare a share of right answers with guessing, which is right with probability `guess`; exact binomial tests.

    Args:
        related: Whether predictions agree with labels more often than with labels dealt anew.

    >>> standing(Share(3, 3), 1 / 100), standing(Share(1, 10), 1 / 10), standing(Share(0, 2), 1 / 3)
    ('above', 'chance', 'open')
    """

    if related and binomtest(share.hits, share.trials, guess, alternative="greater").pvalue <= ALPHA:
        return "above"
    works = (1 + guess) / 2
    return "chance" if binomtest(share.hits, share.trials, works, alternative="less").pvalue <= RARE else "open"


def at_chance(share: Share, classes: int) -> bool:
    """Return whether a share of right answers among so many balanced classes is no better than guessing, on enough images."""
    return standing(share, 1 / classes) == "chance"


Z_ONE_SIDED = 1.644854  # the normal quantile of a one-sided 5 %


class Guessing:
    """Accuracy of guessing on images with labels, by the counts of labels and predictions.

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
        """Compare the model with guessing."""
        dealt, spread = self._dealt()
        related = not self._tells(dealt, spread) or self._hits >= dealt + Z_ONE_SIDED * spread
        return standing(self.share, self.guess, related)

    def _tells(self, dealt: float, spread: float) -> bool:
        """Return whether shuffled labels are informative: not if all labels, or all predictions, are of one class."""
        return spread > 0 and int(np.minimum(self._label, self._best).sum()) >= dealt + Z_ONE_SIDED * spread

    def _dealt(self) -> tuple[float, float]:
        """Mean and deviation of the right answers when the labels are dealt to the images anew."""
        n, label, best = int(self._label.sum()), self._label.astype(np.float64), self._best.astype(np.float64)
        pairs = float(label @ best)
        variance = pairs - float(best @ label**2 + label @ best**2) / n + (pairs / n) ** 2
        return pairs / n, math.sqrt(max(variance, 0.0) / max(n - 1, 1))


def class_difference(predict: Float[Tensor, " d"], depict: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
    """v = M_text(predict) − M_text(depict), of the bare class names at unit norm; not normalised itself."""
    return F.normalize(predict, dim=0) - F.normalize(depict, dim=0)


def margin(image: Float[Tensor, "image d"], v: Float[Tensor, " d"]) -> Float[Tensor, " image"]:
    """⟨M(I), v⟩ with M(I) at unit norm: above zero, the model takes the image for the class it does not show.

    Args:
        image: Embeddings, of any norm.
        v: class_difference.
    """
    return F.normalize(image, dim=1) @ v


def among_closest(
    image: Float[Tensor, "image d"], names: Float[Tensor, "name d"], of_class: Bool[Tensor, "class name"], k: int
) -> Bool[Tensor, "image class"]:
    """Return the classes that a judge sees in an image: those of which a name is among the texts of the k closest classes.

    A class is as close as the closest of its names. Ties go to the class that stands first.

    Args:
        names: Embeddings of all names.
        of_class: Which names are a class's; each class has one at least.
    """
    similarity = F.normalize(image, dim=1) @ F.normalize(names, dim=1).T  # (image, name)
    each = similarity[:, None].masked_fill(~of_class, -torch.inf).amax(dim=2)  # (image, class)
    order = each.argsort(dim=1, descending=True, stable=True)[:, :k]
    return torch.zeros_like(each, dtype=torch.bool).scatter(1, order, True)
