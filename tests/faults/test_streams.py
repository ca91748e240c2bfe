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

import numpy as np
import pytest
from conftest import ROOT, Run
from stream_bundles import PARTIALS_PERHAPS, PARTIALS_REFUSED, PERHAPS, REFUSED, apart, reordered
from stream_bytes import Tally
from stream_lines import PERHAPS as LINES_PERHAPS
from stream_lines import REFUSED as LINES_REFUSED
from stream_lines import TEXT_REFUSED, joined, line_of, lines_damaged
from test_bundle import small_bundle
from test_soundness import sound

from cliptools.commands.exhibiting.records import concept_records, fooled_records
from cliptools.commands.exhibiting.shelf import Shelf
from cliptools.commands.present import ORDERS, order_units, unit_records
from cliptools.commands.sharding import read_slab
from cliptools.ground.baseline import read_baseline
from cliptools.ground.bundle import READ_HEADER, Bundle, read_bundle, read_header, read_unchecked, tensor_table
from cliptools.ground.class_names import load_classes
from cliptools.ground.class_pairs import load_pairs
from cliptools.ground.classified.class_rows import rows_named
from cliptools.ground.classified.label_files import by_file
from cliptools.ground.errors import UsageError
from cliptools.ground.groups import by_column
from cliptools.ground.image_table import Columns, read_table
from cliptools.ground.kept_parts import KeptParts
from cliptools.ground.partial_file import FIELDS, PartialFile, PartialSpool, joined_header
from cliptools.ground.provenance import Header
from cliptools.ground.recorded_images import recorded_source
from cliptools.ground.recorded_pool import recorded_pool
from cliptools.ground.soundness import flaws
from cliptools.ground.texts import load_pool
from cliptools.ground.truth import read_truth
from cliptools.ground.word_lists import read_descriptions, read_word_lists
from cliptools.methods.partials import Partial
from cliptools.methods.sharding import slabs_to_merge

Often = Callable[[int, int], int]
MODEL = {"name": "emoji-vit", "pretrained": None, "sha256": "7" * 64, "precision": "fp32", "preprocessing": {"size": 64}}
FEW = 150
MOST_MEMORY = 600_000_000  # bytes that a process may hold with 100 MB of header or line


def bundles() -> dict[str, Bundle]:
    """Effects with words and thumbnails; pairs, whose shares are derived; heads with moments and components."""
    words = sound()
    whole = small_bundle()
    pairs = {key: whole[key] for key in ("unit", "top_norm", "top_image", "threshold", "images")}
    pairs |= {"sign": np.array([1, 0, -1], np.int8), "mean_scalar": np.ones(3, np.float32), "rest_mean": np.ones(4, np.float32)}
    heads = dict(whole.tensors) | {"moment": np.ones((3, 2, 2), np.float32), "component": np.ones((3, 2, 4), np.float32)}
    heads |= {"component_explained": np.ones((3, 2), np.float32), "uncertain": np.zeros((1, 3), np.int32)}
    header = Header("effects", MODEL, {"count": 5, "digest": "0" * 64, "skipped": 0}, {"effect": "second", "units": "neurons"})
    settings = header.settings | {"words": {"method": "pursuit", "pool": "p", "m": 3, "templates": []}, "layers": [6]}
    named = Header("neurons", MODEL, header.images, settings).after("clip-effects", {"seed": 0}).after("clip-decompose", {"m": 3})
    return {"words": Bundle(named, words.tensors), "pairs": Bundle(header, pairs), "heads": Bundle(header, heads)}


def use_bundle(data: bytes) -> None:
    """All that clip-view makes of a bundle, and what others read of its header and lists."""
    tensor_table(read_header(io.BytesIO(data), "it"), "it")
    flaws(read_unchecked(io.BytesIO(data), "it"))
    bundle = read_bundle(io.BytesIO(data), "it")
    for record in unit_records(bundle):
        json.dumps(record, ensure_ascii=False, allow_nan=False).encode()
    for order in ORDERS:
        if order != "residual" or "residual" in bundle:
            order_units(bundle, order)
    if "words" in bundle:
        recorded_pool(bundle)
    assert read_bundle(io.BytesIO(bundle.to_bytes()), "it").header == bundle.header
    with contextlib.suppress(UsageError):  # there are no images, which it says
        recorded_source(bundle, ())


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


def partial_bytes(units: int = 4, paths: int = 2, layers: tuple[int, ...] = (5, 6), kept: int = 3, top: int = 2) -> bytes:
    """A partial of so many units a layer, as clip-effects --shard writes it."""
    numbers, names = np.random.default_rng(0), {"F64": np.float64, "F32": np.float32, "I64": np.int64, "I32": np.int32}
    sizes = {"n": units, "k": paths, "m": paths * (paths + 1) // 2, "f": kept, "t": top, "b": 2}
    said = {"effect": "second", "units": "neurons", "layers": list(layers), "scale": "unit", "quantile": 0.9, "top_images": top}
    said |= {"kept": kept, "shards": 2, "have": [1], "components": 1, "seed": 0, "limit": None, "sample": None, "rendered": False}
    images = {"count": 5, "skipped": 0, "listed": 10, "digest": "0" * 64}
    out = io.BytesIO()
    with contextlib.closing(PartialSpool(None)) as spool:
        for layer in layers:
            rows = {
                field: numbers.integers(0, 5, [sizes[side] for side in sides.split()]).astype(names[dtype])
                for field, (dtype, sides) in FIELDS.items()
            }
            spool.add(layer, units, 0, rows)
        spool.name({number: f"scene {number}" for number in range(5)})
        spool.write(out, spool.signed(Header("partial", MODEL, images, said).after("clip-effects", {"seed": 0})).to_json())
    return out.getvalue()


def use_partial(path: Path) -> None:
    """What clip-merge reads of one."""
    file = PartialFile(path)
    said = joined_header([file.header, file.header]).settings
    for slab in slabs_to_merge(file.size, said["layers"], said["kept"], 1e6):
        read_slab(file, slab)
    assert file.names() and file.have and file.of and file.count >= 0


def test_partials_have_the_fields_of_the_method() -> None:
    assert tuple(FIELDS) == Partial._fields[1:]


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


RECORD = {"model": {"name": "emoji-vit", "pretrained": None, "sha256": "7" * 64}, "bundle": "0" * 64}
PAIR = {"pair": "cat->dog", "depict": "cat", "predict": "dog"}
NEURON = {"layer": 6, "neuron": 1, "norm": 3.5, "projection": 3.0, "words": [{"word": "dog", "coefficient": 0.5}]}
GROUP = {
    "concept": "cat",
    "group": "a",
    "images": 3,
    "mean": 0.5,
    "spread": 0.1,
    "skewness": 0.0,
    "settings": {},
    "units": [{"layer": 6}],
}


def kept(path: Path) -> None:
    """What clip-decompose --resume reads."""
    for part in KeptParts(path.with_suffix(""), True).earlier({"m": 3}):
        assert set(part) == {"word", "residual"}


def parts_lines(folder: Path) -> list[dict[str, Any]]:
    """What clip-decompose leaves of a run that was ended."""
    parts = KeptParts(folder / "whole", False)
    assert list(parts.earlier({"m": 3})) == []
    for _ in range(3):
        parts.add(word=np.ones((2, 3), np.int32), residual=np.ones(2, np.float32))
    return [json.loads(line) for line in parts.path.read_bytes().splitlines()]


def record_readers(folder: Path) -> dict[str, tuple[list[dict[str, Any]], Callable[[Path], Any]]]:
    """Lines as each command writes them, and what reads them."""
    bundle = bundles()["words"]

    def baseline(path: Path) -> None:
        found = read_baseline(path)
        for concept in ("cat", "sea"):
            found.of(concept, "a", RECORD | {"settings": {}, "units": [{"layer": 6}]})

    def of(reader: Callable[..., Any]) -> Callable[[Path], Any]:
        return lambda path: reader(io.BytesIO(path.read_bytes()), "it")

    words = [PAIR | {"rank": i, "word": w, "score": 0.5, "by": "effect", "effect": "second", "seed": 0, "exclusions": {"names": ["dog"]}} | RECORD for i, w in enumerate(("sea", "boat", "café"), 1)]  # fmt: skip  # noqa: E501
    texts = [PAIR | {"by": "effect", "seed": 0, "caption": i, "description": "a cat", "words": ["sea"], "settings": {"take": 1}} | RECORD for i in range(3)]  # fmt: skip  # noqa: E501
    concepts = [
        {"image": f"{i}.png", "concepts": [{"word": "dog", "score": 2.5}], "active": 4, "neurons": [NEURON]} | RECORD
        for i in range(3)
    ]
    fooled = [PAIR | {"margin": 0.1, "fooled": True, "words": ["sea"], "by": "effect", "description": "a", "check": {"by": "scene", "depicted": True, "predicted": False}} | RECORD for _ in range(3)]  # fmt: skip  # noqa: E501
    return {
        "words": (words, of(read_word_lists)),
        "descriptions": (texts, of(read_descriptions)),
        "concepts": (concepts, lambda path: concept_records(path, bundle, Shelf(bundle, (), 16))),
        "fooled": (fooled, lambda path: fooled_records(path, bundle, Shelf(bundle, (), 16))),
        "baseline": ([GROUP | RECORD, GROUP | {"concept": "sea"} | RECORD], baseline),
        "truth": (
            [{"key": f"{i}", "names": ["cat", "dog"], "seed": i} for i in range(3)],
            lambda path: read_truth(path).of("0.png"),
        ),
        "pool": ([{"text": "a cat", "class": "cat", "number": 0}] * 3, lambda path: load_pool(str(path))),
        "parts": (parts_lines(folder), kept),
    }


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


def table(path: Path) -> None:
    """What clip-shift reads of --groups."""
    groups = by_column((), read_table(path, "image"), path.parent, "label")
    assert groups.names


def labels(path: Path) -> None:
    """What clip-ablate and clip-segment read of --labels."""
    found = by_file([], path, Columns())
    names = [label for label in found.labels if isinstance(label, str)]
    rows_named(names).of(found.labels)


TABLE = b"image,label\r\n" + b"".join(
    b"%d.png,%s\r\n" % (i, each) for i, each in enumerate((b"cat", b"dog", b'"sea, boat"', b"1"))
)
CAFFE = b"".join(b"%d.JPEG %d\n" % (i, i % 3) for i in range(6))
KAGGLE = b"ImageId,PredictionString\n" + b"".join(b"ILSVRC2012_val_%08d.JPEG,n0144076%d 1 2 3 4\n" % (i, i % 5) for i in range(6))
TEXTS: dict[str, tuple[bytes, Callable[[Path], Any]]] = {
    "pool": ("cat\nred car\ncafé\n漢字\n".encode(), lambda path: load_pool(str(path))),
    "classes": (b"# animals\ncat, pussy\ndog\n\nsea\n", lambda path: load_classes(str(path))),
    "class array": (b'["cat, pussy", "dog",\n "sea"]\n', lambda path: load_classes(str(path))),
    "class literal": (b"{0: 'cat, pussy',\n 1: 'dog',\n 2: 'sea'}\n", lambda path: load_classes(str(path))),
    "class table": (b'id,wnid,name\n0,n01440764,"cat, pussy"\n1,n01443537,dog\n', lambda path: load_classes(str(path))),
    "class yaml": (b"names:\n  0: cat\n  1: dog\n  2: sea\n", lambda path: load_classes(str(path))),
    "pairs": (b"cat,dog\nsea,boat  # both\n", lambda path: load_pairs(str(path))),
    "groups": (TABLE, table),
    "labels": (TABLE, labels),
    "Caffe": (CAFFE, labels),
    "Kaggle": (KAGGLE, labels),
}


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
    words = [sys.executable, "-m", f"cliptools.commands.{name}", *map(str, arguments)]
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
        "tensor 'a' should have dtype and shape",
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
        ("twice", ("decompose",), "stands there twice"),
        ("not finite", ("spurious", "--depict", "cat", "--predict", "dog"), "holds NaN or infinity"),
        ("bad index", ("view",), "points outside|negative layer"),
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
