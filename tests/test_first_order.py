"""First-order effects compared with the explicit equation, and the command that measures them."""

import pytest
import torch
from conftest import Run
from helpers.bundle import read
from helpers.first_order import first_order_effects
from helpers.oracles import centred_statistics, layer_norm_gain
from helpers.second_order import SHAPES, pictures, random_tower

from cliptools.errors import UsageError
from cliptools.streaming.measure import measure
from cliptools.streaming.ranking import rank_of
from cliptools.streaming.summary import Settings
from cliptools.unit_effects.factored import UnitBlock
from cliptools.unit_effects.vit_direct import FirstOrder, choose_any_layers


@pytest.mark.parametrize("shape", SHAPES)
def test_factored_form_is_the_equation(shape: dict) -> None:
    visual = random_tower(shape)
    images, paths = pictures(visual, 3), FirstOrder(visual)
    layers = range(shape["layers"])  # the last one too
    slabs = [UnitBlock(layer, torch.arange(paths.size(layer)[0]).flip(0)) for layer in layers]
    S, embedding = paths.read(images, slabs)
    torch.testing.assert_close(embedding, visual(images), rtol=1e-12, atol=1e-12)
    for slab, scalars in zip(slabs, S, strict=True):
        phi = torch.einsum("bnk,nkd->bnd", scalars, paths.directions(slab))
        expected = torch.stack([first_order_effects(visual, image, slab.layer) for image in images]).flip(1)
        torch.testing.assert_close(phi, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


def test_all_first_order_effects_make_the_output() -> None:
    """The effects add up to the MLPs' part of the output, apart from biases."""
    visual = random_tower(SHAPES[1])
    (image,) = pictures(visual, 1)
    total = sum(first_order_effects(visual, image, layer).sum(0) for layer in range(SHAPES[1]["layers"]))
    x = visual._embeds(image[None])
    mlps = 0
    for block in visual.transformer.resblocks:
        x = x + block.ls_1(block.attention(block.ln_1(x)))
        added = block.ls_2(block.mlp(block.ln_2(x)) - block.mlp.c_proj.bias)
        mlps, x = mlps + added[0, 0], x + block.ls_2(block.mlp(block.ln_2(x)))
    expected = (layer_norm_gain(visual.ln_post, x[0, 0]) * mlps) @ visual.proj
    torch.testing.assert_close(total, expected, rtol=1e-9, atol=1e-9)


def test_statistics_are_those_of_the_full_matrices() -> None:
    visual, n = random_tower(SHAPES[2]), 41
    images = pictures(visual, n)
    batches = [(list(range(i, min(n, i + 9))), images[i : i + 9]) for i in range(0, n, 9)]
    effects = measure(FirstOrder(visual), lambda _=None: iter(batches), [0, 2], n, Settings(top=7, margin=5)).effects
    phi = torch.cat([torch.stack([first_order_effects(visual, image, layer) for image in images]) for layer in (0, 2)], 1)
    expected = centred_statistics(phi * (100 / visual(images).norm(dim=-1))[:, None, None], 7, rank_of(0.98, n))
    for name in ("mean", "top_norm", "top_image", "threshold", "explained_all"):
        torch.testing.assert_close(getattr(effects, name), expected[name], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(effects.component[:, 0], expected["direction"], rtol=0, atol=1e-9)
    torch.testing.assert_close(
        effects.component_explained[:, 0], torch.ones(len(effects.unit)).double()
    )  # one path, one direction


def test_layers_are_those_of_second_order_unless_asked() -> None:
    visual = random_tower(SHAPES[0] | {"layers": 12, "mlp_ratio": 1.0})
    assert choose_any_layers(visual, None) == (8, 9, 10) and choose_any_layers(visual, [3, 11]) == (3, 11)
    with pytest.raises(UsageError, match="layers 0 to 11"):
        choose_any_layers(visual, [12])


def test_the_bundle_says_which_effect(run: Run) -> None:
    ended = run("effects", "--effect", "first", "--limit", 30, "--layers", "7", "--top-images", 5)
    assert ended.returncode == 0, ended.stderr.decode()
    bundle = read(ended.stdout)
    assert bundle.header.settings["effect"] == "first" and bundle.header.settings["layers"] == [7]
    assert bundle.header.history[0]["arguments"]["effect"] == "first" and bundle.units == 768
    refused = run("effects", "--effect", "first", "--sample-neurons", 5)
    assert refused.returncode == 2 and b"--sample-neurons applies to --effect indirect" in refused.stderr
