"""Moments of several variables by group, from batches, without keeping the values; means of blocks; how alike neighbours are.

Parts of sizes n, m, means a, b, and sums of deviations' powers A2, B2, A3, B3, A4, B4 join (Chan, Golub and LeVeque 1979;
Pebay 2008), with delta = b - a and N = n + m, to

    mean    a + delta m / N
    squares A2 + B2 + delta^2 n m / N
    cubes   A3 + B3 + delta^3 n m (n - m) / N^2 + 3 delta (n B2 - m A2) / N
    fourths A4 + B4 + delta^4 n m (n^2 - n m + m^2) / N^3 + 6 delta^2 (n^2 B2 + m^2 A2) / N^2 + 4 delta (n B3 - m A3) / N

Of values x_1 ... x_n in order, independent of each other, half the mean of (x_i - x_(i-1))^2 is the variance; 1 less their
ratio is the correlation of neighbours (von Neumann 1941), 0 to within 1 / sqrt(n).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int


class Sample(NamedTuple):
    """What is known of a sample."""

    size: int
    mean: float
    spread: float
    """Standard deviation, over n - 1; 0 of a single value."""
    skewness: float = 0.0
    """Third central moment over the second's power 3/2, both over n; 0 of equal values."""
    kurtosis: float = 0.0
    """Fourth central moment over the second's square, both over n, less 3; 0 of equal values."""

    @property
    def standard_error(self) -> float:
        """Of the mean."""
        return float(self.spread / np.sqrt(self.size))


class GroupMoments:
    """Running moments of c variables in each of g groups, in float64."""

    def __init__(self, groups: int, variables: int) -> None:
        self.count: Int[np.ndarray, " g"] = np.zeros(groups, np.int64)
        self.mean, self.square, self.cube, self.fourth = (np.zeros((groups, variables)) for _ in range(4))

    def add(self, group: Int[np.ndarray, " b"], value: Float[np.ndarray, "b c"]) -> None:
        """Values [b, c] of the groups [b] they belong to."""
        for g in np.unique(group):
            part = value[group == g].astype(np.float64)
            centred = part - part.mean(0)
            self._join(int(g), len(part), part.mean(0), *((centred**power).sum(0) for power in (2, 3, 4)))

    def _join(
        self,
        g: int,
        m: int,
        b: Float64[np.ndarray, " c"],
        B2: Float64[np.ndarray, " c"],
        B3: Float64[np.ndarray, " c"],
        B4: Float64[np.ndarray, " c"],
    ) -> None:
        n, A2, A3 = int(self.count[g]), self.square[g].copy(), self.cube[g].copy()
        N, delta = n + m, b - self.mean[g]
        self.fourth[g] += B4 + delta**4 * (n * m * (n * n - n * m + m * m) / N**3)
        self.fourth[g] += 6 * delta**2 * (n * n * B2 + m * m * A2) / N**2 + 4 * delta * (n * B3 - m * A3) / N
        self.cube[g] += B3 + delta**3 * (n * m * (n - m) / N**2) + 3 * delta * (n * B2 - m * A2) / N
        self.square[g] += B2 + delta**2 * (n * m / N)
        self.mean[g] += delta * m / N
        self.count[g] = N

    def sample(self, group: int, variable: int) -> Sample:
        """One variable in one group, which has a value at least."""
        n = int(self.count[group])
        square, cube, fourth = (float(power[group, variable]) for power in (self.square, self.cube, self.fourth))
        skewness, kurtosis = (cube / n / (square / n) ** 1.5, n * fourth / square**2 - 3) if square > 0 else (0.0, 0.0)
        return Sample(n, float(self.mean[group, variable]), float(np.sqrt(square / max(1, n - 1))), skewness, kurtosis)


class BlockMeans:
    """Means of c variables over each of some blocks, the independent observations where images belong together."""

    def __init__(self, blocks: int, variables: int) -> None:
        self.count = np.zeros(blocks, np.int64)
        self.total = np.zeros((blocks, variables))

    def add(self, block: Int[np.ndarray, " b"], value: Float[np.ndarray, "b c"]) -> None:
        """Values [b, c] of the blocks [b] they belong to."""
        np.add.at(self.count, block, 1)
        np.add.at(self.total, block, value.astype(np.float64))

    def means(self) -> tuple[Int[np.ndarray, " k"], Float64[np.ndarray, "k c"]]:
        """The blocks that have a value, and their means."""
        known = np.flatnonzero(self.count)
        return known, self.total[known] / self.count[known, None]


class Neighbours:
    """How alike values are that follow each other within a group, of c variables."""

    def __init__(self, groups: int, variables: int) -> None:
        self.last = np.zeros((groups, variables))
        self.any = np.zeros(groups, bool)
        self.square, self.pairs = np.zeros(variables), 0

    def add(self, group: Int[np.ndarray, " b"], value: Float[np.ndarray, "b c"]) -> None:
        """Values [b, c] in their order, of the groups [b] they belong to."""
        for g in np.unique(group):
            part = value[group == g].astype(np.float64)
            part = np.concatenate([self.last[g : g + 1], part]) if self.any[g] else part
            self.square += (np.diff(part, axis=0) ** 2).sum(0)
            self.pairs += len(part) - 1
            self.last[g], self.any[g] = part[-1], True

    def correlation(self, moments: GroupMoments, variable: int) -> float | None:
        """Of neighbours, from all groups' deviations from their means; None where nothing varies or none has a neighbour."""
        freedom, square = int((moments.count - 1).clip(0).sum()), float(moments.square[:, variable].sum())
        if not self.pairs or square <= 0:
            return None
        return 1 - float(self.square[variable]) / self.pairs / (2 * square / freedom)


def pooled(samples: Sequence[Sample]) -> Sample:
    """Samples as the one they make up together; at least one."""
    moments = GroupMoments(1, 1)
    for each in samples:
        square = each.spread**2 * (each.size - 1)
        cube = each.skewness * (square / each.size) ** 1.5 * each.size
        fourth = (each.kurtosis + 3) * square**2 / each.size
        moments._join(0, each.size, *(np.array([value]) for value in (each.mean, square, cube, fourth)))
    return moments.sample(0, 0)
