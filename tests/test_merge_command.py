"""clip-effects --shard and clip-merge on the embedded models: the bundle of one run in any order, and errors."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Run
from helpers import ROOT
from helpers.advgen_input import inside
from helpers.bundle import read

from cliptools.io.bundle import Bundle
from cliptools.io.shard_file import PartialFile, shards_text

ASKED = ["--top-images", "5", "--quantile", "0.97", "--layers", "6"]
SHARDS = 3


def good(ended: subprocess.CompletedProcess[bytes]) -> bytes:
    assert ended.returncode == 0, ended.stderr.decode()
    return ended.stdout


def refused(ended: subprocess.CompletedProcess[bytes], message: str, code: int = 1) -> None:
    said = ended.stderr.decode()
    assert (ended.returncode, ended.stdout) == (code, b"") and message in said, said
    assert len(said.splitlines()) == 1


def apart(top_norm: np.ndarray) -> np.ndarray:
    """True where no neighbour in the list, nor the next image after it, may have an equal norm, but for rounding."""
    norm = top_norm.astype(float)
    gap = np.abs(np.diff(norm, axis=1)) > 1e-4
    sure = np.ones(norm.shape, bool)
    sure[:, 1:] &= gap
    sure[:, :-1] &= gap
    sure[:, -1] = False  # the next one is not known
    return sure


def same(one: Bundle, other: Bundle) -> None:
    """Compare two bundles apart from rounding, because their batches differ.

    A neuron has equal norms on all images on which it is silent. Of these, any may end its list, and so be read.
    """
    assert one.header.images == other.header.images and one.header.model == other.header.model
    assert one.header.settings == other.header.settings and one.tensors.keys() == other.tensors.keys()
    norm = one["top_norm"].astype(float)
    changed = (np.sort(one["top_image"], 1) != np.sort(other["top_image"], 1)).any(1)
    last = np.where(norm <= norm[:, -1:] + 1e-4, norm, 0).sum(1) / one.header.images["count"]
    for name, value in one.tensors.items():
        if name == "read":  # of every image at most its norm, times a distance of two unit embeddings
            free = 2e-5 + 1e-4 * np.abs(value) + np.where(changed, 4 * last, 0)[:, None]
            assert (np.abs(other[name] - value) <= free).all(), name
        elif name == "explained_all":  # a share of nothing where shards round a variance to 0 (streaming/moments.py)
            heard = one["deviation"] > 1e-8
            assert heard.mean() > 0.9 and np.allclose(other[name][heard], value[heard], rtol=1e-4, atol=2e-5)
        elif value.dtype == np.float32:
            np.testing.assert_allclose(other[name], value, rtol=1e-4, atol=2e-5, err_msg=name)
        elif name == "top_image":  # images of equal norm, but for rounding, may change places
            sure = apart(norm)
            assert sure.mean() > 0.5 and np.array_equal(other[name][sure], value[sure]), name
        else:
            assert np.array_equal(other[name], value), name


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return 150 scenes as a tar, with one file that is not a picture."""
    folder = tmp_path_factory.mktemp("scenes")
    good(inside("scenes", "--count", 150, "--out-dir", folder / "scenes"))
    (folder / "scenes" / "images" / "scene-000017.png").write_bytes(b"no picture")
    return Path(shutil.make_archive(str(folder / "scenes"), "tar", folder / "scenes"))


@pytest.fixture(scope="module")
def parts(run: Run, scenes: Path) -> list[Path]:
    """Return three shards; the first one measures a sample of few images, so that some lists are uncertain."""
    made = [scenes.with_name(f"part-{i}.safetensors") for i in range(1, SHARDS + 1)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cliptools.streaming.memory_plan.SAMPLE", 12)
        patch.setattr("cliptools.cli.run.effects.SAMPLE", 12)
        good(inside("effects", scenes, *ASKED, "--shard", "1/3", "-o", made[0]))
    for i in (2, 3):
        good(run("effects", scenes, *ASKED, "--shard", f"{i}/3", "--centre", made[0], "-o", made[i - 1], "--batch-size", 10 * i))
    return made


@pytest.fixture(scope="module")
def one(scenes: Path) -> Bundle:
    return read(good(inside("effects", scenes, *ASKED)))


@pytest.fixture(scope="module")
def merged(scenes: Path, parts: list[Path]) -> bytes:
    return good(inside("merge", *parts, "--images", scenes))


def test_three_shards_are_one_run(merged: bytes, one: Bundle) -> None:
    bundle = read(merged)
    same(one, bundle)
    assert bundle.header.images["count"] == 149 and bundle.header.images["skipped"] == 1
    assert [step["command"] for step in bundle.header.history] == ["clip-effects", "clip-merge"]
    assert bundle.header.history[:1] == one.header.history


def test_any_order_and_merges_of_merges_give_equal_bytes(scenes: Path, parts: list[Path], merged: bytes, tmp_path: Path) -> None:
    both = []
    for name, some in (("a", parts[:2]), ("b", parts[1::-1])):
        both.append(tmp_path / name)
        said = inside("merge", *some, "--partial", "-o", both[-1])
        good(said)
        assert b"shard 3 of 3 missing" in said.stderr and b"shards 1-2 of 3" in said.stderr
    assert both[0].read_bytes() == both[1].read_bytes()
    for order in ([*reversed(parts)], [parts[2], both[0]]):
        assert good(inside("merge", *order, "--images", scenes)) == merged
    wholes = [tmp_path / "whole-a", tmp_path / "whole-b"]
    good(inside("merge", *parts, "--partial", "-o", wholes[0]))
    good(inside("merge", parts[2], both[1], "--partial", "--memory", "0.01", "-o", wholes[1]))
    assert wholes[0].read_bytes() == wholes[1].read_bytes()
    assert good(inside("merge", wholes[0], "--images", scenes)) == merged


def test_units_in_doubt_are_named_with_what_settles_them(parts: list[Path], scenes: Path, one: Bundle, merged: bytes) -> None:
    ended = inside("merge", *parts)
    bundle, said = read(good(ended)), ended.stderr.decode()
    found = re.search(r"top images of (\d+) units are not certain: 6:\d+.*--images PATH reads .* again", said)
    assert found, said
    uncertain = bundle["uncertain"]
    assert len(uncertain) == int(found[1]) and uncertain.shape[1] == 3 and uncertain.dtype == np.int32
    sure = ~(bundle["unit"][:, None] == uncertain).all(2).any(1)
    assert 0 < len(uncertain) < bundle.units // 2  # few images are the centre, and sparse neurons act on few of the others
    names, others = (np.array(each.text_list("images"))[each["top_image"]] for each in (bundle, one))
    np.testing.assert_allclose(bundle["top_norm"][sure], one["top_norm"][sure], rtol=1e-4, atol=2e-5)
    sure = sure[:, None] & apart(one["top_norm"])  # which of the images comes last on which a neuron is silent, rounding decides
    assert sure.mean() > 0.4 and np.array_equal(names[sure], others[sure])
    assert "uncertain" not in read(merged)


def test_the_rest_of_the_suite_takes_the_bundle_and_refuses_partials(merged: bytes, parts: list[Path]) -> None:
    assert good(inside("view", "--head", 2, "-f", "jsonl", stdin=merged)).count(b"\n") == 2
    for command in ("view", "decompose", "sheet"):
        refused(inside(command, parts[0]), "clip-merge joins the partials")
    assert b'"kind": "partial"' in good(inside("view", "--header", parts[0]))
    refused(inside("merge", parts[0].with_name("no-such-file")), "No such file")


def test_keep_and_thumbnails_at_the_merge(run: Run, scenes: Path, parts: list[Path]) -> None:
    bundle = read(good(inside("merge", *parts, "--images", scenes, "--keep", "20%", "--thumbnails", 16)))
    assert (
        bundle.units == round(0.2 * bundle.header.settings["measured"]) and bundle["rest_mean"].shape == bundle["mean"].shape[1:]
    )
    assert len(bundle["thumbnail_offsets"]) == len(bundle.text_list("images")) + 1
    refused(inside("merge", *parts, "--thumbnails", 16), "--thumbnails needs the images", 2)


def test_a_killed_shard_is_made_again_and_the_others_are_left_alone(
    run: Run, scenes: Path, parts: list[Path], tmp_path: Path
) -> None:
    target, there = tmp_path / "part-2.safetensors", tmp_path / "part-1.safetensors"
    shutil.copyfile(parts[0], there)
    asked = [*map(str, (scenes, *ASKED)), "--resume", "--batch-size", "20", "--centre", str(there)]
    words = [sys.executable, "-m", "cliptools.cli.effects", *asked, "--shard", "2/3", "-o", str(target)]
    process = subprocess.Popen(words, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    time.sleep(1.5)
    process.send_signal(signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL and os.listdir(tmp_path) == [there.name]
    before = there.stat().st_mtime_ns
    ended = inside("effects", *asked, "--shard", "1/3", "-o", there)
    assert good(ended) == b"" and f"{there}: shard 1 of 3 exists already" in ended.stderr.decode()
    assert there.stat().st_mtime_ns == before
    good(run("effects", *asked, "--shard", "2/3", "-o", target))
    assert target.read_bytes() == parts[1].read_bytes()


def test_resume_leaves_what_is_another_file(scenes: Path, parts: list[Path], tmp_path: Path) -> None:
    target = tmp_path / "part.safetensors"
    for damage, asked, message in [
        (lambda data: data, ["--shard", "2/3"], "shard 1 of 3 instead of shard 2 of 3"),
        (lambda data: data, ["--shard", "1/4"], "shards 3 instead of 4"),
        (lambda data: data, ["--shard", "1/3", "--quantile", "0.9"], "quantile 0.97 instead of 0.9"),
        (lambda data: data, ["--shard", "1/3", "--limit", "100"], "list's digest"),
        (lambda data: data[:-100], ["--shard", "1/3"], "damaged"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), ["--shard", "1/3"], "damaged"),
        (lambda data: b"", ["--shard", "1/3"], "empty"),
    ]:
        written = damage(parts[0].read_bytes())
        target.write_bytes(written)
        refused(inside("effects", scenes, *ASKED, *asked, "--resume", "-o", target), message)
        assert target.read_bytes() == written


def test_partials_of_other_runs_are_refused(scenes: Path, parts: list[Path], tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"

    def make(*asked: Any) -> Path:
        good(inside("effects", scenes, *ASKED, "--shard", "2/3", "-o", other, *asked))
        return other

    refused(inside("merge", parts[0], make("--limit", 5)), "not of the same run")
    refused(inside("merge", parts[0], make("--limit", 5, "--model", "emoji-rn2", "--layers", "4")), "model's sha256")
    refused(inside("merge", *parts[:2]), "shard 3 of 3 missing")
    refused(inside("merge", *parts, parts[1]), "shard 2 is also in")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(parts[1].read_bytes()[:5000])
    refused(inside("merge", parts[0], damaged, parts[2]), f"{damaged}: damaged")
    refused(inside("merge", *parts, "--images", ROOT / "docs"), "not the images of the shards")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shard", "0/3"], "expected I/N with I from 1 to N"),
        (["--shard", "4/3"], "expected I/N with I from 1 to N"),
        (["--shard", "half"], "expected I/N with I from 1 to N"),
        (["--shard", "1/3", "-"], "standard input can be read only once"),
        (["--shard", "1/3", "-f", "jsonl"], "a partial, which is not jsonl"),
        (["--shard", "1/3", "--effect", "indirect"], "mean activations over all images"),
        (["--shard", "1/3", "--keep", "20%"], "give --keep to clip-merge"),
        (["--shard", "1/3", "--thumbnails", "32"], "give --thumbnails to clip-merge"),
        (["--shard", "1/3", "--resume"], "name it with -o FILE"),
        (["--resume"], "--resume works only together with --shard"),
        (["--centre", "part.safetensors"], "--centre works only together with --shard"),
    ],
)
def test_misuse_of_shards(arguments: list[str], message: str) -> None:
    refused(inside("effects", *arguments), message, 2)


@pytest.mark.parametrize(("units", "count", "of"), [("pairs", 24, 2), ("neurons", 24, 2), ("heads", 3, 4)])
def test_pooled_effects_of_rendered_scenes(units: str, count: int, of: int, tmp_path: Path) -> None:
    """With more shards than images, some shards are empty."""
    asked = ["--model", "emoji-rn2", "--units", units, "--limit", count, "--top-images", 7, "--quantile", "0.9"]
    asked += ["--components", 2] if units == "neurons" else []
    keep = ["--keep", "50%"] if units == "pairs" else []
    parts = [tmp_path / f"{i}.safetensors" for i in range(1, of + 1)]
    for i, path in enumerate(parts, 1):
        good(inside("effects", *asked, "--shard", f"{i}/{of}", "-o", path))
    whole = good(inside("merge", *parts, *keep))
    assert good(inside("merge", *reversed(parts), *keep)) == whole
    bundle = read(whole)
    same(read(good(inside("effects", *asked, *keep))), bundle)
    assert ("moment" in bundle, "mean_scalar" in bundle, "component" in bundle) == tuple(
        units == each for each in ("heads", "pairs", "neurons")
    )


def test_partials_say_what_they_hold(parts: list[Path]) -> None:
    file = PartialFile(parts[1])
    assert (file.shards, file.shard_count, file.count) == ([2], 3, 50 - file.header.images["skipped"])
    assert [shards_text(have, 9) for have in ([4], [1, 2, 3, 7], [1, 3])] == [
        "shard 4 of 9",
        "shards 1-3, 7 of 9",
        "shards 1, 3 of 9",
    ]
