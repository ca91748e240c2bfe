"""Heat maps and label maps of the front: equal to those of clip-segment, of images of every kind, and shown and saved."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.advgen_input import inside, parsed
from helpers.tiny_suite import Suite
from PIL import Image
from safetensors.numpy import load

import cliptools as ct
from cliptools import console
from cliptools.errors import CliptoolsError, ImageError, ModelError, UsageError
from cliptools.front.segmented import HeatMaps, LabelMap
from cliptools.images.loader import open_images

TEXTS = ["cat", "dog"]
COMMON: dict[str, Any] = {"templates": ["{}"], "batch_size": 4, "device": "cpu"}
LABELS: dict[str, Any] = COMMON | {"size": 96}


def output(*words: Any) -> bytes:
    """Return the standard output of clip-segment with the arguments of COMMON."""
    ended = inside("segment", *words, "--template", "{}", "--batch-size", 4, "--device", "cpu")
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def pictures(suite: Suite) -> list[Image.Image]:
    """Return the scenes of the suite, in the order of their names."""
    source = open_images([str(suite.images)])
    return [source.load(index) for index in range(len(source))]


METHODS = ("neurons", "signed", "effects", "attention", "rollout", "gradcam", "chefer", "textspan")


@pytest.mark.parametrize("method", METHODS)
def test_heat_maps_are_those_of_the_command(suite: Suite, method: str, tmp_path: Path) -> None:
    bundle = suite.bundle("second-words")
    segments = ct.segment(suite.images, TEXTS, bundle=ct.read(bundle), method=method, **COMMON)
    words = (suite.images, "--text", "cat", "--text", "dog", "--method", method, "--bundle", bundle)
    lines = output(*words, "-f", "jsonl")
    segments.save(tmp_path / "lines.jsonl")
    assert (tmp_path / "lines.jsonl").read_bytes() == lines
    tensors = load(output(*words, "-f", "safetensors"))
    for item in segments:
        assert isinstance(item, HeatMaps) and item.texts == TEXTS
        assert np.array_equal(item.heat_map, tensors[item.name]) and item.heat_map.shape == (2, *item.picture.size[::-1])


def test_settings_of_heat_maps(suite: Suite) -> None:
    """One text in windows, with the map's mean as threshold; the best class of each image; a ResNet's heat map of a text."""
    words, pairs = suite.bundle("second-words"), suite.bundle("pooled-words")
    cases: list[tuple[Path, tuple[Any, ...], dict[str, Any]]] = [
        (
            words,
            ("--text", "cat", "--size", 32, "--stride", 8, "--threshold", "mean"),
            {"texts": "cat", "size": 32, "stride": 8, "threshold": "mean"},
        ),
        (words, ("--classes", suite.classes), {"classes": suite.classes}),
        (words, ("--text", "dog", "--neurons", 3, "--threshold", "0.7"), {"texts": ["dog"], "neurons": 3, "threshold": 0.7}),
        (pairs, ("--text", "cat", "--top-pairs", 5, "--sink", "on"), {"texts": "cat", "top_pairs": 5, "sink": "on"}),
        (pairs, ("--text", "cat", "--method", "maskclip"), {"texts": "cat", "method": "maskclip"}),
    ]
    for bundle, options, arguments in cases:
        segments = ct.segment(suite.images, bundle=ct.read(bundle), **COMMON | arguments)
        assert list(segments.records()) == parsed(output(suite.images, *options, "--bundle", bundle, "-f", "jsonl"))
    one = ct.segment(suite.images, "dog", bundle=ct.read(words), **COMMON)[1]
    (listed,) = ct.segment(sorted(suite.images.iterdir())[1], ["dog"], bundle=ct.read(words), **COMMON)
    assert isinstance(one, HeatMaps) and isinstance(listed, HeatMaps)
    assert one.heat_map.shape == one.mask.shape == one.picture.size[::-1] and listed.mask.shape == (1, *one.mask.shape)
    assert one.heat_map.min() == 0 and one.heat_map.max() == 1
    assert np.array_equal(one.mask, one.heat_map >= 0.5) and np.array_equal(one.label_map, one.mask.astype(int))


@pytest.mark.parametrize("method", ["pairs", "heads", "neurons", "maskclip", "qqkk", "values"])
def test_label_maps_are_those_of_the_command(suite: Suite, method: str, tmp_path: Path) -> None:
    bundle = suite.bundle("pooled-words")
    segments = ct.segment(suite.images, classes=suite.classes, bundle=ct.read(bundle), method=method, background=0.3, **LABELS)
    words = (suite.images, "--classes", suite.classes, "--size", 96, "--method", method, "--background", "0.3")
    out = tmp_path / "out"
    records = parsed(output(*words, "--bundle", bundle, "--out-dir", out, "-f", "jsonl"))
    tensors = load(output(*words, "--bundle", bundle, "-f", "safetensors"))
    items = list(segments)
    assert [item.name for item in items] == [record["image"] for record in records]
    for item, record in zip(items, records, strict=True):
        assert isinstance(item, LabelMap) and item.records == [
            {key: value for key, value in record.items() if key not in ("label_map", "overlay")}
        ]
        with Image.open(out / record["label_map"]) as drawn, Image.open(out / record["overlay"]) as overlay:
            assert np.array_equal(np.asarray(drawn), item.label_map)
            assert np.array_equal(np.asarray(overlay), np.asarray(item.overlay()))
        assert np.array_equal(item.logits(), tensors[item.name])
        masks = [item.mask(name) for name in item.classes]
        assert np.array_equal(sum(masks), np.ones_like(item.label_map)) and np.array_equal(masks[0], item.label_map == 0)
    names = ["cat", "dog, puppy", "pizza", "sky"]  # those of the file
    listed = ct.segment(suite.images, classes=names, bundle=ct.read(bundle), method=method, background=0.3, **LABELS)
    assert all(np.array_equal(a.label_map, b.label_map) for a, b in zip(items, listed, strict=True))
    assert listed.settings["classes"] == segments.settings["classes"] | {"name": "a list of names"}


def test_pictures_are_those_of_the_command(suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, out = suite.bundle("second-words"), tmp_path / "out"
    words = (suite.images, "--text", "cat", "--text", "dog", "--bundle", bundle)
    records = parsed(output(*words, "--out-dir", out, "-f", "jsonl"))
    item = ct.segment(suite.images, TEXTS, bundle=ct.read(bundle), **COMMON)[0]
    assert isinstance(item, HeatMaps)
    item.save(tmp_path / "cat.png")
    item.save(tmp_path / "dog.png", "dog")
    for name, record in zip(TEXTS, records, strict=False):
        assert (tmp_path / f"{name}.png").read_bytes() == (out / record["overlay"]).read_bytes()
    with Image.open(out / records[0]["label_map"]) as labels:
        assert np.array_equal(np.asarray(labels), item.label_map)
    with pytest.raises(UsageError, match="text='cow': expected one of 'cat', 'dog'"):
        item.overlay("cow")
    shown: list[str | None] = []
    monkeypatch.setattr(Image.Image, "show", lambda self, title=None: shown.append(title))
    item.show()
    assert shown == [item.name]
    table = output(*words, "-f", "table").decode().splitlines()
    segments = ct.segment(suite.images, TEXTS, bundle=ct.read(bundle), **COMMON)
    assert [line.rstrip() for line in segments.table().splitlines()] == [line.rstrip() for line in table]
    assert [line.split() for line in item.table().splitlines()] == [line.split() for line in table[:3]]
    assert len(segments.to_frame()) == len(records)


def test_images_of_every_kind(suite: Suite) -> None:
    bundle = ct.read(suite.bundle("second-words"))
    first = list(ct.segment(suite.images, "cat", bundle=bundle, **COMMON))
    images = pictures(suite)
    kinds: list[Any] = [
        sorted(suite.images.iterdir()),
        open_images([str(suite.images)]),
        images,
        (picture for picture in images),
        np.stack([np.asarray(picture) for picture in images]),
    ]
    for kind in kinds:
        items = list(ct.segment(kind, "cat", bundle=bundle, **COMMON))
        assert all(np.array_equal(a.maps, b.maps) for a, b in zip(items, first, strict=True) if isinstance(a, HeatMaps))
    assert items[0].name == "image-000000"


def test_an_image_by_its_name(suite: Suite, tmp_path: Path) -> None:
    """Only this image is read; without images they are the scenes that were rendered for the bundle."""
    bundle = ct.read(suite.bundle("second-words"))
    pictures(suite)[0].save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    segments = ct.segment(tmp_path, "cat", bundle=bundle, **COMMON)
    assert segments["a.png"].name == "a.png"
    with pytest.raises(ImageError, match=r"b\.png: "):
        segments["b.png"]
    with pytest.raises(KeyError, match=r"no image has the name 'c\.png'; the first one is 'a\.png'"):
        segments["c.png"]
    model = ct.load_model("emoji-vit2", device="cpu")
    own = ct.effects(limit=3, layers=[6], seed=2, model=model)
    rendered = ct.segment(None, "a rock", bundle=own, model=model, method="rollout")
    assert [item.name for item in rendered] == ["scene-000000", "scene-000001", "scene-000002"]
    assert np.allclose(rendered["scene-000001"].records[0]["lowest"], rendered[1].records[0]["lowest"], rtol=1e-4)
    with pytest.raises(UsageError, match="where are the images of this bundle"):
        ct.segment(None, "cat", bundle=bundle, **COMMON)
    with pytest.raises(UsageError, match="images=None: expected images"):
        ct.segment(None, "cat", model=model, method="rollout")


def test_a_model_without_a_bundle(suite: Suite) -> None:
    """A baseline needs no units; its maps are those with a bundle of the model, whether it is named, loaded or the bundle's."""
    bundle, model = ct.read(suite.bundle("second-words")), ct.load_model(suite.vit, device="cpu")
    maps = [
        [item.maps for item in ct.segment(suite.images, "cat", method="rollout", **COMMON | arguments)]
        for arguments in ({"bundle": bundle}, {"bundle": bundle, "model": model}, {"model": model}, {"model": suite.vit})
    ]
    assert all(np.array_equal(a, b) for others in maps[1:] for a, b in zip(maps[0], others, strict=True))
    alone = ct.segment(suite.images, "cat", method="rollout", model=model, **COMMON)
    assert "bundle" not in alone.settings and alone.settings["model"]["sha256"] == model.sha256
    with pytest.raises(UsageError, match="bundle=None: the method neurons needs a bundle"):
        ct.segment(suite.images, "cat", model=model)
    resnet = ct.load_model(suite.resnet, device="cpu")
    with pytest.raises(UsageError, match="bundle=None: the method pairs needs a bundle"):
        ct.segment(suite.images, classes=suite.classes, model=resnet)
    with pytest.raises(ModelError, match="is not the bundle's"):
        ct.segment(suite.images, "cat", bundle=bundle, model=resnet)
    with pytest.raises(UsageError, match="bundle=None, model=None"):
        ct.segment(suite.images, "cat")


def test_misuse(suite: Suite) -> None:
    words, pairs = ct.read(suite.bundle("second-words")), ct.read(suite.bundle("pooled-words"))
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "nothing to look for: give --text, or --classes"),
        ({"texts": " "}, "--text: the text is empty"),
        ({"texts": ["a", "a"]}, "--text: the same text is given twice"),
        ({"texts": list(map(str, range(256)))}, "--text: 256 texts, expected at most 255"),
        ({"texts": "a", "classes": ["b", "c"]}, "--text and --classes both"),
        ({"texts": "a", "method": "magic"}, "method='magic': expected one of neurons"),
        ({"texts": "a", "method": "pairs"}, "--method pairs: the bundle's model is a CLIP-ViT"),
        ({"texts": "a", "sink": "yes"}, "sink='yes'"),
        ({"texts": "a", "center": "mean"}, "center='mean'"),
        ({"texts": "a", "size": 8}, "size=8: expected a number from 16 to 8192"),
        ({"texts": "a", "crop": 8}, "crop=8: expected a number from 32"),
        ({"texts": "a", "stride": 0}, "stride=0: expected a number at least 1"),
        ({"texts": "a", "neurons": 0}, "neurons=0"),
        ({"texts": "a", "batch_size": 0}, "batch_size=0"),
        ({"texts": "a", "threshold": 2}, "--threshold 2: expected a number"),
        ({"texts": "a", "background": 0.5}, "--background is for label maps"),
        ({"texts": "a", "templates": ["none at all"]}, "none at all"),
        ({"texts": "a", "top_pairs": 3}, "--top-pairs is for CLIP-ResNets"),
        ({"classes": ["a", "b"], "bundle": pairs, "threshold": 0.4}, "--threshold is for heat maps"),
        ({"classes": ["a", "b"], "bundle": pairs, "background": "mouse"}, "--background mouse: expected one of the classes"),
        ({"texts": "a", "images": torch.zeros(1, 3, 24, 24)}, "images: maps need pictures"),
        ({"texts": "a", "images": []}, "images: an empty list"),
    ]
    for arguments, message in cases:
        with pytest.raises(CliptoolsError, match=message):
            ct.segment(**{"images": suite.images, "bundle": words} | arguments)  # type: ignore[arg-type]


def test_a_class_that_is_none(suite: Suite) -> None:
    pairs = ct.read(suite.bundle("pooled-words"))
    item = ct.segment(suite.images, classes=suite.classes, bundle=pairs, **LABELS)[-1]
    assert isinstance(item, LabelMap)
    with pytest.raises(UsageError, match="name='cow': expected the background or one of the 4 classes"):
        item.mask("cow")


def own_messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the messages that the front has logged."""
    return [record.message for record in caplog.records if record.name == "cliptools"]


def test_unreadable_images_and_messages(
    suite: Suite, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """An image is read only when its batch is due; messages between images are the caller's own."""
    bundle, images = ct.read(suite.bundle("second-words")), pictures(suite)
    (tmp_path / "a.png").write_bytes(b"no picture")
    for number, picture in enumerate(images):
        picture.save(tmp_path / f"b{number}.png")
    segments = ct.segment(tmp_path, "cat", bundle=bundle, **COMMON | {"batch_size": 2})
    with caplog.at_level(logging.INFO, "cliptools"):
        steps = iter(segments)
        assert not own_messages(caplog) and next(steps).name == "b0.png"
        assert [message.split(",")[0] for message in own_messages(caplog)] == ["a.png: skipped"]
        console.warn("the caller's own")
        (tmp_path / "b5.png").write_bytes(b"cut")
        assert [item.name for item in steps] == ["b1.png", "b2.png", "b3.png", "b4.png"]
    assert "b5.png: skipped" in caplog.text and "the caller's own" not in caplog.text
    assert capfd.readouterr() == ("", "warning: the caller's own\n")
    with pytest.raises(IndexError, match="image 5: there are fewer images"):
        segments[5]
    assert segments[-1].name == "b4.png"
    with pytest.raises(ImageError, match=r"a\.png: "):
        list(ct.segment(tmp_path, "cat", bundle=bundle, strict=True, **COMMON))
    with pytest.raises(CliptoolsError, match="not one image could be read"):
        list(ct.segment(tmp_path / "a.png", "cat", bundle=bundle, **COMMON))
    list(ct.segment(tmp_path, "cat", bundle=bundle, progress=True, **COMMON))
    assert "clip-segment: 5 images, 2 skipped" in capfd.readouterr().err.splitlines()[-1]
    json.dumps(segments.settings)
