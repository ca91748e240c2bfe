"""Two runs with one output: the second run ends with a line in every case, and the outputs are never mixed."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers.advgen_input import WORDS, lines
from helpers.forked import Nursery, Started, Study

from cliptools.errors import CliptoolsError
from cliptools.io import files
from cliptools.io.files import only_writer, only_writer_of


class Job(NamedTuple):
    """A command that writes to a place; PLACE stands for it in the command line."""

    words: tuple[object, ...]
    begun: Callable[[Path], bool]
    """Tells from the place that the run is in the middle of its work."""
    place: str = "out"
    stdin: bytes = b""
    resumes: bool = True


def begun_folder(name: str) -> Callable[[Path], bool]:
    return lambda place: any(place.rglob(name))


def begun_part(place: Path) -> bool:
    return place.with_name(f"{place.name}.part").exists()


@pytest.fixture(scope="module")
def jobs(study: Study) -> dict[str, Job]:
    advgen = ("advgen", "--llm", "template", "-f", "jsonl", "--take", 2, "--images", 10, "--batch-size", 2, "--out-dir", "PLACE")
    segment = ("segment", study.photos, "--text", "cat", "--bundle", study.neurons, "--out-dir", "PLACE")
    concepts = ("concepts", study.photos, "--bundle", study.neurons, "--batch-size", 4, "-o", "PLACE")
    return {
        "advgen": Job(advgen, begun_folder("*.png"), stdin=lines(*WORDS)),
        "segment": Job(segment, begun_folder("*.segments.json")),
        "scenes": Job(("scenes", "--count", 150, "--out-dir", "PLACE"), begun_folder("*.png"), resumes=False),
        "concepts": Job(concepts, begun_part, "concepts.jsonl"),
        "decompose": Job(("decompose", study.neurons, "--m", 8, "-o", "PLACE"), begun_part, "words.safetensors"),
    }


def start(nursery: Nursery, job: Job, place: Path, *more: object) -> Started:
    return nursery.start(*(place if word == "PLACE" else word for word in job.words), *more, stdin=job.stdin)


def bytes_by_name(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def held(place: Path) -> bool:
    """Tell whether a run has the lock of the output."""
    try:
        descriptor = os.open(place if place.is_dir() else place.with_name(f"{place.name}.part"), os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def stopped(nursery: Nursery, job: Job, place: Path) -> Started:
    """Start a run and stop it in the middle of its work; a run that had finished its work before it was stopped is repeated."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        run = start(nursery, job, place)
        while run.lasts(0):
            if job.begun(place):
                os.kill(run.pid, signal.SIGSTOP)
                time.sleep(0.01)  # the signal may come late
                if held(place):
                    return run
                os.kill(run.pid, signal.SIGCONT)
            time.sleep(0.001)
        assert run.wait().status == 0
        place.unlink()
    raise AssertionError("no run could be stopped in the middle of its work")


@pytest.mark.parametrize("name", ["advgen", "segment", "scenes", "concepts", "decompose"])
def test_the_second_run_ends_with_a_line(nursery: Nursery, jobs: dict[str, Job], tmp_path: Path, name: str) -> None:
    job = jobs[name]
    for folder in ("alone", "both"):
        (tmp_path / folder).mkdir()
    assert start(nursery, job, tmp_path / "alone" / job.place).wait().status == 0
    place = tmp_path / "both" / job.place
    first = stopped(nursery, job, place)
    try:
        there = bytes_by_name(tmp_path / "both")
        for more in ((), ("--resume",)) if job.resumes else ((),):
            second = start(nursery, job, place, *more).wait()
            part = place if place.is_dir() else place.with_name(f"{place.name}.part")
            who = f"clip-{name}: {part}: another run (process {first.pid}) writes here"
            assert (second.status, second.lines) == (1, [f"{who}; wait until it ends or use another output"])
        assert bytes_by_name(tmp_path / "both") == there
    finally:
        os.kill(first.pid, signal.SIGCONT)
    assert first.wait().status == 0
    assert bytes_by_name(tmp_path / "both") == bytes_by_name(tmp_path / "alone"), "neither mixed nor with a file more"


@pytest.mark.parametrize("name", ["advgen", "concepts"])
def test_a_killed_run_locks_nobody_out(nursery: Nursery, jobs: dict[str, Job], tmp_path: Path, name: str) -> None:
    job, place = jobs[name], tmp_path / jobs[name].place
    first = stopped(nursery, job, place)
    first.kill()
    assert first.wait().status == -signal.SIGKILL
    assert start(nursery, job, place, "--resume").wait().status == 0
    assert not begun_part(place) and place.exists()


def test_a_folder_is_free_again_in_the_same_process(tmp_path: Path) -> None:
    for _ in range(2):
        with only_writer(tmp_path / "new"):
            assert (tmp_path / "new").is_dir() and bytes_by_name(tmp_path) == {}
            with pytest.raises(CliptoolsError, match=rf"another run \(process {os.getpid()}\) writes here"):
                only_writer(tmp_path / "new").__enter__()
            with only_writer(tmp_path / "new" / "inner"):
                pass  # a folder within is another place


def test_an_empty_file_is_removed_and_another_kept(tmp_path: Path) -> None:
    file = tmp_path / "x.part"
    with only_writer_of(file):
        assert file.read_bytes() == b""
    assert not file.exists()
    with only_writer_of(file):
        file.write_bytes(b"line\n")
    assert file.read_bytes() == b"line\n"
    with only_writer_of(file):
        file.rename(tmp_path / "x")
    assert bytes_by_name(tmp_path) == {"x": b"line\n"}


def test_a_file_that_was_finished_meanwhile_is_not_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another run gives the file its final name between our open and our lock."""
    file, lock = tmp_path / "x.part", files._lock
    moments = iter([lambda: file.rename(tmp_path / "x"), lambda: None])

    def late(descriptor: int, path: Path) -> None:
        next(moments)()
        lock(descriptor, path)

    monkeypatch.setattr(files, "_lock", late)
    with only_writer_of(file):
        file.write_bytes(b"ours\n")
    assert bytes_by_name(tmp_path) == {"x": b"", "x.part": b"ours\n"}


def test_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    with only_writer(tmp_path), only_writer_of(tmp_path / "x.part"):
        pass
    said = "cannot be locked here (Operation not supported); make sure that no other run writes to it"
    assert capsys.readouterr().err == f"warning: {tmp_path}: {said}\nwarning: {tmp_path / 'x.part'}: {said}\n"
    with only_writer(Path("/proc/none")), only_writer_of(Path("/proc/none/x.part")):
        pass  # who writes there says why that is impossible


def test_many_at_once(tmp_path: Path) -> None:
    """One of three processes enters at a time, and each process that enters finds the place in a valid state."""
    code = (
        "import sys, pathlib\n"
        "from cliptools.errors import CliptoolsError\n"
        "from cliptools.io.files import only_writer_of\n"
        "part = pathlib.Path(sys.argv[1])\n"
        "done = 0\n"
        "while done < 20:\n"
        "    try:\n"
        "        with only_writer_of(part):\n"
        "            assert part.stat().st_size == 0\n"
        "            part.write_bytes(b'x')\n"
        "            part.rename(part.with_name('whole'))\n"
        "            done += 1\n"
        "    except CliptoolsError:\n"
        "        pass\n"
    )
    runs = [subprocess.Popen([sys.executable, "-c", code, tmp_path / "whole.part"], stderr=subprocess.PIPE) for _ in range(3)]
    ended = [(run.wait(120), run.stderr.read()) for run in runs]
    assert ended == [(0, b"")] * len(runs)
    assert bytes_by_name(tmp_path) == {"whole": b"x"}
    for run in runs:
        run.stderr.close()
