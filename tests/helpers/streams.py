"""Inputs and checks of test_streams.py that other tests share."""

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cliptools.cli.app import ORDERS
from cliptools.cli.run.gallery_records import PictureTable, concept_records, fooled_records
from cliptools.cli.run.view import flaws
from cliptools.errors import UsageError
from cliptools.front.unit_records import order_units, unit_records
from cliptools.generate.records import read_descriptions, read_word_lists
from cliptools.images.annotations import read_annotations
from cliptools.images.classification.class_rows import rows_named
from cliptools.images.classification.label_files import by_file
from cliptools.images.groups import Columns, by_column, read_table
from cliptools.images.relocate import recorded_source
from cliptools.io.bundle import Bundle, read_bundle, read_header, read_unchecked, tensor_table
from cliptools.io.bundle_schema import PARTIAL
from cliptools.io.cache import KeptParts
from cliptools.io.header import Header
from cliptools.io.shard_file import PartialSpool
from cliptools.io.shift_baseline import read_baseline
from cliptools.text.classes import load_classes, load_pairs
from cliptools.text.vocabularies import load_pool, recorded_pool
from helpers.bundle import small_bundle
from helpers.soundness import sound

MODEL = {"name": "emoji-vit2", "pretrained": None, "sha256": "7" * 64, "precision": "fp32", "preprocessing": {"size": 64}}


def bundles() -> dict[str, Bundle]:
    """Return effects with words and thumbnails; pairs, whose shares are derived; heads with moments and components."""
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
    """Run everything that clip-view does with a bundle, and read the header and lists as other commands do."""
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


def partial_bytes(units: int = 4, paths: int = 2, layers: tuple[int, ...] = (5, 6), kept: int = 3, top: int = 2) -> bytes:
    """Return a partial with so many units per layer, as clip-effects --shard writes it."""
    numbers = np.random.default_rng(0)
    sizes = {"n": units, "k": paths, "m": paths * (paths + 1) // 2, "f": kept, "t": top, "b": 2}
    said = {"effect": "second", "units": "neurons", "layers": list(layers), "scale": "unit", "quantile": 0.9, "top_images": top}
    said |= {"kept": kept, "shards": 2, "have": [1], "components": 1, "seed": 0, "limit": None, "sample": None, "rendered": False}
    images = {"count": 5, "skipped": 0, "listed": 10, "digest": "0" * 64}
    out = io.BytesIO()
    with contextlib.closing(PartialSpool()) as spool:
        for layer in layers:
            rows = {
                name: numbers.integers(0, 5, [sizes[side] for side in field.axes.split()]).astype(field.dtype)
                for name, field in PARTIAL.items()
            }
            spool.add(layer, units, 0, rows)
        spool.add_embeddings(5, [(np.arange(5), numbers.normal(size=(5, 3)).astype(np.float32))])
        spool.add_names({number: f"scene {number}" for number in range(5)})
        spool.write(out, spool.with_digest(Header("partial", MODEL, images, said).after("clip-effects", {"seed": 0})).to_json())
    return out.getvalue()


RECORD = {"model": {"name": "emoji-vit2", "pretrained": None, "sha256": "7" * 64}, "bundle": "0" * 64}


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
    """Read a stored part as clip-decompose --resume does."""
    for part in KeptParts(path.with_suffix(""), True).earlier({"m": 3}):
        assert set(part) == {"word", "residual"}


def parts_lines(folder: Path) -> list[dict[str, Any]]:
    """Return the stored lines of an interrupted run of clip-decompose."""
    parts = KeptParts(folder / "whole", False)
    assert list(parts.earlier({"m": 3})) == []
    for _ in range(3):
        parts.add(word=np.ones((2, 3), np.int32), residual=np.ones(2, np.float32))
    return [json.loads(line) for line in parts.path.read_bytes().splitlines()]


def record_readers(folder: Path) -> dict[str, tuple[list[dict[str, Any]], Callable[[Path], Any]]]:
    """Return lines as each command writes them, with their readers."""
    bundle = bundles()["words"]

    def baseline(path: Path) -> None:
        found = read_baseline(path)
        for concept in ("cat", "sea"):
            found.comparable(concept, "a", RECORD | {"settings": {}, "units": [{"layer": 6}]})

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
        "concepts": (concepts, lambda path: concept_records(path, bundle, PictureTable(bundle, (), 16))),
        "fooled": (fooled, lambda path: fooled_records(path, bundle, PictureTable(bundle, (), 16))),
        "baseline": ([GROUP | RECORD, GROUP | {"concept": "sea"} | RECORD], baseline),
        "truth": (
            [{"key": f"{i}", "names": ["cat", "dog"], "seed": i} for i in range(3)],
            lambda path: read_annotations(path).of("0.png"),
        ),
        "pool": ([{"text": "a cat", "class": "cat", "number": 0}] * 3, lambda path: load_pool(str(path))),
        "parts": (parts_lines(folder), kept),
    }


def table(path: Path) -> None:
    """Read a table as clip-shift reads --groups."""
    groups = by_column((), read_table(path, "image"), path.parent, "label")
    assert groups.names


def labels(path: Path) -> None:
    """Read labels as clip-ablate and clip-segment-eval read --labels."""
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
