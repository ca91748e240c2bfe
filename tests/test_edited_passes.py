"""Outputs with changed weights, against one whole pass for each set of them; float64, random weights of odd shapes."""

from typing import Any

import pytest
import torch
from helpers import other_towers, pooled_towers
from helpers.resnet_paths import SHAPES as RESNETS
from helpers.resnet_paths import pictures as resnet_pictures
from helpers.resnet_paths import random_resnet
from helpers.second_order import SHAPES, pictures, random_tower
from torch import Tensor, nn
from torch.func import functional_call

from cliptools.analysis.edited_passes import edited_outputs
from cliptools.towers.kinds import tower_of


def changes(visual: nn.Module, part: str, seed: int = 5) -> dict[str, Tensor]:
    """Return other values of all weights in a part of the tower."""
    generator = torch.Generator().manual_seed(seed)
    named = {name: value for name, value in visual.named_parameters() if name.startswith(part)}
    assert named, part
    return {name: value + 0.1 * torch.randn(value.shape, dtype=value.dtype, generator=generator) for name, value in named.items()}


def check(visual: nn.Module, sets: list[dict[str, Tensor]], image: Tensor) -> Tensor:
    """Compare with whole passes, and return the outputs."""
    outputs = edited_outputs(visual, sets, image)
    whole = torch.stack([functional_call(visual, weights, (image,)) for weights in sets])
    torch.testing.assert_close(outputs, whole.detach(), rtol=1e-9, atol=1e-9 * float(whole.abs().max()))
    assert len({tuple(row.flatten().tolist()) for row in outputs}) == len(sets)
    return outputs


@pytest.mark.parametrize("shape", SHAPES)
def test_a_vit_with_changed_late_layers(shape: dict[str, Any]) -> None:
    visual = random_tower(shape)
    last = shape["layers"] - 1
    late = [changes(visual, f"transformer.resblocks.{layer}.mlp.c_proj") for layer in (last - 1, last)]
    check(visual, [*late, {}, late[0] | late[1], changes(visual, f"transformer.resblocks.{last}.attn")], pictures(visual, 3))


@pytest.mark.parametrize("part", ["transformer.resblocks.0.mlp", "conv1", "ln_post", "proj", "class_embedding"])
def test_a_vit_with_weights_changed_elsewhere(part: str) -> None:
    visual = random_tower(SHAPES[0])
    check(visual, [{}, changes(visual, part), changes(visual, "transformer.resblocks.1.mlp")], pictures(visual, 2))


def test_the_common_layers_run_once() -> None:
    visual = random_tower(SHAPES[0])
    runs = dict.fromkeys(range(SHAPES[0]["layers"]), 0)

    def count(layer: int) -> Any:
        def hook(*_: object) -> None:
            runs[layer] += 1

        return hook

    handles = [block.module.register_forward_hook(count(layer)) for layer, block in enumerate(tower_of(visual).blocks)]
    last = SHAPES[0]["layers"] - 1
    sets = [changes(visual, f"transformer.resblocks.{last}.mlp", seed) for seed in range(4)]
    edited_outputs(visual, [{}, *sets], pictures(visual, 2))
    for handle in handles:
        handle.remove()
    assert [runs[layer] for layer in range(last)] == [1] * last


@pytest.mark.parametrize("kind", ["vit", "eva02-b", "siglip", "coca-custom"])
def test_towers_of_other_kinds(kind: str) -> None:
    if kind in pooled_towers.KINDS:
        visual = pooled_towers.pooled_tower(kind, 1)
    else:
        visual = other_towers.timm_tower(kind, other_towers.SHAPES[1], 11)
    tower, names = tower_of(visual), {id(value): name for name, value in visual.named_parameters()}
    layer = tower.depth - 1
    name = names[id(tower.blocks[layer].output.weight)]
    check(visual, [{}, changes(visual, name), changes(visual, name, 6)], other_towers.pictures(visual))


@pytest.mark.parametrize("shape", RESNETS)
def test_a_resnet_with_changed_pooling(shape: Any) -> None:
    visual = random_resnet(shape)
    pooling = [changes(visual, "attnpool.v_proj"), changes(visual, "attnpool.c_proj")]
    check(visual, [{}, *pooling], resnet_pictures(visual, 2))
    check(visual, [pooling[0], changes(visual, "layer4.0.conv3"), {}], resnet_pictures(visual, 2))
