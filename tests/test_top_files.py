"""clip-top --files: names of the images on which units act, from the lists of a bundle."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.advgen_input import inside
from helpers.images import encoded, picture
from helpers.message_inputs import neurons

from cliptools.front.top_files import acting_images
from cliptools.front.top_images import TopRequest
from cliptools.io.bundle import Bundle, json_tensor

UNITS, T, IMAGES = 7, 5, 23
NAMES = [f"photos/{number:02d}.png" for number in range(IMAGES)]


@pytest.fixture
def bundle() -> Bundle:
    """Units with random lists; the last one never acted."""
    rng = np.random.default_rng(5)
    norm = -np.sort(-rng.random((UNITS, T)).astype(np.float32), axis=1)
    image = np.stack([rng.permutation(IMAGES)[:T] for _ in range(UNITS)]).astype(np.int32)
    norm[-1], image[-1] = 0, -1
    whole = neurons({"name": "emoji-vit2", "pretrained": None, "sha256": "0" * 64})
    unit = np.array([[6, number, -1] for number in range(UNITS)], np.int32)
    tensors = {"unit": unit, "top_norm": norm, "top_image": image, "threshold": rng.random(UNITS).astype(np.float32)}
    tensors |= {"images": json_tensor(NAMES), "direction": np.zeros((UNITS, 4), np.float32)}
    tensors |= {"explained": rng.random(UNITS).astype(np.float32), "mean": np.zeros((UNITS, 4), np.float32)}
    return replace(whole, tensors=tensors)


@pytest.mark.parametrize("above", [None, "threshold", 0.0, 0.4, 2.0])
@pytest.mark.parametrize("count", [1, 3, 10])
def test_images_against_a_loop(bundle: Bundle, above: float | str | None, count: int) -> None:
    """Every image once, in the order of units and ranks; a unit that never acted gives none."""
    units = [4, 1, 6, 2]
    request = TopRequest(units=",".join(f"6:{unit}" for unit in units), images_per_unit=count)
    expected: list[int] = []
    for unit in units:
        for rank in range(T):
            norm, image = float(bundle["top_norm"][unit, rank]), int(bundle["top_image"][unit, rank])
            limit = float(bundle["threshold"][unit]) if above == "threshold" else above
            acts = norm > 0 and (rank < count if limit is None else norm > limit)
            if acts and image not in expected:
                expected.append(image)
    assert acting_images(bundle, request, above) == expected


def test_a_list_that_may_be_incomplete(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    """A warning where all listed images exceed the norm, since the bundle lists no more."""
    acting_images(bundle, TopRequest(units="6:0", images_per_unit=2), 0.0)
    assert "all 5 top images that the bundle lists of 6:0 exceed it" in capsys.readouterr().err
    acting_images(bundle, TopRequest(units="6:0"), float(bundle["top_norm"][0, -1]))
    assert not capsys.readouterr().err


def test_lines_for_xargs(bundle: Bundle, tmp_path: Path) -> None:
    """Without PATH names of the bundle; with PATH paths of files and members, of those images that are there."""
    file = tmp_path / "bundle.safetensors"
    file.write_bytes(bundle.to_bytes())
    selected = ("--files", "--units", "6:3,6:0", "--images-per-unit", 4, "--bundle", file)
    images = acting_images(bundle, TopRequest(units="6:3,6:0", images_per_unit=4), None)
    ended = inside("top", *selected)
    assert ended.returncode == 0 and ended.stdout.decode().splitlines() == [NAMES[image] for image in images]
    assert inside("top", *selected, "-0").stdout == b"".join(NAMES[image].encode() + b"\0" for image in images)
    for image in images[1:]:
        path = tmp_path / "data" / NAMES[image]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(picture()))
    ended = inside("top", tmp_path / "data", *selected)
    assert ended.stdout.decode().splitlines() == [str(tmp_path / "data" / NAMES[image]) for image in images[1:]]
    assert f"1 of {len(images)} top images not found" in ended.stderr.decode()
    nothing = inside("top", tmp_path / "data", "--files", "--above", 9, "--bundle", file)
    assert nothing.returncode == 0 and nothing.stdout == b""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--null",), "--null needs --files"),
        (("--above", "1"), "--above needs --files"),
        (("--files", "--raw"), "--raw does not go with it"),
        (("--files", "--sheet", "sheet.png"), "--sheet does not go with it"),
        (("--files", "-f", "jsonl"), "--format does not go with it"),
        (("--files", "--above", "-1"), "expected threshold or a number of at least 0"),
        (("--files", "--above", "much"), "expected threshold or a number of at least 0"),
        (("--files", "--sort", "inertia"), "expected another order"),
        (("--files", "--above", "threshold"), "the bundle has no thresholds"),
    ],
)
def test_refusals(bundle: Bundle, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    file = tmp_path / "bundle.safetensors"
    bare = replace(bundle, tensors={name: tensor for name, tensor in bundle.tensors.items() if name != "threshold"})
    file.write_bytes(bare.to_bytes())
    ended = inside("top", *words, "--bundle", file)
    assert ended.returncode == 2 and message in ended.stderr.decode().splitlines()[-1]
