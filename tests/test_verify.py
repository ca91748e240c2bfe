"""clip-decompose --verify: words ranked by images that chose none of them, compared with loops over units and texts."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.advgen_input import inside
from helpers.tiny_suite import TEXTS, Suite, done

import cliptools as ct
from cliptools.analysis.presence import Labelled, Similarity
from cliptools.analysis.verified_words import verify_words
from cliptools.errors import StreamError, UsageError
from cliptools.front import judge_images, verify
from cliptools.io.bundle_faults import doubtful_values, faults
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
    assert bundle.header.settings["verified"] == 19 and (bundle["verified"][:, 0] >= 0).all()
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
    with pytest.raises(StreamError, match="--verify needs effects in factored form"):
        ct.decompose(ct.read(suite.bundle("indirect")), str(suite.pool), m=2, verify=str(suite.images), device="cpu")
