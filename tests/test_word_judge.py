"""Words chosen and scored on two halves, against loops over images, units and texts in float64."""

from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from jaxtyping import Float64
from sklearn.metrics import average_precision_score, f1_score, jaccard_score

from cliptools.analysis.presence import Labelled, Presence, Similarity, UnitGroup, correlations
from cliptools.analysis.word_judge import Setting, Written, judge_words
from cliptools.streaming import activities as activities_module
from cliptools.streaming.activities import Activities
from cliptools.streaming.embeddings import Embeddings

N, U, D, TEXTS, M = 83, 7, 5, 11, 4


class World:
    """Random images, units and texts; the last unit never acts, and no image shows text 10."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.M = rng.normal(size=(N, D)) + 0.7
        self.a = rng.gamma(0.7, size=(N, U)) * 3 + self.M @ rng.normal(size=(D, U))
        self.a[:, -1] = 0
        self.r, self.t = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (rng.normal(size=(U, D)), self.random_texts(rng)))
        self.rows = [sorted(rng.choice(TEXTS - 1, rng.integers(0, 4), replace=False).tolist()) for _ in range(N)]
        self.word = np.array([rng.choice(TEXTS, M, replace=False) for _ in range(U)])
        self.word[2, 2:] = -1
        self.coefficient = np.where(self.word >= 0, rng.normal(size=(U, M)), 0)
        self.coefficient[4] = -np.abs(self.coefficient[4])
        order = rng.permutation(N)
        self.choosing, self.scored = np.sort(order[:40]), np.sort(order[40:])

    @staticmethod
    def random_texts(rng: np.random.Generator) -> Float64[np.ndarray, "text d"]:
        return rng.normal(size=(TEXTS, D))

    @property
    def activities(self) -> Activities:
        spool = Activities(N + 3, np.abs(self.a).max(0), TEXTS)
        for start in range(0, N, 17):
            spool.add(self.a[start : start + 17])
        return spool

    @property
    def embeddings(self) -> Embeddings:
        embeddings = Embeddings(N)
        embeddings.add(range(N), torch.from_numpy(self.M))
        return embeddings

    def presence(self, kind: str) -> Presence:
        if kind == "labels":
            known = np.ones(TEXTS, dtype=bool)
            known[3] = False
            return Labelled(self.rows, known)
        return Similarity(self.embeddings, self.t, None if kind == "judge" else kind)

    def c(self, kind: str, unit: int, text: int) -> Float64[np.ndarray, " N"]:
        """The presence of a text, image by image."""
        if kind == "labels":
            return np.array([float(text in row) for row in self.rows])
        values = []
        for i in range(N):
            length = np.linalg.norm(self.M[i])
            e = self.M[i] / length
            if kind != "judge":
                e = e - self.a[i, unit] * self.r[unit] / (100 if kind == "unit" else length)
            values.append(float(e @ self.t[text]))
        return np.array(values)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(activities_module, "NUMBERS_AT_ONCE", 2 * N + 7)  # groups of two units
    made = World()
    made.a = np.concatenate([a for _, a in made.activities.columns()], 1)  # as float16 has them
    return made


def pearson(x: Float64[np.ndarray, " n"], y: Float64[np.ndarray, " n"]) -> float:
    return float("nan") if np.ptp(x) == 0 or np.ptp(y) == 0 else float(scipy.stats.pearsonr(x, y).statistic)


KINDS = ["unit", "raw", "judge", "labels"]


@pytest.mark.parametrize("kind", KINDS)
def test_correlations_with_all_texts(world: World, kind: str) -> None:
    """The read direction gives, for all texts at once, the correlation of the activity with each text's presence."""
    units = UnitGroup(world.a, world.r)
    value = correlations(world.a[world.scored], world.presence(kind).moments(units, world.scored))
    expected = [[pearson(world.a[world.scored, n], world.c(kind, n, t)[world.scored]) for t in range(TEXTS)] for n in range(U)]
    assert value == pytest.approx(np.array(expected), abs=1e-9, nan_ok=True)
    assert np.isnan(value[-1]).all() and np.isfinite(value[0]).sum() == TEXTS - (kind == "labels")


def judged(world: World, kind: str, **changed: Any) -> Any:
    written = Written(word=world.word, coefficient=world.coefficient)
    own = world.presence("unit") if kind in ("judge", "labels") else None
    values: dict[str, Any] = {
        "activities": world.activities, "direction": world.r, "written": written, "presence": world.presence(kind), "own": own,
        "choosing": world.choosing, "scored": world.scored, "share": 0.1, "seen": 3, "seed": 5,
    }  # fmt: skip
    return judge_words(Setting(**values | changed))


@pytest.mark.parametrize("kind", KINDS)
def test_words_and_scores_against_loops(world: World, kind: str) -> None:
    result = judged(world, kind)
    known = set(range(TEXTS)) - ({3} if kind == "labels" else set())
    for n in range(U - 1):
        positive = [(c, t) for c, t in zip(world.coefficient[n], world.word[n], strict=True) if c > 0]
        assert result.words["written"][n] == (max(positive)[1] if positive else -1)
        by_text = {t: pearson(world.a[world.choosing, n], world.c(kind, n, t)[world.choosing]) for t in sorted(known)}
        ranked = sorted((t for t in known if np.isfinite(by_text[t])), key=lambda t: -by_text[t])
        assert result.seen[n].tolist() == ranked[:3] and result.words["seen"][n] == ranked[0]
        scored = [pearson(world.a[world.scored, n], world.c(kind, n, t)[world.scored]) for t in ranked[:3]]
        assert result.seen_correlation[n] == pytest.approx(scored, abs=1e-9)
        for word_kind, texts in result.words.items():
            check_scores(world, kind, n, int(texts[n]), {name: v[n] for name, v in result.scores[word_kind].items()}, known)
        check_simulation(world, kind, n, result, by_text, known)
        first = int(result.words["written"][n])
        agreement = pearson(world.a[:, n], world.c(kind, n, first)) if first in known else float("nan")
        assert result.agreement[n] == pytest.approx(0 if first == 10 and kind == "labels" else agreement, abs=1e-9, nan_ok=True)
    if "own" in result.words:
        own = judged(world, "unit")
        assert result.words["own"].tolist() == own.words["seen"].tolist()
    assert sorted(result.words["seen dealt"]) == sorted(result.words["seen"])


def check_scores(world: World, kind: str, n: int, text: int, scores: dict[str, float], known: set[int]) -> None:
    if text not in known:
        assert all(np.isnan(value) for value in scores.values())
        return
    a, c = world.a[world.scored, n], world.c(kind, n, text)[world.scored]
    count = int(np.ceil(0.1 * len(a)))
    A = np.zeros(len(a), bool)
    A[sorted(range(len(a)), key=lambda i: (-a[i], i))[:count]] = True
    C = c >= 0.5
    if kind != "labels":
        C = np.zeros(len(a), bool)
        C[sorted(range(len(a)), key=lambda i: (-c[i], i))[:count]] = True
    empty = not c.any()
    assert scores["correlation"] == pytest.approx(0 if empty else pearson(a, c), abs=1e-9)
    cosine = 0 if empty else float(a @ c) / np.linalg.norm(a) / np.linalg.norm(c)
    assert scores["cosine"] == pytest.approx(cosine, abs=1e-9)
    assert scores["f1"] == pytest.approx(f1_score(A, C, zero_division=0), abs=1e-9)
    assert scores["iou"] == pytest.approx(jaccard_score(A, C, zero_division=0), abs=1e-9)
    assert scores["auprc"] == pytest.approx(average_precision_score(A, c), abs=1e-9)
    assert scores.get("shown") == (c.sum() if kind == "labels" else None)


def check_simulation(world: World, kind: str, n: int, result: Any, by_text: dict[int, float], known: set[int]) -> None:
    """Eight words or all that there are, with coefficients from the choosing half, scored on the other."""
    signed = sorted((t for t in known if np.isfinite(by_text[t])), key=lambda t: -abs(by_text[t]))[:8]
    s = sum(by_text[t] * world.c(kind, n, t) for t in signed)
    assert result.simulation["seen"][n] == pytest.approx(pearson(world.a[world.scored, n], s[world.scored]), abs=1e-9)
    pairs = [(c, t) for c, t in zip(world.coefficient[n], world.word[n], strict=True) if t in known]
    s = sum(c * world.c(kind, n, int(t)) for c, t in pairs)
    assert result.simulation["written"][n] == pytest.approx(pearson(world.a[world.scored, n], s[world.scored]), abs=1e-9)


def test_a_unit_that_never_acts_has_no_words(world: World) -> None:
    result = judged(world, "labels")
    assert result.seen[-1].tolist() == [-1] * 3 and result.words["random"][-1] == -1
    assert np.isnan(result.p[-1]) and np.isnan(result.agreement[-1]) and not result.seen_correlation[-1].any()
    assert all(np.isnan(result.scores[kind][metric][-1]) for kind in ("written", "seen") for metric in result.scores[kind])


def test_only_units_that_see_something_have_a_word() -> None:
    """A unit acts on text 0; the others act at random, and their seen words are none."""
    rng = np.random.default_rng(2)
    rows = [[t for t in range(60) if rng.random() < 0.02] for _ in range(2000)]
    a = rng.gamma(0.4, size=(2000, 50))
    a[[0 in row for row in rows], 0] += 2
    spool = Activities(2000, np.ones(50), 60)
    spool.add(a)
    written = Written(word=np.zeros((50, 1), np.int64), coefficient=np.ones((50, 1)))
    setting = Setting(
        activities=spool, direction=np.zeros((50, 3)), written=written, presence=Labelled(rows, np.ones(60, bool)), own=None,
        choosing=np.arange(0, 2000, 2), scored=np.arange(1, 2000, 2), share=0.02, seen=1, seed=0,
    )  # fmt: skip
    result = judge_words(setting)
    assert result.words["seen"][0] == 0 and result.false_discovery[0] < 1e-6
    assert (result.false_discovery[1:] < 0.05).sum() <= 1 and 0.3 < result.p[1:].mean() < 0.7


def test_activities_far_beyond_the_unit_stay_finite() -> None:
    """As of a unit that hardly acted on the bundle's images."""
    spool = Activities(3, np.array([1e-7, 1.0]), 3)
    spool.add(np.array([[1.0, 1.0], [-2.0, 1e9], [0.001, 0.0]]))
    ((_, columns),) = spool.columns()
    assert columns == pytest.approx(np.array([[65504e-7, 1.0], [-65504e-7, 65504.0], [0.001, 0.0]]), rel=1e-3)


def test_activities_keep_three_digits_of_any_size() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=(30, 4)) * np.array([1e-9, 1, 1e4, 1e12])
    spool = Activities(30, np.abs(a).max(0), 3)
    spool.add(a[:19])
    spool.add(a[19:])
    ((rows, columns),) = spool.columns()
    assert rows == slice(0, 4) and columns == pytest.approx(a, rel=1e-3, abs=0)
