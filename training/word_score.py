"""Do a neuron's words name what its top images show?

The share of a neuron's top images that contain something named by one of its strongest positive words, beside the same
for words dealt to the neurons at random.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int


class WordScore(NamedTuple):
    """Means over neurons, with the half-width of their 95 % intervals."""

    share: float
    share_half: float
    shuffled: float
    shuffled_half: float
    neurons: int

    @property
    def ratio(self) -> float:
        return self.share / self.shuffled if self.shuffled else float("inf")


def strongest_positive(
    word: Int[np.ndarray, "unit m"], coefficient: Float[np.ndarray, "unit m"], count: int
) -> Int[np.ndarray, "unit count"]:
    """The words of the `count` largest positive coefficients; -1 where there are fewer."""
    usable = np.where((word >= 0) & (coefficient > 0), coefficient, -np.inf)
    best = np.argsort(-usable, axis=1, kind="stable")[:, :count]
    return np.where(np.take_along_axis(usable, best, 1) > 0, np.take_along_axis(word, best, 1), -1)


def hit_shares(
    named: Bool[np.ndarray, "unit concept"], shown: Bool[np.ndarray, "unit top concept"]
) -> Float[np.ndarray, " unit"]:
    """Of each unit's top images, the share that shows a concept its words name."""
    return (shown & named[:, None]).any(2).mean(1)


def word_score(
    words: Int[np.ndarray, "unit count"],
    concept_of: Int[np.ndarray, " text"],
    shown: Bool[np.ndarray, "unit top concept"],
    shuffles: int = 20,
    seed: int = 0,
) -> WordScore:
    """The score of units' words against what their top images show.

    Args:
        words: Each unit's words, -1 for none.
        concept_of: The concept a text names, -1 for none.
        shown: The concepts in each unit's top images.
        shuffles: How often the words are dealt to the units at random.
    """
    concepts = np.where(words >= 0, concept_of[words], -1)  # (unit, count)
    named = np.zeros((len(words), shown.shape[2] + 1), dtype=bool)  # the last column takes the -1
    np.put_along_axis(named, concepts, True, axis=1)
    named = named[:, :-1]
    shares = hit_shares(named, shown)
    rng = np.random.default_rng(seed)
    dealt = np.stack([hit_shares(named[rng.permutation(len(named))], shown) for _ in range(shuffles)])
    return WordScore(float(shares.mean()), _half(shares), float(dealt.mean()), _half(dealt.mean(0)), len(words))


def _half(values: Float[np.ndarray, " unit"]) -> float:
    return float(1.96 * values.std(ddof=1) / np.sqrt(len(values)))
