"""Accuracy per group against loops over images, its bootstrap against explicit draws of images, and coverage of its intervals."""

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from cliptools.analysis.group_accuracy import (
    GroupAccuracies,
    accuracy_per_group,
    draw_accuracies,
    figures,
    mean_differences,
    mean_figures,
)
from cliptools.analysis.zero_shot import wilson

SIZES, ROWS = (13, 29, 7, 41, 1), 3


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


@pytest.fixture
def group(rng: np.random.Generator) -> np.ndarray:
    return rng.permutation(np.repeat(np.arange(len(SIZES)), SIZES))


def hits(rng: np.random.Generator, group: np.ndarray, templates: int = 1) -> np.ndarray:
    """Mean hits over templates, less frequent in later groups, that depend on each other between rows."""
    hard = rng.random((len(group), templates))
    limits = 0.9 - 0.15 * group[None] - 0.1 * np.arange(ROWS)[:, None]  # (s, n)
    return (hard < limits[..., None]).mean(-1)


@pytest.mark.parametrize("templates", [1, 3])
@pytest.mark.parametrize("weighted", [False, True])
def test_figures_against_loops(rng: np.random.Generator, group: np.ndarray, templates: int, weighted: bool) -> None:
    h = hits(rng, group, templates)
    weight = np.array([3498.0, 184, 56, 1057, 0]) if weighted else None
    accuracies = GroupAccuracies(h, group, len(SIZES), weight, draws=50)
    for s in range(ROWS):
        a = []
        for g in range(len(SIZES)):
            images = [i for i in range(len(group)) if group[i] == g]
            a.append(sum(h[s, i] for i in images) / len(images))
        expected = {"worst": min(a), "average": sum(h[s]) / len(group)}
        if weight is not None:
            expected["weighted"] = sum(w * x for w, x in zip(weight, a, strict=True)) / sum(weight)
        expected["gap"] = expected.get("weighted", expected["average"]) - min(a)
        found = accuracies.figures(s)
        assert list(found) == list(expected)
        assert {name: x.value for name, x in found.items()} == pytest.approx(expected, abs=1e-9)
        assert all(x.low <= x.value + 1e-12 and x.value - 1e-12 <= x.high for x in found.values())
        assert accuracies.worst_group(s) == a.index(min(a))
        assert [x.value for x in accuracies.groups(s)] == pytest.approx(a, abs=1e-9)
        if templates == 1:
            for g, (_, low, high) in enumerate(accuracies.groups(s)):
                interval = binomtest(round(a[g] * SIZES[g]), SIZES[g]).proportion_ci(method="wilson")
                assert (low, high) == pytest.approx((interval.low, interval.high), abs=1e-6)


def test_draws_are_those_of_images(rng: np.random.Generator, group: np.ndarray) -> None:
    """Means and covariances between rows of the multinomial draws, against draws of images one by one."""
    h, draws = hits(rng, group, templates=2), 6000
    fast = draw_accuracies(h, group, len(SIZES), draws, seed=5)  # (b, s, g)
    slow = np.empty_like(fast)
    for g in range(len(SIZES)):
        images = np.flatnonzero(group == g)
        for draw in range(draws):
            slow[draw, :, g] = h[:, rng.choice(images, len(images))].mean(1)
    exact = accuracy_per_group(h, group, len(SIZES))
    for g, size in enumerate(SIZES):
        covariance = np.cov(h[:, group == g], bias=True) / size if size > 1 else np.zeros((ROWS, ROWS))
        for drawn in (fast, slow):
            assert drawn[:, :, g].mean(0) == pytest.approx(exact[:, g], abs=6 / np.sqrt(draws * size))
            assert np.cov(drawn[:, :, g].T) == pytest.approx(covariance, abs=0.15 * covariance.max() + 1e-12)
    for q in (0.1, 0.5, 0.9):
        a = np.quantile(figures(fast, np.array(SIZES))["worst"], q, axis=0)
        assert a == pytest.approx(np.quantile(figures(slow, np.array(SIZES))["worst"], q, axis=0), abs=0.03)


def test_draws_of_a_group_are_binomial() -> None:
    h = np.array([[1.0] * 70 + [0.0] * 30])
    drawn = draw_accuracies(h, np.zeros(100, np.int64), 1, 20000)[:, 0, 0]
    for hit in (60, 65, 70, 75, 80):
        assert (drawn <= hit / 100 + 1e-9).mean() == pytest.approx(binom.cdf(hit, 100, 0.7), abs=0.015)


def test_differences_are_paired(rng: np.random.Generator, group: np.ndarray) -> None:
    """Rows that differ in one image differ in every draw by a few images, however much each of them varies."""
    h = hits(rng, group)[:1].repeat(3, 0)
    image = int(np.flatnonzero(group == 3)[0])
    h[1, image], h[0, image] = 1.0, 0.0
    h[2] = h[0]
    accuracies = GroupAccuracies(h, group, len(SIZES))
    difference = accuracies.differences(1, before=0)["average"]
    assert difference.value == pytest.approx(1 / len(group), abs=1e-9)
    assert difference.low > -0.06 and difference.high < 0.06
    own = accuracies.figures(1)["average"]
    assert own.high - own.low > 2 * (difference.high - difference.low)
    per_group = accuracies.group_differences(1, before=0)
    assert [x.value for x in per_group] == pytest.approx([0, 0, 0, 1 / SIZES[3], 0], abs=1e-9)
    assert per_group[0] == pytest.approx((0, -1.96 / (SIZES[0] + 2), 1.96 / (SIZES[0] + 2)), abs=1e-5)  # Agresti and Min
    for x in accuracies.differences(2, before=0).values():
        assert x.value == 0 and -0.7 < x.low < 0 < x.high < 0.7


def test_means_over_templates_and_tasks(rng: np.random.Generator, group: np.ndarray) -> None:
    """Figures of several rows and tasks are means of figures; their draws are means of draws, tasks being independent."""
    tasks = [GroupAccuracies(hits(rng, group), group, len(SIZES), draws=300, seed=(4, task)) for task in range(3)]
    rows = [0, 2]
    mean = mean_figures(tasks, rows)
    for name, x in mean.items():
        values = [task.figures(row)[name].value for task in tasks for row in rows]
        assert x.value == pytest.approx(sum(values) / len(values), abs=1e-9)
    single = tasks[0].figures(0)["average"]
    assert mean["average"].high - mean["average"].low < 0.8 * (single.high - single.low)
    difference = mean_differences(tasks, 1, before=rows)
    for name, x in difference.items():
        values = [task.figures(1)[name].value - np.mean([task.figures(row)[name].value for row in rows]) for task in tasks]
        assert x.value == pytest.approx(float(np.mean(values)), abs=1e-9)
        assert x.low <= x.value <= x.high
    both = tasks[1].groups(rows)
    assert [x.value for x in both] == pytest.approx(tasks[1].accuracy[rows].mean(0), abs=1e-9)
    assert tasks[1].worst_group(rows) == int(np.argmin([x.value for x in both]))
    assert [x.value for x in tasks[1].group_differences(rows, before=rows)] == [0] * len(SIZES)


def test_the_same_seed_gives_the_same_intervals(rng: np.random.Generator, group: np.ndarray) -> None:
    h = hits(rng, group)
    first, second, third = (GroupAccuracies(h, group, len(SIZES), draws=99, seed=seed).figures(0) for seed in (1, 1, 2))
    assert first == second
    assert first != third
    assert {name: x.value for name, x in first.items()} == {name: x.value for name, x in third.items()}


def test_a_group_without_errors_is_not_certain() -> None:
    accuracies = GroupAccuracies(np.ones((1, 40)), np.repeat([0, 1], 20), 2)
    worst = accuracies.figures(0)["worst"]
    assert worst.value == worst.high == 1
    assert worst.low < 0.9


@pytest.mark.parametrize(("images", "accuracy"), [(1, 0.5), (2, 0.6), (5, 0.8), (20, 0.8)])
def test_a_small_group_may_be_the_worst(rng: np.random.Generator, images: int, accuracy: float) -> None:
    """Beside 100 images of accuracy 0.95: the worst group is the small one, in samples without an error too."""
    contained = []
    for seed in range(100):
        h = np.concatenate([rng.random(100) < 0.95, rng.random(images) < accuracy]).astype(float)[None]
        worst = GroupAccuracies(h, np.repeat([0, 1], [100, images]), 2, draws=200, seed=seed).figures(0)["worst"]
        contained.append(worst.low <= accuracy <= worst.high)
    assert np.mean(contained) >= 0.93


@pytest.mark.parametrize(("images", "accuracy"), [(1, 0.5), (3, 0.6), (12, 0.75)])
def test_a_small_group_may_be_the_worst_of_a_difference(rng: np.random.Generator, images: int, accuracy: float) -> None:
    """Beside 100 images of which 0.8 are right, then 0.9: the worst group is the small one, which stays as it was."""
    contained = 0
    for seed in range(100):
        large, small = rng.random(100), rng.random(images)
        h = np.stack([np.concatenate([large < p, small < accuracy]) for p in (0.8, 0.9)]).astype(float)
        worst = GroupAccuracies(h, np.repeat([0, 1], [100, images]), 2, draws=200, seed=seed).differences(1, 0)["worst"]
        contained += worst.low <= 0 <= worst.high
    assert contained >= 93


def test_a_worst_group_beyond_doubt_is_paired() -> None:
    """The group of few images that is the worst in both rows differs by its pairs, however wide its own intervals are."""
    group = np.repeat([0, 1], [100, 20])
    old = np.concatenate([np.ones(100), np.repeat([1.0, 0.0], 10)])
    new = old.copy()
    new[-1] = 1.0
    accuracies = GroupAccuracies(np.stack([old, new]), group, 2)
    worst, own = accuracies.differences(1, 0)["worst"], accuracies.figures(1)["worst"]
    assert worst.value == pytest.approx(0.05, abs=1e-9)
    assert worst.high - worst.low < 0.25 and own.high - own.low > 0.35


def test_equal_groups_count_in_any_order() -> None:
    h = np.array([[1.0, 1.0, 1.0]])
    one, other = (GroupAccuracies(h, np.array(group), 2).figures(0)["worst"] for group in ([0, 0, 1], [0, 1, 1]))
    assert one == other and one.low == pytest.approx(wilson(1.0, 1)[0])


@pytest.mark.parametrize("images", [1, 12])
def test_no_interval_is_of_zero_width(images: int) -> None:
    """All right, with one and with two rows, over one and two tasks."""
    groups = np.repeat(np.arange(4), images)
    tasks = [
        GroupAccuracies(np.ones((2, 4 * images)), groups, 4, np.array([1.0, 0, 2, 5]), draws=50, seed=seed) for seed in (0, 1)
    ]
    for few in (tasks[:1], tasks):
        for rows in (0, [0, 1]):
            for name, x in mean_figures(few, rows).items():
                assert x.high - x.low > 0.05 and x.low <= x.value <= x.high, name
        for name, x in mean_differences(few, 1, 0).items():
            assert x.value == 0 and x.low < -0.02 and x.high > 0.02, name


def test_closed_forms_against_loops(rng: np.random.Generator, group: np.ndarray) -> None:
    h, weight = hits(rng, group), np.array([5.0, 1, 0, 2, 4])
    accuracies = GroupAccuracies(h, group, len(SIZES), weight, draws=20)
    for s, before in ((0, None), (1, 0), (2, 1)):
        parts = accuracies.groups(s)
        if before is not None:
            parts = []
            for g, size in enumerate(SIZES):
                d = [h[s, i] - h[before, i] for i in range(len(group)) if group[i] == g]
                half = 1.959964 * np.sqrt(1 + sum(x * x for x in d) - sum(d) ** 2 / (size + 2)) / (size + 2)
                middle = sum(d) / (size + 2)
                parts.append((sum(d) / size, min(middle - half, sum(d) / size), max(middle + half, sum(d) / size)))
        found = accuracies.closed(s) if before is None else accuracies.closed_differences(s, before)
        for name, c in (("average", np.array(SIZES) / len(group)), ("weighted", weight / weight.sum())):
            x = sum(share * part[0] for share, part in zip(c, parts, strict=True))
            below = np.sqrt(sum((share * (part[0] - part[1])) ** 2 for share, part in zip(c, parts, strict=True)))
            above = np.sqrt(sum((share * (part[2] - part[0])) ** 2 for share, part in zip(c, parts, strict=True)))
            assert found[name] == pytest.approx((x, x - below, x + above), abs=1e-9)
        gap, weighted, worst = found["gap"], found["weighted"], found["worst"]
        ends = [[min(x[end] for x in accuracies.groups(row)) for end in range(3)] for row in (s, before) if row is not None]
        if before is None:
            assert worst == pytest.approx(ends[0], abs=1e-9)
        else:  # the group of one image has the least low end, and never the least high end
            (x, low, high), (y, old_low, old_high) = ends
            assert worst.low == pytest.approx(x - y - np.hypot(x - low, old_high - y), abs=1e-9)
            assert worst.high == pytest.approx(x - y + np.hypot(high - x, y - old_low), abs=1e-9)
        assert gap.value == pytest.approx(weighted.value - worst.value, abs=1e-9)
        assert gap.value - gap.low == pytest.approx(np.hypot(weighted.value - weighted.low, worst.high - worst.value), abs=1e-9)


def test_paired_intervals_contain_the_truth(samples: int = 200) -> None:
    """Rows that differ on few images, of groups of twelve: bootstrap intervals alone contain the truth in fewer than 80 %."""
    rng, group = np.random.default_rng(3), np.repeat(np.arange(4), 12)
    covered = 0
    for seed in range(samples):
        old = rng.random(48) < 0.95
        new = np.where(rng.random(48) < 0.03, ~old, old)
        x = GroupAccuracies(np.stack([old, new]).astype(float), group, 4, draws=200, seed=seed).differences(1, 0)["average"]
        truth = 0.03 * (0.05 - 0.95)
        covered += x.low <= truth <= x.high
    assert covered > 0.9 * samples


@pytest.mark.parametrize("truth", [(0.7, 0.7, 0.7, 0.7), (0.65, 0.9, 0.95, 0.97), (0.7, 0.7, 0.9, 0.9)])
def test_intervals_contain_the_truth(truth: tuple[float, ...], samples: int = 150) -> None:
    """Worst and gap, whose minimum is biased if groups are equal, and the average: of 150 samples, at least 86 % are covered."""
    rng, group, p = np.random.default_rng(2), np.repeat(np.arange(4), 100), np.array(truth)
    expected = {name: float(x[0]) for name, x in figures(p[None], np.full(4, 100)).items()}
    covered = dict.fromkeys(expected, 0)
    for seed in range(samples):
        h = (rng.random(400) < p[group]).astype(np.float64)[None]
        for name, (_, low, high) in GroupAccuracies(h, group, 4, draws=400, seed=seed).figures(0).items():
            covered[name] += low - 1e-9 <= expected[name] <= high + 1e-9
    assert all(count > 0.86 * samples for count in covered.values()), covered
