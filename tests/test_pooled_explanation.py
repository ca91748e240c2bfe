"""Shares of margins of towers that pool by attention: parts, tokens, heads and deletion compared with literal passes."""

from typing import Any

import pytest
import torch
from helpers.explain import check_units, close, shuffled, unit_vector, vector_units
from helpers.other_towers import Frozen, pictures
from helpers.pooled_parts import DirectParts
from helpers.pooled_towers import pooled_tower
from torch import Tensor

from cliptools.analysis.ablation import Units
from cliptools.analysis.explanation import Explainer
from cliptools.analysis.margin_passes import explained_tower
from cliptools.towers.kinds import tower_of
from cliptools.unit_effects.factored import FactoredEffect, UnitBlock
from cliptools.unit_effects.vit_pooled_second_order import SecondOrderPooled
from cliptools.unit_effects.vit_pooling import TokenHeads, TokenNeurons, TokenPairs

KINDS = ("siglip", "siglip-norms", "pe", "coca-mean")
IMAGES = 2
EFFECTS: dict[str, tuple[Any, list[int]]] = {
    "pairs": (TokenPairs, [0, 2]),
    "neurons": (TokenNeurons, [1]),
    "second": (SecondOrderPooled, [0, 1]),
    "pooling": (TokenHeads, [-1]),
    "heads": (TokenHeads, [1]),
}
"""Classes of effects, and layers of units; -1 is the pooling."""


def literal(effect: FactoredEffect, images: Tensor, layers: list[int]) -> tuple[Tensor, Tensor]:
    """Return units of these layers and their effects [image, unit, d], which other tests compare with second passes."""
    blocks = [UnitBlock(layer, torch.arange(effect.size(layer)[0])) for layer in layers]
    S, _ = effect.read(images, blocks)
    phi = [torch.einsum("bnk,nkd->bnd", s, effect.directions(block)) for s, block in zip(S, blocks, strict=True)]
    return torch.cat([effect.units(layer) for layer in layers]), torch.cat(phi, 1)


def explained(name: str, visual: Any, images: Tensor, scaled: bool) -> tuple[Explainer, Tensor, Tensor]:
    """Return the explainer of some of the units, in another order, with these units and their effects."""
    kind, layers = EFFECTS[name]
    effect = kind(visual)
    layers = [layer if layer >= 0 else tower_of(visual).depth for layer in layers]
    unit, phi = literal(effect, images, layers)
    rows = shuffled(len(unit), 4 if len(unit) > 5 else len(unit) // 3)  # a layer has few heads
    f = 100 / visual(images).norm(dim=1)[:, None, None] if scaled else 1
    if name != "pairs":
        units = vector_units(phi[:, rows] * f, unit[rows])
    else:
        D = torch.cat([effect.directions(UnitBlock(layer, torch.arange(effect.size(layer)[0])))[:, 0] for layer in layers])[rows]
        mean = torch.einsum("bud,ud->bu", phi[:, rows] * f, D / D.square().sum(1, keepdim=True)).mean(0)
        units = Units(unit[rows], mean[:, None], torch.ones(len(rows), 1, 1), torch.zeros(len(rows)), pairs=True)
    return Explainer(explained_tower(effect, set(layers)), units, scaled), unit[rows], phi[:, rows]


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", EFFECTS)
def test_parts_of_the_margin(name: str, kind: str, number: int) -> None:
    """Units, heads, MLPs, the pooling's MLP, and a rest that is the output with all else taken out, not a difference."""
    visual = pooled_tower(kind, number)
    images, v = pictures(visual, IMAGES), unit_vector(tower_of(visual).projection.shape[1])
    explainer, _, phi = explained(name, visual, images, scaled=number == 1)
    M, literal_parts = visual(images), DirectParts(visual, images)
    check_units(explainer, images, phi, M, v)
    every_head, no_mlp = literal_parts.every_head, torch.zeros_like(M)
    by_token, constant = literal_parts.pooling_heads()
    mlp = literal_parts.pooling_mlp()
    heads, mlps = M - literal_parts.without(every_head), M - literal_parts.without(neurons=True)
    behind = no_mlp if mlp is None else mlp
    rest = literal_parts.without(every_head, True) - behind
    read, along = explainer.read(images), explainer.along(v)
    for i in range(IMAGES):
        f = 100 / M[i].norm()
        shares = explainer.shares(read, i, along)
        expected = {"units": phi[i].sum(0)}
        if name in ("pairs", "neurons"):
            expected |= {"other_units": mlps[i] - phi[i].sum(0), "heads": heads[i], "pooling_mlp": behind[i], "rest": rest[i]}
        elif name == "second":
            later = sum(
                literal(SecondOrderPooled(visual), images, [layer])[1][i].sum(0) for layer in range(explainer.tower.depth - 1)
            )
            expected |= {"other_units": later - phi[i].sum(0), "heads": heads[i] - later, "mlps": mlps[i]}
            expected |= {"pooling_mlp": behind[i], "rest": rest[i]}
        elif name == "heads":
            expected |= {"other_units": heads[i] - phi[i].sum(0), "mlps": mlps[i], "pooling_mlp": behind[i], "rest": rest[i]}
        else:
            expected |= {"other_units": by_token[i].sum((0, 1)) - phi[i].sum(0), "pooling_mlp": behind[i]}
            expected |= {"rest": constant[i] - behind[i]}
        if mlp is None:
            expected.pop("pooling_mlp")
        assert list(shares.parts) == list(expected)
        close(
            torch.tensor(list(shares.parts.values()), dtype=torch.float64),
            torch.stack([f * part @ v for part in expected.values()]),
        )
        close(shares.through.sum(), shares.share.sum())
        direct = by_token[i].sum(1) @ v * f
        if name in ("second", "heads"):
            each = [(M[i] - literal_parts.without([head])[i]) @ v * f for head in every_head]
            direct = torch.stack(each)
            assert [tuple(head) for head in explainer.tower.heads] == every_head
        close(shares.direct, direct)


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", EFFECTS)
def test_tokens_and_heads_of_a_unit(name: str, kind: str, number: int) -> None:
    visual = pooled_tower(kind, number)
    images, v = pictures(visual, IMAGES), unit_vector(tower_of(visual).projection.shape[1])
    explainer, unit, phi = explained(name, visual, images, False)
    M, read, along = visual(images), explainer.read(images), explainer.along(v)
    f, tokens = 100 / M[1].norm(), tower_of(visual).tokens
    chosen = [1, 0]
    maps, first = explainer.maps(read, 1, along, chosen)
    prefix = explainer.tower.prefix
    assert maps.shape[1:] == tower_of(visual).grid
    for place, n in enumerate(chosen):
        layer, neuron, head = unit[n].tolist()
        if name == "pooling":
            by_token = DirectParts(visual, images).pooling_heads()[0][1, head]
            by_token = torch.cat([by_token.new_zeros(tokens - len(by_token), by_token.shape[1]), by_token])
        elif name == "heads":
            parts = DirectParts(visual, images)
            by_token = torch.stack([(M - parts.without([(layer, head)], token=j))[1] for j in range(tokens)])
        else:
            frozen, crossed = Frozen(visual, images, layer), int(name == "second")
            by_token = torch.stack([frozen.coefficients(neuron, j)[crossed][1] for j in range(tokens)])
        expected = by_token @ v * f
        if name == "pairs":  # the tokens of all heads of the neuron, from units that are pairs with each of them
            effect, G = TokenPairs(visual), tower_of(visual).readouts
            every = effect.units(layer)[neuron * G : (neuron + 1) * G]
            zero = torch.zeros(G, 1, dtype=torch.float64)
            pairs = Units(every, zero, torch.ones(G, 1, 1), torch.zeros(G), pairs=True)
            whole = Explainer(explained_tower(effect, {layer}), pairs, False)
            maps_of, first_of = whole.maps(whole.read(images), 1, whole.along(v), list(range(G)))
            close(maps_of.sum(0).flatten(), expected[prefix:])
            close(first_of.sum(), expected[:prefix].sum())
            close(maps_of[head], maps[place])
        else:
            close(maps[place].flatten(), expected[prefix:])
            close(first[place], expected[:prefix].sum())
        share, heads = explainer.path_shares(read, 1, along, n)
        close(share.sum(), phi[1, n] @ v * f)
        assert len(share) == len(heads) == explainer.tower.effect.size(layer)[1]
        names = [explainer.tower.heads[h] for h in heads.tolist()]
        if name == "second":
            assert [h.layer for h in names] == sorted(h.layer for h in names) and names[0].layer == layer + 1
        elif name != "neurons":
            assert {h.head for h in names} == {head}
