"""A correlation from sums over parts of the images, with an interval by leaving out one part after the other.

Parts are what is independent: single images, or blocks of images that belong together. Of g parts, part j with m_j of n
images, let z = artanh r, z_j the same without part j, and h_j = n / m_j. Then (Busing, Meijer and van der Leeden 1999; of
parts of one image the jackknife as Quenouille and Tukey have it)

    p_j = h_j z - (h_j - 1) z_j         pseudo-values
    z*  = g z - sum_j (1 - m_j / n) z_j    z less its bias
    v   = 1/g sum_j d_j^2,  d_j = (p_j - z*) / sqrt(h_j - 1)    the variance of z

and the interval is z* plus or minus t sqrt(v), taken back by tanh. Where a few images decide (those of a rare label, or those
of large shares) v is known as badly as from so few, so t is Student's with g* - 1 degrees of freedom, at least one, and

    g* = (sum_j d_j^2)^2 / sum_j d_j^4

is the number of parts that carry the variance (Kish's effective size).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.special import stdtrit

SUMS = 6  # of a part: count, x, y, x^2, x y, y^2
TAIL = 0.025  # of a 95 % interval, on either side
NEAR_ONE = 1 - 1e-15  # of correlations, so that artanh is finite


class Interval(NamedTuple):
    """A correlation and its 95 % interval."""

    value: float
    low: float
    high: float


def sums_of(
    x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], part: Int[np.ndarray, " n"] | None = None
) -> Float[np.ndarray, "g 6"]:
    """Sums of every part from the values, in float64; each image is a part unless `part` numbers them, from 0."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], 1)  # (n, 6)
    if part is None:
        return terms
    sums = np.zeros((int(part.max(initial=-1)) + 1, SUMS))
    np.add.at(sums, part, terms)
    return sums


def correlations(sums: Float[np.ndarray, "*some 6"]) -> Float[np.ndarray, "*some"]:
    """Pearson's r from sums; NaN where x or y does not vary.

    x and y must be near 0 for their spread, or the digits are lost.
    """
    n, x, y, xx, xy, yy = np.moveaxis(sums, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        rest_x, rest_y = xx - x * x / n, yy - y * y / n
        varies = (rest_x > 1e-12 * xx) & (rest_y > 1e-12 * yy)
        return np.where(varies, np.clip((xy - x * y / n) / np.sqrt(rest_x * rest_y), -1, 1), np.nan)


def interval_of(sums: Float[np.ndarray, "g 6"]) -> Interval | None:
    """The correlation over all parts.

    None where it is not defined, or is not without some part: then that part alone decides, and no interval holds.
    """
    sums = sums[sums[:, 0] > 0]
    if len(sums) < 2:
        return None
    total = sums.sum(0)
    value, without = float(correlations(total)), correlations(total - sums)
    if np.isnan(value) or np.isnan(without).any():
        return None
    z, z_j = (np.arctanh(np.clip(r, -NEAR_ONE, NEAR_ONE)) for r in (value, without))
    h = total[0] / sums[:, 0]
    centre = len(sums) * z - ((1 - 1 / h) * z_j).sum()
    d2 = (h * z - (h - 1) * z_j - centre) ** 2 / (h - 1)
    if (spread := d2.sum()) == 0:
        return Interval(value, value, value)
    freedom = max(1.0, spread**2 / (d2**2).sum() - 1)
    reach = -stdtrit(freedom, TAIL) * np.sqrt(spread / len(sums))
    low, high = (float(np.tanh(centre + side * reach)) for side in (-1, 1))
    return Interval(value, min(low, value), max(high, value))
