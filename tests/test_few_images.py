"""Directions from few images, or from a T that is a large share of them, have the sign of those from many images."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from helpers.advgen_input import inside
from helpers.bundle import read
from helpers.statistics import batches_of
from PIL import Image

from cliptools.emoji.render import SceneSource
from cliptools.models.load import load_model
from cliptools.streaming.measure import measure
from cliptools.streaming.summary import Effects, Settings
from cliptools.unit_effects.factored import FactoredEffect, UnitBlock, gram_of
from cliptools.unit_effects.select import factored_effect

SCENES, SEED = 600, 11
LAYER = {"emoji-vit2": 5, "emoji-rn2": 4}
EQUAL = 0.98  # of the units of more than median strength that act on one of the few images
ACTS = 0.25  # of the mean of a unit's largest norms
ALIKE = 0.3  # the least share of the strongest top image's norm that the weakest has, where top images are alike


class Remembered:
    """Factored effects of images that were already read: an image is its number, and no study reads it twice."""

    def __init__(self, paths: FactoredEffect, layer: int, image: Iterator[torch.Tensor]) -> None:
        self.paths, self.whole = paths, UnitBlock(layer, torch.arange(paths.size(layer)[0]))
        read = [paths.read(part, [self.whole]) for part in image]
        self.S, self.embedding = torch.cat([next(iter(S)) for S, _ in read]), torch.cat([embedding for _, embedding in read])

    def read(self, image: torch.Tensor, slabs: Sequence[UnitBlock]) -> tuple[list[torch.Tensor], torch.Tensor]:
        return [self.S[image][:, slab.neurons] for slab in slabs], self.embedding[image]

    def size(self, layer: int) -> tuple[int, int]:
        return self.paths.size(layer)

    def units(self, layer: int) -> torch.Tensor:
        return self.paths.units(layer)

    def directions(self, slab: UnitBlock) -> torch.Tensor:
        return self.paths.directions(slab)

    def gram(self, slab: UnitBlock) -> torch.Tensor:
        return gram_of(self.paths, slab)


class Study(NamedTuple):
    """An embedded model on some scenes."""

    paths: Remembered
    layer: int

    def centred(self, units: torch.Tensor) -> torch.Tensor:
        """Return phi - b of units [n, image, d]."""
        S = self.paths.S[:, units].double()  # (image, n, k)
        return (S - S.mean(0)).transpose(0, 1) @ self.paths.directions(UnitBlock(self.layer, units)).double()

    def effects(self, count: int, top: int | None, compact: bool = False) -> Effects:
        """Return the effects on the first scenes."""
        order, settings = torch.arange(count), Settings(top=top, scale=False, compact=compact)
        return measure(self.paths, batches_of(order, order, 64), [self.layer], count, settings).effects


@pytest.fixture(scope="module")
def scenes() -> list[Image.Image]:
    source = SceneSource(SCENES, SEED)
    return [source.load(i) for i in range(SCENES)]


@pytest.fixture(scope="module", params=LAYER)
def study(request: pytest.FixtureRequest, scenes: list[Image.Image]) -> Study:
    model, layer = load_model(request.param, device="cpu"), LAYER[request.param]
    effect, units = ("pooled", "pairs") if request.param == "emoji-rn2" else ("second", "neurons")
    batches = (torch.stack([model.transform(scene) for scene in scenes[i : i + 60]]) for i in range(0, SCENES, 60))
    return Study(Remembered(factored_effect(model.clip, effect, units), layer, batches), layer)


def test_signs_are_those_of_many_images(study: Study) -> None:
    compact = study.paths.size(study.layer)[1] == 1
    whole = study.effects(SCENES, None, compact)
    strength = whole.top_norm.mean(1)
    strong, parts = strength > strength.median(), torch.arange(len(strength)).split(128)
    norm = torch.cat([study.centred(units).norm(dim=2) for units in parts])  # (n, image)
    for count in (60, 150, 300):
        acting = strong & (norm[:, :count].amax(1) > ACTS * strength.to(norm))
        assert acting.sum() > 0.7 * strong.sum()
        for top in (None, count // 2, count):
            some = study.effects(count, top, compact).component[:, 0]
            equal = ((some * whole.component[:, 0]).sum(1) > 0)[acting]
            assert equal.double().mean() >= EQUAL, (count, top, float(equal.double().mean()))


def test_at_two_percent_the_sign_is_that_of_the_majority(study: Study) -> None:
    """The paper's rule, for the same top images, where these are alike; else the sign may also be that of the strongest.

    A sparse neuron acts strongly on some scenes; on more of them GELU gives it small negative values, which have the majority.
    """
    n, _ = study.paths.size(study.layer)
    phi = study.centred(torch.arange(0, n, max(1, n // 300)))
    top = phi.norm(dim=2).topk(round(0.02 * SCENES), dim=1).indices
    rows = phi.gather(1, top[..., None].expand(-1, -1, phi.shape[2]))  # (n, T, d)
    r = torch.linalg.svd(rows, full_matrices=False).Vh[:, 0]
    projection = (rows @ r[..., None])[..., 0]
    majority = (projection > 0).sum(1) - (projection < 0).sum(1)
    sign, size = (projection**3).sum(1).sign(), rows.norm(dim=2)
    agree, strongest = majority.sign() == sign, projection[:, 0].sign() == sign
    alike = (size[:, -1] > ALIKE * size[:, 0]) & (majority != 0)
    assert alike.sum() >= 20 and agree[alike].double().mean() >= 0.95
    assert (agree | strongest)[majority != 0].double().mean() >= 0.99


def test_the_header_says_t_and_where_it_comes_from(tiny_clip_dir: Path) -> None:
    asked = ("--model", f"local-dir:{tiny_clip_dir}", "--layers", "2")
    photos = _photos(tiny_clip_dir.parent / "few", 14)
    default, given = inside("effects", photos, *asked), inside("effects", photos, *asked, "--top-images", 3, "-q")
    settings = read(default.stdout).header.settings
    assert settings["top_images"] == 10 and settings["top_share"] == 0.02
    assert read(default.stdout)["top_norm"].shape[1] == 10
    assert "top_images" not in read(default.stdout).header.history[0]["arguments"]
    assert read(given.stdout).header.settings["top_images"] == 3 and "top_share" not in read(given.stdout).header.settings
    assert b"14 images are few" in default.stderr and b"more than a tenth" not in default.stderr
    assert b"--top-images 3 is more than a tenth of 14 images" in given.stderr and b"few" not in given.stderr
    whole = inside("effects", photos, *asked, "--top-images", 14, "-q")
    assert b"all 14 images are top images" in whole.stderr and b"`explained_all`" in whole.stderr
    assert np.allclose(read(whole.stdout)["explained"], read(whole.stdout)["explained_all"], atol=1e-5)
    assert inside("effects", photos, *asked, "--top-images", 1, "-q").stderr == b""


def test_a_merge_cuts_by_the_images_that_were_read(tiny_clip_dir: Path, tmp_path: Path) -> None:
    """Shards keep the T of their list; with unreadable images the final T is that of one run."""
    photos = _photos(tmp_path / "photos", 11)
    for i in (3, 8):
        (photos / f"{i:02d}.png").write_bytes(b"damaged")
    asked = ("--model", f"local-dir:{tiny_clip_dir}", "--layers", "2", "-q")
    for i in (1, 2):
        inside("effects", photos, *asked, "--shard", f"{i}/2", "-o", tmp_path / f"{i}.safetensors")
    merged = inside("merge", tmp_path / "1.safetensors", tmp_path / "2.safetensors", "--images", photos)
    assert merged.returncode == 0, merged.stderr.decode()
    bundle, one = read(merged.stdout), read(inside("effects", photos, *asked).stdout)
    assert bundle["top_norm"].shape == one["top_norm"].shape and bundle["top_norm"].shape[1] == 8
    assert bundle.header.settings == one.header.settings and bundle.header.settings["top_images"] == 8
    assert b"9 images are few" in merged.stderr
    np.testing.assert_array_equal(bundle["top_image"], one["top_image"])


def test_thresholds_that_are_bounded_say_so(tiny_clip_dir: Path, tmp_path: Path) -> None:
    """For ranks beyond the kept images the bound is in the bundle, in records, and in the summary."""
    photos = _photos(tmp_path / "photos", 420)
    asked = ("--model", f"local-dir:{tiny_clip_dir}", "--layers", "0-2", "--quantile", 0.4)
    exact = read(inside("effects", photos, *asked, "--top-images", 200).stdout)
    ended = inside("effects", photos, *asked, "--top-images", 5, "--memory", 0.01)  # too little for lists of all images
    assert ended.returncode == 0, ended.stderr.decode()
    bundle = read(ended.stdout)
    bound = bundle["threshold_bound"]
    assert (bound > 0).all() and b"thresholds within" in ended.stderr
    assert (exact["threshold_bound"] == 0).all()
    assert (np.abs(bundle["threshold"] - exact["threshold"]) <= bound).all()
    assert np.median(bound / exact["threshold"]) < 0.2  # of few images, about the mean of the first 256
    record = json.loads(inside("view", "-f", "jsonl", stdin=ended.stdout).stdout.splitlines()[0])
    assert record["threshold_bound"] == pytest.approx(float(bound[0]), rel=1e-3)


def _photos(folder: Path, count: int) -> Path:
    random = np.random.default_rng(6)
    folder.mkdir(exist_ok=True)
    for i in range(count):
        Image.fromarray(random.integers(0, 256, (24, 24, 3)).astype(np.uint8)).save(folder / f"{i:02d}.png")
    return folder
