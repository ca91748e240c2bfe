"""Verification of words: candidates are ranked by images that were not used to find them.

Candidates come from three choices: the pursuit's positive words, the texts of largest overlap with r, and those that the top
images show. On one half of other images they are ranked by corr(a_n, c_t), the correlation of activity and presence
(presence.py); the other half scores the ranking, and the words that were first before it. The correlations come from the images
themselves, or from what a judgement has kept of them (held_out.py).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int

from cliptools.analysis.held_out import HeldOut
from cliptools.analysis.presence import Presence, UnitGroup, correlations
from cliptools.streaming.activities import Activities

Candidates = Int[np.ndarray, "U c"]
AT_ONCE = 1 << 22  # correlations computed at a time


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


class _Correlations(NamedTuple):
    """Correlations of some units with all texts."""

    choosing: Float64[np.ndarray, "n text"]
    scored: Float64[np.ndarray, "n text"]
    whole: Float64[np.ndarray, "n text"]


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
        units = UnitGroup(a, direction[rows])
        values = (correlations(a[images], presence.moments(units, images)) for images in (choosing, scored, everything))
        parts.append(_verified(_Correlations(*values), candidates[rows], written[rows], count))
    return _joined(parts)


def verify_by_reading(
    held: HeldOut,
    direction: Float64[np.ndarray, "U d"],
    t: Float64[np.ndarray, "text j"],
    candidates: Candidates,
    written: Int[np.ndarray, " U"],
    count: int,
) -> Verified:
    """Rank the candidates of all units on the half of a judgement's images that chose words, and score them on the other.

    Args:
        t: Unit embeddings of the texts by the judge.

    The other arguments are those of verify_words. The agreement is the mean of the correlations on the two halves.
    """
    parts = []
    size = max(1, AT_ONCE // len(t))
    for start in range(0, len(written), size):
        rows = slice(start, start + size)
        choosing, scored = held.correlations(rows, direction[rows], t)
        values = _Correlations(choosing, scored, (choosing + scored) / 2)
        parts.append(_verified(values, candidates[rows], written[rows], count))
    return _joined(parts)


def _verified(values: _Correlations, candidates: Int[np.ndarray, "n c"], written: Int[np.ndarray, " n"], count: int) -> Verified:
    """Rank and score the candidates of some units."""
    word, first = _ranked(values.choosing, candidates, count), written[:, None]  # (n, s), (n, 1)
    scores = np.take_along_axis(np.nan_to_num(values.scored), word, 1)  # (n, s)
    before, agreement = (
        np.where(first >= 0, np.take_along_axis(part, first, 1), np.nan)[:, 0] for part in (values.scored, values.whole)
    )
    return Verified(word, np.where(word >= 0, scores, 0), before, agreement)


def _joined(parts: list[Verified]) -> Verified:
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
