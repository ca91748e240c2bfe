"""Statistics of shares by group of images, and the test of whether a mean has moved: moments, means of blocks, comparisons.

Moments (`GroupMoments`) are summed batch by batch, without keeping the values. Parts of sizes n, m, means a, b, and sums of
deviations' powers A2, B2, A3, B3, A4, B4 join (Chan, Golub and LeVeque 1979; Pebay 2008), with delta = b - a and N = n + m, to

    mean    a + delta m / N
    squares A2 + B2 + delta^2 n m / N
    cubes   A3 + B3 + delta^3 n m (n - m) / N^2 + 3 delta (n B2 - m A2) / N
    fourths A4 + B4 + delta^4 n m (n^2 - n m + m^2) / N^3 + 6 delta^2 (n^2 B2 + m^2 A2) / N^2 + 4 delta (n B3 - m A3) / N

Correlation of neighbours (`Neighbours`): for independent values x_1 ... x_n in order, half the mean of (x_i - x_(i-1))^2 is the
variance. 1 less their ratio is the correlation of neighbours (von Neumann 1941), which is 0 to within 1 / sqrt(n) then.

Comparison of two means (`compare`, `limit`). Had nothing changed, n images of now and m of before would be n + m images of one
kind, with one spread sigma and one skewness gamma, estimated from both together. The difference of their means, in standard
errors, is

    z = (new - old) / (sigma sqrt(1/n + 1/m))

It has variance 1, skewness gamma (1/n^2 - 1/m^2) / (1/n + 1/m)^(3/2) and excess kurtosis kappa (1/n^3 + 1/m^3) / (1/n + 1/m)^2.
Shares are skewed, above all those of rare concepts: a few images have large shares, the others nearly 0, and means of so few
images are not normal. So on the side where chance takes z further, the limit is that of Pearson's type III law (a shifted gamma)
of this skewness; on the other side it is that of the normal law. Where the kurtosis exceeds the 3/2 skewness^2 of the type III
law, both sides are at least as wide as Student's law of twice the excess, scaled to variance 1. All limits are multiplied by the
ratio of Student's t to the normal quantile, since sigma is estimated.

In simulation (normal, exponential, gamma, log-normal, Pareto, Student's with 3 degrees of freedom, rare concepts) alarms have
the promised chance where both means are of LEAST_SURE images or more. With fewer images, skewed shares exceed limits of small
chances, those of many comparisons, up to ten times as often. Where tails on both sides are heavier still, so that the kurtosis
of a sample is unreliable, the chance holds from about 8 images on: of 5 images beside 480 of Student's law with 2.5 degrees of
freedom, 0.4 to 0.5 % exceed the limit of 0.27 %, of 8 or more 0.15 to 0.3 %.

Many comparisons (`chance_of_comparison`). An alarm at Z standard errors has the chance alpha = 2 (1 - Phi(Z)) if nothing has
moved: 0.0027 at Z = 3. Of m comparisons in a run, at least one would alarm by chance in 1 - (1 - alpha)^m of all runs, in 28 %
for m = 120. So each comparison has the limit of alpha' = 1 - (1 - alpha)^(1/m) (Sidak 1967); then a whole run alarms by chance
in alpha of all runs, and in fewer where comparisons depend on each other.

Words (`compare_all`, `chances`, `false_discovery`, `effects`). With a vocabulary in place of a few concepts, thousands of means
are compared, and those that moved are wanted. The chance p of a comparison is the tail at which `limit` equals |z|: solved by
bisection for the quantile s of Student's law, which has tail(s) = p, in 0 <= s <= |z|. Of m chances in ascending order, with
c(m) = 1 + 1/2 + ... + 1/m,

    q_i = min over j >= i of p_j m c(m) / j                                    (Benjamini and Yekutieli 2001, theorem 1.3)

Of the words with q <= alpha, at most a share alpha is expected to be false, however the words depend on each other; if nothing
has moved, a run has such a word by chance in at most alpha of all runs. In simulation (200 independent words; exponential,
log-normal, Student's law with 3 degrees of freedom, rare words; 5 to 40 images, and 5 to 480 before) 7 of 7,800 runs had one at
alpha = 0.0455, and 1 at 0.0027.

The size of an effect is the difference of the means in standard deviations, d = z sqrt(1/n + 1/m), with the interval of Hedges
and Olkin (1985)

    d -+ t sqrt(1/n + 1/m + d^2 / 2(n + m - 2))
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int
from scipy.special import gammaincc, gammainccinv, ndtr, ndtri, stdtr, stdtrit


class Sample(NamedTuple):
    """Moments of the values of a sample."""

    size: int
    mean: float
    spread: float
    """Standard deviation, over n - 1; 0 for a single value."""
    skewness: float = 0.0
    """Third central moment over the second's power 3/2, both over n; 0 for equal values."""
    kurtosis: float = 0.0
    """Fourth central moment over the second's square, both over n, less 3; 0 for equal values."""

    @property
    def standard_error(self) -> float | None:
        """Standard error of the mean; None for a single value, which does not tell it."""
        return float(self.spread / np.sqrt(self.size)) if self.size >= LEAST else None


class GroupMoments:
    """Running moments of c variables in each of g groups, in float64."""

    def __init__(self, groups: int, variables: int) -> None:
        self.count: Int[np.ndarray, " g"] = np.zeros(groups, np.int64)
        self.mean, self.square, self.cube, self.fourth = (np.zeros((groups, variables)) for _ in range(4))  # (g, c)

    def add(self, group: Int[np.ndarray, " b"], value: Float[np.ndarray, "b c"]) -> None:
        """Add the values of b images of these groups."""
        for g in np.unique(group):
            part = value[group == g].astype(np.float64)  # (m, c)
            centred = part - part.mean(0)
            self.join(int(g), len(part), part.mean(0), *((centred**power).sum(0) for power in (2, 3, 4)))

    def join(
        self,
        g: int,
        m: int,
        b: Float64[np.ndarray, " c"],
        B2: Float64[np.ndarray, " c"],
        B3: Float64[np.ndarray, " c"],
        B4: Float64[np.ndarray, " c"],
    ) -> None:
        """Join a part of m values, with mean b and sums B2, B3, B4, to group g, by the equations of the module's docstring."""
        n, A2, A3 = int(self.count[g]), self.square[g].copy(), self.cube[g].copy()
        N, delta = n + m, b - self.mean[g]
        self.fourth[g] += B4 + delta**4 * (n * m * (n * n - n * m + m * m) / N**3)
        self.fourth[g] += 6 * delta**2 * (n * n * B2 + m * m * A2) / N**2 + 4 * delta * (n * B3 - m * A3) / N
        self.cube[g] += B3 + delta**3 * (n * m * (n - m) / N**2) + 3 * delta * (n * B2 - m * A2) / N
        self.square[g] += B2 + delta**2 * (n * m / N)
        self.mean[g] += delta * m / N
        self.count[g] = N

    def sample(self, group: int, variable: int) -> Sample:
        """Moments of one variable in one group, which must have a value."""
        n = int(self.count[group])
        square, cube, fourth = (float(power[group, variable]) for power in (self.square, self.cube, self.fourth))
        skewness, kurtosis = (cube / n / (square / n) ** 1.5, n * fourth / square**2 - 3) if square > 0 else (0.0, 0.0)
        return Sample(n, float(self.mean[group, variable]), float(np.sqrt(square / max(1, n - 1))), skewness, kurtosis)


def moments_of(
    size: Int[np.ndarray, " g"],
    mean: Float64[np.ndarray, "g c"],
    spread: Float64[np.ndarray, "g c"],
    skewness: Float64[np.ndarray, "g c"],
    kurtosis: Float64[np.ndarray, "g c"],
) -> GroupMoments:
    """Moments of g groups from the figures of their samples, as `Sample` defines them."""
    moments, n = GroupMoments(*mean.shape), size[:, None]
    square = spread**2 * (n - 1)
    moments.count, moments.mean, moments.square = size.copy(), mean.copy(), square
    moments.cube, moments.fourth = skewness * (square / n) ** 1.5 * n, (kurtosis + 3) * square**2 / n
    return moments


def pooled_groups(moments: GroupMoments, groups: Sequence[int]) -> GroupMoments:
    """Moments of all values of these groups, which have at least one value, as one group."""
    pooled = GroupMoments(1, moments.mean.shape[1])
    for g in groups:
        if n := int(moments.count[g]):
            pooled.join(0, n, moments.mean[g], moments.square[g], moments.cube[g], moments.fourth[g])
    return pooled


class BlockMeans:
    """Means of c variables over each block: the independent observations where images of a block belong together."""

    def __init__(self, blocks: int, variables: int) -> None:
        self.count = np.zeros(blocks, np.int64)
        self.total = np.zeros((blocks, variables))

    def add(self, block: Int[np.ndarray, " b"], value: Float[np.ndarray, "b c"]) -> None:
        """Add the values of b images of these blocks."""
        np.add.at(self.count, block, 1)
        np.add.at(self.total, block, value.astype(np.float64))

    def means(self) -> tuple[Int[np.ndarray, " k"], Float64[np.ndarray, "k c"]]:
        """The blocks that have a value, and their means."""
        blocks = np.flatnonzero(self.count)
        return blocks, self.total[blocks] / self.count[blocks, None]


class Neighbours:
    """Correlation of values that follow each other within a group, for c variables."""

    def __init__(self, groups: int, variables: int) -> None:
        self.last = np.zeros((groups, variables))
        self.has_last = np.zeros(groups, bool)
        self.square, self.pairs = np.zeros(variables), 0

    def add(self, group: Int[np.ndarray, " b"], value: Float[np.ndarray, "b c"]) -> None:
        """Add the values of b images of these groups, in their order."""
        for g in np.unique(group):
            part = value[group == g].astype(np.float64)
            part = np.concatenate([self.last[g : g + 1], part]) if self.has_last[g] else part  # (m, c) or (1 + m, c)
            self.square += (np.diff(part, axis=0) ** 2).sum(0)
            self.pairs += len(part) - 1
            self.last[g], self.has_last[g] = part[-1], True

    def correlation(self, moments: GroupMoments, variable: int) -> float | None:
        """Correlation of neighbours about the groups' means; None if no value varies or no value has a neighbour."""
        freedom, square = int((moments.count - 1).clip(0).sum()), float(moments.square[:, variable].sum())
        if not self.pairs or square <= 0:
            return None
        return 1 - float(self.square[variable]) / self.pairs / (2 * square / freedom)


def pooled_sample(samples: Sequence[Sample]) -> Sample:
    """The sample of all values of these samples; there must be at least one sample."""
    size, *figures = (np.array(column) for column in zip(*samples, strict=True))
    moments = moments_of(size, *(column[:, None].astype(np.float64) for column in figures))
    return pooled_groups(moments, range(len(samples))).sample(0, 0)


LEAST = 2  # images (or blocks) that a standard error needs
TWICE = 2  # factor of the excess kurtosis, which samples from heavy-tailed laws underestimate
LEAST_SURE = 5  # images that limits need to hold; about 8 for shares with very heavy tails on both sides
STRAIGHT = 1e-3  # skewness or kurtosis that is too small to matter


class Comparison(NamedTuple):
    """Difference of a mean from an earlier mean."""

    z: float
    """In standard errors of the difference; infinite where neither sample varies and the means differ."""
    skewness: float
    """Skewness of z if nothing had changed."""
    freedom: int
    """Degrees of freedom of the standard error."""
    kurtosis: float = 0.0
    """Excess kurtosis of z if nothing had changed."""


def compare(now: Sample, before: Sample) -> Comparison | None:
    """Compare `now` with `before`; None where one of them has fewer than two images."""
    n, m = now.size, before.size
    if min(n, m) < LEAST:
        return None
    within = ((n - 1) * now.spread**2 + (m - 1) * before.spread**2) / (n + m - 2)
    difference, error = now.mean - before.mean, math.sqrt(within * (1 / n + 1 / m))
    if error == 0:
        return Comparison(math.copysign(math.inf, difference) if difference else 0.0, 0.0, n + m - 2)
    both = pooled_sample([now, before])
    skewness = both.skewness * (1 / n**2 - 1 / m**2) / (1 / n + 1 / m) ** 1.5
    kurtosis = both.kurtosis * (1 / n**3 + 1 / m**3) / (1 / n + 1 / m) ** 2
    return Comparison(difference / error, skewness, n + m - 2, kurtosis)


def chance(alarm: float) -> float:
    """alpha, the chance that a normal z lies beyond `alarm` standard errors if nothing has moved."""
    return float(2 * ndtr(-alarm))


def chance_of_comparison(alarm: float, comparisons: int, uncorrected: bool) -> float:
    """Return the chance of a false alarm allowed for one comparison: alpha if uncorrected, else alpha'."""
    alpha = chance(alarm)
    return alpha if uncorrected or comparisons < 2 else -math.expm1(math.log1p(-alpha) / comparisons)


def chance_of_run(alarm: float, comparisons: int, uncorrected: bool) -> float:
    """Return the chance that a run of so many independent comparisons alarms although nothing has moved."""
    return -math.expm1(comparisons * math.log1p(-chance_of_comparison(alarm, comparisons, uncorrected)))


def limit(comparison: Comparison, tail: float) -> float:
    """The |z| that chance exceeds with probability `tail` / 2 on the side of the comparison's z."""
    normal, student = -ndtri(tail / 2), -stdtrit(comparison.freedom, tail / 2)
    heavy = comparison.skewness * comparison.z > STRAIGHT  # chance reaches further on this side
    k = 4 / comparison.skewness**2 if heavy and math.isfinite(comparison.z) else math.inf
    reach = (gammainccinv(k, tail / 2) - k) / math.sqrt(k) if math.isfinite(k) else normal
    if (excess := comparison.kurtosis - 1.5 * comparison.skewness**2) > STRAIGHT:
        nu = 4 + 6 / (TWICE * excess)  # degrees of freedom of Student's law with this kurtosis
        reach = max(reach, -stdtrit(nu, tail / 2) * math.sqrt((nu - 2) / nu))
    return float(max(reach, normal) * student / normal)


NOISE = 1e-6  # of a mean: differences that the precision of float32 and of rounded records leaves
STEPS = 60  # halvings of an interval, after which the rest is below the precision of float64
LEVEL = 0.95  # of the interval of an effect


class Comparisons(NamedTuple):
    """Differences of c means from earlier means, all of samples of the same two sizes; see Comparison."""

    z: Float64[np.ndarray, " c"]
    """In standard errors of the difference, which is at least NOISE times the means; always finite."""
    skewness: Float64[np.ndarray, " c"]
    kurtosis: Float64[np.ndarray, " c"]
    now: int
    """Size of the sample of now, n."""
    before: int
    """Size of the earlier sample, m."""

    @property
    def freedom(self) -> int:
        """Degrees of freedom of the standard errors."""
        return self.now + self.before - 2


def compare_all(now: GroupMoments, before: GroupMoments) -> Comparisons | None:
    """Compare the only groups of `now` and `before`, by variable, as `compare`; None if one has fewer than two values."""
    n, m = int(now.count[0]), int(before.count[0])
    if min(n, m) < LEAST:
        return None
    within = (now.square[0] + before.square[0]) / (n + m - 2)
    noise = NOISE * np.maximum(np.abs(now.mean[0]), np.abs(before.mean[0]))
    difference, error = now.mean[0] - before.mean[0], np.maximum(np.sqrt(within * (1 / n + 1 / m)), noise)
    both = pooled_groups(now, [0])
    both.join(0, m, before.mean[0], before.square[0], before.cube[0], before.fourth[0])
    second = both.square[0] / (n + m)
    varies = second > 0
    scale = np.where(varies, second, 1.0)
    skewness = np.where(varies, both.cube[0] / (n + m) / scale**1.5, 0.0)
    kurtosis = np.where(varies, both.fourth[0] / (n + m) / scale**2 - 3, 0.0)
    z = np.divide(difference, error, out=np.zeros_like(difference), where=error > 0)
    skewness *= (1 / n**2 - 1 / m**2) / (1 / n + 1 / m) ** 1.5
    kurtosis *= (1 / n**3 + 1 / m**3) / (1 / n + 1 / m) ** 2
    return Comparisons(z, skewness, kurtosis, n, m)


def chances(comparisons: Comparisons) -> Float64[np.ndarray, " c"]:
    """p: the chance that |z| is as large on the side of z or on its opposite if nothing has moved; `limit` at p equals |z|."""
    size, freedom = np.abs(comparisons.z), comparisons.freedom
    low, high = np.zeros_like(size), size.copy()  # between them is s
    for _ in range(STEPS):
        s = (low + high) / 2
        tail = stdtr(freedom, -s)
        with np.errstate(divide="ignore", invalid="ignore"):
            a = np.where(s > 0, size * -ndtri(tail) / s, 0.0)  # |z| on the scale of the laws of variance 1
        beyond = _beyond(comparisons, a) >= tail
        low, high = np.where(beyond, low, s), np.where(beyond, s, high)
    return np.minimum(2 * stdtr(freedom, -high), 1.0)


def _beyond(comparisons: Comparisons, a: Float64[np.ndarray, " c"]) -> Float64[np.ndarray, " c"]:
    """The largest chance of a value above a under the laws that `limit` allows for: normal, Pearson's type III, Student's."""
    skewness, excess = comparisons.skewness, comparisons.kurtosis - 1.5 * comparisons.skewness**2
    chance = ndtr(-a)
    heavy = skewness * comparisons.z > STRAIGHT
    k = 4 / skewness[heavy] ** 2
    chance[heavy] = np.maximum(chance[heavy], gammaincc(k, np.maximum(k + a[heavy] * np.sqrt(k), 0)))
    wide = excess > STRAIGHT
    nu = 4 + 6 / (TWICE * excess[wide])
    chance[wide] = np.maximum(chance[wide], stdtr(nu, -a[wide] / np.sqrt((nu - 2) / nu)))
    return chance


def false_discovery(p: Float64[np.ndarray, " m"]) -> Float64[np.ndarray, " m"]:
    """q: the smallest rate of false discoveries at which each of m comparisons is one, whatever the dependence between them."""
    m, order = len(p), np.argsort(p, kind="stable")
    rank = np.arange(1, m + 1)
    q = p[order] * m * (1 / rank).sum() / rank
    ordered = np.minimum(np.minimum.accumulate(q[::-1])[::-1], 1.0)
    return ordered[np.argsort(order, kind="stable")]


class EffectSizes(NamedTuple):
    """Differences of means in standard deviations, with intervals."""

    value: Float64[np.ndarray, " c"]
    low: Float64[np.ndarray, " c"]
    high: Float64[np.ndarray, " c"]


def effect_sizes(comparisons: Comparisons) -> EffectSizes:
    """d of each comparison, and its interval of LEVEL for this comparison alone."""
    share = 1 / comparisons.now + 1 / comparisons.before
    d = comparisons.z * math.sqrt(share)
    reach = -stdtrit(comparisons.freedom, (1 - LEVEL) / 2) * np.sqrt(share + d**2 / (2 * comparisons.freedom))
    return EffectSizes(d, d - reach, d + reach)
