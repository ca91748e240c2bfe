"""clip-view --check: a valid bundle passes, and each fault of an otherwise valid bundle is named."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Run
from helpers.soundness import sound
from safetensors.numpy import save_file

from cliptools.cli.run.view import flaws
from cliptools.io.bundle import Bundle, json_tensor

Change = Callable[[dict[str, np.ndarray]], None]


def put(name: str, index: object, value: float) -> Change:
    """Replace one number of a tensor."""

    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors[name][index] = value  # type: ignore[index]

    return change


def of(**tensors: np.ndarray) -> Change:
    """Replace tensors."""
    return lambda old: old.update(tensors)


WRONG: dict[str, Change] = {
    "1 duplicate unit, as 6:0": put("unit", (1, 1), 0),
    "`direction` has neither length 1 nor 0: 1 of 3 units, as 6:2": put("direction", 2, 0.7),
    "`explained` is not between 0 and 1: 1 of 3 units, as 6:1": put("explained", 1, 1.5),
    "`explained_all` is not between 0 and 1: 1 of 3 units, as 6:0": put("explained_all", 0, -0.5),
    "`residual` is not between 0 and 1: 1 of 3 units, as 6:0": put("residual", 0, 2),
    "`threshold` is negative: 1 of 3 units, as 6:0": put("threshold", 0, -0.1),
    "`top_norm` does not descend: 1 of 3 units, as 6:1": put("top_norm", (1, 1), 9),
    "`top_norm` is negative: 1 of 3 units, as 6:1": put("top_norm", (1, 1), -9),
    "`top_image` has an image twice: 1 of 3 units, as 6:0": put("top_image", (0, 1), 0),
    "`top_image` has an entry after -1, which ends the list: 1 of 3 units, as 6:0": put("top_image", (0, 0), -1),
    "`word` has a text twice: 1 of 3 units, as 6:1": put("word", (1, 1), 1),
    "`word` has an entry after -1, which ends the list: 1 of 3 units, as 6:0": put("word", (0, 0), -1),
    "`coefficient` is not 0 where there is no text: 1 of 3 units, as 6:2": put("coefficient", (2, 2), 0.1),
    "`images` has 1 name twice": of(images=json_tensor(["a.png", "a.png", "c.png"])),
    "tensor `top_image` needs a JSON list of names in tensor `images`": of(images=json_tensor(["a.png", 7, "c.png"])),
    "2 thumbnails for 3 images": lambda old: old.update(
        thumbnails=old["thumbnails"][: old["thumbnail_offsets"][2]], thumbnail_offsets=old["thumbnail_offsets"][:3]
    ),
    "thumbnail 0 is not a picture": put("thumbnails", slice(0, 40), 7),
    "tensor `mean` holds NaN or infinity": put("mean", (0, 0), np.nan),
    "tensor `word` has an index outside the 3 entries of `words`": put("word", (0, 0), 3),
    "tensor `top_image` needs a JSON list of names in": of(images=np.frombuffer(b"[", np.uint8)),
    "tensor `threshold` has shape [3, 1], expected 1 dimension": of(threshold=np.ones((3, 1), np.float32)),
    "tensor `threshold` has 2 rows, expected one row for each of 3 units": of(threshold=np.ones(2, np.float32)),
    "tensor `threshold` is float64, expected float32": of(threshold=np.ones(3)),
    "tensor `uncertain` has shape [2, 2], expected 2 dimensions [R, 3]": of(uncertain=np.zeros((2, 2), np.int32)),
    "tensor `mean` has shape [3, 0], which has no values per unit": of(mean=np.ones((3, 0), np.float32)),
    "tensor `sign` holds values outside the range from -1 to 1": of(sign=np.array([1, -2, 0], np.int8)),
    "numbers of a head: `moment` has 4, `moment` has 5": of(moment=np.ones((3, 4, 5), np.float32)),
    "joint dimensions: `direction` has 4, `mean` has 5": of(mean=np.ones((3, 5), np.float32)),
    "top images: `top_norm` has 2, `top_image` has 1": of(top_image=np.zeros((3, 1), np.int32)),
    "texts: `word` has 3, `coefficient` has 2": of(coefficient=np.ones((3, 2), np.float32)),
    "`thumbnail_offsets` does not divide": put("thumbnail_offsets", 0, 1),
    "a bundle needs a tensor `unit` of shape [units, 3]": of(unit=np.zeros((3, 2), np.int32)),
}


def changed(change: Change) -> Bundle:
    bundle = sound()
    change(bundle.tensors)
    return bundle


def test_a_sound_bundle_has_no_flaws() -> None:
    assert flaws(sound()) == []


def test_an_image_without_a_thumbnail_is_no_flaw() -> None:
    one = int(sound()["thumbnail_offsets"][1])
    second_left_out = of(
        thumbnails=sound()["thumbnails"][: 2 * one], thumbnail_offsets=np.array([0, one, one, 2 * one], dtype=np.int64)
    )
    assert flaws(changed(second_left_out)) == []


@pytest.mark.parametrize("flaw", WRONG)
def test_each_flaw_is_named(flaw: str) -> None:
    found = flaws(changed(WRONG[flaw]))
    assert any(line.startswith(flaw) for line in found), found


def test_the_command_lists_all_flaws(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "neurons.safetensors"
    file.write_bytes(sound().to_bytes())
    done = run("view", "--check", file)
    assert done.returncode == 0 and done.stdout.decode().startswith("sound: 3 units, "), done.stderr

    bundle = sound()
    for change in (put("explained", 1, 1.5), put("threshold", 0, -0.1)):
        change(bundle.tensors)
    done = run("view", "--check", stdin=bundle.to_bytes())
    assert done.returncode == 1
    assert [line.split(":")[0] for line in done.stdout.decode().splitlines()] == [
        "`explained` is not between 0 and 1",
        "`threshold` is negative",
    ]
    assert done.stderr.decode() == "clip-view: standard input: not sound, 2 things are wrong\n"


def test_what_the_suite_makes_is_sound(run: Run, tmp_path: Path) -> None:
    effects = run("effects", "--layers", "6", "--limit", "30", "--components", "2", "--thumbnails", "16", "-q")
    for bundle in (effects, run("decompose", "--m", "4", "--prefix", "2", "-q", stdin=effects.stdout)):
        done = run("view", "--check", stdin=bundle.stdout)
        assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    pairs = run("effects", "--model", "emoji-rn2", "--limit", "20", "--keep", "2%", "-q")
    done = run("view", "--check", stdin=pairs.stdout)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()


def test_the_header_of_any_safetensors_file(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_file({"w": np.zeros((2, 3), np.float32)}, file, metadata={"format": "pt"})
    said = json.loads(run("view", "--header", file).stdout)
    assert said == {"metadata": {"format": "pt"}, "tensors": {"w": "F32 [2, 3]"}}
    head = b'{"w": [1]}'
    done = run("view", "--header", stdin=len(head).to_bytes(8, "little") + head)
    assert done.returncode == 1 and b"needs dtype and shape" in done.stderr and len(done.stderr.splitlines()) == 1
