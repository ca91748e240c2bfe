"""Mean, spread and skewness of several variables by group, from batches, without keeping the values.

Parts of sizes n, m, means a, b, and sums of squared and cubed deviations A2, B2, A3, B3 join (Chan, Golub and LeVeque 1979;
Pebay 2008), with delta = b - a and N = n + m, to

    mean    a + delta m / N
    squares A2 + B2 + delta^2 n m / N
    cubes   A3 + B3 + delta^3 n m (n - m) / N^2 + 3 delta (n B2 - m A2) / N
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

    @property
    def standard_error(self) -> float:
        """Of the mean."""
        return float(self.spread / np.sqrt(self.size))


class GroupMoments:
    """Running moments of c variables in each of g groups, in float64."""

    def __init__(self, groups: int, variables: int) -> None:
        self.count: Int[np.ndarray, " g"] = np.zeros(groups, np.int64)
        self.mean, self.square, self.cube = (np.zeros((groups, variables)) for _ in range(3))

    def add(self, group: Int[np.ndarray, " b"], value: Float[np.ndarray, "b c"]) -> None:
        """Values [b, c] of the groups [b] they belong to."""
        for g in np.unique(group):
            part = value[group == g].astype(np.float64)
            centred = part - part.mean(0)
            self._join(int(g), len(part), part.mean(0), (centred**2).sum(0), (centred**3).sum(0))

    def _join(
        self, g: int, m: int, b: Float64[np.ndarray, " c"], B2: Float64[np.ndarray, " c"], B3: Float64[np.ndarray, " c"]
    ) -> None:
        n, A2 = int(self.count[g]), self.square[g].copy()
        N, delta = n + m, b - self.mean[g]
        self.cube[g] += B3 + delta**3 * (n * m * (n - m) / N**2) + 3 * delta * (n * B2 - m * A2) / N
        self.square[g] += B2 + delta**2 * (n * m / N)
        self.mean[g] += delta * m / N
        self.count[g] = N

    def sample(self, group: int, variable: int) -> Sample:
        """One variable in one group, which has a value at least."""
        n, square, cube = int(self.count[group]), float(self.square[group, variable]), float(self.cube[group, variable])
        skewness = cube / n / (square / n) ** 1.5 if square > 0 else 0.0
        return Sample(n, float(self.mean[group, variable]), float(np.sqrt(square / max(1, n - 1))), skewness)


def pooled(samples: Sequence[Sample]) -> Sample:
    """Samples as the one they make up together; at least one."""
    moments = GroupMoments(1, 1)
    for each in samples:
        square = each.spread**2 * (each.size - 1)
        cube = each.skewness * (square / each.size) ** 1.5 * each.size
        moments._join(0, each.size, *(np.array([value]) for value in (each.mean, square, cube)))
    return moments.sample(0, 0)
