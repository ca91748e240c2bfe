"""Zero-shot classification of outputs in several settings at once: hits among the best 1 and 5, with Wilson's 95 % interval."""

import math
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cliptools.ground.double_precision import exact

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
    """Of the output and that of the first setting."""


def score(output: Float[Tensor, "s b d"], text: Float[Tensor, "class d"], label: Int[Tensor, " b"]) -> Scored:
    """Outputs, of any length, against the classes' embeddings; in float64."""
    z = exact(output)
    t = exact(text).to(z.device)
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
    """How a share of right answers stands to guessing, which is right with probability `guess`; exact binomial tests.

    Args:
        related: Whether predictions agree with labels more often than with labels dealt anew.

    >>> standing(Share(3, 3), 1 / 100), standing(Share(1, 10), 1 / 10), standing(Share(0, 2), 1 / 3)
    ('above', 'chance', 'open')
    """
    from scipy.stats import binomtest

    if related and binomtest(share.hits, share.trials, guess, alternative="greater").pvalue <= ALPHA:
        return "above"
    works = (1 + guess) / 2
    return "chance" if binomtest(share.hits, share.trials, works, alternative="less").pvalue <= RARE else "open"


def at_chance(share: Share, classes: int) -> bool:
    """Whether a share of right answers among so many classes, balanced, is no better than guessing, and enough to say so."""
    return standing(share, 1 / classes) == "chance"
