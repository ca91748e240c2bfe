"""Of what images show, how much was found: recall with its interval over images."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

DRAWS = 2000
SPREAD = (2.5, 97.5)  # percentiles of a 95 % interval


class Recall(NamedTuple):
    """A share of all names of all images, with its 95 % interval."""

    found: int
    names: int
    value: float
    low: float
    high: float


def recall(found: Sequence[int], names: Sequence[int], seed: int = 0) -> Recall:
    """Names found over names there are, summed over images.

    The interval is a percentile bootstrap over images, not over names: names that share an image are not independent.

    Args:
        found: How many names were found in each image.
        names: How many there are in it, at least one in some image.
    """
    hits, trials = np.asarray(found, dtype=np.int64), np.asarray(names, dtype=np.int64)
    random = np.random.default_rng(seed)
    drawn = []
    for _ in range(DRAWS):
        rows = random.integers(0, len(hits), len(hits))
        drawn.append(hits[rows].sum() / max(1, trials[rows].sum()))
    low, high = np.percentile(drawn, SPREAD)
    return Recall(int(hits.sum()), int(trials.sum()), float(hits.sum() / trials.sum()), float(low), float(high))
