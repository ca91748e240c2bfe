"""Mean and spread of several variables by group, from batches, without keeping the values.

Chan, Golub and LeVeque 1979: two parts of counts n, m, means a, b and sums of squared deviations A, B join to

    n + m,    a + (b - a) m / (n + m),    A + B + (b - a)^2 n m / (n + m)
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int


class Sample(NamedTuple):
    """What is known of a sample: its size, mean and standard deviation (over n - 1; 0 of a single value)."""

    size: int
    mean: float
    spread: float

    @property
    def standard_error(self) -> float:
        """Of the mean."""
        return float(self.spread / np.sqrt(self.size))


class GroupMoments:
    """Running moments of c variables in each of g groups, in float64."""

    def __init__(self, groups: int, variables: int) -> None:
        self.count: Int[np.ndarray, " g"] = np.zeros(groups, np.int64)
        self.mean: Float64[np.ndarray, "g c"] = np.zeros((groups, variables))
        self.square: Float64[np.ndarray, "g c"] = np.zeros((groups, variables))

    def add(self, group: Int[np.ndarray, " b"], value: Float[np.ndarray, "b c"]) -> None:
        """Values [b, c] of the groups [b] they belong to."""
        for g in np.unique(group):
            part = value[group == g].astype(np.float64)
            n, m = self.count[g], len(part)
            step = part.mean(0) - self.mean[g]
            self.square[g] += ((part - part.mean(0)) ** 2).sum(0) + step**2 * n * m / (n + m)
            self.mean[g] += step * m / (n + m)
            self.count[g] += m

    def sample(self, group: int, variable: int) -> Sample:
        """One variable in one group, which has a value at least."""
        n = int(self.count[group])
        return Sample(n, float(self.mean[group, variable]), float(np.sqrt(self.square[group, variable] / max(1, n - 1))))


def pooled(samples: list[Sample]) -> Sample:
    """Samples of different sizes as the one they make up together; at least one."""
    n = sum(each.size for each in samples)
    mean = sum(each.size * each.mean for each in samples) / n
    square = sum((each.size - 1) * each.spread**2 + each.size * (each.mean - mean) ** 2 for each in samples)
    return Sample(n, mean, float(np.sqrt(square / max(1, n - 1))))
