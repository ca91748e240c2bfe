"""Latents of a dictionary through every command: effects, words, images, ablation, margins, masks; and what refuses them."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ROOT
from helpers.advgen_input import inside
from helpers.bundle import read
from helpers.dictionaries import plain, weights
from helpers.sheet import pictures_of_svg
from helpers.tiny_suite import READ, TOP, Suite, done
from PIL import Image

from cliptools.analysis.margin_passes import explained_tower
from cliptools.analysis.margin_tower import unit_maps
from cliptools.front.top_files import OUTLINE_SHARE
from cliptools.io.bundle import Bundle
from cliptools.models.load import load_model
from cliptools.models.preprocessing import seen_picture
from cliptools.render.contact_sheet import outlined
from cliptools.unit_effects.factored import UnitBlock
from cliptools.unit_effects.select import recorded_effect

LATENTS, LAYER = 50, 1


@pytest.fixture(scope="module")
def dictionary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random dictionary of layer 1 of the tiny ViT."""
    path = tmp_path_factory.mktemp("dictionary") / "sae.safetensors"
    return plain(path, weights(36, LATENTS, dtype=torch.float32), layer=LAYER, activation="topk", k=9)


@pytest.fixture(scope="module")
def measured(suite: Suite, dictionary: Path) -> tuple[Any, ...]:
    return (suite.images, "--model", suite.vit, "--units", f"sae:{dictionary}", *TOP)


@pytest.fixture(scope="module")
def bundle(measured: tuple[Any, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("latents") / "latents.safetensors"
    done("effects", *measured, "--thumbnails", 16, "-o", path)
    return path


@pytest.fixture(scope="module")
def words(suite: Suite, bundle: Path) -> Path:
    path = bundle.with_name("words.safetensors")
    done("decompose", "--pool", suite.pool, "--m", 3, bundle, "-o", path)
    return path


def test_real_processes_in_a_pipe(measured: tuple[Any, ...], suite: Suite, words: Path) -> None:
    effects = [sys.executable, "-m", "cliptools.cli.effects", *map(str, measured), "--thumbnails", "16"]
    decompose = [sys.executable, "-m", "cliptools.cli.decompose", "--pool", str(suite.pool), "--m", "3"]
    with subprocess.Popen(effects, stdout=subprocess.PIPE, cwd=ROOT) as first:
        second = subprocess.run(decompose, stdin=first.stdout, capture_output=True, cwd=ROOT, check=False)
    assert (first.returncode, second.returncode) == (0, 0), second.stderr.decode()
    piped, written = read(second.stdout), read(words.read_bytes())
    for name, tensor in written.tensors.items():
        np.testing.assert_array_equal(piped.tensors[name], tensor, err_msg=name)


def test_header_names_the_dictionary(bundle: Path, dictionary: Path) -> None:
    settings = read(bundle.read_bytes()).header.settings
    assert (settings["units"], settings["layers"], settings["effect"]) == ("latents", [LAYER], "second")
    record = settings["dictionary"]
    assert (record["file"], record["latents"], record["activation"]) == (str(dictionary), LATENTS, "topk")
    assert len(record["sha256"]) == 64
    lines = done("view", "-f", "jsonl", bundle).splitlines()
    assert len(lines) == LATENTS
    assert json.loads(lines[0])["dictionary"] == record


def test_means_are_those_of_the_effects(bundle: Path, suite: Suite) -> None:
    measured, model = read(bundle.read_bytes()), load_model(suite.vit, device="cpu")
    effect = recorded_effect(model.clip, measured.header.settings)
    block = UnitBlock(LAYER, torch.arange(LATENTS))
    pixels = torch.stack([model.transform(Image.open(path)) for path in sorted(suite.images.iterdir())])
    S, M = effect.read(pixels, [block])
    phi = torch.einsum("bnk,nkd->bnd", next(iter(S)), effect.directions(block)) * (100 / M.norm(dim=1))[:, None, None]
    np.testing.assert_allclose(measured["mean"], phi.mean(0).numpy(), rtol=1e-3, atol=1e-4)


def test_shards_merge_to_the_bundle(measured: tuple[Any, ...], bundle: Path, tmp_path: Path, suite: Suite) -> None:
    for number in (1, 2):
        done("effects", *measured, "--shard", f"{number}/2", "-o", tmp_path / f"{number}.partial")
    merged: Bundle = read(done("merge", tmp_path / "1.partial", tmp_path / "2.partial", "--images", suite.images, *READ))
    one = read(bundle.read_bytes())
    assert merged.header.settings["dictionary"] == one.header.settings["dictionary"]
    np.testing.assert_allclose(merged["mean"], one["mean"], rtol=1e-4, atol=1e-5)


def consumers(suite: Suite, words: Path) -> dict[str, tuple[Any, ...]]:
    short = ("--template", "{}")
    ablate = (suite.folder / "photos", "--classes", suite.classes, *short, *READ, "-f", "jsonl", "--bundle", words)
    segment = (suite.images, "--text", "cat", *short, "--batch-size", 4, "-f", "jsonl", "--bundle", words)
    return {
        "view": ("-f", "jsonl", words),
        "sheet": ("--head", 2, "--images-from", suite.images, words),
        "gallery": ("--head", 2, "--images-from", suite.images, words),
        "top": (suite.images, "--head", 2, "--raw", *READ, "-f", "jsonl", "--bundle", words),
        "judge": (suite.images, "--same-names", *READ, "--bundle", words, "-f", "jsonl"),
        "ablate": (*ablate, "--ablate", "all,large,small", "--reconstruct", "pc,words", "--units", "latents"),
        "explain": (suite.images, "--text", "cat", "--text", "dog", *short, *READ, "-f", "jsonl", "--bundle", words),
        "concepts": (suite.images, *READ, "--bundle", words),
        "shift": (suite.folder / "photos", "--concept", "cat", *short, *READ, "-f", "jsonl", "--bundle", words),
        "spurious": ("--depict", "cat", "--predict", "dog", "--words", 3, words),
        "segment": (*segment, "--method", "neurons"),
        "segment effects": (*segment, "--method", "effects"),
    }


CONSUMERS = (
    "view", "sheet", "gallery", "top", "judge", "ablate", "explain", "concepts", "shift", "spurious", "segment",
    "segment effects",
)  # fmt: skip


@pytest.mark.parametrize("command", CONSUMERS)
def test_consumers_work(command: str, suite: Suite, words: Path) -> None:
    ended = inside(command.split(maxsplit=1)[0], *consumers(suite, words)[command])
    assert ended.returncode == 0, ended.stderr.decode()
    assert ended.stdout


def test_parts_of_the_margin_add_up(suite: Suite, words: Path) -> None:
    for line in done("explain", *consumers(suite, words)["explain"]).splitlines():
        record = json.loads(line)
        assert sum(record["parts"].values()) == pytest.approx(record["margin"], abs=1e-3)
        assert record["parts"]["other_units"] == pytest.approx(0, abs=1e-6)  # all latents are in the bundle


def test_outlines_are_those_of_latents(suite: Suite, bundle: Path, tmp_path: Path) -> None:
    """Not those of the neurons with the same numbers."""
    whole = read(bundle.read_bytes())
    row = int(whole["top_norm"][:, 0].argmax())
    model, settings = load_model(suite.vit, device="cpu"), whole.header.settings
    unit, r = torch.from_numpy(whole["unit"][row]).long(), torch.from_numpy(whole["direction"][row])
    sheet = tmp_path / "sheet.svg"
    words = ("--images-per-unit", 1, "--images-from", suite.images, "--outlines")
    done("sheet", *words, "--units", f"{LAYER}:{unit[1]}", "-o", sheet, bundle)
    name = whole.text_list("images")[whole["top_image"][row, 0]]
    pixels = model.transform(Image.open(suite.images / name).convert("RGB"))
    picture = seen_picture(pixels, model.preprocessing)
    latents, neurons = recorded_effect(model.clip, settings), recorded_effect(model.clip, settings | {"units": "neurons"})
    (shown,) = pictures_of_svg(sheet.read_bytes())
    for effect, equal in ((latents, True), (neurons, False)):
        tower = explained_tower(effect)
        heat = unit_maps(tower, tower.read(pixels[None]), unit, r)[0]
        assert bool((shown == np.asarray(outlined(picture, heat.float().numpy(), OUTLINE_SHARE))).all()) == equal


def refused(command: str, *arguments: Any, stdin: bytes = b"") -> str:
    ended = inside(command, *arguments, stdin=stdin)
    lines = ended.stderr.decode().strip().splitlines()
    assert ended.returncode in (1, 2), lines
    return lines[-1]


def test_what_has_no_meaning_is_refused(suite: Suite, words: Path, measured: tuple[Any, ...], tmp_path: Path) -> None:
    assert "latents of a dictionary" in refused("edit", "--bundle", words, "-o", tmp_path / "edited.safetensors")
    lines = done("view", "-f", "jsonl", words)
    assert "latents of a dictionary" in refused("edit", "-o", tmp_path / "edited.safetensors", stdin=lines)
    null = (suite.images, "--same-names", *READ, "--bundle", words, "--null")
    assert "not one with random weights" in refused("judge", *null)
    assert "latents of a dictionary have" in refused("effects", *measured, "--effect", "indirect")
    assert "does not pool by attention" in refused("effects", *measured, "--effect", "pooled")
    assert "a dictionary of layer 1; leave --layers out" in refused("effects", *measured, "--layers", "2")


def test_a_damaged_record_of_a_dictionary_is_refused(suite: Suite, words: Path, tmp_path: Path) -> None:
    bundle = read(words.read_bytes())
    header = replace(bundle.header, settings=bundle.header.settings | {"dictionary": {"file": 3}})
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(replace(bundle, header=header).to_bytes())
    assert "without file and sha256" in refused("top", *consumers(suite, path)["top"])


def test_another_model_layer_or_file_is_refused(
    suite: Suite, words: Path, dictionary: Path, tmp_path: Path, measured: tuple[Any, ...]
) -> None:
    base = (suite.images, "--model", suite.vit, *TOP, "--units")
    assert "this model has layers 0 to 3" in refused("effects", *base, f"sae:{dictionary},layer=4")
    assert "no later attention layer" in refused("effects", *base, f"sae:{dictionary},layer=3")
    wide = plain(tmp_path / "wide.safetensors", weights(40, 3, dtype=torch.float32), layer=1, activation="relu")
    assert "this model's residual stream has 36" in refused("effects", *base, f"sae:{wide}")
    config = {"layer": 1, "activation": "relu", "model": {"name": "emoji-vit2", "sha256": "7" * 64}}
    other = plain(tmp_path / "other.safetensors", weights(36, 3, dtype=torch.float32), **config)
    assert "a dictionary of emoji-vit2" in refused("effects", *base, f"sae:{other}")
    resnet = (suite.images, "--model", suite.resnet, *TOP, "--units", f"sae:{dictionary}")
    assert "needs a ViT" in refused("effects", *resnet)
    assert "'latents'" in refused("effects", *base, "latents")
    kept = dictionary.read_bytes()
    try:
        plain(dictionary, weights(36, LATENTS, seed=1, dtype=torch.float32), layer=LAYER, activation="topk", k=9)
        assert "not the bundle's dictionary" in refused("top", *consumers(suite, words)["top"])
        dictionary.unlink()
        assert "the bundle's dictionary, sae:" in refused("top", *consumers(suite, words)["top"])
    finally:
        dictionary.write_bytes(kept)
