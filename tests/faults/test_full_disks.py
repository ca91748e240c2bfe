"""Disks that are full, files that may not grow, read-only folders: one line, exit 1, nothing under the final name."""

import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers import ROOT
from helpers.advgen_input import WORDS, lines
from helpers.forked import Ended, Nursery, Study, small_disk

Often = Callable[[int, int], int]
SIZE = 16  # MB of the small disk
PAGE = 4096
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="a file system of its own needs root to mount it")


class Writer(NamedTuple):
    """A command that writes to a place of which there is not enough."""

    words: tuple[object, ...]
    """DISK is that place; ELSEWHERE has room."""
    result: str
    stdin: bytes = b""
    env: tuple[tuple[str, str], ...] = ()
    goes_on: bool = False
    """Whether --resume takes what is there."""


@pytest.fixture(scope="module")
def writers(study: Study, nursery: Nursery) -> dict[str, Writer]:
    """All that is written: output, folders, spools, what is kept for a later run."""
    tar = nursery.run("scenes", "--count", 8).stdout
    temporary, pictures = (("TMPDIR", "DISK"),), ("--images-from", study.photos)
    effects = ("--layers", "6", "--top-images", 5)
    segment = ("segment", study.photos, "--text", "cat", "--bundle", study.neurons)
    advgen = ("advgen", "--llm", "template", "-f", "jsonl", "--take", 4, "--images", 2, "--out-dir", "DISK/out")
    return {
        "bundle": Writer(("view", study.effects, "--layers", "6", "-o", "DISK/out"), "DISK/out"),
        "lines": Writer(("view", study.neurons, "-f", "jsonl", "-o", "DISK/out"), "DISK/out"),
        "tar": Writer(("scenes", "--count", 8, "-o", "DISK/out"), "DISK/out"),
        "folder of scenes": Writer(("scenes", "--count", 8, "--out-dir", "DISK/out"), "DISK/out"),
        "picture": Writer(("sheet", study.neurons, "--head", 3, *pictures, "-o", "DISK/out.png"), "DISK/out.png"),
        "page": Writer(("gallery", study.neurons, *pictures, "-o", "DISK/out.html"), "DISK/out.html"),
        "rows of a shard": Writer(("effects", study.photos, *effects, "--shard", "1/2", "-o", "DISK/out"), "DISK/out"),
        "tar on stdin": Writer(("effects", "-", *effects, "-o", "ELSEWHERE/out"), "ELSEWHERE/out", tar, temporary),
        "heat maps": Writer((*segment, "-f", "safetensors", "-o", "ELSEWHERE/out"), "ELSEWHERE/out", b"", temporary),
        "parts": Writer(("decompose", study.effects, "--m", 2, "-o", "DISK/out"), "DISK/out", goes_on=True),
        "kept lines": Writer(("concepts", study.photos, "--bundle", study.neurons, "-o", "DISK/out"), "DISK/out", goes_on=True),
        "pictures": Writer(advgen, "DISK/out", lines(*WORDS), goes_on=True),
        "masks": Writer((*segment, "--out-dir", "DISK/out"), "DISK/out", goes_on=True),
    }  # fmt: skip


NAMES = (
    "bundle", "lines", "tar", "folder of scenes", "picture", "page", "rows of a shard", "tar on stdin", "heat maps", "parts",
    "kept lines", "pictures", "masks",
)  # fmt: skip


COMMON = ("bundle", "folder of scenes", "rows of a shard", "heat maps", "parts", "kept lines", "masks")


def placed(text: object, disk: Path, elsewhere: Path) -> str:
    return str(text).replace("DISK", str(disk)).replace("ELSEWHERE", str(elsewhere))


def write(nursery: Nursery, writer: Writer, disk: Path, elsewhere: Path, *more: str, file_size: int | None = None) -> Ended:
    elsewhere.mkdir(exist_ok=True)
    words = [placed(word, disk, elsewhere) for word in writer.words]
    env = {key: placed(value, disk, elsewhere) for key, value in writer.env}
    return nursery.run(*words, "-q", *more, stdin=writer.stdin, env=env, file_size=file_size)


def written(path: Path) -> dict[str, bytes]:
    """A file, or those of a folder, that have their final names."""
    if path.is_file():
        return {"": path.read_bytes()}
    files = (each for each in sorted(path.rglob("*")) if each.is_file())
    return {str(each.relative_to(path)): each.read_bytes() for each in files}


def failed(ended: Ended, *reasons: str) -> None:
    """In one line that says why."""
    assert ended.status == 1 and len(ended.lines) == 1, ended.stderr.decode()
    assert any(reason in ended.lines[0] for reason in reasons), ended.lines


def whole_or_absent(expected: dict[str, bytes], found: dict[str, bytes]) -> None:
    """No file under a final name that is not what it should be; a list of what is done may be shorter."""
    for name, data in found.items():
        assert not name.endswith(".part"), f"{name} was left"
        assert expected[name].startswith(data) if name.endswith("images.jsonl") else data == expected[name], name


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", f"{SIZE}m") as made:
        yield made


def fill(disk: Path, room: int) -> Path:
    """A file that leaves about so many bytes."""
    filler = disk / ".filler"
    there = os.statvfs(disk)
    filler.write_bytes(bytes(max(0, there.f_bavail * there.f_frsize - room)))
    return filler


@ROOT_ONLY
@pytest.mark.parametrize("name", NAMES)
def test_disk_full(name: str, writers: dict[str, Writer], nursery: Nursery, tmp_path: Path, disk: Path, often: Often) -> None:
    """Room for a part of what is to be written, and then for all of it."""
    if not often(0, 1) and name not in COMMON:
        pytest.skip("only with --thorough")
    writer, elsewhere, draw = writers[name], tmp_path / "elsewhere", random.Random(name)
    result = Path(placed(writer.result, disk, elsewhere))
    done = write(nursery, writer, disk, elsewhere)
    assert done.status == 0, done.stderr.decode()
    expected = written(result)
    need = len(writer.stdin) if name == "tar on stdin" else sum(map(len, expected.values()))
    for _ in range(often(1, 5)):
        for path in (*disk.iterdir(), *elsewhere.iterdir()):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        least = 2 * PAGE if writer.env else 0  # where nothing at all can be written, Python takes another temporary folder
        filler = fill(disk, draw.randrange(least, need - PAGE))
        failed(write(nursery, writer, disk, elsewhere), "No space left on device")
        assert result.is_dir() or not result.exists()
        whole_or_absent(expected, written(result))
        assert {path.name for path in disk.iterdir()} <= {filler.name, "out"} | ({"out.part"} if writer.goes_on else set())
        filler.unlink()
        if result.is_dir() and not writer.goes_on:
            shutil.rmtree(result)
        more = ("--resume",) if writer.goes_on else ()
        again = write(nursery, writer, disk, elsewhere, *more)
        assert again.status == 0 and written(result) == expected, again.stderr.decode()


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_may_not_grow(name: str, writers: dict[str, Writer], nursery: Nursery, tmp_path: Path, often: Often) -> None:
    """RLIMIT_FSIZE at a part of the largest file."""
    if often(0, 1) == 0 and name not in ("bundle", "parts"):
        pytest.skip("only with --thorough")
    writer, place, elsewhere, draw = writers[name], tmp_path / "disk", tmp_path / "elsewhere", random.Random(name)
    place.mkdir()
    result = Path(placed(writer.result, place, elsewhere))
    assert write(nursery, writer, place, elsewhere).status == 0
    expected = written(result)
    largest = len(writer.stdin) if name == "tar on stdin" else max(map(len, expected.values()))
    for _ in range(often(1, 5)):
        shutil.rmtree(place)
        shutil.rmtree(elsewhere)
        place.mkdir()
        failed(write(nursery, writer, place, elsewhere, file_size=draw.randrange(300, largest - 1)), "File too large")
        assert result.is_dir() or not result.exists()
        whole_or_absent(expected, written(result))


@ROOT_ONLY
@pytest.mark.parametrize("name", NAMES)
def test_read_only(name: str, writers: dict[str, Writer], nursery: Nursery, tmp_path: Path, disk: Path, often: Often) -> None:
    if often(0, 1) == 0 and name not in ("bundle", "parts", "masks"):
        pytest.skip("only with --thorough")
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    elsewhere = tmp_path / "elsewhere"
    ended = write(nursery, writers[name], disk, elsewhere)
    if name in ("tar on stdin", "heat maps"):  # Python looks for another temporary folder, and finds one
        assert ended.status == 0, ended.stderr.decode()
        return
    failed(ended, "Read-only file system")


def test_standard_output_on_a_full_disk(study: Study, nursery: Nursery) -> None:
    for words in (("view", study.effects), ("view", study.neurons, "-f", "jsonl"), ("scenes", "--count", 3)):
        for more in ((), ("-o", "/dev/full")):
            with Path("/dev/full").open("wb") as full:
                failed(nursery.run(*words, *more, stdout=full.fileno()), "No space left on device")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_standard_output_that_may_not_grow(unbuffered: str, study: Study) -> None:
    """Whether it ends in the middle of a large write or of what was held back; also where Python holds nothing back."""
    env = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    words = [sys.executable, "-m", "cliptools.cli.view", str(study.neurons)]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))

    for more in (["--head", "1"], ["--head", "1", "-f", "jsonl"], []):
        with tempfile.TemporaryFile() as out:
            ended = subprocess.run(
                [*words, *more], stdout=out, stderr=subprocess.PIPE, cwd=ROOT, env=env, preexec_fn=limit, check=False
            )
            assert out.seek(0, os.SEEK_END) == 500
        assert ended.returncode == 1 and ended.stderr == b"clip-view: output: File too large\n", (more, ended)
