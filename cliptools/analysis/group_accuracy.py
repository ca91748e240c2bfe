"""Accuracy of a classifier per group of images, its worst group, average and gap, with 95 % intervals; in float64.

h_i in [0, 1] is 1 where image i is classified correctly, 0 where it is not, or the mean of these over several prompt templates.
Image i belongs to group g_i, and group g has n_g of the n images. `weight` w_g are sizes of the groups in a training set, of any
sum.

    a_g      = 1/n_g  sum over i in g of h_i
    worst    = min_g a_g
    average  = sum_g n_g a_g / n                  over the images, as they are
    weighted = sum_g w_g a_g / sum_g w_g          as if groups were as frequent as in training (Waterbirds' convention)
    gap      = weighted - worst, without training sizes average - worst

Intervals. A group has Wilson's, at p = a_g and n = n_g; where h_i is a mean over templates, it is wider than necessary, as the
variance of h_i is then at most p (1 - p). All other figures have a bootstrap over images, stratified by group: every draw takes
n_g images of each group, with replacement. Rows of h, one for each model or setting, are drawn with the same images, so that
differences between two rows are paired. Images of a group with the same h in all rows are interchangeable: their numbers in a
draw are multinomial, and only these are drawn, which is the same law at less cost.

An average has the percentiles [q, Q] of its draws. The minimum of groups of nearly equal accuracy is biased downwards, once in
the sample and once more in its draws: percentiles of `worst` then contain the true value in 55 to 75 % of samples, those of `gap`
never. So these two, with value x, have the hull of the percentiles and of the basic interval [2x - Q, 2x - q], which takes the
bias back: in simulation (4 groups of 50 or 200 images, accuracies of 0.65 to 0.97, equal or not) it contains the true value in 90
to 98 % of samples.

A group without an error never varies in a draw, nor does a difference between rows that agree on all images, however few images
there are. Every interval therefore also contains the one that closed forms give. For a figure sum_g c_g a_g of groups with
Wilson's intervals [l_g, u_g], and likewise for means over tasks and for the gap, that is (Zou and Donner 2008)

    [x - sqrt(sum_g (c_g (a_g - l_g))^2), x + sqrt(sum_g (c_g (u_g - a_g))^2)]        with l_g and u_g exchanged where c_g < 0

and for the worst group [min_g l_g, min_g u_g]: beside a large group, one of few images may truly be the worst without having an
error. With groups of 1 to 20 images beside one of 100, the interval contains the true value in 98 % of samples and more.

A difference d_i of two rows on the n images of a group has, with half an image added to each of the four outcomes of a pair
(Agresti and Min 2005), N = n + 2,

    sum_i d_i / N  +-  1.96 sqrt(1 + sum_i d_i^2 - (sum_i d_i)^2 / N) / N

The difference of two rows' worst groups has this interval where one group has the least a_g, l_g and u_g of both rows. Otherwise
another group may truly be the worst in one of them, and pairs say nothing: it has Zou and Donner's of the two worst groups. With
a group of 1, 3 or 12 images beside one of 100, it then contains the true value in all of 400 samples; pairs alone in 62 to 98 %.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int

from cliptools.analysis.zero_shot import Z, wilson

DRAWS = 2000
DRAWS_AT_ONCE = 100
TAILS = (0.025, 0.975)  # of a 95 % interval
MINIMA = ("worst", "gap")  # figures that depend on the minimum over groups
Rows = int | Sequence[int]
"""A row of h, or several rows whose figures are averaged, as those of several prompt templates."""


class Estimate(NamedTuple):
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float


def accuracy_per_group(h: Float64[np.ndarray, "s n"], group: Int[np.ndarray, " n"], groups: int) -> Float64[np.ndarray, "s g"]:
    """a_g of every row of h. Every group must have an image."""
    sums = np.stack([np.bincount(group, row, groups) for row in h])  # (s, g)
    return sums / np.bincount(group, minlength=groups)


def figures(
    a: Float64[np.ndarray, "*rows g"], count: Int[np.ndarray, " g"], weight: Float64[np.ndarray, " g"] | None = None
) -> dict[str, Float64[np.ndarray, "*rows"]]:
    """Return worst, average, weighted (with training sizes only) and gap of every row of accuracies.

    Args:
        count: n_g.
        weight: w_g, not all of them 0.
    """
    worst, average = a.min(-1), a @ (count / count.sum())
    if weight is None:
        return {"worst": worst, "average": average, "gap": average - worst}
    weighted = a @ (weight / weight.sum())
    return {"worst": worst, "average": average, "weighted": weighted, "gap": weighted - worst}


def draw_accuracies(
    h: Float64[np.ndarray, "s n"], group: Int[np.ndarray, " n"], groups: int, draws: int = DRAWS, seed: int | Sequence[int] = 0
) -> Float64[np.ndarray, "b s g"]:
    """a_g of every row of h in b draws of the images, stratified by group; the same images for all rows."""
    rng = np.random.default_rng(seed)
    drawn = np.empty((draws, len(h), groups))  # (b, s, g)
    for g in range(groups):
        kinds, sizes = np.unique(h[:, group == g], axis=1, return_counts=True)  # (s, k), (k): kinds of images
        for first in range(0, draws, DRAWS_AT_ONCE):
            batch = min(DRAWS_AT_ONCE, draws - first)
            numbers = rng.multinomial(sizes.sum(), sizes / sizes.sum(), batch)  # (b, k): images of each kind
            drawn[first : first + batch, :, g] = numbers @ kinds.T / sizes.sum()  # (b, k) @ (k, s)
    return drawn


class GroupAccuracies:
    """Accuracies per group of several models or settings on the same images, with intervals and paired differences."""

    def __init__(
        self,
        h: Float64[np.ndarray, "s n"],
        group: Int[np.ndarray, " n"],
        groups: int,
        weight: Float64[np.ndarray, " g"] | None = None,
        draws: int = DRAWS,
        seed: int | Sequence[int] = 0,
    ) -> None:
        """
        Args:
            h: A row for each model or setting, a column for each image.
            group: Group of each image, from 0; every group must have an image.
            weight: Sizes of the groups in a training set, for `weighted`.
            seed: Random seed of the bootstrap.
        """
        self._h, self._group, self._weight = h, group, weight
        self.count: Int[np.ndarray, " g"] = np.bincount(group, minlength=groups)
        self.accuracy = accuracy_per_group(h, group, groups)  # (s, g)
        self._drawn = draw_accuracies(h, group, groups, draws, seed)  # (b, s, g)
        self._figures = figures(self.accuracy, self.count, weight)  # name: (s)
        self._drawn_figures = figures(self._drawn, self.count, weight)  # name: (b, s)

    def groups(self, s: Rows) -> list[Estimate]:
        """The accuracy of each group in row s, with Wilson's interval."""
        a = self.accuracy[np.atleast_1d(s)].mean(0)  # (g)
        return [Estimate(p, *wilson(p, n)) for p, n in zip(a.tolist(), self.count.tolist(), strict=True)]

    def worst_group(self, s: Rows) -> int:
        """The group of least accuracy in row s; of equal ones the first."""
        return int(self.accuracy[np.atleast_1d(s)].mean(0).argmin())

    def figures(self, s: Rows) -> dict[str, Estimate]:
        """Worst, average, weighted (with training sizes only) and gap of row s; intervals lie in [0, 1]."""
        return mean_figures([self], s)

    def group_differences(self, s: Rows, before: Rows) -> list[Estimate]:
        """The accuracy of each group in row s less that in row `before`, on the same images."""
        now, old = np.atleast_1d(s), np.atleast_1d(before)
        value = self.accuracy[now].mean(0) - self.accuracy[old].mean(0)  # (g)
        drawn = self._drawn[:, now].mean(1) - self._drawn[:, old].mean(1)  # (b, g)
        closed = self._paired(now, old)
        return [_hull(_estimate("group", float(x), drawn[:, g]), closed[g]) for g, x in enumerate(value)]

    def differences(self, s: Rows, before: Rows) -> dict[str, Estimate]:
        """The figures of row s less those of row `before`, on the same images; the worst groups may be different groups."""
        return mean_differences([self], s, before)

    def closed(self, s: Rows) -> dict[str, Estimate]:
        """The figures of row s with the intervals of closed forms."""
        groups = self.groups(s)
        return self._of_groups(groups, _worst(groups))

    def closed_differences(self, s: Rows, before: Rows) -> dict[str, Estimate]:
        """The figures of row s less those of row `before` with the intervals of closed forms."""
        pairs = self._paired(np.atleast_1d(s), np.atleast_1d(before))
        groups, old_groups = self.groups(s), self.groups(before)
        worst, old_worst = _worst(groups), _worst(old_groups)
        g = self.worst_group(s)
        if g == self.worst_group(before) and worst == groups[g] and old_worst == old_groups[g]:
            return self._of_groups(pairs, pairs[g])
        return self._of_groups(pairs, _combined([worst, old_worst], np.array([1.0, -1.0])))

    def _of_groups(self, groups: Sequence[Estimate], worst: Estimate) -> dict[str, Estimate]:
        """The figures of accuracies of groups, or of their differences."""
        estimates = {"worst": worst, "average": _combined(groups, self.count / self.count.sum())}
        if self._weight is not None:
            estimates["weighted"] = _combined(groups, self._weight / self._weight.sum())
        return estimates | {"gap": _combined([estimates.get("weighted", estimates["average"]), worst], np.array([1.0, -1.0]))}

    def _paired(self, now: Int[np.ndarray, " r"], old: Int[np.ndarray, " q"]) -> list[Estimate]:
        """The difference of each group with Agresti and Min's interval."""
        d = self._h[now].mean(0) - self._h[old].mean(0)  # (n)
        N, total = self.count + 2, np.bincount(self._group, d, len(self.count))
        squares = np.bincount(self._group, d**2, len(self.count))
        half = Z * np.sqrt(1 + squares - total**2 / N) / N  # (g)
        ends = zip((total / self.count).tolist(), (total / N - half).tolist(), (total / N + half).tolist(), strict=True)
        return [Estimate(x, min(x, low), max(x, high)) for x, low, high in ends]


def mean_figures(tasks: Sequence[GroupAccuracies], s: Rows) -> dict[str, Estimate]:
    """The figures of row s, each the mean over tasks: classifications with images and groups of their own.

    The worst group is then the mean of the tasks' worst groups. Draws of the tasks need different seeds.
    """
    rows = np.atleast_1d(s)
    closed = _over_tasks([task.closed(s) for task in tasks])
    estimates = {name: _hull(_estimate(name, *_means(tasks, name, rows)), closed[name]) for name in tasks[0]._figures}
    return {name: Estimate(min(1.0, max(0.0, x.value)), max(0.0, x.low), min(1.0, x.high)) for name, x in estimates.items()}


def mean_differences(tasks: Sequence[GroupAccuracies], s: Rows, before: Rows) -> dict[str, Estimate]:
    """The figures of row s, as means over tasks, less those of row `before` on the same images."""
    estimates = {}
    closed = _over_tasks([task.closed_differences(s, before) for task in tasks])
    for name in tasks[0]._figures:
        (x, drawn), (old, old_drawn) = (_means(tasks, name, np.atleast_1d(rows)) for rows in (s, before))
        estimates[name] = _hull(_estimate(name, x - old, drawn - old_drawn), closed[name])
    return estimates


def _over_tasks(of_tasks: Sequence[dict[str, Estimate]]) -> dict[str, Estimate]:
    """Means over tasks of figures with the intervals of closed forms."""
    share = np.full(len(of_tasks), 1 / len(of_tasks))
    return {name: _combined([estimates[name] for estimates in of_tasks], share) for name in of_tasks[0]}


def _combined(parts: Sequence[Estimate], c: Float64[np.ndarray, " part"]) -> Estimate:
    """The sum of c times independent figures (Zou and Donner)."""
    x, low, high = np.array(parts).T * c  # (part) each; low and high exchanged where c < 0
    below, above = x - np.minimum(low, high), np.maximum(low, high) - x
    value = float(x.sum())
    return Estimate(value, value - float(np.sqrt((below**2).sum())), value + float(np.sqrt((above**2).sum())))


def _worst(groups: Sequence[Estimate]) -> Estimate:
    """The accuracy of the worst group: the least accuracy, between the least of the low ends and the least of the high ends."""
    return Estimate(*map(min, zip(*groups, strict=True)))


def _hull(a: Estimate, b: Estimate) -> Estimate:
    """The first figure, with an interval that contains both intervals."""
    return Estimate(a.value, min(a.low, b.low), max(a.high, b.high))


def _means(tasks: Sequence[GroupAccuracies], name: str, rows: Int[np.ndarray, " r"]) -> tuple[float, Float64[np.ndarray, " b"]]:
    """A figure and its draws, as means over tasks and rows."""
    values = [task._figures[name][rows].mean() for task in tasks]
    drawn = [task._drawn_figures[name][:, rows].mean(1) for task in tasks]
    return float(np.mean(values)), np.mean(drawn, 0)


def _estimate(name: str, x: float, drawn: Float64[np.ndarray, " b"]) -> Estimate:
    """A figure with the percentiles of its draws; of `worst` and `gap` the hull of these and of the basic interval."""
    q, Q = (float(end) for end in np.quantile(drawn, TAILS))
    return Estimate(x, min(q, 2 * x - Q), max(Q, 2 * x - q)) if name in MINIMA else Estimate(x, q, Q)
