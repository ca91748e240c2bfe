"""clip-effects --per-image: the activity and the norm of every unit on every image, and what is left if it fails."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.advgen_input import inside
from helpers.tiny_suite import Suite
from safetensors import safe_open
from safetensors.numpy import load_file
from torch import Tensor

import cliptools as ct
from cliptools.errors import CliptoolsError, StreamError
from cliptools.front.image_activity import write_activity
from cliptools.images.loader import open_images
from cliptools.io.bundle import Bundle
from cliptools.unit_effects.factored import Activity, UnitActivity
from cliptools.unit_effects.pairs import pair_means, unit_directions
from cliptools.unit_effects.select import factored_effect, pair_effect

SETTINGS: dict[str, Any] = {"top_images": 3, "quantile": 0.5, "batch_size": 4, "workers": 0, "device": "cpu"}
MEASURED: dict[str, dict[str, Any]] = {
    "second": {"layers": [1, 2]},
    "heads": {"units": "heads", "layers": [1, 2]},
    "raw scale": {"scale": "raw", "layers": [2]},
    "pairs": {"keep": 0.5},
    "pooled neurons": {"units": "neurons"},
    "passes": {"memory": 0.01, "layers": [1, 2]},
}
RESNET = ("pairs", "pooled neurons")


def oracle(bundle: Bundle, model: str, images: Path) -> tuple[list[str], Activity]:
    """Return the names of all images, and the numbers of all units on all of them at once."""
    source, loaded = open_images([str(images)]), ct.load_model(model, device="cpu")
    pixels = torch.stack([loaded.transform(source.load(index)) for index in range(len(source))])
    settings, unit = bundle.header.settings, torch.from_numpy(bundle["unit"]).long()
    effect = factored_effect(loaded.clip, settings["effect"], settings["units"])
    if "sign" in bundle:
        pairs = pair_effect(loaded.clip)
        r = unit_directions(pairs, unit, torch.from_numpy(bundle["sign"]))
        b = pair_means(pairs, unit, torch.from_numpy(bundle["mean_scalar"]))
    else:
        b, r = torch.from_numpy(bundle["mean"]), torch.from_numpy(bundle["direction"])
    return list(source.names), UnitActivity(effect, unit, b, r, settings["scale"] == "unit")(pixels)


def names_of(tensors: dict[str, np.ndarray]) -> list[str]:
    names: list[str] = json.loads(tensors["names"].tobytes())
    return names


@pytest.mark.parametrize("case", MEASURED)
def test_numbers_are_those_of_all_images_at_once(suite: Suite, case: str, tmp_path: Path) -> None:
    model, path = suite.resnet if case in RESNET else suite.vit, tmp_path / "activity.safetensors"
    bundle = ct.effects(suite.images, model=model, per_image=path, **SETTINGS, **MEASURED[case])
    tensors = load_file(path)
    names, expected = oracle(bundle, model, suite.images)
    order = [names.index(name) for name in names_of(tensors)]
    assert sorted(order) == list(range(len(names))) and np.array_equal(tensors["unit"], bundle["unit"])
    for name, values in (("activity", expected.along), ("norm", expected.norm)):
        assert tensors[name].dtype == np.float16 and tensors[name].shape == (len(names), bundle.units)
        np.testing.assert_allclose(tensors[name], values[order].numpy(), rtol=2e-3, atol=1e-4, err_msg=name)
    norm = tensors["norm"].astype(float)
    np.testing.assert_allclose(-np.sort(-norm, axis=0)[:3].T, bundle["top_norm"], rtol=2e-3, atol=1e-4)
    deviation = np.sqrt((tensors["activity"].astype(float) ** 2).mean(0))
    np.testing.assert_allclose(deviation, bundle["deviation"], rtol=3e-3, atol=1e-4)


def test_the_command_writes_the_same_with_its_own_history(suite: Suite, tmp_path: Path) -> None:
    path, output = tmp_path / "activity.safetensors", tmp_path / "effects.safetensors"
    ended = inside("effects", *suite.measured["second"], "--per-image", path, "-o", output)
    assert ended.returncode == 0 and b"read again for --per-image" in ended.stderr
    assert output.read_bytes() == suite.bundle("second").read_bytes(), "nothing about it is in the bundle"
    ct.effects(suite.images, model=suite.vit, per_image=tmp_path / "front.safetensors", layers=[1, 2], **SETTINGS)
    tensors, front = load_file(path), load_file(tmp_path / "front.safetensors")
    assert tensors.keys() == {"activity", "norm", "unit", "names"} == front.keys()
    assert all(np.array_equal(tensors[name], front[name]) for name in tensors)
    with safe_open(path, framework="numpy") as file:
        header = json.loads(file.metadata()["cliptools"])
    bundle = ct.read(output)
    assert header["kind"] == "activity" and header["history"] == bundle.header.history
    assert (header["model"], header["images"], header["settings"]) == (
        bundle.header.model,
        bundle.header.images,
        bundle.header.settings,
    )
    with pytest.raises(StreamError, match="activities of clip-effects --per-image, not a bundle"):
        ct.read(path)


def test_indirect_effects(suite: Suite, tmp_path: Path) -> None:
    """Activities of phi are those along r, whose root mean square the bundle has."""
    path = tmp_path / "activity.safetensors"
    indirect = {"effect": "indirect", "sample_neurons": 3, "layers": [2]}
    bundle = ct.effects(suite.images, model=suite.vit, per_image=path, **SETTINGS, **indirect)
    tensors = load_file(path)
    deviation = np.sqrt((tensors["activity"].astype(float) ** 2).mean(0))
    np.testing.assert_allclose(deviation, bundle["deviation"], rtol=3e-3, atol=1e-4)


def test_unreadable_images_are_left_out(suite: Suite, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, image in enumerate(sorted(suite.images.iterdir())):
        (photos / image.name).write_bytes(b"no picture" if number == 1 else image.read_bytes())
    path = tmp_path / "activity.safetensors"
    bundle = ct.effects(photos, model=suite.vit, per_image=path, layers=[2], **SETTINGS)
    names = [image.name for number, image in enumerate(sorted(photos.iterdir())) if number != 1]
    tensors = load_file(path)
    assert names_of(tensors) == names and len(tensors["norm"]) == bundle.header.images["count"] == len(names)


def test_nothing_is_written_if_the_bundle_is_not(suite: Suite, tmp_path: Path) -> None:
    path = tmp_path / "activity.safetensors"
    ended = inside("effects", *suite.measured["second"], "--per-image", path, "-o", tmp_path / "nowhere" / "effects.safetensors")
    assert ended.returncode == 1 and list(tmp_path.iterdir()) == []


class Constant:
    """Activities that are all the same number."""

    def __init__(self, value: float, units: int) -> None:
        self.value, self.units = value, units

    def __call__(self, image: Tensor) -> Activity:
        numbers = torch.full((len(image), self.units), self.value)
        return Activity(numbers, numbers, numbers)


def written(bundle: Bundle, value: float, images: int, path: Path) -> None:
    activity: Any = Constant(value, bundle.units)
    batches = [([2 * number], torch.zeros(1, 3, 2, 2)) for number in range(images)]
    with path.open("wb") as stream:
        write_activity(stream, path.parent, bundle, activity, batches, np.array([0, 2, 4]), [f"{n}.png" for n in range(9)])


def test_numbers_that_do_not_fit_and_images_that_vanish(suite: Suite, tmp_path: Path) -> None:
    bundle, path = ct.read(suite.bundle("second")), tmp_path / "activity.safetensors"
    written(bundle, 65504.0, 3, path)
    assert names_of(load_file(path)) == ["0.png", "2.png", "4.png"]
    written(bundle, 1.0, 5, path)  # two that the bundle does not have
    assert load_file(path)["activity"].shape == (3, bundle.units)
    with pytest.raises(CliptoolsError, match=r"70000 for unit 1:0 on 0\.png does not fit into float16"):
        written(bundle, 70000.0, 3, path)
    with pytest.raises(CliptoolsError, match="images changed while they were read: first 3 could be read, then 2"):
        written(bundle, 1.0, 2, path)
