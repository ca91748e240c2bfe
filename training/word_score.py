"""Word score: agreement of a neuron's words with its top images.

The score is the share of a neuron's top images that contain an object named by one of its strongest positive words, compared with
the same share for words that are assigned to the neurons at random.
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
        """The share divided by the share for words assigned at random."""
        return self.share / self.shuffled if self.shuffled else float("inf")


def strongest_positive(
    word: Int[np.ndarray, "unit m"], coefficient: Float[np.ndarray, "unit m"], count: int
) -> Int[np.ndarray, "unit count"]:
    """Return the words with the `count` largest positive coefficients, filled with -1."""
    usable = np.where((word >= 0) & (coefficient > 0), coefficient, -np.inf)  # (unit, m)
    best = np.argsort(-usable, axis=1, kind="stable")[:, :count]  # (unit, count)
    return np.where(np.take_along_axis(usable, best, 1) > 0, np.take_along_axis(word, best, 1), -1)


def hit_shares(
    named: Bool[np.ndarray, "unit concept"], shown: Bool[np.ndarray, "unit top concept"]
) -> Float[np.ndarray, " unit"]:
    """Return the share of each unit's top images that show a concept named by its words."""
    return (shown & named[:, None]).any(2).mean(1)


def word_score(
    words: Int[np.ndarray, "unit count"],
    concept_of: Int[np.ndarray, " text"],
    shown: Bool[np.ndarray, "unit top concept"],
    shuffles: int = 20,
    seed: int = 0,
) -> WordScore:
    """Return the score of units' words against the concepts in their top images.

    Args:
        words: Each unit's words, -1 for none.
        concept_of: The concept that each text names, -1 for none.
        shown: The concepts in each unit's top images.
        shuffles: Number of random assignments of the words to the units.
    """
    concepts = np.where(words >= 0, concept_of[words], -1)  # (unit, count)
    named = np.zeros((len(words), shown.shape[2] + 1), dtype=bool)  # (unit, concept + 1); the last column is for -1
    np.put_along_axis(named, concepts, True, axis=1)
    named = named[:, :-1]
    shares = hit_shares(named, shown)
    rng = np.random.default_rng(seed)
    random = np.stack([hit_shares(named[rng.permutation(len(named))], shown) for _ in range(shuffles)])  # (shuffle, unit)
    return WordScore(float(shares.mean()), _half(shares), float(random.mean()), _half(random.mean(0)), len(words))


def _half(values: Float[np.ndarray, " unit"]) -> float:
    return float(1.96 * values.std(ddof=1) / np.sqrt(len(values)))
