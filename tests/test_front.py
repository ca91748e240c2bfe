"""The Python front: each function gives what its command gives, images of every kind give the same, and nothing else changes."""

import logging
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ROOT
from helpers.tiny_suite import Suite
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

import cliptools as ct
from cliptools import console
from cliptools.arguments import chosen_layers, chosen_templates, require_number
from cliptools.errors import CliptoolsError, UsageError
from cliptools.front.bundles import UnitBundle
from cliptools.images.loader import open_images
from cliptools.io.bundle import Bundle

SETTINGS: dict[str, Any] = {"layers": [1, 2], "top_images": 3, "quantile": 0.5, "batch_size": 4, "workers": 0, "device": "cpu"}
MEASURED: dict[str, dict[str, Any]] = {
    "second": {},
    "first": {"effect": "first"},
    "indirect": {"effect": "indirect", "sample_neurons": 4},
    "heads": {"units": "heads"},
    "components": {"components": 2, "keep": 0.5, "thumbnails": 16},
    "passes": {"memory": 0.01},
    "pooled": {"keep": 0.5, "layers": None},
    "raw": {"units": "neurons", "scale": "raw", "layers": None},
}
"""Arguments that say the same as the command lines of Suite.measured."""


def measured(suite: Suite, images: Any, **arguments: Any) -> UnitBundle:
    """Return the effects of the tiny ViT."""
    return ct.effects(images, model=suite.vit, **SETTINGS | arguments)


def pictures(suite: Suite) -> list[Image.Image]:
    """Return the scenes of the suite, in the order of their names."""
    source = open_images([str(suite.images)])
    return [source.load(index) for index in range(len(source))]


def prepared(suite: Suite) -> torch.Tensor:
    """Return the scenes of the suite, preprocessed."""
    transform = ct.load_model(suite.vit, device="cpu").transform
    return torch.stack([transform(picture) for picture in pictures(suite)])


def without_history(bundle: Bundle) -> bytes:
    return replace(bundle, header=replace(bundle.header, history=[])).to_bytes()


@pytest.mark.parametrize("name", MEASURED)
def test_effects_are_those_of_the_command(suite: Suite, name: str) -> None:
    model = suite.resnet if name in ("pooled", "raw") else suite.vit
    bundle = ct.effects(suite.images, model=model, **SETTINGS | MEASURED[name])
    command = ct.read(suite.bundle(name))
    assert without_history(bundle) == without_history(command)
    (step,) = bundle.header.history
    assert step["command"] == "cliptools.effects"
    recorded = step["arguments"]
    assert recorded["seed"] == 0 and recorded["layers"] == bundle.header.settings["layers"] and recorded["model"] == model
    for argument, value in command.header.history[0]["arguments"].items():
        if argument != "keep":  # a percentage in the command's
            assert recorded[argument] == value, argument


def test_scenes_of_an_embedded_model() -> None:
    arguments: dict[str, Any] = {"limit": 12, "layers": [6], "device": "cpu"}
    bundle = ct.effects(**arguments)
    model = ct.load_model("emoji-vit2", device="cpu")
    assert bundle.header.images["count"] == 12 and bundle.text_list("images")[0].startswith("scene-")
    assert ct.effects(model=model, **arguments).to_bytes() == bundle.to_bytes()
    assert model.clip.transformer is not None, "the text tower of a model that was given stays"


KINDS: dict[str, Callable[[Suite], Any]] = {
    "folder as text": lambda suite: str(suite.images),
    "list of paths": lambda suite: sorted(suite.images.iterdir()),
    "generator of paths": lambda suite: (path for path in sorted(suite.images.iterdir())),
    "source": lambda suite: open_images([str(suite.images)]),
    "pictures": pictures,
    "opened files": lambda suite: [Image.open(path) for path in sorted(suite.images.iterdir())],
    "arrays": lambda suite: [np.asarray(picture) for picture in pictures(suite)],
    "stack of arrays": lambda suite: np.stack([np.asarray(picture) for picture in pictures(suite)]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_every_kind_give_the_same(suite: Suite, kind: str) -> None:
    bundle, command = measured(suite, KINDS[kind](suite)), ct.read(suite.bundle("second"))
    for name, tensor in command.tensors.items():
        if name != "images":
            assert np.array_equal(tensor, bundle[name]), name
    if "path" in kind or kind in ("folder as text", "source"):
        assert bundle.header.images == command.header.images
    else:
        assert bundle.text_list("images")[0] == "image-000000"


class Batches:
    """An iterable of mappings, which is neither a list nor an iterator."""

    def __init__(self, pixels: torch.Tensor) -> None:
        self.pixels = pixels

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for start in range(0, len(self.pixels), 4):
            yield {"pixel_values": self.pixels[start : start + 4], "labels": torch.zeros(4)}


BATCHES: dict[str, Callable[[torch.Tensor], Any]] = {
    "tensor": lambda pixels: pixels,
    "list": lambda pixels: [pixels[:1], pixels[1:]],
    "generator": lambda pixels: (pixels[i : i + 2] for i in range(0, len(pixels), 2)),
    "labels": lambda pixels: [(pixels[:4], torch.zeros(4)), [pixels[4:], "b"]],
    "mappings": Batches,
    "loader": lambda pixels: DataLoader(TensorDataset(pixels, torch.arange(len(pixels))), batch_size=4),
    "sampler": lambda pixels: DataLoader(TensorDataset(pixels), batch_size=4, sampler=list(range(len(pixels)))),
}


@pytest.mark.parametrize("kind", BATCHES)
@pytest.mark.parametrize("memory", [4.0, 0.01])
def test_batches_give_the_same(suite: Suite, kind: str, memory: float) -> None:
    """Images are added in another order, so that sums differ in their last digits."""
    bundle = measured(suite, BATCHES[kind](prepared(suite)), memory=memory)
    command = ct.read(suite.bundle("second"))
    assert bundle.header.settings == command.header.settings and bundle.header.images["count"] == 6
    for name, tensor in command.tensors.items():
        if name == "top_image":
            assert np.array_equal(tensor, bundle[name])
        elif name != "images":
            assert np.allclose(tensor, bundle[name], atol=1e-3 if name == "direction" else 1e-5), name  # of 3 images each


def test_parts_of_batches(suite: Suite) -> None:
    """The first images, and a sample, are those of the same list of pictures."""
    for part in ({"limit": 4}, {"sample": 4, "seed": 1}):
        some, others = (measured(suite, images, **part) for images in (prepared(suite), pictures(suite)))
        assert some.text_list("images") == others.text_list("images")
        assert np.allclose(some["top_norm"], others["top_norm"], atol=1e-5)


class Drifting:
    """Batches that differ in every pass."""

    def __init__(self, pixels: torch.Tensor, more: int = 0) -> None:
        self.pixels, self.more, self.passes = pixels, more, 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        self.passes += 1
        yield self.pixels + (0 if self.more else self.passes)
        for _ in range(self.more * (self.passes - 1)):
            yield self.pixels


def test_misuse_of_images(suite: Suite) -> None:
    pixels, grey = prepared(suite), np.zeros((4, 4), np.uint8)
    loader: DataLoader[Any] = DataLoader(TensorDataset(pixels), shuffle=True)
    cases: list[tuple[Any, dict[str, Any], str]] = [
        ([], {}, "an empty list"),
        (3, {}, "expected paths, pictures, arrays or batches, found int"),
        ([suite.images, grey], {}, "item 0 is of type PosixPath, item 1 of type ndarray"),
        ([grey], {}, r"array 0 is uint8 \[4, 4\], expected a picture uint8 \[y, x, 3\]"),
        (np.zeros((3, 8, 8), np.float32), {}, r"array 0 is float32 \[3, 8, 8\]"),
        (loader, {}, "use shuffle=False"),
        ([pixels[0]], {}, r"batch 0 has a tensor torch.float32 \[3, 24, 24\]; expected floats \[b, 3, y, x\]"),
        ([pixels, (pixels * 255).byte()], {}, "batch 1 has a tensor torch.uint8"),
        ([pixels, {"labels": 3}], {}, "batch 1 is of type dict without a tensor"),
        ([pixels[:0]], {}, "no batch has an image"),
        (pixels[..., :16], {}, r"pictures of \[24, 16\] pixels; the model reads \[24, 24\]"),
        (Drifting(pixels), {}, "batch 0 differs from that of an earlier pass"),
        (Drifting(pixels, more=1), {}, "more than 6 images in this pass"),
        (pixels, {"thumbnails": 32}, "thumbnails need pictures"),
        (None, {}, "needs a PATH"),
        (suite.images, {"effect": "third"}, "effect='third': expected one of second, first, indirect, pooled"),
        (suite.images, {"quantile": 1.0}, "quantile=1.0: expected a number between 0 and 1"),
        (suite.images, {"keep": 20.0}, "keep=20.0: expected a number from"),
        (suite.images, {"batch_size": 0}, "batch_size=0: expected a number at least 1"),
        (suite.images, {"sample_neurons": 3}, "--effect indirect only"),
    ]
    for images, arguments, message in cases:
        with pytest.raises(CliptoolsError, match=message):
            measured(suite, images, **arguments)
    with pytest.raises(UsageError, match="pretrained belongs to the name of a model"):
        ct.effects(suite.images, model=ct.load_model(suite.vit, device="cpu"), pretrained="openai")
    with pytest.raises(CliptoolsError, match="only its preprocessed numbers"):
        open_any_first(pixels)


def open_any_first(images: Any) -> Image.Image:
    from cliptools.front.images import open_any

    return open_any(images).load(0)


def test_damaged_pictures_in_memory_are_skipped(suite: Suite, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The file is cut off after it was opened; the long picture cannot be resized."""
    path = tmp_path / "cut.png"
    pictures(suite)[0].save(path)
    path.write_bytes(path.read_bytes()[:200])
    with Image.open(path) as cut, caplog.at_level(logging.INFO, "cliptools"):
        bundle = measured(suite, [*pictures(suite), cut, Image.new("RGB", (900, 1))])
    assert bundle.header.images["skipped"] == 2 and bundle.header.images["count"] == 6
    messages = [record.message for record in caplog.records if record.name == "cliptools" and record.levelno == logging.WARNING]
    text = "\n".join(messages)
    assert "image-000006: skipped, damaged" in text and "image-000007: skipped, 900 × 1 pixels is too elongated" in text
    assert len(messages) == 3, "and one about the number of images"


def test_nothing_is_printed_and_no_state_changes(suite: Suite, capfd: pytest.CaptureFixture[str]) -> None:
    before, threads = vars(console._run).copy(), torch.get_num_threads()
    environment = torch.get_default_dtype(), torch.is_grad_enabled(), torch.random.get_rng_state().clone()
    measured(suite, suite.images)
    assert capfd.readouterr() == ("", "")
    measured(suite, suite.images, progress=True)
    out, err = capfd.readouterr()
    assert out == "" and "6 images are few" in err and "clip-effects: 6 images" in err.splitlines()[-1]
    assert vars(console._run) == before and torch.get_num_threads() == threads
    assert (torch.get_default_dtype(), torch.is_grad_enabled()) == environment[:2]
    assert torch.equal(torch.random.get_rng_state(), environment[2])


def test_a_bundle_is_saved_read_and_shown(suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = measured(suite, suite.images)
    bundle.save(tmp_path / "b.safetensors")
    assert (tmp_path / "b.safetensors").read_bytes() == bundle.to_bytes() == ct.read(tmp_path / "b.safetensors").to_bytes()
    assert isinstance(bundle.select(np.arange(2)), UnitBundle)
    table = bundle.table(rows=3)
    assert table.splitlines()[0].split()[:3] == ["unit", "strength", "explained"] and len(table.splitlines()) == 4
    records = bundle.records()
    assert len(records) == bundle.units and records[0]["layer"] == 1
    with pytest.raises(CliptoolsError, match="No such file"):
        ct.read(tmp_path / "none.safetensors")
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(CliptoolsError, match="needs pandas, which is not installed"):
        bundle.to_frame()
    monkeypatch.setitem(sys.modules, "pandas", types.SimpleNamespace(DataFrame=lambda rows: ("frame", rows)))
    assert bundle.to_frame() == ("frame", records)
    monkeypatch.undo()
    frame = bundle.to_frame()
    assert len(frame) == bundle.units and list(frame.columns) == list(records[0])
    assert frame["neuron"].tolist() == bundle["unit"][:, 1].tolist()
    assert frame["threshold"].max() == max(record["threshold"] for record in records)


def test_the_package_is_light_and_names_the_front() -> None:
    code = (
        "import sys, cliptools as ct; assert not {'torch', 'numpy', 'rich', 'click'} & set(sys.modules); "
        "assert set(ct.__all__) <= set(dir(ct)); import cliptools.unit_effects.factored; "
        "from cliptools.unit_effects import select; assert ct.effects is ct.front.effects.effects; "
        "assert all(callable(getattr(ct, name)) for name in ct.__all__); "
        "assert not hasattr(ct, 'no_such_name')"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("layers", [[], [-1], 6, "6", [1.0], [True]])
def test_layers_that_are_none(layers: Any) -> None:
    with pytest.raises(UsageError, match=r"layers=.*: expected whole numbers from 0"):
        chosen_layers(layers)


def test_layers_and_templates_as_given() -> None:
    assert chosen_layers(None) is None and chosen_layers(np.array([2, 1, 2])) == (1, 2)
    assert chosen_templates("a photo of {}") == chosen_templates(["a photo of {}"]) == ("a photo of {}",)


@pytest.mark.parametrize(
    ("value", "least", "message"), [(2.0, 1, "a whole number"), (True, 1, "a whole number"), ("3", 0.5, "a number")]
)
def test_numbers_of_another_type(value: Any, least: float, message: str) -> None:
    with pytest.raises(UsageError, match=f"n={value!r}: expected {message}"):
        require_number("n", value, least)
    require_number("n", np.int64(3), 1)
    require_number("n", 3, 0.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda b, p: ct.load_model(None), "name=None: expected a text$"),
        (lambda b, p: ct.load_model("emoji-vit2", precision="float32"), "precision='float32': expected one of fp32, bf16, fp16$"),
        (lambda b, p: ct.read(3), "path=3: expected a text or a path$"),
        (lambda b, p: ct.effects(p, model=torch.nn.ReLU()), r"model=ReLU\(\): expected a text or what load_model returns$"),
        (lambda b, p: ct.top(b, 3.5), "expected paths, pictures, arrays or batches, found float"),
        (lambda b, p: ct.decompose(b, "emoji", prefix=2), "prefix=2: expected a list$"),
        (lambda b, p: ct.decompose(b, "emoji", m=True), "m=True: expected a whole number$"),
        (lambda b, p: ct.top(b, p, units=["6:3"]), r"units=\['6:3'\]: expected a text or None$"),
        (lambda b, p: ct.top("a.safetensors", p), "bundle='a.safetensors': expected a bundle$"),
        (lambda b, p: ct.ablate(b, p, labels=[0], layers=6), "layers=6: expected a list$"),
        (lambda b, p: ct.ablate(b, p, labels=[0], keep="5%"), "keep='5%': expected a number or a list$"),
        (lambda b, p: ct.ablate("a.safetensors", p), "bundles='a.safetensors': expected a bundle or a list, each a bundle$"),
        (lambda b, p: ct.ablate([b, "a"], p), "expected a bundle or a list, each a bundle$"),
        (lambda b, p: ct.ablate(b, p, train_sizes=[1, 2]), r"train_sizes=\[1, 2\]: expected a text or a dictionary or None$"),
        (lambda b, p: ct.ablate(b, p, against=3), "against=3: expected a text or a path or None$"),
        (lambda b, p: ct.concepts(b, p, truth=["a"]), r"truth=\['a'\]: expected a text or a path or a dictionary or None$"),
        (lambda b, p: ct.explain(b, p, ["cat"], "dog"), r"a=\['cat'\]: expected a text or None$"),
        (lambda b, p: ct.spurious(b, ["cat"], ["dog"]), r"depict=\['cat'\]: expected a text or None$"),
        (lambda b, p: ct.mismatch(b, 5), "cue=5: expected a text or a list$"),
        (lambda b, p: ct.edit(["5:68"]), r"units=\['5:68'\]: expected a bundle or a list, each a dictionary$"),
        (lambda b, p: ct.edit({"layer": 5, "neuron": 68}), "expected a bundle or a list, each a dictionary$"),
        (lambda b, p: ct.judge(b, p, null=1, share="a"), "share='a': expected a number$"),
        (lambda b, p: ct.segment(p, "cat", threshold="most"), "threshold='most': expected a number or one of mean or None$"),
    ],
)  # fmt: skip
def test_arguments_of_another_type_are_named(suite: Suite, call: Callable[[Any, Any], Any], message: str) -> None:
    """No function ends in an error of Python's own, whatever it is given."""
    with pytest.raises(UsageError, match=message):
        call(ct.read(suite.bundle("second")), pictures(suite))


def test_pixels_that_are_no_numbers_are_named(suite: Suite) -> None:
    """The pictures are at fault, and no weights are blamed."""
    pixels = prepared(suite)
    for value in (float("nan"), float("inf")):
        spoilt = pixels.clone()
        spoilt[4, 1, 2, 3] = value
        with pytest.raises(UsageError, match="images: picture 4 holds NaN or infinity"):
            measured(suite, [spoilt[:3], spoilt[3:]])


def test_a_path_stands_for_its_text(suite: Suite, tmp_path: Path) -> None:
    """Weights and a truth by their paths are those by texts."""
    named = ct.load_model("emoji-vit2", device="cpu")
    edited = tmp_path / "edited.safetensors"
    ct.edit(ct.effects(model=named, limit=12, device="cpu"), writes="cat", head=2, device="cpu").save(edited)
    by_text, by_path = (ct.load_model("emoji-vit2", given, device="cpu") for given in (str(edited), edited))
    assert by_text.sha256 == by_path.sha256 != named.sha256 and by_path.pretrained == str(edited)
    truth = tmp_path / "truth.csv"
    bundle = ct.read(suite.bundle("second-words"))
    names = sorted(path.name for path in Path(suite.images).iterdir())
    truth.write_text("image,cat\n" + "".join(f"{name},{row % 2}\n" for row, name in enumerate(names)))
    given = {"texts": ["cat", "dog"], "same_names": True, "device": "cpu"}
    one, other = (ct.judge(bundle, suite.images, truth=path, **given).summary for path in (str(truth), truth))
    assert one == other
