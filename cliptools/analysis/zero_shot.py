"""Zero-shot classification of outputs in several settings at once, comparison with guessing, and margins of adversarial images.

Accuracy (`score`, `Tally`): an image is classified as the class of largest <M(I), M_text(c)>. Hits among the best class and the
best five have Wilson's 95 % interval.

Guessing (`Guessing`, `standing`), as the level to compare an accuracy with. A name drawn from n names of classes is right on one
image of n. Two facts change that. Predictions that are unrelated to the labels, but prefer the frequent classes, are right as
often as shuffled labels agree with them: the agreement expected in Cohen's kappa. And classes of the same name have the same
text, so that images are classified as the first of them only.

Adversarial images (`class_difference`, `margin`; paper 1, arXiv 2406.04341, Sec. 5.1): the model is fooled by an image whose
margin <M(I), v> is above zero, with v = M_text(predicted) - M_text(depicted).
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
ALPHA = 0.05  # a share is above chance if guessing reaches it with at most this probability
RARE = 0.01  # a share is at chance if a model half way from guessing to perfect is as low with at most this probability

Standing = Literal["above", "chance", "open"]
"""Better than guessing; no better, and below a model that knows the classes; or too few images to decide."""


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
        return wilson(self.value, self.trials)


def wilson(p: float, n: int) -> tuple[float, float]:
    """Wilson's score interval, 95 %, of a share p of n trials."""
    centre = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2)) / (1 + Z**2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


class Predictions(NamedTuple):
    """Predictions for b images in s settings."""

    best: Int[Tensor, "s b"]
    """Class of the largest score."""
    rank: Int[Tensor, "s b"]
    """Number of classes that score higher than the true class. Of equal scores the first class is higher, as in argmax.

    Larger than the number of classes where all scores are equal or not numbers: such an output names no class.
    """
    cosine: Float[Tensor, "s b"]
    """Cosine of the output with the output of the first setting."""


def score(
    output: Float[Tensor, "s b d"],
    text: Float[Tensor, "class d"],
    label: Int[Tensor, " b"],
    among: Bool[Tensor, "b class"] | None = None,
) -> Predictions:
    """Classify outputs, of any norm, by the embeddings of the classes; in float64.

    Args:
        among: True for the classes that an image is classified among, its own included; None: all classes.
    """
    z = to_float64(output)
    t = to_float64(text).to(z.device)
    scores = z @ t.T  # (s, b, class)
    scores = torch.where(scores.isfinite(), scores, -torch.inf)  # every comparison with NaN is false, so NaN would rank first
    scores = scores if among is None else scores.masked_fill(~among.to(z.device), -torch.inf)
    true = scores.gather(2, label.to(z.device).expand(len(z), -1)[..., None])  # (s, b, 1): score of the true class
    before = torch.arange(len(t), device=z.device) < label.to(z.device)[:, None]  # (b, class)
    rank = ((scores > true) | ((scores == true) & before)).sum(-1)  # (s, b, class) -> (s, b)
    same = scores == true if among is None else (scores == true) | ~among.to(z.device)  # (s, b, class)
    equal = same.all(-1) & (len(t) > 1)  # (s, b)
    rank = torch.where(equal, len(t) + BEST, rank)
    return Predictions(scores.argmax(-1), rank, torch.nn.functional.cosine_similarity(z, z[:1], dim=-1))


class Tally:
    """Sums over images of the predictions in all settings; the first setting is the unchanged model."""

    def __init__(self, settings: int) -> None:
        self.count = 0
        self._top1, self._top5, self._agree = (torch.zeros(settings, dtype=torch.int64) for _ in range(3))
        self._cosine = torch.zeros(settings, dtype=torch.float64)

    def add(self, predictions: Predictions) -> None:
        """Add a batch of predictions."""
        self.count += predictions.best.shape[1]
        self._top1 += (predictions.rank == 0).sum(1).cpu()
        self._top5 += (predictions.rank < BEST).sum(1).cpu()
        self._agree += (predictions.best == predictions.best[:1]).sum(1).cpu()
        self._cosine += predictions.cosine.sum(1).cpu()

    def top1(self, setting: int) -> Share:
        """Share of images whose best class is the true class."""
        return Share(int(self._top1[setting]), self.count)

    def top5(self, setting: int) -> Share:
        """Share of images whose true class is among the best five."""
        return Share(int(self._top5[setting]), self.count)

    def agreement(self, setting: int) -> float:
        """Share of images whose best class is that of the unchanged output."""
        return int(self._agree[setting]) / self.count

    def cosine(self, setting: int) -> float:
        """Mean cosine of the output with the unchanged output."""
        return float(self._cosine[setting]) / self.count


def standing(share: Share, guess: float, related: bool = True) -> Standing:
    """Compare a share of right answers with guessing, which is right with probability `guess`; exact binomial tests.

    Args:
        related: True if predictions agree with the labels more often than with shuffled labels.

    >>> standing(Share(3, 3), 1 / 100), standing(Share(1, 10), 1 / 10), standing(Share(0, 2), 1 / 3)
    ('above', 'chance', 'open')
    """

    if related and binomtest(share.hits, share.trials, guess, alternative="greater").pvalue <= ALPHA:
        return "above"
    halfway = (1 + guess) / 2  # accuracy of a model half way from guessing to perfect
    return "chance" if binomtest(share.hits, share.trials, halfway, alternative="less").pvalue <= RARE else "open"


Z_ONE_SIDED = 1.644854  # the normal quantile of a one-sided 5 %


class Guessing:
    """Accuracy of guessing on images with labels, from the counts of labels and predictions.

    Args:
        names: Names of the classes; a model cannot distinguish classes of the same name.
    """

    def __init__(self, names: Sequence[str]) -> None:
        first = {name: number for number, name in reversed(list(enumerate(names)))}
        self._first = np.isin(np.arange(len(names)), list(first.values()))
        self._distinct = len(first)
        self._label, self._best = (np.zeros(len(names), np.int64) for _ in range(2))
        self._hits = 0

    def add(self, label: Int[np.ndarray, " b"], best: Int[np.ndarray, " b"]) -> None:
        """Add a batch: the true and the predicted classes of the images."""
        self._label += np.bincount(label, minlength=len(self._label))
        self._best += np.bincount(best, minlength=len(self._best))
        self._hits += int((label == best).sum())

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self._label)

    @property
    def share(self) -> Share:
        """Share of images whose predicted class is the true class."""
        return Share(self._hits, int(self._label.sum()))

    @property
    def guess(self) -> float:
        """Probability that a name drawn from the classes' is right."""
        return float(self._label[self._first].sum() / (self._distinct * self._label.sum()))

    @property
    def expected(self) -> float:
        """Number of images on which guessing is right: with random names, or with informative shuffled labels if that is more."""
        mean, spread = self._shuffled_hits()
        return max(self.guess * self.share.trials, mean if self._informative(mean, spread) else 0.0)

    def standing(self) -> Standing:
        """Compare the model with guessing."""
        mean, spread = self._shuffled_hits()
        related = not self._informative(mean, spread) or self._hits >= mean + Z_ONE_SIDED * spread
        return standing(self.share, self.guess, related)

    def _informative(self, mean: float, spread: float) -> bool:
        """True if shuffled labels are informative; false if all labels, or all predictions, are of the same class."""
        return spread > 0 and int(np.minimum(self._label, self._best).sum()) >= mean + Z_ONE_SIDED * spread

    def _shuffled_hits(self) -> tuple[float, float]:
        """Mean and standard deviation of the number of right answers if the labels were shuffled."""
        n, label, best = int(self._label.sum()), self._label.astype(np.float64), self._best.astype(np.float64)
        pairs = float(label @ best)
        variance = pairs - float(best @ label**2 + label @ best**2) / n + (pairs / n) ** 2
        return pairs / n, math.sqrt(max(variance, 0.0) / max(n - 1, 1))


def class_difference(predict: Float[Tensor, " d"], depict: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
    """v = M_text(predict) − M_text(depict), of the bare class names at unit norm; not normalised itself."""
    return F.normalize(predict, dim=0) - F.normalize(depict, dim=0)


def margin(image: Float[Tensor, "image d"], v: Float[Tensor, " d"]) -> Float[Tensor, " image"]:
    """⟨M(I), v⟩ with M(I) at unit norm: above zero, the model predicts the class that the image does not show.

    Args:
        image: Embeddings, of any norm.
        v: The `class_difference`.
    """
    return F.normalize(image, dim=1) @ v  # (image, d) @ (d,)


def among_closest(
    image: Float[Tensor, "image d"], names: Float[Tensor, "name d"], of_class: Bool[Tensor, "class name"], k: int
) -> Bool[Tensor, "image class"]:
    """Mark the k classes that are closest to each image, which a judge model sees in the image.

    A class is as close as the closest of its names; of equally close classes the first comes first.

    Args:
        names: Embeddings of all names.
        of_class: True for the names of each class; each class must have a name.
    """
    similarity = F.normalize(image, dim=1) @ F.normalize(names, dim=1).T  # (image, name)
    closest = similarity[:, None].masked_fill(~of_class, -torch.inf).amax(dim=2)  # (image, class, name) -> (image, class)
    order = closest.argsort(dim=1, descending=True, stable=True)[:, :k]  # (image, k)
    return torch.zeros_like(closest, dtype=torch.bool).scatter(1, order, True)
