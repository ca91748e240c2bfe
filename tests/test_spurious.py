"""Spurious words: Eq. 6 compared with explicit loops, and excluded words with their reasons."""

import heapq
import re
from itertools import permutations, starmap
from pathlib import Path

import numpy as np
import pytest
from helpers.spurious import POOL, UNITS, D, M, eq6, random_words
from sklearn.metrics.pairwise import cosine_similarity

from cliptools.analysis.spurious import (
    PairWords,
    Search,
    Settings,
    Texts,
    Words,
    best_texts,
    contributions,
    largest_product_of,
    largest_products,
    near_texts,
    random_units,
    similar_scores,
    strongest_units,
    word_scores,
)
from cliptools.analysis.spurious_pairs import clearest_pairs
from cliptools.errors import TextError
from cliptools.text.classes import CIFAR10_PAIRS, ClassName, ClassPair, load_pairs, make_pair, parse_class


@pytest.mark.parametrize("count", [1, 9, UNITS, 500])
def test_scores_are_the_equation(count: int) -> None:
    r, words = random_words()
    v = np.random.default_rng(5).normal(size=D)
    push = r @ v
    n = strongest_units(push, count)
    w = word_scores(push[n], words.of(n), len(POOL))
    np.testing.assert_allclose(w, eq6(v, r, words.word, words.gamma, count, len(POOL)), rtol=1e-9, atol=1e-12)
    parts = np.stack([contributions(push[n], words.of(n), j) for j in range(len(POOL))])
    np.testing.assert_allclose(parts.sum(1), w, rtol=1e-9, atol=1e-12)


def test_the_strongest_are_those_of_a_full_sort() -> None:
    rng = np.random.default_rng(1)
    for count in range(1, 12):
        push = rng.integers(-4, 5, 10).astype(float)  # with many ties
        expected = sorted(range(10), key=lambda n: (-abs(push[n]), n))[:count]
        assert strongest_units(push, count).tolist() == expected


def test_best_takes_positive_and_allowed_only() -> None:
    score = np.array([0.5, -1.0, 2.0, 0.0, 2.0, 3.0])
    assert best_texts(score, np.array([1, 1, 1, 1, 1, 0], dtype=bool), 9).tolist() == [2, 4, 0]
    assert best_texts(score, np.ones(6, dtype=bool), 2).tolist() == [5, 2]


def test_random_units_belong_to_the_pair_and_the_seed() -> None:
    a, again = random_units(50, 20, 3, "cat->dog"), random_units(50, 20, 3, "cat->dog")
    assert a.tolist() == again.tolist() and len(set(a.tolist())) == 20
    assert a.tolist() != random_units(50, 20, 4, "cat->dog").tolist() != random_units(50, 20, 4, "dog->cat").tolist()
    assert random_units(5, 100, 0, "x").tolist() == [0, 1, 2, 3, 4]


def test_cosines_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(2)
    t, v = rng.normal(size=(13, D)) + 2, rng.normal(size=D)
    t = t / np.linalg.norm(t, axis=1, keepdims=True)
    np.testing.assert_allclose(similar_scores(v, t), cosine_similarity(t, v[None])[:, 0], rtol=1e-9)
    assert not similar_scores(np.zeros(D), t).any()
    c = t[:2] + 0.01 * rng.normal(size=(2, D))
    cosine = cosine_similarity(t - t.mean(0), c - t.mean(0)).max(1)
    for threshold in (0.2, 0.5, 0.95):
        assert near_texts(t, c, threshold).tolist() == (cosine >= threshold).tolist()


def search(by: str = "effect", excluded: tuple[str, ...] = (), blocked: tuple[str, ...] = (), **settings: object) -> Search:
    """Return a search over random texts, in which `settee` has nearly the embedding of `sofa`."""
    r, words = random_words(3)
    t = np.random.default_rng(4).normal(size=(len(POOL), D))
    t[POOL.index("settee")] = t[POOL.index("sofa")] + 0.05
    t = t / np.linalg.norm(t, axis=1, keepdims=True)
    named = {text: t[i] for i, text in enumerate(POOL)}
    return Search(r, words, Texts(POOL, t, named), Settings(by=by, neurons=30, **settings), excluded, blocked)


def listed(found: PairWords) -> list[str]:
    return [POOL[j] for j in found.word]


def test_predicted_class_synonyms_plurals_and_near_texts_are_left_out() -> None:
    pair = make_pair("quay", "sofa, couch")
    assert not {"sofa", "couch", "settee"} & set(listed(search(words=99).find(pair)))
    whole = search(words=99, near=1.0).find(pair)  # only names are left out: settee has a cosine just below 1
    removed = {POOL[j] for j in whole.removed}
    assert "settee" in {*listed(whole), *removed} or search()._scores(pair)[POOL.index("settee")] <= 0
    assert not {"cat", "cats", "black cat"} & set(listed(search(words=99).find(make_pair("quay", "cat"))))
    assert not {"cat", "cats", "black cat"} & set(listed(search(words=99, excluded=("cat",)).find(make_pair("quay", "snow"))))


@pytest.mark.parametrize("by", ["effect", "overlap", "random", "random-overlap", "similar"])
def test_what_is_allowed_is_listed_in_the_order_of_the_scores(by: str) -> None:
    one, pair = search(by, blocked=("YACHT",), words=4), make_pair("cat", "sofa, couch")
    found, score = one.find(pair), one._scores(pair)
    gone = {"sofa", "couch", "settee", "cat", "cats", "yacht"}  # not "black cat": another thing than the pictures show
    expected = sorted((i for i, text in enumerate(POOL) if text not in gone and score[i] > 0), key=lambda i: -score[i])[:4]
    assert found.word.tolist() == expected and found.clearness == pytest.approx(score[expected].sum())
    reach = score[expected[-1]] if len(expected) == 4 else 0
    assert {POOL[j] for j in found.removed} == {text for text in gone if score[POOL.index(text)] >= max(reach, 1e-300)}


def single_summands(one: Search, names: tuple[str, str], gone: set[str]) -> tuple[list[str], list[float]]:
    """Return words as the public adversarial code: sorted pairs of product and word of the strongest neurons, the last ones."""
    v = one.texts.named[names[1]] - one.texts.named[names[0]]
    push = [float(r_n @ v) for r_n in one.r]
    summands = []
    for n in sorted(range(UNITS), key=lambda n: abs(push[n]))[-one.settings.neurons :]:
        summands += [(g * push[n], POOL[j]) for j, g in zip(one.words.word[n], one.words.gamma[n], strict=True) if j >= 0]
    taken = sorted(summand for summand in summands if summand[1] not in gone)[-one.settings.words :]
    products: dict[str, float] = {}
    for product, word in taken:
        if product > 0:
            products[word] = product
    words = sorted(products, key=lambda word: -products[word])
    return words, [products[word] for word in words]


@pytest.mark.parametrize("count", [1, 4, 20, 500])
def test_single_summands_of_eq_6_and_no_sums(count: int) -> None:
    """The words of the largest products, each once, including the depicted class; score and share are of one neuron."""
    one, pair = search("single", blocked=("YACHT",), words=count), make_pair("cat", "sofa, couch")
    gone = {"sofa", "couch", "settee", "yacht"}
    words, products = single_summands(one, ("cat", "sofa"), gone)
    found = one.find(pair)
    assert listed(found) == words and 0 < len(words) <= count
    np.testing.assert_allclose(found.score, products, rtol=1e-9)
    push = one.r @ (one.texts.named["sofa"] - one.texts.named["cat"])
    for j, product in zip(found.word, found.score, strict=True):
        [(n, share)] = one.shares(pair, int(j))
        assert share == 1 and (one.words.gamma[n] * push[n])[one.words.word[n] == j] == pytest.approx([product])
    every, _ = single_summands(search("single", words=10**6), ("cat", "sofa"), set(POOL) - gone)
    assert {POOL[j] for j in found.removed} == set(every) if count == 500 else {POOL[j] for j in found.removed} <= set(every)


def test_words_of_equal_products_and_of_many_stand_once() -> None:
    """Of the three largest products the first two have the same word, and the third has two neurons."""
    push, allowed = np.array([2.0, -1.0, 1.0]), np.ones(3, dtype=bool)
    words = Words(np.array([[0, 1], [0, 2], [1, -1]]), np.array([[3.0, 1.0], [-5.0, 4.0], [2.0, 9.0]]))
    found = largest_products(push, words, ("a", "b", "c"), allowed, 3)
    assert found.word.tolist() == [0, 1] and found.score.tolist() == [6, 2] and found.neuron.tolist() == [0, 0]
    assert found.reach == 2
    assert largest_products(push, words, ("a", "b", "c"), np.zeros(3, dtype=bool), 3).word.tolist() == []
    assert largest_product_of(push, words, 3).tolist() == [6, 2, 0]


def test_shares_sum_to_one() -> None:
    one, pair = search("effect"), make_pair("cat", "quay")
    push, n = one._pushes(pair), one._neurons(pair)
    for j in one.find(pair).word[:4]:
        w = one._scores(pair)[j]
        every = {int(k): push[k] * one.words.gamma[k][one.words.word[k] == j].sum() / w for k in n}
        assert sum(every.values()) == pytest.approx(1)
        shown = one.shares(pair, int(j))
        assert shown == [(k, pytest.approx(every[k])) for k, _ in shown]
        assert [abs(s) for _, s in shown] == pytest.approx(sorted((abs(s) for s in every.values() if s), reverse=True)[:5])
    assert search("similar").shares(pair, 0) == []


@pytest.mark.parametrize("by", ["overlap", "random-overlap"])
def test_overlaps_are_summed_over_the_neurons(by: str) -> None:
    one, pair = search(by), make_pair("cat", "quay")
    t, r = one.texts.t, one.r
    v = one.texts.named["quay"] - one.texts.named["cat"]
    n = (
        sorted(range(UNITS), key=lambda k: -abs(r[k] @ v))[:30]
        if by == "overlap"
        else random_units(UNITS, 30, 0, "cat->quay").tolist()
    )
    for j in range(len(POOL)):
        atom = (t[j] - t.mean(0)) / np.linalg.norm(t[j] - t.mean(0))
        parts = {k: (atom @ r[k]) * (v @ r[k]) for k in n}
        assert one._scores(pair)[j] == pytest.approx(sum(parts.values()), rel=1e-9)
        shown = one.shares(pair, j)
        assert shown == [(k, pytest.approx(parts[k] / sum(parts.values()))) for k, _ in shown]
        assert abs(parts[shown[0][0]]) == pytest.approx(max(map(abs, parts.values())))


def test_pairs_by_name_and_from_files(tmp_path: Path) -> None:
    assert [(p.depict.name, p.predict.name) for p in load_pairs("cifar10")] == list(CIFAR10_PAIRS)
    file = tmp_path / "pairs.csv"
    file.write_text('# mine\ncat, dog\n"swiss army knife",fox  # comment\n')
    assert [pair.name for pair in load_pairs(str(file))] == ["cat->dog", "swiss army knife->fox"]
    assert load_pairs(str(file))[1].predict.synonyms == ("fox face",)
    for content, message in (
        (b"", "empty"), (b"cat\n", "line 1: expected"), (b"cat,dog,x\n", "line 1"), (b"cat,cat\n", "two classes"),
        (b"a,b\na,b\n", "twice"), (b"caf\xe9,b", "UTF-8"), (b"fox,fox face\n", "synonyms"),
    ):  # fmt: skip
        file.write_bytes(content)
        with pytest.raises(TextError, match=message):
            load_pairs(str(file))
    with pytest.raises(TextError, match="neither a file nor one of cifar10"):
        load_pairs(str(tmp_path / "none.csv"))


def many_classes(units: int, texts: int, count: int, equal: bool) -> tuple[Search, list[ClassName]]:
    """Return a search over random neurons, of which the last equal the first if `equal`, with classes near some of the texts."""
    rng = np.random.default_rng(units)
    r = rng.normal(size=(units, D))
    r /= np.linalg.norm(r, axis=1, keepdims=True)
    if equal:
        r[units // 2 :] = r[: units - units // 2]
    pool = [f"text{i}" for i in range(texts)]
    t = rng.normal(size=(texts, D)) + 1
    t /= np.linalg.norm(t, axis=1, keepdims=True)
    word = np.stack([rng.permutation(texts)[:M] for _ in range(units)])
    word[rng.random(word.shape) < 0.2] = -1
    words = Words(word, np.where(word >= 0, rng.normal(size=word.shape), 0).astype(np.float32))
    classes = [parse_class(f"text{i}, other{i}" if i % 3 else f"class{i}, text{i}") for i in range(count)]
    named = {name: t[i] + 0.1 * rng.normal(size=D) for i, each in enumerate(classes) for name in each.names}
    return Search(r, words, Texts(pool, t, named), Settings(neurons=30, words=6, near=0.9)), classes


@pytest.mark.parametrize("by", ["effect", "single", "random", "overlap", "similar"])
@pytest.mark.parametrize("equal", [False, True])
def test_the_clearest_of_all_pairs_are_those_of_a_plain_loop(by: str, equal: bool) -> None:
    """Bounds leave out most pairs and change no result; neither do neurons with equal contributions."""
    search, classes = many_classes(units=200, texts=90, count=50 if by in ("effect", "single") else 9, equal=equal)
    search.settings = search.settings._replace(by=by)
    plain = [found for pair in starmap(ClassPair, permutations(classes, 2)) if len((found := search.find(pair)).word)]
    plain = heapq.nlargest(12, plain, key=lambda found: found.clearness)
    tried: list[str] = []
    find = search.find
    search.find = lambda pair: tried.append(pair.name) or find(pair)  # type: ignore[method-assign, func-returns-value]
    clearest = clearest_pairs(search, classes, 12)
    assert [found.pair for found in clearest] == [found.pair for found in plain]
    for one, other in zip(clearest, plain, strict=True):
        assert one.word.tolist() == other.word.tolist() and one.score.tolist() == other.score.tolist()
        assert one.removed.tolist() == other.removed.tolist()
    if by == "effect" and not equal:
        assert len(tried) < 600  # of 2450


@pytest.mark.parametrize("by", ["effect", "single"])
@pytest.mark.parametrize(("units", "neurons"), [(40, 1), (40, 7), (41, 3)])
def test_bounds_where_no_pair_has_strongest_neurons(by: str, units: int, neurons: int) -> None:
    """Two neurons of every kind contribute equally, and the requested number is odd: every pair is searched."""
    search, classes = many_classes(units=units, texts=30, count=12, equal=True)
    search.settings = search.settings._replace(by=by, neurons=neurons)
    plain = [found for pair in starmap(ClassPair, permutations(classes, 2)) if len((found := search.find(pair)).word)]
    plain = heapq.nlargest(5, plain, key=lambda found: found.clearness)
    clearest = clearest_pairs(search, classes, 5)
    assert [(found.pair, found.word.tolist(), found.score.tolist()) for found in clearest] == [
        (found.pair, found.word.tolist(), found.score.tolist()) for found in plain
    ]


def test_many_pairs_come_with_an_estimate(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cliptools.analysis.spurious_pairs.SAMPLE", 0.0)
    monkeypatch.setattr("cliptools.analysis.spurious_pairs.LONG", 0.0)
    search, classes = many_classes(units=40, texts=30, count=9, equal=False)
    clearest_pairs(search, classes, 2)
    assert re.search(r"^72 pairs of 9 classes: about \d+ s to go$", capsys.readouterr().err, re.M)
