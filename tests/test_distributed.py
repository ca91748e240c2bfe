"""Shards on Ray, by GNU parallel and by make: the merged bundle equals one run, also after losses."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import Run
from helpers import ROOT

from cliptools.io.bundle import Bundle, read_bundle

RECIPES = ROOT / "examples" / "distributed"
ASKED = ["--limit", "90", "--layers", "4", "--top-images", "10"]  # of layer 4, whose neurons act on most scenes
PARTS = "parts/part-{}-of-3.safetensors"


def environment(home: Path) -> dict[str, str]:
    """Return an environment in which the checkout's commands are found and nothing is written to the user's home."""
    paths = {"PATH": f"{ROOT / 'bin'}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "HOME": str(home)}
    kept = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "RAY_ADDRESS")}
    return kept | paths | {"OMP_NUM_THREADS": "1"}


def on_ray(home: Path, *arguments: str) -> "subprocess.Popen[str]":
    words = [sys.executable, str(RECIPES / "ray_effects.py"), "--cpus", "2", *arguments]
    return subprocess.Popen(words, stderr=subprocess.PIPE, text=True, cwd=home, env=environment(home))


def descendants(pid: int) -> Iterator[tuple[int, str]]:
    """Yield the processes below this one with their command lines."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [(int(words[0]), int(words[1]), words[2]) for words in (line.split(None, 2) for line in listed.splitlines())]
    below = {pid}
    for _ in range(4):  # the driver, the raylet, a worker
        below |= {own for own, parent, _ in rows if parent in below}
    yield from ((own, said) for own, _, said in rows if own in below - {pid})


def killed(process: "subprocess.Popen[str]", name: str) -> set[int]:
    """Kill the first process with this name below another process, and return all processes that were below it."""
    while process.poll() is None:
        seen = dict(descendants(process.pid))
        for pid, said in seen.items():
            if said.startswith(name):
                os.kill(pid, signal.SIGKILL)
                return set(seen)
        time.sleep(0.1)
    raise AssertionError(f"no {name}: {process.communicate()[1]}")


def same(found: Bundle, one: Bundle) -> None:
    """Compare within the precision of float32."""
    for name in ("unit", "top_image", "images"):
        assert np.array_equal(found[name], one[name]), name
    for name in ("direction", "mean", "explained", "explained_all"):
        np.testing.assert_allclose(found[name], one[name], atol=1e-6, err_msg=name)
    np.testing.assert_allclose(found["top_norm"], one["top_norm"], rtol=1e-6)


def opened(path: Path) -> Bundle:
    with path.open("rb") as stream:
        return read_bundle(stream, str(path))


def runs(pid: int) -> bool:
    """Return whether a process runs; one that has ended and that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="module")
def one(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("one") / "one.safetensors"
    assert run("effects", *ASKED, "-o", path).returncode == 0
    return opened(path)


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which Ray made three shards and their bundle, although one of its processes was killed."""
    folder = tmp_path_factory.mktemp("ray")
    process = on_ray(folder, "--shards", "3", "--parts", "parts", "-o", "ray.safetensors", "--", *ASKED)
    there = killed(process, "ray::shard-2")
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 0, said
    assert [line.split("]")[0] for line in said.splitlines()[:3]] == ["[1/3", "[2/3", "[3/3"], said
    assert all(f"shard {i} of 3: 30 images" in said for i in (1, 2, 3)) and "clip-merge: 90 images, 3 shards" in said
    ended = time.monotonic() + 60
    while left := [pid for pid in there if runs(pid)]:
        assert time.monotonic() < ended, f"left behind: {left}"
        time.sleep(0.2)
    assert not (folder / ".ray").exists()
    return folder


def test_a_killed_shard_is_started_again_and_changes_nothing(worked: Path, one: Bundle) -> None:
    same(opened(worked / "ray.safetensors"), one)


def test_a_shard_that_fails_for_its_own_reason_ends_the_run(tmp_path: Path) -> None:
    process = on_ray(tmp_path, "--shards", "2", "--retries", "1000", "-o", "b.safetensors", "--", *ASKED, "--keep", "9%")
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 2 and len(said.splitlines()) == 1, said
    assert said.startswith("ray_effects.py: shard ") and "clip-effects: --keep does not go with --shard: " in said
    assert not (tmp_path / "b.safetensors").exists()


def test_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    process = on_ray(tmp_path, "--shards", "2", "--gpus-per-shard", "99", "-o", "b.safetensors", "--", *ASKED)
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 2 and said.startswith("ray_effects.py: --gpus-per-shard 99: here are "), said


@pytest.mark.skipif(shutil.which("parallel") is None, reason="GNU parallel is not installed")
def test_parallel_makes_what_is_missing(worked: Path, one: Bundle, tmp_path: Path) -> None:
    parts = tmp_path / "shards.parts"
    shutil.copytree(worked / "parts", parts)
    (parts / Path(PARTS.format(2)).name).unlink()
    ended = recipe(tmp_path, "JOBS=2", str(RECIPES / "parallel.sh"), "3", "shards.safetensors", *ASKED)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("exists already") == 2 and "shard 2 of 3: 30 images" in ended.stderr
    same(opened(tmp_path / "shards.safetensors"), one)
    rows = [line.split("\t") for line in (parts / "joblog").read_text().splitlines()[1:]]
    assert sorted(int(row[0]) for row in rows) == [1, 2, 3] and {row[6] for row in rows} == {"0"}


def test_make_makes_what_is_missing(worked: Path, one: Bundle, tmp_path: Path) -> None:
    parts = tmp_path / "shards.parts"
    shutil.copytree(worked / "parts", parts)
    (parts / Path(PARTS.format(3)).name).unlink()
    asked = ["SHARDS=3", f"OPTIONS={' '.join(ASKED)}", "BUNDLE=shards.safetensors"]
    ended = recipe(tmp_path, "make", "-j", "2", "-f", str(RECIPES / "shards.mk"), *asked)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("clip-effects") == 1 and "shard 3 of 3: 30 images" in ended.stderr
    same(opened(tmp_path / "shards.safetensors"), one)


def recipe(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["env", *words], capture_output=True, text=True, cwd=folder, env=environment(folder), timeout=300, check=False
    )


@pytest.mark.parametrize("name", ["parallel.sh", "slurm.sbatch"])
def test_scripts_are_bash(name: str) -> None:
    subprocess.run(["bash", "-n", str(RECIPES / name)], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", str(RECIPES / name)], check=True)
