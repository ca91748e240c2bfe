"""clip-effects on a ResNet and the commands after it, as processes: pairs without directions, neurons, heads, errors."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run
from helpers.advgen_input import inside
from helpers.bundle import read
from PIL import Image

from cliptools.front.effects_bundle import with_directions
from cliptools.io.bundle import UNIT_ROWS
from cliptools.models.load import load_model
from cliptools.unit_effects.resnet_pooling import pair_directions, supported_resnet, trace_pool

UNITS, HEADS = 192 * 6, 6


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(4)
    for i in range(30):
        coarse = random.integers(0, 256, (3, 3, 3)).astype(np.uint8)
        Image.fromarray(coarse).resize((40, 36)).save(folder / f"{i:02d}.png")
    return folder


@pytest.fixture(scope="module")
def common(tiny_resnet_dir: Path) -> list[str]:
    return ["--model", f"local-dir:{tiny_resnet_dir}", "--top-images", "6", "--quantile", "0.9", "-q", "--workers", "0"]


@pytest.fixture(scope="module")
def pairs(run: Run, photos: Path, common: list[str]) -> bytes:
    ended = run("effects", photos, *common)
    assert ended.returncode == 0, ended.stderr.decode()
    return ended.stdout


@pytest.fixture(scope="module")
def scalars(photos: Path, tiny_resnet_dir: Path) -> np.ndarray:
    """Return s of all pairs [image, unit] in float32, raw, from the model itself."""
    model = load_model(f"local-dir:{tiny_resnet_dir}", device="cpu")
    pictures = torch.stack([model.transform(Image.open(path)) for path in sorted(photos.iterdir())])
    with torch.inference_mode():
        traced = trace_pool(supported_resnet(model.clip), pictures)
    s = torch.einsum("bin,bhi->bnh", traced.x, traced.attention)
    return s.flatten(1).numpy()


def all_w(folder: Path) -> np.ndarray:
    visual = supported_resnet(load_model(f"local-dir:{folder}", device="cpu").clip)
    number = torch.arange(UNITS)
    return pair_directions(visual, number // HEADS, number % HEADS).numpy()


def test_a_bundle_of_pairs_holds_signs_and_no_directions(pairs: bytes, scalars: np.ndarray, tiny_resnet_dir: Path) -> None:
    bundle = read(pairs)
    assert {"direction", "mean", "explained", "explained_all"} & set(bundle.tensors) - bundle.derived == set()
    assert bundle.units == UNITS and bundle["unit"][7].tolist() == [4, 1, 1]
    written = sum(value.nbytes for name, value in bundle.tensors.items() if name in UNIT_ROWS and name not in bundle.derived)
    assert written == UNITS * (29 + 6 * 8)  # so RN50x16's 147,456 pairs with 100 top images take 122 MB
    said = bundle.header.settings
    assert (said["units"], said["effect"], said["layers"]) == ("pairs", "pooled", [4])
    w = all_w(tiny_resnet_dir)
    centred = scalars - scalars.mean(0)
    norm = np.sort(np.abs(centred) * np.linalg.norm(w, axis=1), axis=0)[::-1]
    np.testing.assert_allclose(bundle["mean_scalar"], scalars.mean(0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(bundle["top_norm"], norm[:6].T, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(bundle["threshold"], norm[2], rtol=1e-3, atol=1e-5)
    top = np.argsort(-np.abs(centred), axis=0)[:6]
    shadow = np.take_along_axis(centred, top, 0)
    weight, size = (shadow**3).sum(0), np.abs(shadow**3).sum(0)
    clear = np.abs(weight) > 1e-3 * size  # the others are ties, but for rounding
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(bundle["sign"][clear], np.sign(weight)[clear])


def test_keep_says_what_the_others_add_up_to(
    run: Run, photos: Path, common: list[str], pairs: bytes, scalars: np.ndarray, tiny_resnet_dir: Path
) -> None:
    whole, kept = read(pairs), read(run("effects", photos, *common, "--keep", "20%").stdout)
    assert kept.units == round(0.2 * UNITS) and kept.header.settings["keep"] == 0.2
    strength = whole["top_norm"].mean(1)
    rows = np.sort(np.argsort(-strength, kind="stable")[: kept.units])
    np.testing.assert_array_equal(kept["unit"], whole["unit"][rows])
    dropped = np.setdiff1d(np.arange(UNITS), rows)
    w = all_w(tiny_resnet_dir)
    np.testing.assert_allclose(kept["rest_mean"], scalars.mean(0)[dropped] @ w[dropped], rtol=1e-3, atol=1e-3)
    assert set(np.unique(kept["top_image"])) == set(range(len(kept.text_list("images"))))


@pytest.mark.parametrize(("units", "count", "unit"), [("neurons", 192, [4, 5, -1]), ("heads", 6, [4, -1, 5])])
def test_neurons_and_heads_have_several_components(
    run: Run, photos: Path, common: list[str], units: str, count: int, unit: list[int]
) -> None:
    ended = run("effects", photos, *common, "--units", units, "--components", 3)
    assert ended.returncode == 0, ended.stderr.decode()
    bundle = read(ended.stdout)
    assert bundle["component"].shape == (count, 3, 20) and bundle["unit"][5].tolist() == unit
    assert bundle.header.settings["units"] == units and "sign" not in bundle
    norms = np.linalg.norm(bundle["component"], axis=2)
    np.testing.assert_allclose(norms[bundle["component_explained"] > 1e-6], 1, atol=1e-5)
    assert (bundle["component_explained"].sum(1) <= 1 + 1e-5).all()


def test_equal_runs_give_equal_bytes(run: Run, photos: Path, common: list[str], pairs: bytes) -> None:
    assert run("effects", photos, *common, "--workers", "2").stdout == pairs


@pytest.fixture(scope="module")
def named(pairs: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the pairs with words."""
    folder = tmp_path_factory.mktemp("named")
    (folder / "pool.txt").write_text("dog\ncat\nboat\nviolin\nhouse\n")
    words = inside("decompose", "--m", 2, "--pool", folder / "pool.txt", "--no-cache", stdin=pairs)
    assert words.returncode == 0, words.stderr.decode()
    (folder / "named.safetensors").write_bytes(words.stdout)
    return folder / "named.safetensors"


def test_consumers_see_directions_and_leave_them_out_again(run: Run, pairs: bytes, named: Path, tiny_resnet_dir: Path) -> None:
    bundle, words = read(pairs), read(named.read_bytes())
    assert "direction" not in words and words["word"].shape == (UNITS, 2)
    w = all_w(tiny_resnet_dir)
    expected = w / np.linalg.norm(w, axis=1, keepdims=True) * bundle["sign"][:, None]
    face = with_directions(words, means=True, device="cpu")
    np.testing.assert_allclose(face["direction"], expected, atol=1e-6)
    np.testing.assert_allclose(face["mean"], bundle["mean_scalar"][:, None] * w, rtol=1e-5, atol=1e-5)
    assert face.to_bytes() == named.read_bytes()
    lines = run("view", "--units", "4:7.3,4:0", "--sort", "clear", "-f", "jsonl", named).stdout.decode()
    assert lines.count("\n") == 7 and '"neuron": 7, "head": 3' in lines and '"explained": 1' in lines


def test_concepts_are_told_by_pairs(photos: Path, named: Path, scalars: np.ndarray, tiny_resnet_dir: Path) -> None:
    """A pair's activity is |s - mean| ||w||, and its sign gives its activity along the direction."""
    ended = inside("concepts", photos, "--bundle", named, "--neurons", "all", "--limit", 4, "-f", "jsonl", "-q")
    assert ended.returncode == 0, ended.stderr.decode()
    bundle, length = read(named.read_bytes()), np.linalg.norm(all_w(tiny_resnet_dir), axis=1)
    centred = scalars - bundle["mean_scalar"]
    for i, line in enumerate(ended.stdout.splitlines()):
        record = json.loads(line)
        norm = np.abs(centred[i]) * length
        beyond = norm / bundle["threshold"]  # a threshold is some image's own norm
        assert (beyond > 1 + 1e-4).sum() <= record["active"] <= (beyond > 1 - 1e-4).sum()
        for one in record["neurons"]:
            unit = one["neuron"] * HEADS + one["head"]
            np.testing.assert_allclose(one["norm"], norm[unit], rtol=1e-3)
            np.testing.assert_allclose(one["projection"], centred[i, unit] * length[unit] * bundle["sign"][unit], rtol=1e-3)
        assert record["neurons"][0]["norm"] == pytest.approx(norm.max(), rel=1e-3)


def test_spurious_words_by_pairs(named: Path) -> None:
    ended = inside("spurious", "--depict", "dog", "--predict", "cat", "--near", 1, "-f", "jsonl", "--no-cache", named)
    assert ended.returncode == 0, ended.stderr.decode()
    shares = json.loads(ended.stdout.splitlines()[0])["neurons"]
    assert {"layer", "neuron", "head", "share"} == set(shares[0]) and all(0 <= one["head"] < HEADS for one in shares)
    table = inside("spurious", "--depict", "dog", "--predict", "cat", "--near", 1, "-f", "table", "--no-cache", named)
    assert f"4:{shares[0]['neuron']}.{shares[0]['head']} " in table.stdout.decode()


def test_units_that_the_model_has_not_are_named(named: Path, photos: Path) -> None:
    bundle = read(named.read_bytes())
    unit = bundle["unit"].copy()
    unit[5] = [4, 192, 0]
    strange = replace(bundle, tensors=bundle.tensors | {"unit": unit}).to_bytes()
    ended = inside("decompose", "-f", "jsonl", stdin=strange)
    assert ended.returncode == 1 and b"a unit 4:192.0, which the model does not have" in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--effect", "first"], "act through its attention pooling only"),
        (["--components", "2"], "a pair acts along one direction"),
        (["--sample-neurons", "3"], "--sample-neurons applies to --effect indirect"),
        (["--keep", "20"], "expected a percentage like 20%"),
    ],
)
def test_misuse(run: Run, photos: Path, common: list[str], arguments: list[str], message: str) -> None:
    ended = run("effects", photos, *common, *arguments)
    assert (ended.returncode, ended.stdout) == (2, b"")
    assert message in ended.stderr.decode() and ended.stderr.count(b"\n") == 1
