"""Read directions on images that a bundle was not made from: what they say of any text, without the images.

clip-judge splits its images into two halves. For each half and unit n it keeps

    q = cov(a, e - b r)    sd(a)    beta = cov(a, b) / var(a)    Sigma = Cov(e)        over the images of the half

with e the unit embeddings of the judge, and b r the unit's own effect in them (presence.py; b = 0 if the judge is another model).
With b = beta a, which is exact for effects in unit scale, these give for every text t of any vocabulary

    corr(a, c_t) = <q, t> / (sd(a) sqrt(var(c_t)))    c_t = <e - b r, t>
    var(c_t) = t^T Sigma t - 2 beta <r, t> <q, t> - beta^2 var(a) <r, t>^2

One half can rank the texts that describe a unit, the other score them.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int

from cliptools.analysis.presence import Similarity, UnitGroup
from cliptools.streaming.activities import Activities

HALVES = 2  # first the images that chose words, then those that scored them


class HeldOut(NamedTuple):
    """Read directions on the halves of some images; j is the width of the judge's embeddings."""

    read: Float[np.ndarray, "U 2 j"]
    """q."""
    deviation: Float[np.ndarray, "U 2"]
    """sd(a)."""
    share: Float[np.ndarray, "U 2"]
    """beta."""
    covariance: Float[np.ndarray, "2 j j"]
    """Sigma."""

    def correlations(
        self, units: slice, r: Float64[np.ndarray, "n d"], t: Float64[np.ndarray, "text j"]
    ) -> list[Float64[np.ndarray, "n text"]]:
        """corr(a, c_t) of some units with all texts on each half; NaN where a or c_t does not vary.

        Args:
            r: The directions of these units; other models' embeddings do not hold their effects.
            t: Unit embeddings by the judge.
        """
        values = []
        for half in range(HALVES):
            q, Sigma = self.read[units, half].astype(np.float64), self.covariance[half].astype(np.float64)
            deviation, beta = (x[units, half, None].astype(np.float64) for x in (self.deviation, self.share))  # (n, 1)
            covariance = q @ t.T  # (n, text)
            variance = ((t @ Sigma) * t).sum(1)[None]  # (1, text)
            if beta.any():
                overlap = r @ t.T  # (n, text): <r, t>
                variance = variance - 2 * beta * overlap * covariance - (beta * deviation * overlap) ** 2
            varies = (deviation > 0) & (variance > 1e-14)
            scale = deviation * np.sqrt(np.maximum(variance, 0))
            values.append(np.where(varies, covariance / np.where(varies, scale, 1), np.nan).clip(-1, 1))
        return values


def held_out(
    activities: Activities,
    direction: Float[np.ndarray, "U d"],
    similarity: Similarity,
    choosing: Int[np.ndarray, " choosing"],
    scored: Int[np.ndarray, " scored"],
) -> HeldOut:
    """Read directions of all units on two halves of the images.

    Args:
        direction: r.
        similarity: Similarities of the images with texts.
    """
    U, j = len(direction), similarity.t.shape[1]
    read, deviation, share = np.zeros((U, HALVES, j)), np.zeros((U, HALVES)), np.zeros((U, HALVES))
    for rows, a in activities.columns():
        units = UnitGroup(a, direction[rows])
        for half, images in enumerate((choosing, scored)):
            read[rows, half] = similarity.read(units, images)
            deviation[rows, half] = a[images].std(0)
            share[rows, half] = similarity.own_share(units, images)
    covariance = np.stack([similarity.covariance(images) for images in (choosing, scored)])
    return HeldOut(read, deviation, share, covariance)
