"""Pipes: readers that leave after any record, slow ones on either side, and streams that are closed."""

import array
import fcntl
import os
import random
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT
from helpers.advgen_input import WORDS, lines
from helpers.forked import Nursery, Study

Often = Callable[[int, int], int]
Words = tuple[object, ...]
PAGE = 4096
READ_STDIN = {
    "view": (), "decompose": (), "spurious": ("--classes", "emoji"), "advgen": (), "sheet": (), "gallery": (), "top": (),
    "concepts": ("PHOTOS",), "segment": ("PHOTOS", "--text", "cat"), "ablate": ("PHOTOS",),
    "shift": ("PHOTOS", "--concept", "cat"),
    "effects": ("-",),
}  # fmt: skip
"""Commands that read from standard input, with what else they ask for."""


@pytest.fixture(scope="module")
def writers(study: Study, nursery: Nursery) -> dict[str, tuple[Words, bytes]]:
    """All that write records, with their standard input."""
    few = nursery.run("view", study.neurons, "--head", 6).stdout
    photos = [study.photos / f"{name}.png" for name in sorted(path.stem for path in study.photos.iterdir())[:6]]
    shift = ("shift", "-", "--concept", "cat", "--concept", "dog", "--concept", "pizza", "--bundle", study.neurons)
    tar = nursery.run("scenes", "--count", 20).stdout
    advgen = ("advgen", "--llm", "template", "--take", 4)
    lined = ("-f", "jsonl")
    ablate = ("ablate", "--bundle", study.effects, "--layers", "5-6", "--limit", 8, "--ablate", "all,none", "--reconstruct", "pc")
    return {
        "view": (("view", *lined), few),
        "effects": (("effects", *photos, "--units", "heads", "--layers", "6", "--top-images", 2, *lined), b""),
        "decompose": (("decompose", "--m", 2, *lined), few),
        "spurious": (("spurious", "--depict", "cat", "--predict", "dog", "--words", 8, *lined, study.neurons), b""),
        "captions": ((*advgen, "--captions-only"), lines(*WORDS)),
        "advgen": ((*advgen, "--images", 2, "--batch-size", 3, *lined), lines(*WORDS)),
        "concepts": (("concepts", *photos, "--bundle", study.neurons, "--batch-size", 4), b""),
        "segment": (("segment", *photos, "--text", "cat", "--text", "dog", "--batch-size", 4, "--bundle", study.neurons), b""),
        "top": (("top", study.photos, "--head", 3, "--images-per-unit", 3, *lined), few),
        "shift": ((*shift, *lined), tar),
        "ablate": ((*ablate, *lined), b""),
    }


NAMES = ("view", "effects", "decompose", "spurious", "captions", "advgen", "concepts", "segment", "top", "shift", "ablate")


def room_for(lengths: Sequence[int], following: int, pages: int) -> tuple[int, int]:
    """Whole pages and bytes of one more that, put into a pipe of so many pages, leave room for these records and not for another.

    A pipe is a row of pages: what is written goes into the last one if it has room for all of it, else into a new one.
    """
    for start in range(PAGE):
        used, free = (1, PAGE - start) if start else (0, 0)
        for length in lengths:
            if length > free:
                used, free = used + 1, PAGE
            free -= length
        if following > free and used <= pages:
            return pages - used, start
    raise AssertionError("no such filling")


def waiting(reader: int) -> int:
    """Bytes in a pipe."""
    found = array.array("i", [0])
    fcntl.ioctl(reader, termios.FIONREAD, found)
    return found[0]


@pytest.mark.skipif(sys.platform != "linux", reason="how a pipe fills up is Linux's")
@pytest.mark.parametrize("name", NAMES)
def test_a_reader_that_leaves_after_n_records(
    name: str, writers: dict[str, tuple[Words, bytes]], nursery: Nursery, often: Often
) -> None:
    """The pipe has room for n records; then its reader leaves, so that the next one cannot be written."""
    if not often(0, 1) and name not in ("view", "captions", "advgen", "concepts", "segment"):
        pytest.skip("only with --thorough")
    words, stdin = writers[name]
    done = nursery.run(*words, "-q", stdin=stdin)
    records = done.stdout.splitlines(keepends=True)
    assert done.status == 0 and len(records) >= 3, done.stderr.decode()
    lengths = [len(record) for record in records]
    assert max(lengths) < PAGE
    places = random.Random(name).sample(range(len(records)), min(often(1, 99), len(records)))
    for n in places:
        reader, writer = os.pipe()
        pages = fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ) // PAGE
        whole, more = room_for(lengths[:n], lengths[n], pages)
        filling = [PAGE] * whole + ([more] if more else [])
        for size in filling:
            os.write(writer, b"." * size)
        process = nursery.start(*words, "-q", stdin=stdin, stdout=writer)
        os.close(writer)
        while waiting(reader) < sum(filling) + sum(lengths[:n]):
            assert process.lasts(0.01), f"ended before record {n}"
        assert waiting(reader) == sum(filling) + sum(lengths[:n])
        os.close(reader)
        ended = process.wait()
        assert (ended.status, ended.stderr) == (0, b""), (n, ended.stderr.decode())
    print(f"{name}: the reader left after {len(places)} numbers of {len(records)} records")


def fed(nursery: Nursery, words: Words, data: bytes, seed: int, until: int | None = None) -> Any:
    """Run with standard input in pieces of any size, with pauses; up to some place."""
    reader, writer = os.pipe()
    process = nursery.start(*words, "-q", stdin=reader)
    os.close(reader)
    draw, place = random.Random(seed), 0
    data = data[:until]
    with os.fdopen(writer, "wb", buffering=0) as stream:
        while place < len(data):
            size = draw.choice((1, 7, 511, 4096, 65537, 1 << 20))
            try:
                stream.write(data[place : place + size])
            except BrokenPipeError:
                break
            place += size
            time.sleep(draw.choice((0, 0.001, 0.02)))
    return process.wait()


SLOW = ("view", "decompose", "captions", "shift")


@pytest.mark.parametrize("name", SLOW)
def test_a_slow_writer_and_a_slow_reader(
    name: str, writers: dict[str, tuple[Words, bytes]], nursery: Nursery, often: Often
) -> None:
    if not often(0, 1) and name not in ("view", "decompose"):
        pytest.skip("only with --thorough")
    words, stdin = writers[name]
    expected = nursery.run(*words, "-q", stdin=stdin).stdout
    for seed in range(often(1, 10)):
        ended = fed(nursery, words, stdin, seed)
        assert ended.status == 0 and ended.stdout == expected, ended.stderr.decode()
        reader, writer = os.pipe()
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PAGE)
        process = nursery.start(*words, "-q", stdin=stdin, stdout=writer)
        os.close(writer)
        read, draw = b"", random.Random(seed)
        while part := os.read(reader, draw.choice((1, 100, 3000))):
            read += part
            time.sleep(0.001)
        os.close(reader)
        assert process.wait().status == 0 and read == expected


@pytest.mark.parametrize("name", SLOW)
def test_standard_input_closed_early(name: str, writers: dict[str, tuple[Words, bytes]], nursery: Nursery, often: Often) -> None:
    """The writer leaves in the middle."""
    words, stdin = writers[name]
    draw = random.Random(name)
    for seed in range(often(2, 50)):
        until = draw.randrange(len(stdin))
        while stdin[:until].endswith((b"\n", b"}")) and name == "captions":  # whole lines are whole input
            until -= 1
        if stdin[until:].strip(b"\0") == b"":  # past the last member of a tar there is nothing to miss but its end
            continue
        ended = fed(nursery, words, stdin, seed, until)
        assert ended.status == 1 and ended.stdout == b"" and len(ended.lines) == 1, (until, ended)


def shell(line: str) -> subprocess.CompletedProcess[bytes]:
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHON": f"{sys.executable} -m cliptools.cli"}
    return subprocess.run(["bash", "-c", line], capture_output=True, cwd=ROOT, env=env, timeout=120, check=False)


def test_standard_input_closed_from_the_start(study: Study, often: Often) -> None:
    for name in list(READ_STDIN)[: often(3, 99)]:
        words = " ".join(READ_STDIN[name]).replace("PHOTOS", str(study.photos))
        ended = shell(
            f"$PYTHON.{name} {words} -f jsonl <&-" if name not in ("sheet", "gallery") else f"$PYTHON.{name} {words} <&-"
        )
        said = ended.stderr.decode().splitlines()
        assert ended.returncode == 2 and ended.stdout == b"" and "standard input" in said[-1], (name, said)
        assert len(said) == 1, (name, said)


def test_no_streams_at_all(study: Study, nursery: Nursery, tmp_path: Path) -> None:
    """Standard input, output and error closed from the start: descriptors that files may then get."""
    expected = shell(f"$PYTHON.view {study.neurons} --layers 5").stdout
    ended = shell(f"$PYTHON.view {study.neurons} --layers 5 -o {tmp_path}/out <&- >&- 2>&-")
    assert ended.returncode == 0 and (tmp_path / "out").read_bytes() == expected and len(expected) > 1000, ended
    ended = shell(f"$PYTHON.view {study.neurons} --layers 5 2>&-")
    assert ended.returncode == 0 and ended.stdout == expected
    ended = shell(f"$PYTHON.view {tmp_path}/none 2>&-")
    assert ended.returncode == 1 and ended.stdout == b""
    ended = shell(f"$PYTHON.scenes --count 2 -o {tmp_path}/scenes.tar <&- >&- 2>&-")
    assert ended.returncode == 0 and (tmp_path / "scenes.tar").read_bytes() == nursery.run("scenes", "--count", 2).stdout


def test_standard_output_closed(writers: dict[str, tuple[Words, bytes]], often: Often) -> None:
    for name in ("view", "captions", "spurious", "segment")[: often(1, 99)]:
        words, stdin = writers[name]
        code = f"{sys.executable} -m cliptools.cli.{words[0]} {' '.join(map(str, words[1:]))} -q >&-"
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        ended = subprocess.run(["bash", "-c", code], input=stdin, capture_output=True, cwd=ROOT, env=env, check=False)
        assert ended.returncode == 1 and len(ended.stderr.splitlines()) == 1, ended.stderr.decode()
        assert b"standard output is closed" in ended.stderr


def test_a_reader_that_comes_late(study: Study, nursery: Nursery, tmp_path: Path) -> None:
    """A named pipe as -o: the command waits for whoever reads it, and replaces nothing."""
    expected = nursery.run("view", study.neurons).stdout
    os.mkfifo(tmp_path / "pipe")
    process = nursery.start("view", study.neurons, "-o", tmp_path / "pipe")
    read: list[bytes] = []
    late = threading.Timer(0.3, lambda: read.append((tmp_path / "pipe").read_bytes()))
    late.start()
    assert process.wait().status == 0
    late.join()
    assert read == [expected] and [path.name for path in tmp_path.iterdir()] == ["pipe"]
