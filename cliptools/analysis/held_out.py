"""Read directions on images that a bundle was not made from: what they say of any text, without the images.

clip-judge splits its images into two halves. For each half h and unit n it keeps

    q_hn = cov(a_n, e)    sd(a_n)    Sigma = Cov(e)        over the images of h

with e the unit embeddings of the judge, or of the units' own model without the unit's own effect (presence.py). By these,

    corr(a_n, <e, t>) = <q_hn, t> / (sd(a_n) sqrt(t^T Sigma t))

is known for every text t of any vocabulary (seen.py). One half can rank the texts that describe a unit, the other score them.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int

from cliptools.analysis.presence import Similarity, UnitGroup
from cliptools.analysis.seen import ReadDirections
from cliptools.streaming.activities import Activities


class HeldOut(NamedTuple):
    """Read directions on the halves of some images; j is the width of the judge's embeddings."""

    read: Float[np.ndarray, "U 2 j"]
    """q: first over the half that chose words, then over the one that scored them."""
    deviation: Float[np.ndarray, "U 2"]
    """sd(a)."""
    covariance: Float[np.ndarray, "2 j j"]
    """Sigma."""

    def halves(self, units: slice) -> list[ReadDirections]:
        """The read directions of some units on each half."""
        q, deviation, covariance = (torch.from_numpy(values).double() for values in self)
        return [ReadDirections(q[units, half], deviation[units, half], covariance[half]) for half in range(2)]


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
    read, deviation = np.zeros((U, 2, j)), np.zeros((U, 2))
    for rows, a in activities.columns():
        units = UnitGroup(a, direction[rows])
        for half, images in enumerate((choosing, scored)):
            read[rows, half] = similarity.read(units, images)
            deviation[rows, half] = a[images].std(0)
    covariance = np.stack([similarity.covariance(images) for images in (choosing, scored)])
    return HeldOut(read, deviation, covariance)
