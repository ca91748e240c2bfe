"""Whether a mean has moved beyond what chance does to it, when many means are looked at.

Had nothing changed, n images of now and m of before would be n + m of one kind, with one spread sigma and one skewness
gamma, estimated from both together. The difference of their means, in standard errors, is

    z = (new - old) / (sigma sqrt(1/n + 1/m))

which has variance 1, skewness gamma (1/n^2 - 1/m^2) / (1/n + 1/m)^(3/2) and excess kurtosis kappa (1/n^3 + 1/m^3) / (1/n +
1/m)^2. Shares are skewed, most of all those of rare concepts: a few images have much, the others nearly none, and sums of so few
are not normal. So where chance takes z further, its limit is that of Pearson's type III law (a shifted gamma) of that
skewness, on the other side the normal law's. Where the kurtosis is more than the 3/2 skewness^2 that this law has itself, both
sides are at least as wide as Student's law of twice the rest, scaled to variance 1. All are widened by Student's t over the
normal, since sigma is estimated.

In simulation (normal, exponential, gamma, log-normal, Pareto, Student's with 3 degrees of freedom, rare concepts) this holds what
alarms promise where both means are of LEAST_SURE images or more. Of fewer, skewed shares exceed limits of small chances,
those of many comparisons, up to ten times as often. Where tails on both sides are heavier than that, so that the kurtosis of a
sample tells little, it holds from about 8 images on: of 5 images beside 480 of Student's law with 2.5 degrees of freedom, 0.4 to
0.5 % exceed the limit of 0.27 %, of 8 or more 0.15 to 0.3 %.

An alarm asked for at Z has the chance alpha = 2 (1 - Phi(Z)) if nothing has moved: 0.0027 at Z = 3. Of m comparisons in a run
one would then be alarmed by chance in 1 - (1 - alpha)^m of all runs, in 28 % of them for m = 120. So each is held to alpha' = 1 -
(1 - alpha)^(1/m) (Sidak 1967), by which a whole run alarms by chance in alpha of all runs, fewer where comparisons depend.
"""

import math
from typing import NamedTuple

from scipy.special import gammainccinv, ndtr, ndtri, stdtrit

from cliptools.methods.running_moments import Sample, pooled

LEAST = 2  # images (or blocks) without which a mean has no standard error
TWICE = 2  # kurtosis: that of a sample from a heavy-tailed law comes out low
LEAST_SURE = 5  # without which limits do not hold; of shares with very heavy tails on both sides, about 8
STRAIGHT = 1e-3  # skewness that changes nothing


class Comparison(NamedTuple):
    """A mean beside an earlier one."""

    z: float
    """In standard errors of the difference; infinite where all images of each are alike and differ."""
    skewness: float
    """Of z, had nothing changed."""
    freedom: int
    """Degrees of freedom of its standard error."""
    kurtosis: float = 0.0
    """Excess, of z, had nothing changed."""


def compare(now: Sample, before: Sample) -> Comparison | None:
    """How far `now` is from `before`; None where one of them has fewer than two images."""
    n, m = now.size, before.size
    if min(n, m) < LEAST:
        return None
    within = ((n - 1) * now.spread**2 + (m - 1) * before.spread**2) / (n + m - 2)
    difference, error = now.mean - before.mean, math.sqrt(within * (1 / n + 1 / m))
    if error == 0:
        return Comparison(math.copysign(math.inf, difference) if difference else 0.0, 0.0, n + m - 2)
    both = pooled([now, before])
    skewness = both.skewness * (1 / n**2 - 1 / m**2) / (1 / n + 1 / m) ** 1.5
    kurtosis = both.kurtosis * (1 / n**3 + 1 / m**3) / (1 / n + 1 / m) ** 2
    return Comparison(difference / error, skewness, n + m - 2, kurtosis)


def chance(alarm: float) -> float:
    """alpha: how often a comparison of what has not moved lies beyond `alarm` standard errors, for normal variables."""
    return float(2 * ndtr(-alarm))


def chance_each(alarm: float, comparisons: int, each: bool) -> float:
    """What every single comparison is held to: alpha with `each`, else alpha'."""
    alpha = chance(alarm)
    return alpha if each or comparisons < 2 else -math.expm1(math.log1p(-alpha) / comparisons)


def chance_of_run(alarm: float, comparisons: int, each: bool) -> float:
    """How often a run of so many comparisons alarms although nothing has moved, were they independent."""
    return -math.expm1(comparisons * math.log1p(-chance_each(alarm, comparisons, each)))


def limit(comparison: Comparison, tail: float) -> float:
    """The |z| that a comparison exceeds by chance, on either side, with probability `tail`."""
    normal, student = -ndtri(tail / 2), -stdtrit(comparison.freedom, tail / 2)
    heavy = comparison.skewness * comparison.z > STRAIGHT  # chance reaches further on this side
    k = 4 / comparison.skewness**2 if heavy and math.isfinite(comparison.z) else math.inf
    reach = (gammainccinv(k, tail / 2) - k) / math.sqrt(k) if math.isfinite(k) else normal
    if (rest := comparison.kurtosis - 1.5 * comparison.skewness**2) > STRAIGHT:
        nu = 4 + 6 / (TWICE * rest)
        reach = max(reach, -stdtrit(nu, tail / 2) * math.sqrt((nu - 2) / nu))
    return float(max(reach, normal) * student / normal)
