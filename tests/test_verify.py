"""clip-decompose --verify: words ranked by images that chose none of them, compared with loops over units and texts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.advgen_input import inside
from helpers.tiny_suite import TEXTS, Suite, done

import cliptools as ct
from cliptools.analysis.held_out import HeldOut, held_out
from cliptools.analysis.presence import Labelled, Similarity
from cliptools.analysis.verified_words import verify_by_reading, verify_words
from cliptools.errors import StreamError, UsageError
from cliptools.front import judge_images, verify
from cliptools.front.bundles import require_neurons
from cliptools.io.bundle_faults import doubtful_values, faults
from cliptools.models.text_encoder import encode_texts
from cliptools.streaming.activities import Activities
from cliptools.streaming.embeddings import Embeddings

N, U, D, WORDS = 40, 7, 5, 9


def activities(a: np.ndarray) -> Activities:
    store = Activities(len(a), np.abs(a).max(0), WORDS)
    store.add(a)
    return store


def test_candidates_are_ranked_by_one_half_and_scored_by_the_other() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=(N, U)).astype(np.float32)
    rows = [sorted({int(t) for t in rng.integers(0, WORDS, 3)}) for _ in range(N)]
    c = np.array([[t in row for t in range(WORDS)] for row in rows], dtype=np.float64)  # (image, text)
    candidates = rng.integers(-1, WORDS, (U, 6))
    candidates[0], candidates[1, 1:] = -1, candidates[1, 0]
    written = candidates[:, 0]
    order = rng.permutation(N)
    choosing, scored = np.sort(order[:23]), np.sort(order[23:])
    presence = Labelled(rows, np.ones(WORDS, dtype=bool))
    kept = np.concatenate([columns for _, columns in activities(a).columns()], axis=1)  # as float16 keeps them
    result = verify_words(activities(a), np.zeros((U, D)), presence, candidates, written, choosing, scored, 4)
    for unit in range(U):
        by_choosing = {int(t): np.corrcoef(kept[choosing, unit], c[choosing, t])[0, 1] for t in candidates[unit] if t >= 0}
        best = sorted(by_choosing, key=lambda t: -by_choosing[t])[:4]
        assert [t for t in result.word[unit].tolist() if t >= 0] == best
        for t, value in zip(best, result.correlation[unit], strict=False):
            assert value == pytest.approx(np.corrcoef(kept[scored, unit], c[scored, t])[0, 1], abs=1e-9)
        assert not result.correlation[unit, len(best) :].any()
        if written[unit] < 0:
            assert np.isnan(result.before[unit]) and np.isnan(result.agreement[unit])
        else:
            assert result.before[unit] == pytest.approx(np.corrcoef(kept[scored, unit], c[scored, written[unit]])[0, 1], abs=1e-9)
            assert result.agreement[unit] == pytest.approx(np.corrcoef(kept[:, unit], c[:, written[unit]])[0, 1], abs=1e-9)


def test_similarities_leave_out_what_the_unit_writes() -> None:
    rng = np.random.default_rng(1)
    a = rng.normal(size=(N, 1)).astype(np.float32)
    M = rng.normal(size=(N, D))
    t = rng.normal(size=(WORDS, D))
    t /= np.linalg.norm(t, axis=1, keepdims=True)
    r = np.eye(D)[:1]
    store = Embeddings(N)
    store.add(range(N), torch.from_numpy(M))
    everything = np.arange(N)
    result = verify_words(
        activities(a),
        r,
        Similarity(store, t, "unit"),
        np.arange(WORDS)[None],
        np.array([3]),
        everything[:20],
        everything[20:],
        WORDS,
    )
    kept = np.concatenate([columns for _, columns in activities(a).columns()], axis=1)[:, 0]
    c = (M / np.linalg.norm(M, axis=1, keepdims=True) - kept[:, None] / 100 * r) @ t.T
    expected = [np.corrcoef(kept[:20], c[:20, text])[0, 1] for text in range(WORDS)]
    assert result.word[0].tolist() == np.argsort(-np.array(expected), kind="stable").tolist()
    assert result.agreement[0] == pytest.approx(np.corrcoef(kept, c[:, 3])[0, 1], abs=1e-9)


@pytest.mark.parametrize("own", [None, "unit", "raw"])
def test_read_directions_of_both_halves(own: str | None) -> None:
    rng = np.random.default_rng(2)
    a = rng.normal(size=(N, U)).astype(np.float32)
    M, r = rng.normal(size=(N, D)), rng.normal(size=(U, D))
    t = rng.normal(size=(WORDS, D))
    store = Embeddings(N)
    store.add(range(N), torch.from_numpy(M))
    order = rng.permutation(N)
    halves = np.sort(order[:17]), np.sort(order[17:])
    held = held_out(activities(a), r, Similarity(store, t, own), *halves)
    kept = np.concatenate([columns for _, columns in activities(a).columns()], axis=1)
    e, length = M / np.linalg.norm(M, axis=1, keepdims=True), np.linalg.norm(M, axis=1)
    for half, images in enumerate(halves):
        np.testing.assert_allclose(held.covariance[half], np.cov(e[images].T, bias=True), atol=1e-9)
        for unit in range(U):
            alone = kept[images, unit]
            share = {None: np.zeros(len(images)), "unit": alone / 100, "raw": alone / length[images]}[own]
            without = e[images] - share[:, None] * r[unit]
            expected = ((alone - alone.mean())[:, None] * without).mean(0)
            np.testing.assert_allclose(held.read[unit, half], expected, atol=1e-9)
            assert held.deviation[unit, half] == pytest.approx(alone.std(), abs=1e-9)
            slope = np.polyfit(alone, share, 1)[0]
            assert held.share[unit, half] == pytest.approx(slope, abs=1e-9)


@pytest.mark.parametrize("own", [None, "unit"])
def test_a_judgement_ranks_like_its_images(own: str | None) -> None:
    """Read directions give the correlations that the images do, exactly for another model and for effects in unit scale."""
    rng = np.random.default_rng(3)
    a, M = (30 * rng.normal(size=(N, U))).astype(np.float32), rng.normal(size=(N, D))
    r = np.eye(U, D)
    t = rng.normal(size=(WORDS, D))
    t /= np.linalg.norm(t, axis=1, keepdims=True)
    store = Embeddings(N)
    store.add(range(N), torch.from_numpy(M))
    candidates = rng.integers(-1, WORDS, (U, 6))
    candidates[0], written = -1, candidates[:, 0]
    order = rng.permutation(N)
    choosing, scored = np.sort(order[:20]), np.sort(order[20:])
    presence = Similarity(store, t, own)
    held = held_out(activities(a), r, presence, choosing, scored)
    result = verify_by_reading(held, r, t, candidates, written, 4)
    expected = verify_words(activities(a), r, presence, candidates, written, choosing, scored, 4)
    np.testing.assert_array_equal(result.word, expected.word)
    np.testing.assert_allclose(result.correlation, expected.correlation, atol=1e-9)
    np.testing.assert_allclose(result.before, expected.before, atol=1e-9)
    kept = np.concatenate([columns for _, columns in activities(a).columns()], axis=1)
    e = M / np.linalg.norm(M, axis=1, keepdims=True)
    for unit, text in enumerate(written):
        c = (e - kept[:, unit, None] / 100 * r[unit] * (own is not None)) @ t.T
        halves = [np.corrcoef(kept[images, unit], c[images, text])[0, 1] for images in (choosing, scored)]
        assert result.agreement[unit] == pytest.approx(np.mean(halves), abs=1e-9) or text < 0


@pytest.fixture(scope="module")
def suite(tiny_clip_dir: Path, tiny_resnet_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Suite:
    made = Suite(tmp_path_factory.mktemp("units"), tiny_clip_dir, tiny_resnet_dir, ready=True)
    made.pool.write_text("\n".join(TEXTS) + "\n")
    done("scenes", "--count", 6, "--size", 64, "--out-dir", made.scenes)
    for name in ("second", "pooled", "indirect"):
        done("effects", *made.measured[name], "-o", made.bundle(name))
    done("scenes", "--count", 25, "--seed", 5, "--size", 64, "--out-dir", made.scenes.with_name("others"))
    return made


@pytest.mark.parametrize("kind", ["second", "pooled"])
def test_the_bundle_is_that_of_the_front_with_verified_words(suite: Suite, kind: str, tmp_path: Path) -> None:
    others, output = suite.scenes.with_name("others") / "images", tmp_path / "words.safetensors"
    arguments = ("--pool", suite.pool, "--m", 3, "--verify", others, "--batch-size", 4, "--device", "cpu")
    ended = inside("decompose", *arguments, suite.bundle(kind), "-o", output)
    assert ended.returncode == 0, ended.stderr
    report = ended.stderr.decode()
    assert "verified on 19 images" in report and "did not choose them" in report and "6 images" in report
    bundle = ct.read(output)
    assert not list(faults(bundle.tensors)) and not list(doubtful_values(bundle.tensors))
    assert bundle.header.settings["verified"] == 19
    np.testing.assert_array_equal(bundle["verified"][:, 0] >= 0, bundle["top_norm"][:, 0] > 0)  # one neuron never acts
    front = ct.decompose(ct.read(suite.bundle(kind)), str(suite.pool), m=3, verify=str(others), batch_size=4, device="cpu")
    for name in ("verified", "verified_correlation", "agreement", "seen"):
        np.testing.assert_array_equal(bundle[name], front[name])
    plain = ct.decompose(front, str(suite.pool), m=3, device="cpu")
    assert "verified" not in plain and "verified" not in plain.header.settings
    candidates = [
        {*row[row >= 0].tolist()} for row in np.concatenate([bundle["word"], bundle["overlap"], bundle["seen"]], axis=1)
    ]
    assert all({*row[row >= 0].tolist()} <= some for row, some in zip(bundle["verified"], candidates, strict=True))
    record = json.loads(inside("view", output, "-f", "jsonl").stdout.splitlines()[0])
    assert record["verified"][0].keys() == {"word", "correlation"}
    assert "verified" in inside("view", output, "-f", "table").stdout.decode()


def decomposed(suite: Suite, kind: str, m: int = 3, **arguments: Any) -> ct.UnitBundle:
    return ct.decompose(ct.read(suite.bundle(kind)), str(suite.pool), m=m, batch_size=4, device="cpu", **arguments)


def test_images_of_the_same_names(suite: Suite) -> None:
    others = str(suite.scenes.with_name("others") / "images")
    result = decomposed(suite, "second", verify=others, same_names=True)
    assert result.header.settings["verified"] == 25
    ended = inside("decompose", "--pool", suite.pool, "--m", 3, "--same-names", suite.bundle("second"))
    assert ended.returncode == 2 and b"--same-names is about the images of --verify" in ended.stderr


@pytest.mark.parametrize(("kind", "judge"), [("second", False), ("second", True), ("pooled", False)])
def test_a_judged_bundle_stands_for_its_images(suite: Suite, kind: str, judge: bool, tmp_path: Path) -> None:
    """Another decomposition of the same effects is ranked by it, without images."""
    others = str(suite.scenes.with_name("others") / "images")
    other = {"judge": ct.load_model(suite.resnet, device="cpu")} if judge else {}
    judged = ct.judge(decomposed(suite, kind), others, same_names=True, batch_size=4, device="cpu", **other).bundle
    assert not [*faults(judged.tensors), *doubtful_values(judged.tensors)]
    judged.save(tmp_path / "judged.safetensors")
    output = tmp_path / "words.safetensors"
    arguments = ("--pool", suite.pool, "--m", 2, "--verify", tmp_path / "judged.safetensors", "--device", "cpu")
    ended = inside("decompose", *arguments, suite.bundle(kind), "-o", output)
    assert ended.returncode == 0, ended.stderr
    assert "verified on 25 images" in ended.stderr.decode()
    bundle = ct.read(output)
    assert bundle.header.settings["verified"] == 25 and bundle["word"].shape[1] == 2
    texts = bundle.text_list("words")["texts"]
    model = other.get("judge") or ct.load_model(suite.vit if kind == "second" else suite.resnet, device="cpu")
    t = encode_texts(model, texts).double().numpy()
    held = HeldOut(*(judged[f"judged_{name}"] for name in HeldOut._fields))
    r = require_neurons(ct.read(suite.bundle(kind)), device="cpu")["direction"].astype(np.float64)
    first, second = map(np.nan_to_num, held.correlations(slice(None), r, t))  # (unit, text)
    for unit, row in enumerate(bundle["verified"]):
        listed = row[row >= 0]
        assert (np.diff(first[unit, listed]) <= 1e-6).all()
        np.testing.assert_allclose(bundle["verified_correlation"][unit, : len(listed)], second[unit, listed], atol=1e-5)
    some = ct.read(suite.bundle(kind)).select(np.array([2, 0]))
    part = ct.decompose(some, str(suite.pool), m=2, verify=judged, device="cpu")
    words = [[texts[j] for j in row if j >= 0] for row in bundle["verified"][[2, 0]]]
    assert [[part.text_list("words")["texts"][j] for j in row if j >= 0] for row in part["verified"]] == words


def test_bundles_that_cannot_stand_for_images(suite: Suite, tmp_path: Path) -> None:
    words = decomposed(suite, "second")
    words.save(tmp_path / "words.safetensors")
    with pytest.raises(StreamError, match=r"--verify: a bundle without `judged_read`; clip-judge --bundle-out"):
        decomposed(suite, "second", verify=str(tmp_path / "words.safetensors"))
    with pytest.raises(UsageError, match="a judged bundle beside other paths"):
        decomposed(suite, "second", verify=[str(tmp_path / "words.safetensors"), str(suite.images)])
    others = str(suite.scenes.with_name("others") / "images")
    judged = ct.judge(words, others, same_names=True, batch_size=4, device="cpu").bundle
    with pytest.raises(StreamError, match="the judged bundle is of"):
        decomposed(suite, "pooled", verify=judged)
    with pytest.raises(StreamError, match="has no unit"):
        decomposed(suite, "second", verify=judged.select(np.arange(1, judged.units)))
    louder = judged.with_tensors(judged.header, top_norm=2 * judged["top_norm"])
    with pytest.raises(StreamError, match="other effects of these units"):
        decomposed(suite, "second", verify=louder)
    wide = judged.with_tensors(judged.header, judged_read=np.zeros((judged.units, 2, 3), np.float32))
    with pytest.raises(StreamError, match="have width 3, texts"):
        decomposed(suite, "second", verify=wide)


def test_scenes_are_others_than_those_of_the_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle of scenes with the seed of --verify scenes is verified with those of another seed."""
    monkeypatch.setattr(judge_images, "SCENES_RENDERED", 8)
    bundle = ct.effects(limit=12, seed=verify.SEED, layers=[6], device="cpu")
    verified = ct.decompose(bundle, ["cat", "dog", "tree"], m=2, verify="scenes", device="cpu")
    assert verified.header.settings["verified"] == 8


def test_misuse(suite: Suite) -> None:
    bundle = ct.read(suite.bundle("second"))
    with pytest.raises(UsageError, match="made from a list of images with these names"):
        ct.decompose(bundle, str(suite.pool), m=2, verify=str(suite.images), device="cpu")
    with pytest.raises(UsageError, match="no images named"):
        ct.decompose(bundle, str(suite.pool), m=2, verify="scenes", device="cpu")
    dead = bundle.with_tensors(
        bundle.header, **{name: np.zeros_like(bundle[name]) for name in ("direction", "deviation", "read")}
    )
    with pytest.raises(StreamError, match="no unit has words to rank"):
        ct.decompose(dead, str(suite.pool), m=2, verify=str(suite.scenes.with_name("others")), same_names=True, device="cpu")
    with pytest.raises(StreamError, match="--verify needs effects in factored form"):
        ct.decompose(ct.read(suite.bundle("indirect")), str(suite.pool), m=2, verify=str(suite.images), device="cpu")
