"""Measures of words against scikit-learn, scipy and loops, and NeuronEval's two tests of a measure."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import average_precision_score, f1_score, jaccard_score, recall_score, roc_auc_score

from cliptools.analysis.word_metrics import (
    average_precision,
    correlation,
    cosine,
    cosy_auc,
    cosy_mad,
    f1,
    false_discovery_rates,
    iou,
    largest,
    mean_interval,
    permutation_p,
    recall,
    shown,
)

N, UNITS = 157, 5
Metric = Callable[[np.ndarray, np.ndarray], np.ndarray]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def labels(rng: np.random.Generator, a: np.ndarray) -> np.ndarray:
    """Labels that depend on a, with many ties."""
    return (a + rng.normal(size=a.shape) > 1.2).astype(np.float64)


@pytest.mark.parametrize("kind", ["labels", "similarities", "ties"])
def test_metrics_against_libraries(rng: np.random.Generator, kind: str) -> None:
    a = rng.gamma(0.5, size=(N, UNITS)) - 0.4
    c = {"labels": labels(rng, a), "similarities": a + rng.normal(size=a.shape), "ties": np.round(a + rng.normal(size=a.shape))}[
        kind
    ]
    A, C = largest(a, 0.1), shown(c)
    assert (A.sum(0) == math.ceil(0.1 * N)).all()
    for n in range(UNITS):
        assert a[A[:, n], n].min() >= a[~A[:, n], n].max()
        assert correlation(a, c)[n] == pytest.approx(scipy.stats.pearsonr(a[:, n], c[:, n]).statistic, abs=1e-9)
        dot = sum(x * y for x, y in zip(a[:, n], c[:, n], strict=True))
        assert cosine(a, c)[n] == pytest.approx(dot / np.linalg.norm(a[:, n]) / np.linalg.norm(c[:, n]), abs=1e-9)
        assert f1(A, C)[n] == pytest.approx(f1_score(A[:, n], C[:, n]), abs=1e-9)
        assert iou(A, C)[n] == pytest.approx(jaccard_score(A[:, n], C[:, n]), abs=1e-9)
        assert recall(A, C)[n] == pytest.approx(recall_score(A[:, n], C[:, n]), abs=1e-9)
        assert average_precision(A, c)[n] == pytest.approx(average_precision_score(A[:, n], c[:, n]), abs=1e-9)


def test_the_first_of_equal_images_are_taken() -> None:
    a = np.array([[1.0], [2.0], [1.0], [1.0], [0.0]])
    assert largest(a, 0.5)[:, 0].tolist() == [True, True, True, False, False]


@pytest.mark.parametrize("share", [0.01, 0.13, 0.5, 1.0])
def test_of_equal_numbers_the_first_are_largest(share: float) -> None:
    x = np.round(np.random.default_rng(8).normal(size=(37, 9)), 1)
    x[:, 0] = 0.0
    members = largest(x, share)
    for column, inside in zip(x.T, members.T, strict=True):
        order = sorted(range(37), key=lambda i: (-column[i], i))
        assert np.flatnonzero(inside).tolist() == sorted(order[: math.ceil(share * 37)])


def test_the_number_of_images_is_the_share_rounded_up() -> None:
    """0.07 * 100 is 7.000000000000001 in floating point."""
    a = np.arange(100.0)[:, None]
    assert [largest(a, share).sum() for share in (0.07, 0.14, 0.071, 0.28, 0.001)] == [7, 14, 8, 28, 1]


def test_columns_that_do_not_vary(rng: np.random.Generator) -> None:
    a = rng.normal(size=(9, 2))
    constant = np.full((9, 2), 0.1)
    assert np.isnan(correlation(a, constant)).all() and np.isnan(correlation(constant, a)).all()
    assert np.isnan(permutation_p(a, constant)).all() and np.isnan(cosine(a, 0 * a)).all()
    none = np.zeros((9, 2), dtype=bool)
    assert np.isnan(f1(none, none)).all() and np.isnan(iou(none, none)).all() and np.isnan(average_precision(none, a)).all()
    assert (cosy_mad(constant, a) == 0).all()


def test_cosy_against_loops(rng: np.random.Generator) -> None:
    a0, a1 = np.round(rng.normal(size=(41, UNITS)), 1), np.round(rng.normal(0.5, size=(13, UNITS)), 1)
    for n in range(UNITS):
        wins = [(x > y) + (x == y) / 2 for x in a1[:, n] for y in a0[:, n]]
        assert cosy_auc(a0, a1)[n] == pytest.approx(np.mean(wins), abs=1e-9)
        truth, score = np.r_[np.zeros(41), np.ones(13)], np.r_[a0[:, n], a1[:, n]]
        assert cosy_auc(a0, a1)[n] == pytest.approx(roc_auc_score(truth, score), abs=1e-9)
        deviation = math.sqrt(sum((x - a0[:, n].mean()) ** 2 for x in a0[:, n]) / 41)
        assert cosy_mad(a0, a1)[n] == pytest.approx((a1[:, n].mean() - a0[:, n].mean()) / deviation, abs=1e-9)


def known_units(rng: np.random.Generator, count: int, extra: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Units that act on one concept each, their labels, and labels with half removed, or as many wrong ones added."""
    images = 2000
    c = (rng.random((images, count)) < 0.02).astype(np.float64)
    c[:7] = 1
    a = np.abs(rng.normal(size=c.shape)) * 0.3 + c * rng.uniform(0.5, 3, size=c.shape)
    changed = c.copy()
    for n in range(count):
        if extra:
            absent, size = np.flatnonzero(c[:, n] == 0), int(extra * c[:, n].sum())
            changed[rng.choice(absent, size, replace=False), n] = 1
        else:
            present = np.flatnonzero(c[:, n])
            changed[rng.choice(present, len(present) // 2, replace=False), n] = 0
    return a, c, changed


METRICS: dict[str, Metric] = {
    "correlation": correlation,
    "cosine": cosine,
    "auprc": lambda a, c: average_precision(largest(a), c),
    "f1": lambda a, c: f1(largest(a), shown(c)),
    "iou": lambda a, c: iou(largest(a), shown(c)),
    "recall": lambda a, c: recall(largest(a), shown(c)),
}


@pytest.mark.parametrize("metric", METRICS)
def test_missing_labels_lower_every_metric(rng: np.random.Generator, metric: str) -> None:
    a, c, fewer = known_units(rng, 40, 0)
    assert (METRICS[metric](a, fewer) < METRICS[metric](a, c)).all()


@pytest.mark.parametrize("metric", METRICS)
def test_extra_labels_lower_every_metric_but_recall(rng: np.random.Generator, metric: str) -> None:
    a, c, more = known_units(rng, 40, 1)
    lower = METRICS[metric](a, more) < METRICS[metric](a, c)
    assert not lower.any() if metric == "recall" else lower.all()


TAILS: dict[str, Callable[[np.random.Generator, tuple[int, int]], np.ndarray]] = {
    "one tail": lambda rng, shape: rng.gamma(0.3, size=shape),
    "two tails": lambda rng, shape: rng.gamma(0.3, size=shape) * rng.choice([-1, 1], size=shape),
    "mostly zero": lambda rng, shape: rng.normal(size=shape) * (rng.random(shape) < 0.01),
}


@pytest.mark.parametrize("tails", TAILS)
@pytest.mark.parametrize("positives", [1, 8, 300])
def test_p_values_of_chance_are_uniform(rng: np.random.Generator, tails: str, positives: int) -> None:
    """Rare texts and heavy tails, where Student's t of the activities, or three moments, would find words that are none."""
    a, c = TAILS[tails](rng, (1000, 4000)), np.zeros((1000, 1))
    c[rng.choice(1000, positives, replace=False)] = 1
    p = permutation_p(a, np.broadcast_to(c, a.shape))
    for level in (0.2, 0.05, 0.01):
        assert (p <= level).mean() == pytest.approx(level, rel=0.4)
    assert (p < 1e-4).sum() <= 4
    families = false_discovery_rates(p[:400]), *(false_discovery_rates(part) for part in p.reshape(20, 200))
    assert sum((rates <= 0.05).any() for rates in families) <= 4


def test_p_values_against_the_definition(rng: np.random.Generator) -> None:
    a, c = rng.gamma(0.3, size=(91, 3)), rng.normal(size=(91, 3))
    a[:40, 0] = 0  # equal ones, in any order
    c[:40, 0] = 1.5
    for n, p in enumerate(permutation_p(a, c)):
        scores = [scipy.stats.norm.ppf((1 + sum(x < y for x in a[:, n])) / 92) for y in a[:, n]]
        if n == 0:
            scores[:40] = [scipy.stats.norm.ppf(rank / 92) for rank in range(1, 41)]
        assert p == pytest.approx(scipy.stats.pearsonr(scores, c[:, n], alternative="greater").pvalue, abs=1e-9)


def test_p_values_of_words(rng: np.random.Generator) -> None:
    a = rng.gamma(0.3, size=(1000, 1))
    assert permutation_p(a, np.float64(a > np.sort(a, axis=0)[-9]))[0] < 1e-6


def test_false_discovery_rates_against_scipy(rng: np.random.Generator) -> None:
    p = rng.beta(0.4, 1, size=83)
    assert false_discovery_rates(p) == pytest.approx(scipy.stats.false_discovery_control(p), abs=1e-9)
    with_gap = np.insert(p, 5, np.nan)
    assert np.isnan(false_discovery_rates(with_gap)[5])
    assert np.delete(false_discovery_rates(with_gap), 5) == pytest.approx(false_discovery_rates(p), abs=1e-12)


def test_two_images_tell_no_chance() -> None:
    assert np.isnan(permutation_p(np.array([[0.0], [1.0]]), np.array([[0.0], [1.0]]))).all()


def test_intervals_over_units_contain_the_mean(rng: np.random.Generator) -> None:
    samples = [mean_interval(rng.exponential(size=200)) for _ in range(500)]
    assert 0.90 < np.mean([low < 1 < high for _, low, high in samples]) < 0.98
    two = scipy.stats.t.interval(0.95, 1, 0.2, scipy.stats.sem([0.1, 0.3]))
    assert mean_interval(np.array([0.1, 0.3])) == pytest.approx((0.2, *two), abs=1e-9)
    assert mean_interval(np.zeros(9))[0] == 0 and np.isnan(mean_interval(np.zeros(9))[1:]).all()
    assert mean_interval(np.array([np.nan, 2.0]))[0] == 2 and np.isnan(mean_interval(np.array([np.nan]))).all()
