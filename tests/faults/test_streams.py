"""Bad streams in every reader: one line, whatever they hold; bounded time and memory; nothing taken for what it is not."""

import contextlib
import io
import json
import os
import random
import re
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import Run
from helpers import ROOT
from helpers.stream_bundles import PARTIALS_PERHAPS, PARTIALS_REFUSED, PERHAPS, REFUSED, apart, reordered
from helpers.stream_bytes import Tally
from helpers.stream_lines import PERHAPS as LINES_PERHAPS
from helpers.stream_lines import REFUSED as LINES_REFUSED
from helpers.stream_lines import TEXT_REFUSED, joined, line_of, lines_damaged
from helpers.streams import (
    TEXTS,
    bundles,
    partial_bytes,
    record_readers,
    use_bundle,
)

from cliptools.cli.run.shards import read_partial
from cliptools.io.bundle import READ_HEADER, read_bundle
from cliptools.io.bundle_schema import PARTIAL
from cliptools.io.shard_file import PartialFile, joined_header
from cliptools.streaming.shard_statistics import ShardStatistics
from cliptools.streaming.shards import blocks_to_merge

Often = Callable[[int, int], int]
FEW = 150
MOST_MEMORY = 800_000_000  # bytes that a process may hold, torch among them, with 100 MB of header or line


@pytest.mark.filterwarnings("ignore:Mean of empty slice", "ignore:invalid value encountered")
@pytest.mark.parametrize("which", ["words", "pairs", "heads"])
def test_bad_bundles(which: str, often: Often, capfd: pytest.CaptureFixture[str]) -> None:
    draw, tally, bundle = random.Random(f"bundles {which}"), Tally(), bundles()[which]
    whole = bundle.to_bytes()
    use_bundle(whole)
    refused = {kind: made for kind, made in REFUSED.items() if kind != "bad thumbnails" or "thumbnails" in bundle}
    for _ in range(often(FEW, 40_000)):
        must = draw.random() < 0.7
        kind, damage = draw.choice(list((refused if must else PERHAPS).items()))
        data = damage(draw, *apart(whole))
        tally.read(kind, partial(read_bundle, io.BytesIO(data), "it") if must else partial(use_bundle, data), must)
    with capfd.disabled():
        tally.close(f"bundles, {which}")


def test_any_order_of_keys_and_tensors_is_the_same_bundle() -> None:
    draw = random.Random(0)
    for bundle in bundles().values():
        whole = bundle.to_bytes()
        for _ in range(20):
            assert read_bundle(io.BytesIO(reordered(draw, *apart(whole))), "it").to_bytes() == whole


def use_partial(path: Path) -> None:
    """What clip-merge reads of one."""
    file = PartialFile(path)
    said = joined_header([file.header, file.header]).settings
    for slab in blocks_to_merge(file.size, said["layers"], said["kept"], 1e6):
        read_partial(file, slab)
    assert file.names() and list(file.embeddings()) and file.shards and file.shard_count and file.count >= 0


def test_partials_have_the_fields_of_the_method() -> None:
    assert tuple(PARTIAL) == ShardStatistics._fields[1:]
    for name, field in PARTIAL.items():
        annotation = ShardStatistics.__annotations__[name]
        assert len(field.axes.split()) == len(annotation.dim_str.split()), name
        assert field.dtype.startswith(annotation.__name__.partition("[")[0].lower()), name


def test_bad_partials(often: Often, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    draw, tally, path, whole = random.Random("partials"), Tally(), tmp_path / "part.safetensors", partial_bytes()
    path.write_bytes(whole)
    use_partial(path)
    for _ in range(often(FEW, 105_000)):
        must = draw.random() < 0.8
        kind, damage = draw.choice(list((PARTIALS_REFUSED if must else PARTIALS_PERHAPS).items()))
        path.write_bytes(damage(draw, *apart(whole)))
        tally.read(kind, partial(use_partial, path), must)
    with capfd.disabled():
        tally.close("partials")


@pytest.mark.parametrize("which", ["words", "descriptions", "concepts", "fooled", "baseline", "truth", "pool", "parts"])
def test_bad_records(which: str, often: Often, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    records, reader = record_readers(tmp_path)[which]
    draw, tally, path = random.Random(f"records {which}"), Tally(), tmp_path / ("it.part" if which == "parts" else "it.jsonl")
    path.write_bytes(joined([line_of(record) for record in records]))
    reader(path)
    refused = {kind: made for kind, made in LINES_REFUSED.items() if which != "parts" or kind != "empty"}
    for _ in range(often(FEW, 15_000)):
        must = draw.random() < 0.7
        kind, damage = draw.choice(list((refused if must else LINES_PERHAPS).items()))
        data = damage(draw, json.loads(json.dumps(records)))
        path.write_bytes(data)
        # A pool may be UTF-16 with a mark, and any JSON text may be one of its texts.
        fine = which == "pool" and (kind == "no object" or data[:2] in (b"\xff\xfe", b"\xfe\xff"))
        tally.read(kind, partial(reader, path), must and not fine)
    with capfd.disabled():
        tally.close(f"records, {which}")


def test_lines_without_an_end_between_empty_ones_behind_a_mark_are_read(tmp_path: Path) -> None:
    records, reader = record_readers(tmp_path)["words"]
    lines = [line_of(record) for record in records]
    for data in (
        b"\n".join(lines),
        b"\n\n  \n".join(lines),
        b"\xef\xbb\xbf" + joined(lines),
        joined(lines).replace(b"\n", b"\r\n"),
    ):
        (tmp_path / "it").write_bytes(data)
        (found,) = reader(tmp_path / "it")
        assert found.words == ("sea", "boat", "café")


@pytest.mark.parametrize("which", TEXTS)
def test_bad_texts_and_labels(which: str, often: Often, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole, reader = TEXTS[which]
    draw, tally, path = random.Random(f"texts {which}"), Tally(), tmp_path / "it.txt"
    path.write_bytes(whole)
    reader(path)
    for _ in range(often(FEW, 5_000 if which == "Kaggle" else 20_000)):
        must = draw.random() < 0.5
        kind, damage = draw.choice(list((TEXT_REFUSED if must else {"lines": lines_damaged}).items()))
        path.write_bytes(damage(draw, whole))
        tally.read(kind, partial(reader, path), must)
    with capfd.disabled():
        tally.close(f"texts and labels, {which}")


def process(name: str, *arguments: Any, feed: Callable[[Any], None]) -> tuple[int, bytes, str, float, int]:
    """A command whose standard input is fed as it reads: status, stdout, stderr, seconds, and the most memory it held."""
    words = [sys.executable, "-m", f"cliptools.cli.{name}", *map(str, arguments)]
    begin = time.perf_counter()
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(words, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, **pipes) as child:
        most = [0]
        watching = threading.Thread(target=watch, args=(child, most))
        watching.start()
        with contextlib.suppress(BrokenPipeError):
            feed(child.stdin)
        with contextlib.suppress(BrokenPipeError):
            child.stdin.close()
        out, said = child.stdout.read(), child.stderr.read().decode()
        watching.join()
    return child.returncode, out, said, time.perf_counter() - begin, most[0]


def watch(child: subprocess.Popen, most: list[int]) -> None:
    """Note what a process has held at most, until it ends."""
    while child.poll() is None:
        most[0] = max(most[0], held(child.pid))
        time.sleep(0.001)


def held(pid: int) -> int:
    """Bytes that a process has held at most until now; 0 of one that has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def megabytes(what: bytes, count: int = 100) -> Callable[[Any], None]:
    """So many of them, written piece by piece."""

    def feed(stream: Any) -> None:
        piece = what * ((1 << 20) // len(what))
        for _ in range(count):
            stream.write(piece)

    return feed


def after(start: bytes, feed: Callable[[Any], None]) -> Callable[[Any], None]:
    """First this."""

    def both(stream: Any) -> None:
        stream.write(start)
        feed(stream)

    return both


def length(size: int) -> bytes:
    """Of a header."""
    return struct.pack("<Q", size)


WIDE = b'{"a": [' + b"[]," * 5_500_000 + b"[]]}"
LARGE: dict[str, tuple[tuple[str, ...], Callable[[Any], None], str]] = {
    "header of 100 MB": (("view",), after(length(100_000_000), megabytes(b'{"a":[],')), "a header of 100000000 bytes, at most"),
    "header of 2^63 bytes": (("view", "--check"), after(length(1 << 63), megabytes(b"{")), "not a safetensors file"),
    "deep header": (("view", "--header"), after(length(READ_HEADER), megabytes(b"[", 16)), "nested more than 100 deep"),
    "header of five million lists": (
        ("view", "--header"),
        after(length(READ_HEADER), lambda stream: stream.write(WIDE + b" " * (READ_HEADER - len(WIDE)))),
        "tensor 'a' needs dtype and shape",
    ),
    "line of 100 MB": (
        ("advgen", "--captions-only", "--llm", "template"),
        megabytes(b'{"a":'),
        "line 1: expected a JSON object, found a line",
    ),
    "line of 100 MB, without objects": (
        ("advgen", "--images-only"),
        megabytes(b"x"),
        "line 1: expected a JSON object, found a line",
    ),
}


@pytest.mark.parametrize("kind", LARGE)
def test_what_is_large_takes_little_time_and_memory(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    (name, *arguments), feed, expected = LARGE[kind]
    status, out, said, seconds, memory = process(name, *arguments, feed=feed)
    assert (status, out) == (1, b"") and expected in said and said.count("\n") == 1 and len(said) < 300, said
    with capfd.disabled():
        print(f"\n{kind}: {seconds:.1f} s, {memory / 1e6:.0f} MB")
    assert seconds < 60 and 0 < memory < MOST_MEMORY


@pytest.mark.parametrize(
    ("kind", "arguments", "said"),
    [
        ("truncated", ("view", "-f", "jsonl"), "truncated bundle"),
        ("twice", ("decompose",), "duplicate key"),
        ("not finite", ("spurious", "--depict", "cat", "--predict", "dog"), "holds NaN or infinity"),
        ("bad index", ("view",), "index outside|negative layer"),
        ("bad metadata", ("view", "--check"), "header|bundle|metadata"),
        ("shifted", ("gallery",), "damaged file"),
        ("other type", ("sheet",), "type|expected|needs"),
    ],
)
def test_bad_bundles_in_commands(run: Run, tmp_path: Path, kind: str, arguments: tuple[str, ...], said: str) -> None:
    out = tmp_path / "out"
    bad = REFUSED[kind](random.Random(3), *apart(bundles()["words"].to_bytes()))
    (tmp_path / "bad.safetensors").write_bytes(bad)
    for given in ({"stdin": bad}, {}):
        name, *more = arguments
        done = run(name, *more, "-o", out, *([] if given else [tmp_path / "bad.safetensors"]), **given)
        lines = done.stderr.decode().splitlines()
        assert done.returncode == 1 and len(lines) == 1 and re.search(said, lines[0]), lines
        assert ("standard input" if given else "bad.safetensors") in lines[0]
        assert done.stdout == b"" and not out.exists() and len(list(tmp_path.iterdir())) == 1
