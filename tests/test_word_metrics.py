"""Measures of words against scikit-learn, scipy and loops, and NeuronEval's two tests of a measure."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import average_precision_score, f1_score, jaccard_score, recall_score, roc_auc_score

from cliptools.analysis import word_metrics
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


def test_moments_over_all_permutations_are_exact() -> None:
    """The p-value's mean, variance and skewness are those over all 5040 permutations of seven images."""
    rng = np.random.default_rng(1)
    a, c = rng.gamma(0.5, size=(7, 1)), np.array([[0.0], [1], [0], [0], [1], [0], [0]])
    r = np.array([correlation(a, c[list(order)])[0] for order in itertools.permutations(range(7))])
    z_a, z_c = word_metrics.standardised(a), word_metrics.standardised(c)
    skewness = (z_a**3).mean() * (z_c**3).mean() * math.sqrt(6) / 5
    assert r.mean() == pytest.approx(0, abs=1e-9) and r.var() == pytest.approx(1 / 6, abs=1e-9)
    assert scipy.stats.skew(r) == pytest.approx(skewness, abs=1e-9)


@pytest.mark.parametrize("positives", [8, 30, 300])
def test_p_values_are_those_of_permutations(rng: np.random.Generator, positives: int) -> None:
    """Rare texts and heavy tails, where Student's t would find words that are none."""
    a = rng.gamma(0.3, size=(1000, 1))
    c = np.zeros((1000, 1))
    c[:positives] = 1
    permuted = np.concatenate([rng.permutation(c) for _ in range(4000)], axis=1)
    repeated = np.repeat(a, 4000, axis=1)
    p = permutation_p(repeated, permuted)
    for level in (0.2, 0.05, 0.01):
        assert (p <= level).mean() == pytest.approx(level, rel=0.4)
    assert permutation_p(a, np.float64(a > np.sort(a, axis=0)[-positives]))[0] < 1e-6


def test_false_discovery_rates_against_scipy(rng: np.random.Generator) -> None:
    p = rng.beta(0.4, 1, size=83)
    assert false_discovery_rates(p) == pytest.approx(scipy.stats.false_discovery_control(p), abs=1e-9)
    with_gap = np.insert(p, 5, np.nan)
    assert np.isnan(false_discovery_rates(with_gap)[5])
    assert np.delete(false_discovery_rates(with_gap), 5) == pytest.approx(false_discovery_rates(p), abs=1e-12)


def test_intervals_over_units_contain_the_mean(rng: np.random.Generator) -> None:
    samples = [mean_interval(rng.exponential(size=200)) for _ in range(500)]
    assert 0.90 < np.mean([low < 1 < high for _, low, high in samples]) < 0.98
    assert mean_interval(np.array([np.nan, 2.0]))[0] == 2 and np.isnan(mean_interval(np.array([np.nan]))).all()
