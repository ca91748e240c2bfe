"""The factored second-order effects against the equations written out, and what is refused."""

from functools import partial

import open_clip
import pytest
import torch
from open_clip.transformer import LayerNorm, QuickGELU, VisionTransformer
from oracles import second_order_effects

from cliptools.ground.errors import ModelError, UsageError
from cliptools.methods.vit_paths import choose_layers, class_attention, directions, scalars, supported_tower, trace

SHAPES = [
    {"image_size": 40, "patch_size": 8, "width": 36, "layers": 5, "heads": 3, "mlp_ratio": 2.5, "output_dim": 23},
    {
        "image_size": 21,
        "patch_size": 7,
        "width": 30,
        "layers": 4,
        "heads": 5,
        "mlp_ratio": 1.7,
        "output_dim": 31,
        "ls_init_value": 0.2,
    },
    {
        "image_size": (24, 16),
        "patch_size": 8,
        "width": 26,
        "layers": 3,
        "heads": 2,
        "mlp_ratio": 3.0,
        "output_dim": 9,
        "no_ln_pre": True,
    },
    {
        "image_size": 16,
        "patch_size": 4,
        "width": 28,
        "layers": 6,
        "heads": 7,
        "mlp_ratio": 2.0,
        "output_dim": 28,
        "act_layer": QuickGELU,
    },
    {
        "image_size": 16,
        "patch_size": 8,
        "width": 24,
        "layers": 3,
        "heads": 3,
        "mlp_ratio": 2.0,
        "output_dim": 11,
        "norm_layer": partial(LayerNorm, elementwise_affine=False),
        "patch_dropout": 0.5,
    },
    {
        "image_size": 16,
        "patch_size": 8,
        "width": 24,
        "layers": 2,
        "heads": 2,
        "mlp_ratio": 2.0,
        "output_dim": 13,
        "norm_layer": partial(LayerNorm, bias=False),
        "final_ln_after_pool": True,
    },
]


def random_tower(shape: dict, seed: int = 0) -> VisionTransformer:
    torch.manual_seed(seed)
    visual = VisionTransformer(**shape).double().eval().requires_grad_(False)
    for p in visual.parameters():
        p.data = 0.3 * torch.randn_like(p) + (p.ndim == 1)
    return visual


def pictures(visual: VisionTransformer, count: int) -> torch.Tensor:
    return torch.randn(count, 3, *visual.image_size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


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
    torch.testing.assert_close(class_attention(attn, normed), rows, rtol=1e-12, atol=1e-12)


def test_subset_of_neurons_is_a_part_of_all() -> None:
    visual = random_tower(SHAPES[1])
    traced = trace(visual, pictures(visual, 2), [0, 2])
    some = torch.tensor([4, 0, 11])
    torch.testing.assert_close(scalars(traced, 0, some), scalars(traced, 0)[:, some], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(directions(visual, 0, some), directions(visual, 0, slice(None))[some], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"pool_type": "avg"}, "pool_type='avg'"), ({"attentional_pool": True, "attn_pooler_heads": 3}, "attn_pool")],
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
    clip.visual = VisionTransformer(**SHAPES[0], block_type="custom")
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
