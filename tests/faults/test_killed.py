"""kill -9 at any moment: no half file under a name that was asked for, and a later run ends as if nothing had been."""

import json
import random
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers.advgen_input import WORDS, lines
from helpers.forked import Nursery, Study

Often = Callable[[int, int], int]
Words = tuple[object, ...]
CHUNK = 1024  # units that clip-decompose works on at once
BATCH = 4
UNFINISHED = re.compile(r"\..+\.\w{8}\.part")
"""A file that a killed run was writing, which no later run takes for its own; hidden, for somebody to remove."""


class Job(NamedTuple):
    """Commands one after the other, all of which write into one folder and can be gone on with."""

    steps: tuple[Words, ...]
    """FOLDER stands for it."""
    finished: Callable[[Path], int]
    """How many items a killed run has finished that need not be made again."""
    kept: Callable[[Path, str, float], int]
    """How many the next run has left as they were; told by what it says, or by files older than its beginning."""
    item: str
    stdin: bytes = b""


def contents(folder: Path) -> dict[str, bytes]:
    """Every file by its name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def named(folder: Path) -> dict[str, bytes]:
    """Those whose names do not say that they are unfinished."""
    return {name: data for name, data in contents(folder).items() if not name.endswith(".part")}


def older(paths: list[Path], begin: float) -> int:
    return sum(path.stat().st_mtime < begin for path in paths)


def count_in(said: str, pattern: str) -> int:
    found = re.search(pattern, said)
    return int(found[1]) if found else 0


def listed(folder: Path) -> list[Path]:
    """Pictures with a line."""
    path = folder / "images.jsonl"
    whole = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [folder / json.loads(line)["file"] for line in whole]


def whole_lines_of(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.fixture(scope="module")
def jobs(study: Study) -> dict[str, Job]:
    """What is killed."""
    effects = ("effects", study.photos, "--layers", "6", "--top-images", 5, "--limit", 20)
    decompose = ("decompose", study.effects, "--m", 12, "-o", "FOLDER/neurons.safetensors")
    advgen = ("advgen", "--llm", "template", "-f", "jsonl", "--take", 4, "--images", 8, "--batch-size", BATCH)
    segment = ("segment", study.photos, "--text", "cat", "--text", "a pizza", "--bundle", study.neurons, "--batch-size", BATCH)
    concepts = ("concepts", study.photos, "--bundle", study.neurons, "--batch-size", BATCH, "-o", "FOLDER/concepts.jsonl")

    def shards(folder: Path) -> list[Path]:
        return [path for path in folder.iterdir() if path.suffix == ".safetensors"]

    def images(folder: Path) -> list[Path]:
        return list(folder.rglob("*.segments.json"))

    def units(folder: Path) -> int:
        return min(CHUNK * max(0, whole_lines_of(folder / "neurons.safetensors.part") - 1), 3072)

    def whole_batches(folder: Path) -> int:
        part = whole_lines_of(folder / "concepts.jsonl.part")
        return whole_lines_of(folder / "concepts.jsonl") or part - part % BATCH

    return {
        "shards": Job(
            tuple((*effects, "--shard", f"{i}/3", "-o", f"FOLDER/{i}.safetensors") for i in range(1, 4)),
            lambda folder: len(shards(folder)),
            lambda folder, _, begin: older(shards(folder), begin),
            "shards",
        ),
        "decompose": Job(
            (decompose,), units, lambda _, said, __: count_in(said, r"(\d+) of 3072 units are kept from an earlier run"), "units"
        ),
        "advgen": Job(
            ((*advgen, "--out-dir", "FOLDER"),),
            lambda folder: len(listed(folder)),
            lambda folder, _, begin: older(listed(folder), begin),
            "pictures",
            lines(*WORDS),
        ),
        "segment": Job(
            ((*segment, "--out-dir", "FOLDER"),),
            lambda folder: len(images(folder)),
            lambda folder, _, begin: older(images(folder), begin),
            "images",
        ),
        "concepts": Job(
            (concepts,), whole_batches, lambda _, said, __: count_in(said, r"(\d+) of them by an earlier run"), "images"
        ),
    }


def into(folder: Path, words: Words) -> list[str]:
    return [str(word).replace("FOLDER", str(folder)) for word in words]


def run_whole(nursery: Nursery, job: Job, folder: Path, *more: str) -> str:
    """To the end; what was said."""
    said = ""
    for step in job.steps:
        ended = nursery.run(*into(folder, step), *more, stdin=job.stdin)
        assert ended.status == 0, ended.stderr.decode()
        said += ended.stderr.decode()
    return said


def run_killed(nursery: Nursery, job: Job, folder: Path, moment: float) -> None:
    """Until so many seconds have passed."""
    end = time.perf_counter() + moment
    for step in job.steps:
        process = nursery.start(*into(folder, step), stdin=job.stdin)
        late = process.lasts(end - time.perf_counter())
        process.kill()
        process.wait()
        if late:
            return


def moments(job: str, duration: float, count: int) -> list[float]:
    """Uniform over an undisturbed run."""
    draw = random.Random(f"kill {job}")
    return [draw.uniform(0, duration) for _ in range(count)]


@pytest.mark.parametrize("name", ["shards", "decompose", "advgen", "segment", "concepts"])
def test_killed_and_gone_on_with(name: str, jobs: dict[str, Job], nursery: Nursery, tmp_path: Path, often: Often) -> None:
    if not often(0, 1) and name == "concepts":
        pytest.skip("only with --thorough")
    job = jobs[name]
    (tmp_path / "whole").mkdir()
    begin = time.perf_counter()
    run_whole(nursery, job, tmp_path / "whole")
    duration = time.perf_counter() - begin
    expected = contents(tmp_path / "whole")
    total = finished = left = 0
    for number, moment in enumerate(moments(name, duration, often(1, 50))):
        folder = tmp_path / f"killed-{number}"
        folder.mkdir()
        run_killed(nursery, job, folder, moment)
        for file, data in named(folder).items():
            same = expected[file].startswith(data) if file.endswith(".jsonl") else data == expected[file]
            assert same, f"{file} after {moment} s"
        there = job.finished(folder)
        begin = time.time()
        said = run_whole(nursery, job, folder, "--resume")
        assert named(folder) == expected, f"killed after {moment} s"
        unfinished = contents(folder).keys() - expected.keys()
        assert all(UNFINISHED.fullmatch(Path(name).name) for name in unfinished), unfinished
        left += len(unfinished)
        assert job.kept(folder, said, begin) == there, f"finished work was done again, killed after {moment} s"
        total, finished = total + 1, finished + there
        shutil.rmtree(folder)
    print(f"{name}: killed {total} times, {finished} {job.item} finished before, none made again; {left} unfinished files left")


def test_killed_and_run_again(study: Study, nursery: Nursery, tmp_path: Path, often: Often) -> None:
    """clip-effects without shards keeps nothing: it begins anew, and what a killed run has left is in nobody's way."""
    words = ("effects", study.photos, "--layers", "4-6", "--top-images", 5, "-o")
    begin = time.perf_counter()
    assert nursery.run(*words, tmp_path / "whole").status == 0
    duration = time.perf_counter() - begin
    expected = (tmp_path / "whole").read_bytes()
    target = tmp_path / "there" / "effects.safetensors"
    target.parent.mkdir()
    left = 0
    for moment in moments("effects", duration, often(1, 50)):
        process = nursery.start(*words, target)
        process.lasts(moment)
        process.kill()
        process.wait()
        assert not target.exists() or target.read_bytes() == expected, f"killed after {moment} s"
        unfinished = [path for path in target.parent.iterdir() if path != target]
        assert all(UNFINISHED.fullmatch(path.name) for path in unfinished)
        left = max(left, len(unfinished))
        assert nursery.run(*words, target).status == 0 and target.read_bytes() == expected
        target.unlink()
    print(f"effects: at most {left} unfinished files left")
