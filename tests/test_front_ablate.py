"""ct.ablate: accuracies equal to those of clip-ablate, of paths and of images with labels beside them."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.advgen_input import inside, parsed
from helpers.tiny_suite import Suite
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import cliptools as ct
from cliptools.errors import CliptoolsError, ModelError, StreamError, UsageError
from cliptools.front.tables import Records
from cliptools.images.loader import open_images

COMMON: dict[str, Any] = {"templates": ["{}"], "batch_size": 4, "workers": 0, "device": "cpu"}
CLASSES = ["cat", "dog, puppy", "pizza", "sky"]  # those of the suite's file
NAMES = ["cat", "pizza", "cat", "pizza", "cat", "pizza"]  # the photographs in the order of their names
NUMBERS = [CLASSES.index(name) for name in NAMES]


def output(suite: Suite, case: str, *more: Any) -> bytes:
    """Return the standard output of one of the suite's command lines."""
    command = suite.cases()[case]
    ended = inside(command.command, *command.words, *more)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "ablate": (
        "second-words",
        {
            "ablate": ["all", "large", "small"],
            "reconstruct": "pc,words",
            "keep": [0.5, 1.0],
            "each_layer": True,
            "words_along": ["direction", "texts"],
        },
    ),
    "ablate pairs": ("pooled-words", {"ablate": "all,large,small", "reconstruct": ["pc", "words"]}),
    "ablate components": ("components", {"reconstruct": "pc", "components": [1, 2]}),
    "ablate joint": ("indirect", {"ablate": ["all", "joint"]}),
    "ablate heads": ("heads", {"ablate": "all"}),
}


@pytest.mark.parametrize("case", CASES)
def test_records_are_those_of_the_command(suite: Suite, case: str, tmp_path: Path) -> None:
    name, arguments = CASES[case]
    records = ct.ablate(ct.read(suite.bundle(name)), suite.folder / "photos", classes=suite.classes, **COMMON | arguments)
    lines = output(suite, case)
    assert isinstance(records, Records) and list(records) == parsed(lines)
    records.save(tmp_path / "lines.jsonl")
    assert (tmp_path / "lines.jsonl").read_bytes() == lines
    table = output(suite, case, "-f", "table").decode()
    assert records.table() == table.rstrip("\n")
    assert len(records.to_frame()) == len(records)


def test_several_bundles_and_groups_of_layers(suite: Suite) -> None:
    photos, names = suite.folder / "photos", ("second-words", "indirect")
    more = [word for name in names for word in ("--bundle", suite.bundle(name))]
    ended = inside(
        "ablate", photos, "--classes", suite.classes, "--template", "{}", "--batch-size", 4, "--workers", 0, "-f", "jsonl", *more,
        "--layers", "1", "--layers", "1,2", "--sample", 4, "--seed", 3, "--ablate", "all,joint",
    )  # fmt: skip
    bundles = [ct.read(suite.bundle(name)) for name in names]
    arguments: dict[str, Any] = {"ablate": ["all", "joint"], "sample": 4, "seed": 3, "classes": suite.classes} | COMMON
    records = ct.ablate(bundles, photos, layers=[[1], [2, 1]], **arguments)
    assert list(records) == parsed(ended.stdout) and len(records) == 7
    one = ct.ablate(bundles[0], photos, layers=[2], **arguments | {"ablate": "all"})
    assert [record["layers"] for record in one] == [[], [2]]


def paths(suite: Suite) -> list[Path]:
    """Return the photographs in the order of their names, which alternate between two folders."""
    return sorted((suite.folder / "photos").rglob("*.*"), key=lambda path: path.name)


def pictures(suite: Suite) -> list[Image.Image]:
    source = open_images([str(path) for path in paths(suite)])
    return [source.load(index) for index in range(len(source))]


def prepared(suite: Suite) -> Tensor:
    transform = ct.load_model(suite.vit, device="cpu").transform
    return torch.stack([transform(picture) for picture in pictures(suite)])


def measured(records: Records) -> list[dict[str, Any]]:
    """Return what does not depend on the images' names."""
    return [{key: record[key] for key in ("n", "top1", "top5", "agreement")} for record in records]


BESIDE: dict[str, Callable[[Suite], tuple[Any, Any]]] = {
    "paths": lambda suite: (paths(suite), NAMES),
    "pictures": lambda suite: (pictures(suite), NUMBERS),
    "generator": lambda suite: ((picture for picture in pictures(suite)), NAMES),
    "arrays": lambda suite: (np.stack([np.asarray(picture) for picture in pictures(suite)]), np.array(NUMBERS)),
    "source": lambda suite: (open_images([str(path) for path in paths(suite)]), torch.tensor(NUMBERS)),
    "tensor": lambda suite: (prepared(suite), NUMBERS),
    "batches": lambda suite: ([(prepared(suite)[:4], NAMES[:4]), (prepared(suite)[4:], NAMES[4:])], None),
    "mappings": lambda suite: ([{"pixels": prepared(suite), "label": torch.tensor(NUMBERS)}], None),
    "loader": lambda suite: (DataLoader(TensorDataset(prepared(suite), torch.tensor(NUMBERS)), batch_size=4), None),
}


@pytest.mark.parametrize("kind", BESIDE)
def test_images_of_every_kind_with_labels_beside_them(suite: Suite, kind: str) -> None:
    bundle = ct.read(suite.bundle("second-words"))
    arguments: dict[str, Any] = {"ablate": "all,large", "reconstruct": "pc"} | COMMON
    command = ct.ablate(bundle, suite.folder / "photos", classes=suite.classes, **arguments)
    images, labels = BESIDE[kind](suite)
    for classes in (suite.classes, CLASSES):
        images = list(images) if isinstance(images, Iterator) else images
        records = ct.ablate(bundle, images, labels, classes=classes, **arguments)
        assert measured(records) == measured(command)
        assert np.allclose([r["cosine"] for r in records], [r["cosine"] for r in command], atol=1e-5)
    assert records[0]["settings"]["classes"] == "a list of names" and records[0]["settings"]["class_count"] == 4


def test_parts_of_batches(suite: Suite) -> None:
    """A part of the batches has the labels of these images."""
    bundle, loader = ct.read(suite.bundle("second")), DataLoader(TensorDataset(prepared(suite), torch.tensor(NUMBERS)), 4)
    for part in ({"limit": 3}, {"sample": 3, "seed": 1}):
        batches = ct.ablate(bundle, loader, classes=CLASSES, **COMMON | part)
        assert batches[0]["n"] == 3
        assert measured(batches) == measured(ct.ablate(bundle, pictures(suite), NUMBERS, classes=CLASSES, **COMMON | part))


def test_labels_give_the_classes(suite: Suite) -> None:
    records = ct.ablate(ct.read(suite.bundle("second")), pictures(suite), NAMES, **COMMON)
    assert records[0]["settings"]["classes"] == "labels" and records[0]["settings"]["class_count"] == 2


def test_a_model_that_is_loaded(suite: Suite) -> None:
    bundle, photos, model = ct.read(suite.bundle("second")), suite.folder / "photos", ct.load_model(suite.vit, device="cpu")
    first = ct.ablate(bundle, photos, classes=suite.classes, model=model, **COMMON)
    assert list(first) == list(ct.ablate(bundle, photos, classes=suite.classes, **COMMON))
    assert model.clip.transformer is not None, "the text tower of a model that was given stays"
    with pytest.raises(ModelError, match="is not the bundle's"):
        ct.ablate(bundle, photos, classes=suite.classes, model=ct.load_model(suite.resnet, device="cpu"), **COMMON)
    with pytest.raises(UsageError, match="precision='bf16': the model that is given is loaded in fp32 already"):
        ct.ablate(bundle, photos, classes=suite.classes, model=model, precision="bf16", **COMMON)


def test_misuse(suite: Suite) -> None:
    bundle, tensor = ct.read(suite.bundle("second")), prepared(suite)
    cases: list[tuple[type[CliptoolsError], dict[str, Any], str]] = [
        (UsageError, {"bundles": []}, "bundles: an empty list"),
        (UsageError, {"ablate": "some"}, "ablate='some': expected one of all, large"),
        (UsageError, {"reconstruct": ["pca"]}, "reconstruct='pca'"),
        (UsageError, {"words_along": "up"}, "words_along='up'"),
        (UsageError, {"words_along": "texts"}, "--words-along needs --reconstruct words"),
        (UsageError, {"m": 3}, "--m needs --reconstruct words"),
        (UsageError, {"components": 0}, "components=0: expected a number at least 1"),
        (UsageError, {"keep": 20.0}, "keep=20.0: expected a number from"),
        (UsageError, {"limit": 0}, "limit=0"),
        (UsageError, {"seed": -1}, "seed=-1"),
        (UsageError, {"batch_size": 0}, "batch_size=0"),
        (UsageError, {"precision": "int8"}, "precision='int8'"),
        (UsageError, {"effect": "third"}, "effect='third'"),
        (UsageError, {"effect": "first"}, "--effect first: the bundle is a bundle with effect second"),
        (UsageError, {"units": "heads"}, "--units heads"),
        (UsageError, {"ablate": "joint"}, "--ablate joint needs a bundle of indirect effects"),
        (UsageError, {"layers": [7]}, "7"),
        (StreamError, {"reconstruct": "words"}, "without `word`"),
        (StreamError, {"bundles": [bundle, ct.read(suite.bundle("pooled"))]}, "bundle 2: bundle of model"),
        (UsageError, {"images": None}, "no images named"),
        (UsageError, {"classes": CLASSES}, "classes: a list of names is for images with labels beside them"),
        (UsageError, {"images": pictures(suite)}, "labels=None: expected a class for each image"),
        (UsageError, {"images": pictures(suite), "labels": "folders"}, "labels='folders': it is for images that paths name"),
        (UsageError, {"images": pictures(suite), "labels": NUMBERS}, "labels are numbers, up to 2"),
        (UsageError, {"images": tensor, "labels": NUMBERS[:3], "classes": CLASSES}, "labels: 3 for 6 images"),
        (StreamError, {"images": tensor, "labels": [*NUMBERS[1:], 4], "classes": CLASSES}, "image-000005: label 4, expected"),
        (StreamError, {"images": tensor, "labels": ["cat"] * 6}, "one class only"),
        (StreamError, {"images": [(tensor, [*NAMES[1:], "cow"])], "classes": CLASSES}, "image-000005: label 'cow' is not one"),
        (UsageError, {"images": [(tensor, NAMES)]}, "classes=None: expected the classes"),
        (UsageError, {"images": tensor, "classes": CLASSES}, "a batch has no labels beside its pictures"),
        (UsageError, {"images": [(tensor, 3)], "classes": CLASSES}, "a batch has no labels beside its pictures"),
        (UsageError, {"images": [(tensor, NAMES[1:])], "classes": CLASSES}, "5 labels beside 6 pictures"),
        (UsageError, {"images": [(tensor, torch.zeros(6))], "classes": CLASSES}, "expected a number or a name for each"),
    ]
    for kind, arguments, message in cases:
        with pytest.raises(kind, match=message):
            ct.ablate(**{"bundles": bundle, "images": suite.folder / "photos"} | COMMON | arguments)


def test_scenes_of_an_embedded_model(tmp_path: Path) -> None:
    """Without images, scenes of one emoji each are rendered, as the command does."""
    bundle = ct.effects(limit=12, layers=[6], device="cpu")
    bundle.save(tmp_path / "bundle.safetensors")
    records = ct.ablate(bundle, limit=10, templates=["{}"], device="cpu")
    ended = inside("ablate", "--bundle", tmp_path / "bundle.safetensors", "--limit", 10, "--template", "{}", "-f", "jsonl")
    assert list(records) == [json.loads(line) for line in ended.stdout.splitlines()]
    with pytest.raises(UsageError, match="--sample needs a PATH"):
        ct.ablate(bundle, sample=3)
    with pytest.raises(UsageError, match="--labels and --classes need images"):
        ct.ablate(bundle, classes=CLASSES)
