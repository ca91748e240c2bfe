"""CoSy (arXiv 2405.20331): a word explains a unit if the unit acts more on pictures of the word than on control images."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float64, Int

from cliptools.analysis.word_metrics import cosy_auc, cosy_mad
from cliptools.streaming.activities import Activities

AUC, MAD = "cosy_auc", "cosy_mad"
Scores = dict[str, Float64[np.ndarray, " U"]]


def cosy_scores(
    control: Activities,
    images: Int[np.ndarray, " i"],
    pictures: Activities,
    pictures_of: Mapping[int, Int[np.ndarray, " _"]],
    words: Mapping[str, Int[np.ndarray, " U"]],
) -> dict[str, Scores]:
    """AUC and MAD of each unit's word of each kind, NaN where there are no pictures of it or the unit does not act.

    Args:
        control: Activities on the control images; `pictures` must have the same groups of units.
        images: Rows of the control images.
        pictures_of: Rows of the pictures of each text.
        words: A text for each unit, -1 for none, by kind of word.
    """
    units = sum(group.stop - group.start for group in control.groups)
    scores = {kind: {name: np.full(units, np.nan) for name in (AUC, MAD)} for kind in words}
    for (group, a0), (other_group, a1) in zip(control.columns(), pictures.columns(), strict=True):
        assert group == other_group
        for column, unit in enumerate(range(group.start, group.stop)):
            control_column = a0[images, column, None]  # (i, 1)
            for kind, text in words.items():
                rows = pictures_of.get(int(text[unit]))
                if rows is None or not np.ptp(control_column):
                    continue
                scores[kind][AUC][unit] = cosy_auc(control_column, a1[rows, column, None])[0]
                scores[kind][MAD][unit] = cosy_mad(control_column, a1[rows, column, None])[0]
    return scores
