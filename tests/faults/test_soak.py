"""Many small images: memory stays what it was with few."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.forked import Nursery, Study
from PIL import Image

Often = Callable[[int, int], int]
DISTINCT = 2000
SIDE = 48
A_FOLDER = 100


def make_images(folder: Path, count: int) -> None:
    """JPEGs in folders of a hundred; from DISTINCT on, further names of those before."""
    draw = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"{number // A_FOLDER:04d}" / f"{number:06d}.jpg"
        if not number % A_FOLDER:
            path.parent.mkdir(parents=True)
        if number < DISTINCT:
            small = Image.fromarray(draw.integers(0, 256, (6, 6, 3)).astype(np.uint8))
            small.resize((SIDE, SIDE), Image.Resampling.BILINEAR).save(path, quality=85)
        else:
            first = number % DISTINCT
            os.link(folder / f"{first // A_FOLDER:04d}" / f"{first:06d}.jpg", path)


def peak(nursery: Nursery, folder: Path, images: int, name: str, *words: object) -> int:
    """Bytes that the command has held at most with the first images, by its own account at the end."""
    ended = nursery.run(name, *sorted(folder.iterdir())[: images // A_FOLDER], *words, "--log-json")
    assert ended.status == 0, ended.stderr.decode()
    said = json.loads(ended.lines[-1])
    assert said["event"] == "summary" and f" {images} images" in said["message"], said
    return int(said["peak_bytes"])


@pytest.mark.parametrize("name", ["effects", "concepts"])
def test_memory_does_not_grow_with_images(name: str, study: Study, nursery: Nursery, tmp_path: Path, often: Often) -> None:
    """What may grow is the list, by less than a kilobyte an image; a picture as the model takes it has 49."""
    thorough = often(0, 1) == 1
    if name == "effects" and not thorough:
        pytest.skip("only with --thorough: its buffers are full from some thousand images on")
    few, many = often(300, 10_000), often(700, 100_000)
    make_images(tmp_path / "images", many)
    bundle = study.neurons
    if not thorough:
        bundle = tmp_path / "few.safetensors"
        assert nursery.run("view", study.neurons, "--head", 10, "-o", bundle).status == 0
    steady = () if thorough else ("--batch-size", 8, "--workers", 0)  # or a batch in flight weighs too much
    words: dict[str, tuple[object, ...]] = {
        "effects": ("--layers", "6", "--top-images", 5, "-o", tmp_path / "out"),
        "concepts": ("--bundle", bundle, "-o", tmp_path / "out"),
    }
    at_few, at_many = (peak(nursery, tmp_path / "images", images, name, *words[name], *steady) for images in (few, many))
    grown = at_many - at_few
    print(f"{name}: {at_few / 1e6:.0f} MB with {few} images, {at_many / 1e6:.0f} MB with {many}")
    assert grown < 1000 * (many - few) + 12e6, f"{grown / 1e6:.1f} MB more with {many} images than with {few}"
