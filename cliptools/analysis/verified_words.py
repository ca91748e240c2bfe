"""Verification of words: candidates are ranked by images that were not used to find them.

Candidates come from three choices: the pursuit's positive words, the texts of largest overlap with r, and those that the top
images show. On one half of other images they are ranked by corr(a_n, c_t), the correlation of activity and presence
(presence.py); the other half scores the ranking, and the words that were first before it.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int

from cliptools.analysis.presence import Presence, UnitGroup, correlations
from cliptools.streaming.activities import Activities

Candidates = Int[np.ndarray, "U c"]


class Verified(NamedTuple):
    """Ranked words of U units."""

    word: Int[np.ndarray, "U s"]
    """The candidates of largest correlation on the choosing half, largest first; -1 after the last."""
    correlation: Float64[np.ndarray, "U s"]
    """Their correlations on the scored half; 0 after the last."""
    before: Float64[np.ndarray, " U"]
    """The correlation of each unit's first written word on the scored half; NaN without one."""
    agreement: Float64[np.ndarray, " U"]
    """The same over all images, by which nothing was chosen; NaN without such a word."""


def verify_words(
    activities: Activities,
    direction: Float64[np.ndarray, "U d"],
    presence: Presence,
    candidates: Candidates,
    written: Int[np.ndarray, " U"],
    choosing: Int[np.ndarray, " choosing"],
    scored: Int[np.ndarray, " scored"],
    count: int,
) -> Verified:
    """Rank the candidates of all units on one half of the images, and score them on the other.

    Args:
        candidates: Texts, -1 where a unit has fewer; repeated ones count once.
        written: The first written word of each unit, -1 for none.
        count: s.
    """
    parts = []
    everything = np.sort(np.concatenate([choosing, scored]))
    for rows, a in activities.columns():
        units, first = UnitGroup(a, direction[rows]), written[rows, None]  # (n, 1)
        value, check, whole = (
            correlations(a[images], presence.moments(units, images)) for images in (choosing, scored, everything)
        )  # (n, text) each
        word = _ranked(value, candidates[rows], count)  # (n, s)
        scores = np.take_along_axis(np.nan_to_num(check), word, 1)  # (n, s)
        before, agreement = (np.where(first >= 0, np.take_along_axis(part, first, 1), np.nan)[:, 0] for part in (check, whole))
        parts.append(Verified(word, np.where(word >= 0, scores, 0), before, agreement))
    return Verified(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _ranked(value: Float64[np.ndarray, "n text"], candidates: Int[np.ndarray, "n c"], count: int) -> Int[np.ndarray, "n s"]:
    """The candidates of largest value, largest first; -1 after the last."""
    score = np.full_like(value, -np.inf)  # (n, text)
    unit, place = (candidates >= 0).nonzero()
    text = candidates[unit, place]
    score[unit, text] = np.nan_to_num(value[unit, text])
    count_of_texts = min(count, value.shape[1])
    best = np.full((len(value), count), -1)
    order = np.argsort(-score, axis=1, kind="stable")[:, :count_of_texts]
    best[:, :count_of_texts] = np.where(np.isfinite(np.take_along_axis(score, order, 1)), order, -1)
    return best
