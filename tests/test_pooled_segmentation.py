"""Maps of pairs and of pooled effects in towers that pool by attention, compared with loops over pairs and literal passes."""

from typing import Any

import pytest
import torch
from helpers.other_towers import Frozen, pictures
from helpers.pooled_parts import DirectParts
from helpers.pooled_towers import pooled_tower
from torch import Tensor

from cliptools.errors import UsageError
from cliptools.segmentation import BY_PAIRS, PAIRS_OF_TOKENS
from cliptools.segmentation.pooled_methods import PooledMaps, maps_of, pooled_effect_method, pooled_method
from cliptools.segmentation.resnet_methods import PairUnits, heat_of
from cliptools.segmentation.towers import choose_method
from cliptools.towers.hooks import hooked
from cliptools.towers.kinds import tower_of
from cliptools.unit_effects.factored import UnitBlock
from cliptools.unit_effects.vit_pooling import TokenPairs

KINDS = ("siglip", "siglip-norms", "pe", "coca-mean")
LAYERS = (0, 2)


def close(value: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


def texts(visual: Any, count: int = 3) -> Tensor:
    g = torch.Generator().manual_seed(2)
    d = tower_of(visual).projection.shape[1]
    return torch.nn.functional.normalize(torch.randn(count, d, dtype=torch.float64, generator=g), dim=1)


def some_pairs(visual: Any, k: int = 25) -> PairUnits:
    """Return four fifths of the pairs of two layers, in any order, with random signs of their directions."""
    effect, g = TokenPairs(visual), torch.Generator().manual_seed(5)
    unit = torch.cat([effect.units(layer) for layer in LAYERS])
    w = torch.cat([effect.directions(UnitBlock(layer, torch.arange(effect.size(layer)[0])))[:, 0] for layer in LAYERS])
    rows = torch.randperm(len(unit), generator=g)[: len(unit) * 4 // 5]
    sign = torch.where(torch.rand(len(rows), 1, generator=g) < 0.5, -1.0, 1.0).double()
    return PairUnits(torch.nn.functional.normalize(sign * w[rows], dim=1), unit[rows].int(), k)


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_heads_at_tokens_add_up_to_what_attention_writes(kind: str, number: int) -> None:
    visual = pooled_tower(kind, number)
    images, tower = pictures(visual), tower_of(visual)
    maps: Any = PooledMaps(visual, LAYERS)
    total = torch.stack(list(maps.head_shares(maps.tokens(images)))).sum((0, 2))
    if kind.startswith("coca"):
        close(total + visual.ln_post.bias @ visual.proj, visual(images))
        return
    assert tower.pooling is not None
    with hooked(tower.pooling.part_hooks("attention")):
        close(total + getattr(visual.trunk.head, "bias", 0), visual(images))


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_maps_pair_by_pair(kind: str, number: int) -> None:
    visual = pooled_tower(kind, number)
    images, t, pairs, tower = pictures(visual), texts(visual), some_pairs(visual), tower_of(visual)
    parts, patches = DirectParts(visual, images), tower.grid[0] * tower.grid[1]
    r = parts.head_shares()[:, -patches:]
    r = r / r.norm(dim=-1, keepdim=True)
    maps = maps_of(visual, pairs.unit)
    for name in BY_PAIRS:
        found = pooled_method(name, maps, t, pairs)(images)
        close(found.embedding, visual(images))
        assert found.logits.shape == (2, len(t), *tower.grid)
        for c, text in enumerate(t):
            along = [float(direction @ text) for direction in pairs.r]
            best = sorted(range(len(along)), key=lambda u: -along[u])[: pairs.k]
            expected = torch.zeros(2, patches, dtype=torch.float64)
            for layer, n, g in pairs.unit[best].tolist():
                p = parts.p[layer][:, -patches:, n]
                if tower.blocks[layer].norm_mlp is not None:
                    pytest.fail("a LayerNorm behind the MLP belongs to p")
                neuron = p if name != "heads" else torch.ones_like(p)
                expected += neuron * (r[:, :, g] @ text if name != "neurons" else torch.ones_like(p)) / pairs.k
            close(found.logits[:, c].flatten(1), expected)


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_shares_of_patches_are_those_of_frozen_passes(kind: str, number: int) -> None:
    """Effects of three neurons that act at one patch alone: of the neurons, and of all their pairs, in float64."""
    visual = pooled_tower(kind, number)
    images, t, effect, tower = pictures(visual), texts(visual, 2), TokenPairs(visual), tower_of(visual)
    chosen = [(0, 1), (2, 4), (2, 7)]
    unit = torch.tensor([[layer, n, -1] for layer, n in chosen])
    frozen = {layer: Frozen(visual, images, layer) for layer in LAYERS}
    patches = range(tower.prefix, tower.tokens)
    phi = torch.stack([sum(frozen[layer].coefficients(n, j)[0] for layer, n in chosen) for j in patches], 1)  # (b, patch, d)
    expected = torch.einsum("bpd,td->btp", phi, t).unflatten(-1, tower.grid)
    r = torch.eye(len(chosen), t.shape[1], dtype=torch.float64)
    both = torch.stack([t, -t])  # the texts of each image
    heat = pooled_effect_method(visual, unit, r, len(chosen))(images, both)
    close(heat.scores, torch.stack([expected[0], -expected[1]]).relu())
    close(heat.embedding, visual(images))
    G = effect.heads
    of_pairs = torch.cat([effect.units(layer)[n * G : (n + 1) * G] for layer, n in chosen]).int()
    w = torch.cat([effect.directions(UnitBlock(layer, torch.arange(n * G, (n + 1) * G)))[:, 0] for layer, n in chosen])
    pairs = PairUnits(torch.nn.functional.normalize(w, dim=1), of_pairs, len(of_pairs))
    maps = maps_of(visual, of_pairs)
    close(pooled_method("effects", maps, t, pairs)(images).logits, expected)
    alone = PairUnits(pairs.r[:1], of_pairs[:1], 1), PairUnits(pairs.r[1:], of_pairs[1:], len(of_pairs) - 1)
    close(sum(pooled_method("effects", maps_of(visual, some.unit), t, some)(images).logits for some in alone), expected)


def test_heat_maps_are_of_each_images_own_texts() -> None:
    visual = pooled_tower("siglip", 1)
    images, pairs = pictures(visual), some_pairs(visual)
    t, maps = torch.stack([texts(visual), -texts(visual)]), maps_of(visual, pairs.unit)
    for name in PAIRS_OF_TOKENS:
        heat = heat_of(lambda t, name=name: pooled_method(name, maps, t, pairs))(images, t)
        for b in range(2):
            close(heat.scores[b], pooled_method(name, maps, t[b], pairs)(images[b : b + 1]).logits[0])


def test_maps_of_other_sizes() -> None:
    visual = pooled_tower("siglip", 2)
    pairs, t = some_pairs(visual), texts(visual)
    with tower_of(visual).on_grid(4, 6):
        found = pooled_method("pairs", maps_of(visual, pairs.unit), t, pairs)(torch.randn(1, 3, 20, 30, dtype=torch.float64))
    assert found.logits.shape == (1, 3, 4, 6)


def test_methods_of_pairs_and_of_neurons() -> None:
    clip: Any = torch.nn.Module()
    clip.visual = pooled_tower("siglip", 0)
    assert choose_method(None, clip, pairs=True) == "pairs" and choose_method("effects", clip, pairs=True) == "effects"
    with pytest.raises(UsageError, match="with pairs, expected one of pairs, neurons, heads, effects"):
        choose_method("signed", clip, pairs=True)
    with pytest.raises(UsageError, match="with neurons, expected one of neurons, signed, effects"):
        choose_method("pairs", clip)
