"""The factored second-order effects compared with the explicit equations, and errors."""

import open_clip
import pytest
import torch
from helpers.oracles import second_order_effects
from helpers.second_order import SHAPES, pictures, random_tower
from open_clip.transformer import VisionTransformer

from cliptools.errors import ModelError, UsageError
from cliptools.towers.kinds import supported_tower, tower_of
from cliptools.unit_effects.vit_second_order import choose_layers, directions, scalars, trace


@pytest.mark.parametrize("shape", SHAPES)
def test_factored_form_is_the_equation(shape: dict) -> None:
    visual = random_tower(shape)
    images = pictures(visual, 3)
    layers = range(shape["layers"] - 1)
    traced = trace(visual, images, layers)
    for layer in layers:
        phi = torch.einsum("bnk,nkd->bnd", scalars(traced, layer), directions(visual, layer, slice(None)))
        expected = torch.stack([second_order_effects(visual, image, layer) for image in images])
        torch.testing.assert_close(phi, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


@pytest.mark.parametrize("shape", SHAPES[:2])
def test_trace_leaves_the_output_as_it_was(shape: dict) -> None:
    visual = random_tower(shape)
    images = pictures(visual, 2)
    traced = trace(visual, images, [0])
    assert torch.equal(traced.embedding, visual(images))
    assert not any(module._forward_hooks for module in visual.modules())


def test_attention_rows_are_those_of_torch() -> None:
    visual = random_tower(SHAPES[0])
    attn = visual.transformer.resblocks[2].attn
    normed = torch.randn(2, 26, 36, dtype=torch.float64)
    rows = attn(normed, normed, normed, need_weights=True, average_attn_weights=False)[1][:, :, 0]
    torch.testing.assert_close(tower_of(visual).blocks[2].attention.class_row(normed), rows, rtol=1e-12, atol=1e-12)


def test_subset_of_neurons_is_a_part_of_all() -> None:
    visual = random_tower(SHAPES[1])
    traced = trace(visual, pictures(visual, 2), [0, 2])
    some = torch.tensor([4, 0, 11])
    torch.testing.assert_close(scalars(traced, 0, some), scalars(traced, 0)[:, some], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(directions(visual, 0, some), directions(visual, 0, slice(None))[some], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"pool_type": "none"}, "pool_type='none'"), ({"attentional_pool": "cascade", "attn_pooler_heads": 3}, "attn_pool")],
)
def test_other_pooling_is_refused_by_name(change: dict, reason: str) -> None:
    clip = torch.nn.Module()
    clip.visual = VisionTransformer(**(SHAPES[0] | {"output_dim": 24} | change))
    with pytest.raises(ModelError, match=reason):
        supported_tower(clip)


def test_other_towers_are_refused_by_name() -> None:
    clip = torch.nn.Module()
    clip.visual = open_clip.model.ModifiedResNet(layers=(1, 1, 1, 1), output_dim=16, heads=4, image_size=64, width=8)
    with pytest.raises(ModelError, match="ModifiedResNet"):
        supported_tower(clip)
    clip.visual = VisionTransformer(**SHAPES[0], scaled_cosine_attn=True)
    with pytest.raises(ModelError, match="custom attention"):
        supported_tower(clip)


def test_layers_default_to_two_thirds_and_later() -> None:
    visual = random_tower(SHAPES[0] | {"layers": 12, "mlp_ratio": 1.0})
    assert choose_layers(visual, None) == (8, 9, 10)
    assert choose_layers(visual, [3]) == (3,)
    with pytest.raises(UsageError, match="no later attention layer"):
        choose_layers(visual, [11])
    with pytest.raises(UsageError, match="layers 0 to 11"):
        choose_layers(visual, [12])
