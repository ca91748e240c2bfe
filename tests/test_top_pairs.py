"""clip-top on neuron-head pairs: a neuron before its pairs, uncentred norms, and options that exclude each other."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.advgen_input import inside
from helpers.bundle import read
from helpers.sheet import near
from helpers.top_pairs import COUNT, SHOWN, some_photos
from PIL import Image

from cliptools.models.load import load_model
from cliptools.render.contact_sheet import CELL, GAP, MARGIN, TEXT_WIDTH
from cliptools.unit_effects.resnet_pooling import pair_directions, supported_resnet, trace_pool


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return some_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def bundles(photos: Path, tiny_resnet_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with pairs.safetensors and neurons.safetensors."""
    folder = tmp_path_factory.mktemp("bundles")
    for units in ("pairs", "neurons"):
        out = folder / f"{units}.safetensors"
        model = ("--model", f"local-dir:{tiny_resnet_dir}", "--units", units, "--top-images", 8, "--quantile", 0.9)
        done = inside("effects", photos, *model, "--workers", 0, "-o", out)
        assert done.returncode == 0, done.stderr.decode()
    return folder


def test_each_neuron_comes_before_its_pairs(photos: Path, bundles: Path, tmp_path: Path) -> None:
    options = ("--units", "4:7,4:3.2", "--head", 2, "--images-per-unit", SHOWN, "--sort", "norm", "--sheet", tmp_path / "x.png")
    done = inside("top", photos, *options, "--beside", bundles / "neurons.safetensors", "--bundle", bundles / "pairs.safetensors")
    assert (done.returncode, done.stderr) == (0, b"")
    records = [json.loads(line) for line in done.stdout.splitlines()]
    pairs, neurons = (read((bundles / f"{kind}.safetensors").read_bytes()) for kind in ("pairs", "neurons"))
    heads = pairs["unit"][:, 1] == 7
    strongest = pairs["unit"][heads][np.argsort(-pairs["top_norm"][heads].mean(1), kind="stable")[:2], 2].tolist()
    units = [(record["neuron"], record.get("head"), record["units"]) for record in records[::SHOWN]]
    assert units == [(7, None, "neurons"), *((7, head, "pairs") for head in strongest), (3, None, "neurons"), (3, 2, "pairs")]
    assert records[0]["bundle"] == neurons.digest and records[SHOWN]["bundle"] == pairs.digest
    sheet = Image.open(tmp_path / "x.png").convert("RGB")
    top = MARGIN + 22 + 17 + 2 * GAP
    for row in range(5):
        for place in range(SHOWN):
            photo = Image.open(photos / records[row * SHOWN + place]["image"]).resize(
                (CELL, round(CELL * 36 / 40)), Image.LANCZOS
            )
            where = (
                MARGIN + TEXT_WIDTH + GAP + place * (CELL + GAP) + CELL // 2,
                top + row * (CELL + 4 * GAP) + 2 * GAP + CELL // 2,
            )
            assert near(sheet.getpixel(where), photo.getpixel((CELL // 2, photo.height // 2)))


def test_raw_norms_of_pairs(photos: Path, bundles: Path, tiny_resnet_dir: Path) -> None:
    done = inside(
        "top", photos, "--raw", "--units", "4:5.1", "--images-per-unit", COUNT, "--bundle", bundles / "pairs.safetensors"
    )
    assert done.returncode == 0, done.stderr.decode()
    records = [json.loads(line) for line in done.stdout.splitlines()]
    model = load_model(f"local-dir:{tiny_resnet_dir}", device="cpu")
    visual = supported_resnet(model.clip)
    pictures = torch.stack([model.transform(Image.open(path)) for path in sorted(photos.iterdir())])
    with torch.inference_mode():
        traced = trace_pool(visual, pictures)
        s = torch.einsum("bi,bi->b", traced.x[:, :, 5], traced.attention[:, 1])  # pooled effects are raw
        norm = s.abs() * pair_directions(visual, torch.tensor([5]), torch.tensor([1])).norm()
    order = norm.argsort(descending=True)
    assert [record["image"] for record in records] == [f"{i:02d}.png" for i in order.tolist()]
    np.testing.assert_allclose([record["norm"] for record in records], norm[order], rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--beside", "pairs", "--bundle", "pairs"), 1, "its units are not whole neurons"),
        (("--beside", "neurons", "--bundle", "neurons"), 1, "the units of --bundle are not pairs of a neuron and a head"),
        (("--beside", "-", "--bundle", "-"), 2, "cannot both come from standard input"),
    ],
)
def test_what_does_not_go_together(photos: Path, bundles: Path, arguments: tuple[str, ...], code: int, message: str) -> None:
    named = (bundles / f"{word}.safetensors" if word in ("pairs", "neurons") else word for word in arguments)
    done = inside("top", photos, *named)
    assert (done.returncode, done.stdout) == (code, b"") and message in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1
