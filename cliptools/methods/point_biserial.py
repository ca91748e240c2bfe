"""How well a number tells a yes from a no: the point-biserial correlation, which is Pearson's with a variable of 0 and 1.

Intervals are Fisher's: z = artanh(r), z plus or minus 1.96 standard errors, and back. Of groups' means and frequencies the
standard error is the classical 1 / sqrt(n - 3). That one holds for normal variables, which a label is not, so for single
images it is the sample's own: with x, y standardised, image i moves r by

    psi_i / n,    psi_i = x_i y_i - r (x_i^2 + y_i^2) / 2

(the influence function of r), hence se(r) = sd(psi) / sqrt(n), and se(z) = se(r) / (1 - r^2).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

SIGMAS = 1.959964  # of a 95 % interval


class Correlation(NamedTuple):
    """A correlation with its 95 % interval, over `size` images or groups."""

    value: float
    low: float
    high: float
    size: int


def point_biserial(share: Float[np.ndarray, " n"], label: Float[np.ndarray, " n"]) -> Correlation | None:
    """Of images: a number and a label of 0 or 1 each; NaN where a label is not known.

    None where it is not defined: all labels alike, or all numbers.
    """
    known = ~np.isnan(label)
    x, y = _standard(share[known]), _standard(label[known])
    if x is None or y is None:
        return None
    r = float(np.mean(x * y))
    psi = x * y - r * (x**2 + y**2) / 2
    return _interval(r, float(psi.std() / np.sqrt(len(x))) / max(1 - r**2, 1e-12), len(x))


def group_correlation(
    share: Float[np.ndarray, " n"], label: Float[np.ndarray, " n"], group: Int[np.ndarray, " n"]
) -> Correlation | None:
    """Of groups: the mean share of a group's labelled images, and how many of them show the concept.

    None as above, or for fewer than four groups.
    """
    known = ~np.isnan(label)
    here = [known & (group == g) for g in np.unique(group[known])]
    x, y = (_standard(np.array([each[rows].mean(dtype=np.float64) for rows in here])) for each in (share, label))
    if x is None or y is None or len(x) < 4:
        return None
    return _interval(float(np.mean(x * y)), 1 / float(np.sqrt(len(x) - 3)), len(x))


def frequency(label: Float[np.ndarray, " n"]) -> tuple[int, float]:
    """How many labels are known, and how many of these are 1 (NaN of none)."""
    known = label[~np.isnan(label)]
    return len(known), float(known.mean(dtype=np.float64)) if len(known) else float("nan")


def _standard(x: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"] | None:
    """Mean 0 and standard deviation 1 (over n), in float64; None of what does not vary."""
    wide = x.astype(np.float64)
    if len(wide) < 2 or wide.min() == wide.max():
        return None
    centred = wide - wide.mean()
    return np.asarray(centred / np.sqrt(np.mean(centred**2)))


def _interval(r: float, error: float, count: int) -> Correlation:
    r = min(1.0, max(-1.0, r))
    z = np.arctanh(min(1 - 1e-15, max(-1 + 1e-15, r)))
    low, high = np.tanh(z - SIGMAS * error), np.tanh(z + SIGMAS * error)
    return Correlation(r, float(min(low, r)), float(max(high, r)), count)
