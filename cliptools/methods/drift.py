"""Whether a mean has moved beyond what chance does to it, when many means are looked at.

A comparison is Welch's: z = (new - old) / sqrt(se_new^2 + se_old^2), in standard errors, with Student's t of Welch and
Satterthwaite's degrees of freedom for its law. An alarm asked for at Z has, for normal variables, the chance

    alpha = 2 (1 - Phi(Z))

if nothing has moved: 0.0027 at Z = 3. Of m comparisons in a run one would then be alarmed by chance in 1 - (1 - alpha)^m of all
runs: in 28 % of them for m = 120. So each is held to alpha' = 1 - (1 - alpha)^(1/m) (Sidak 1967), by which a whole run alarms
by chance in at most alpha of all runs (exactly so for independent comparisons, less often for dependent ones).
"""

import math
from typing import NamedTuple

from scipy.special import ndtr, stdtrit

from cliptools.methods.running_moments import Sample

LEAST = 2  # images without which a mean has no standard error


class Comparison(NamedTuple):
    """A mean beside an earlier one."""

    z: float
    """In standard errors of the difference; infinite where both samples are constant and differ."""
    freedom: float
    """Degrees of freedom of its law."""


def compare(now: Sample, before: Sample) -> Comparison | None:
    """How far `now` is from `before`; None where one of them has fewer than two images."""
    if min(now.size, before.size) < LEAST:
        return None
    difference, parts = now.mean - before.mean, [(each.standard_error**2, each.size - 1) for each in (now, before)]
    variance = sum(square for square, _ in parts)
    if variance == 0:
        return Comparison(math.copysign(math.inf, difference) if difference else 0.0, float(min(n for _, n in parts)))
    freedom = 1 / sum((square / variance) ** 2 / n for square, n in parts)
    return Comparison(difference / math.sqrt(variance), freedom)


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
    """The |z| that a comparison exceeds by chance with probability `tail`."""
    return float(-stdtrit(comparison.freedom, tail / 2))
