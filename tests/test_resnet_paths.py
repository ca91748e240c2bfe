"""Pairs, neurons and heads of a ResNet's pooling compared with the explicit equations, and errors."""

import open_clip
import pytest
import torch
from helpers.oracles import centred_statistics
from helpers.resnet_paths import SHAPES, pair_effects, pictures, random_resnet, randomise
from helpers.statistics import batches_of
from open_clip.modified_resnet import ModifiedResNet

from cliptools.errors import ModelError
from cliptools.models.load import load_model
from cliptools.segmentation.towers import on_grid
from cliptools.streaming.measure import measure
from cliptools.streaming.ranking import rank_of
from cliptools.streaming.summary import Settings
from cliptools.unit_effects.factored import FactoredEffect, UnitBlock
from cliptools.unit_effects.resnet_pooling import (
    Pairs,
    PooledHeads,
    PooledNeurons,
    pair_directions,
    supported_resnet,
    trace_pool,
    value_output,
)


@pytest.fixture(scope="module", params=range(len(SHAPES)), ids=lambda i: f"{SHAPES[i]['image_size']}px")
def tower(request: pytest.FixtureRequest) -> ModifiedResNet:
    return random_resnet(SHAPES[request.param])


def effects(paths: FactoredEffect, images: torch.Tensor) -> torch.Tensor:
    """Return phi [b, n, d]."""
    slab = UnitBlock(4, torch.arange(paths.size(4)[0]))
    (S,), _ = paths.read(images, [slab])
    return torch.einsum("bnk,nkd->bnd", S, paths.directions(slab))


def test_factored_forms_are_the_equation(tower: ModifiedResNet) -> None:
    images = pictures(tower, 2)
    r = torch.stack([pair_effects(tower, image) for image in images])  # (b, n, h, d)
    for paths, expected in ((Pairs(tower), r.flatten(1, 2)), (PooledNeurons(tower), r.sum(2)), (PooledHeads(tower), r.sum(1))):
        found = effects(paths, images)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


def test_pairs_and_biases_sum_to_the_output(tower: ModifiedResNet) -> None:
    images = pictures(tower, 3)
    expected = tower(images)
    traced = trace_pool(tower, images)
    tolerance = {"rtol": 1e-9, "atol": 1e-9 * float(expected.abs().max())}
    torch.testing.assert_close(traced.embedding, expected, **tolerance)
    torch.testing.assert_close(traced.attention.sum(-1), torch.ones_like(traced.attention[..., 0]), rtol=0, atol=1e-12)
    bias = value_output(tower)[2]
    for kind in (Pairs, PooledNeurons, PooledHeads):
        torch.testing.assert_close(effects(kind(tower), images).sum(1) + bias, expected, **tolerance)


def test_pairs_of_rn50_sum_to_the_output() -> None:
    """65,536 pairs are summed, for a few neurons at a time."""
    clip = open_clip.create_model("RN50", pretrained=None, precision="fp64")
    visual = randomise(supported_resnet(clip).double())
    image = pictures(visual, 1)
    expected = clip.encode_image(image)
    paths = Pairs(visual)
    assert paths.size(4) == (65536, 1)
    (S,), _ = paths.read(image, [UnitBlock(4, torch.arange(65536))])
    total = value_output(visual)[2].clone()
    for numbers in torch.arange(65536).split(8192):
        total += S[0, numbers, 0] @ paths.directions(UnitBlock(4, numbers))[:, 0]
    torch.testing.assert_close(total[None], expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


def test_pairs_of_the_embedded_model_sum_to_the_output() -> None:
    visual = supported_resnet(load_model("emoji-rn2", device="cpu").clip).double()
    images = pictures(visual, 3)
    expected = visual(images)
    paths = Pairs(visual)
    assert paths.size(4) == (8192, 1)
    torch.testing.assert_close(effects(paths, images).sum(1) + value_output(visual)[2], expected, rtol=1e-9, atol=1e-9)


def test_units_are_named_in_order(tower: ModifiedResNet) -> None:
    n, h = tower.attnpool.v_proj.in_features, tower.attnpool.num_heads
    pairs = Pairs(tower).units(4)
    assert pairs.tolist() == [[4, i, j] for i in range(n) for j in range(h)]
    assert PooledNeurons(tower).units(4).tolist() == [[4, i, -1] for i in range(n)]
    assert PooledHeads(tower).units(4).tolist() == [[4, -1, j] for j in range(h)]
    some = torch.tensor([h + 2, 1, 5 * h])  # scattered, out of order
    w = pair_directions(tower, pairs[some, 1], pairs[some, 2])
    assert torch.equal(w, Pairs(tower).directions(UnitBlock(4, some))[:, 0])
    W_V, W_O, _ = value_output(tower)
    torch.testing.assert_close(w[0], W_O[2] @ W_V[2][:, 1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES[:2])
def test_statistics_are_those_of_the_full_matrices(shape: dict) -> None:
    """PC 1 of a pair is +-w / ||w||; neurons and heads are compared with the SVD of their effects."""
    visual, n = random_resnet(shape), 60
    images = pictures(visual, n)
    scale = 100 / visual(images).norm(dim=-1)
    r = torch.stack([pair_effects(visual, image) for image in images]) * scale[:, None, None, None]
    few = slice(0, 40)  # of the neurons: the oracle takes an SVD each
    heads = visual.attnpool.num_heads
    cases = [
        (Pairs(visual), r[:, few].flatten(1, 2), slice(0, 40 * heads)),
        (PooledNeurons(visual), r[:, few].sum(2), few),
        (PooledHeads(visual), r.sum(1), slice(None)),
    ]
    for paths, phi, rows in cases:
        run = batches_of(images, torch.randperm(n, generator=torch.Generator().manual_seed(2)), 17)
        found = measure(paths, run, [4], n, Settings(top=12, quantile=0.9)).effects
        expected = centred_statistics(phi, 12, rank_of(0.9, n))
        for name in ("mean", "top_norm", "threshold", "explained_all"):
            torch.testing.assert_close(getattr(found, name)[rows], expected[name], rtol=1e-9, atol=1e-9)
        assert torch.equal(found.top_image[rows], expected["top_image"])
        torch.testing.assert_close(found.component[rows, 0], expected["direction"], rtol=0, atol=1e-8)
        torch.testing.assert_close(found.component_explained[rows, 0], expected["explained"], rtol=1e-9, atol=1e-9)
    assert torch.equal(found.unit, PooledHeads(visual).units(4))


def test_directions_of_pairs_are_the_weights_and_the_compact_form_says_the_same() -> None:
    visual, n = random_resnet(SHAPES[0]), 40
    batches = batches_of(pictures(visual, n), torch.arange(n), 16)
    whole = measure(Pairs(visual), batches, [4], n, Settings(top=10)).effects
    compact = measure(Pairs(visual), batches, [4], n, Settings(top=10, compact=True)).effects
    w = pair_directions(visual, whole.unit[:, 1], whole.unit[:, 2])
    sign = compact.component[:, 0].sign()  # (n, 1)
    assert compact.component.shape == (len(w), 1, 1) and compact.mean.shape == (len(w), 1)
    assert set(sign[:, 0].tolist()) == {-1.0, 1.0}
    torch.testing.assert_close(whole.component[:, 0], sign * w / w.norm(dim=1, keepdim=True), rtol=0, atol=1e-12)
    torch.testing.assert_close(whole.mean, compact.mean * w, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(whole.explained_all, torch.ones(len(w), dtype=torch.float64), rtol=1e-9, atol=0)
    for name in ("unit", "top_norm", "top_image", "threshold"):
        assert torch.equal(getattr(whole, name), getattr(compact, name))


def test_silent_neurons_have_no_direction() -> None:
    visual, n = random_resnet(SHAPES[0]), 20
    visual.layer4[-1].bn3.weight[7], visual.layer4[-1].bn3.bias[7] = 0, -1e3  # neuron 7 is 0 after ReLU
    visual.attnpool.positional_embedding[:, 7] = 0
    found = measure(Pairs(visual), batches_of(pictures(visual, n), torch.arange(n), 8), [4], n, Settings(top=5)).effects
    rows = slice(7 * 3, 8 * 3)
    assert found.unit[rows].tolist() == [[4, 7, h] for h in range(3)]
    for name in ("component", "component_explained", "mean", "top_norm", "explained_all"):
        assert not getattr(found, name)[rows].any(), name


def test_pictures_of_another_size_are_refused_or_resized() -> None:
    visual = random_resnet(SHAPES[1])  # 3 × 3 tokens
    images = torch.randn(1, 3, 128, 64, dtype=torch.float64)
    with pytest.raises(ModelError, match="give 8 tokens, this model expects 9"):
        trace_pool(visual, images)
    before = visual.attnpool.positional_embedding
    with on_grid(visual, 4, 2):
        torch.testing.assert_close(trace_pool(visual, images).embedding, visual(images), rtol=1e-9, atol=1e-9)
    assert visual.attnpool.positional_embedding is before
    with on_grid(visual, 3, 3):
        assert visual.attnpool.positional_embedding is before


def test_other_towers_are_refused_by_name() -> None:
    clip = torch.nn.Module()
    clip.visual = open_clip.transformer.VisionTransformer(
        image_size=16, patch_size=8, width=12, layers=2, heads=2, mlp_ratio=1.0, output_dim=8
    )
    with pytest.raises(ModelError, match="this image tower is a VisionTransformer"):
        supported_resnet(clip)
