"""Direct effects of the heads of an attention pooling, which add up with the constant parts to the output."""

from typing import Any

import pytest
import torch
from helpers.other_towers import pictures
from helpers.pooled_parts import DirectParts
from helpers.pooled_towers import KINDS, pooled_tower
from torch import Tensor

from cliptools.errors import UsageError
from cliptools.towers.hooks import hooked
from cliptools.towers.kinds import tower_of
from cliptools.unit_effects.factored import UnitBlock, total_of
from cliptools.unit_effects.vit_pooling import TokenHeads, choose_pooling_heads


def close(value: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_heads_of_the_pooling_and_the_rest_are_the_output(kind: str, number: int) -> None:
    visual = pooled_tower(kind, number)
    images, effect = pictures(visual, 2), TokenHeads(visual)
    by_token, rest = DirectParts(visual, images).pooling_heads()
    close(by_token.sum((1, 2)) + rest, visual(images))
    block = UnitBlock(effect.layer, torch.arange(effect.size(effect.layer)[0]))
    (S,), M = effect.read(images, [block])
    D = effect.directions(block)
    assert torch.equal(M, visual(images)) and S.shape[1:] == D.shape[:2] == effect.size(effect.layer)
    close(torch.einsum("bnk,nkd->bnd", S, D), by_token.sum(2))
    close(total_of(effect, block, S) + rest, M)
    assert effect.units(effect.layer).tolist() == [[effect.layer, -1, g] for g in range(len(D))]
    assert not len(effect.units(effect.layer + 1)) and not len(effect.units(-1))


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_heads_of_self_attention_reach_the_output_through_the_pooling(kind: str, number: int) -> None:
    """Every head that is taken out of the residual stream alone, with everything behind it frozen."""
    visual = pooled_tower(kind, number)
    images, effect = pictures(visual, 2), TokenHeads(visual)
    parts = DirectParts(visual, images)
    close(parts.without(), visual(images))
    blocks = [UnitBlock(layer, torch.arange(effect.size(layer)[0])) for layer in range(effect.layer)]
    S, M = effect.read(images, blocks)
    for block, scalars in zip(blocks, S, strict=True):
        D = effect.directions(block)
        assert D.shape[:2] == effect.size(block.layer)
        expected = torch.stack([M - parts.without([(block.layer, head)]) for head in block.neurons.tolist()], 1)
        close(torch.einsum("bnk,nkd->bnd", scalars, D), expected)
    some = UnitBlock(1, torch.tensor([1, 0]))
    (few,), _ = effect.read(images, [some])
    close(few, list(effect.read(images, blocks)[0])[1][:, [1, 0]])


@pytest.mark.parametrize("kind", ["siglip", "siglip-norms", "pe-big", "coca"])
def test_what_a_pooling_writes_behind_its_attention(kind: str) -> None:
    visual = pooled_tower(kind, 2)
    images = pictures(visual, 3)
    pooling: Any = tower_of(visual).pooling
    written: list[Tensor] = []
    with hooked(pooling.mlp_hooks(written.append)):
        visual(images)
    expected = DirectParts(visual, images).pooling_mlp()
    assert (expected is None) == (not written)
    if expected is not None:
        close(written[0], expected)


def test_layers_of_heads() -> None:
    visual = pooled_tower("siglip", 0)
    assert choose_pooling_heads(visual, None) == (4,) and choose_pooling_heads(visual, [3, 0]) == (3, 0)
    with pytest.raises(UsageError, match="layer 5 does not exist, heads of this model have layers 0 to 3, and 4, its pooling"):
        choose_pooling_heads(visual, [5])
    with pytest.raises(UsageError, match="name 4 alone"):
        choose_pooling_heads(visual, [3, 4])
