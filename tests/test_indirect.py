"""Indirect effects compared with a complete forward pass with replaced activations of one neuron, and the command."""

import json

import pytest
import torch
from conftest import Run
from helpers.bundle import read
from helpers.indirect import in_batches, indirect_effects, prepared
from helpers.oracles import centred_statistics
from helpers.second_order import SHAPES, pictures, random_tower

from cliptools.streaming import vit_indirect
from cliptools.streaming.measure import keep_all, measure
from cliptools.streaming.ranking import rank_of
from cliptools.streaming.summary import Settings
from cliptools.streaming.vit_indirect import Indirect, cost, draw_sample
from cliptools.unit_effects.factored import UnitBlock


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("row_bytes", [1, 1 << 28])  # one neuron at a time, all at once
def test_is_the_difference_of_two_forward_passes(shape: dict, row_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vit_indirect, "ROW_BYTES", row_bytes)
    visual = random_tower(shape)
    images = pictures(visual, 5)
    layers = [0, shape["layers"] - 2, shape["layers"] - 1]  # the last one too
    paths = prepared(visual, images, layers, 6)
    for layer in layers:
        slab = UnitBlock(layer, torch.tensor([4, 0, 1]))
        (phi,), embedding = paths.read(images, [slab])
        neurons = [int(paths.sample[layer][place]) for place in (4, 0, 1)]
        expected = indirect_effects(visual, images, layer, neurons)
        torch.testing.assert_close(phi, expected, rtol=1e-9, atol=1e-9 * float(visual(images).abs().max()))
        torch.testing.assert_close(embedding, visual(images), rtol=1e-12, atol=1e-12)
        through_D = torch.einsum("bnk,nkd->bnd", phi, paths.directions(slab))
        torch.testing.assert_close(through_D, phi, rtol=0, atol=0)
    assert not any(module._forward_hooks for module in visual.modules())


@pytest.mark.parametrize("margin", ["all", "few"])
def test_statistics_are_those_of_the_full_matrices(margin: str) -> None:
    visual, n, layers = random_tower(SHAPES[1]), 37, [1, 3]
    images = pictures(visual, n)
    paths = prepared(visual, images, layers, 5)
    asked = Settings(top=6, margin=3)
    asked = keep_all(asked, paths, layers, n, 1.0) if margin == "all" else asked
    report = measure(paths, lambda only=None: iter(in_batches(images, 8, only)), layers, n, asked)
    effects, unit = report.effects, report.effects.unit
    assert margin == "few" or report.passes == 1
    assert unit.tolist() == [[layer, int(neuron), -1] for layer in layers for neuron in paths.sample[layer]]
    phi = torch.cat([indirect_effects(visual, images, layer, paths.sample[layer].tolist()) for layer in layers], 1)
    expected = centred_statistics(phi * (100 / visual(images).norm(dim=-1))[:, None, None], 6, rank_of(0.98, n))
    for name in ("mean", "top_norm", "top_image", "threshold", "explained_all"):
        torch.testing.assert_close(getattr(effects, name), expected[name], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(effects.component[:, 0], expected["direction"], rtol=0, atol=1e-8)


def test_samples_are_drawn_by_seed_and_layer() -> None:
    visual = random_tower(SHAPES[0])
    one, again, other = (draw_sample(visual, [1, 2], 7, seed) for seed in (0, 0, 1))
    assert all(torch.equal(one[layer], again[layer]) for layer in (1, 2))
    assert not torch.equal(one[1], other[1]) and not torch.equal(one[1], one[2])
    assert all(len(set(chosen.tolist())) == 7 and chosen.tolist() == sorted(chosen.tolist()) for chosen in one.values())
    assert draw_sample(visual, [1], None, 0)[1].tolist() == draw_sample(visual, [1], 10_000, 0)[1].tolist() == list(range(90))
    assert cost(visual, one, 11) == (
        "22 forward passes and 154 partial ones (11 images; neurons: 7 of layer 1 through 3 later, 7 of layer 2 through 2 later)"
    )


def test_all_is_kept_only_where_it_fits() -> None:
    visual = random_tower(SHAPES[0])
    paths = Indirect(visual, draw_sample(visual, [1], 7, 0), {}, 100)
    assert keep_all(Settings(top=30), paths, [1], 100).margin == 70
    assert keep_all(Settings(top=30), paths, [1], 20).margin == 0
    large = Settings(top=30, memory=1e6)
    assert keep_all(large, paths, [1], 100_000) == large


def test_pipeline_passes_the_effect_on(run: Run) -> None:
    ended = run("effects", "--effect", "indirect", "--sample-neurons", 9, "--limit", 16, "--layers", "6,7", "--top-images", 8)
    assert ended.returncode == 0, ended.stderr.decode()
    said = ended.stderr.decode().splitlines()
    assert said[0].startswith("clip-effects: 32 forward passes and 288 partial ones (16 images")
    assert not any(line.startswith("indirect effects: about ") for line in said)  # seconds need no estimate
    assert said[-1].startswith("clip-effects: 16 images, 18 neurons")
    bundle = read(ended.stdout)
    assert bundle.header.settings["effect"] == "indirect" and bundle.header.history[0]["arguments"]["sample_neurons"] == 9
    assert bundle["unit"][:, 0].tolist() == [6] * 9 + [7] * 9 and len(set(bundle["unit"][:9, 1].tolist())) == 9
    words = run("decompose", "--m", 4, stdin=ended.stdout)
    found = run("spurious", "--depict", "cat", "--predict", "violin", stdin=words.stdout)
    assert found.returncode == 0, found.stderr.decode()
    records = [json.loads(line) for line in found.stdout.splitlines()]
    assert records and {record["effect"] for record in records} == {"indirect"}
    units = {tuple(unit) for unit in bundle["unit"][:, :2].tolist()}
    assert all((n["layer"], n["neuron"]) in units for record in records for n in record["neurons"])
