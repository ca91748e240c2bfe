"""Shares of margins compared with full effects, token by token, and deletion compared with effects replaced one by one."""

import pytest
import torch
from helpers.explain import (
    check_units,
    close,
    pair_token_effects,
    rest_of_output,
    shuffled,
    token_effects,
    unit_vector,
    vector_units,
)
from helpers.first_order import first_order_effects
from helpers.oracles import second_order_effects
from helpers.resnet_paths import SHAPES as RESNETS
from helpers.resnet_paths import pair_effects, random_resnet
from helpers.resnet_paths import pictures as resnet_pictures
from helpers.second_order import SHAPES, pictures, random_tower
from helpers.textspan import head_effects

from cliptools.analysis.ablation import Units
from cliptools.analysis.deletion import random_orders, step_counts
from cliptools.analysis.explanation import Explainer, cosines
from cliptools.analysis.margin_passes import explained_tower
from cliptools.unit_effects.factored import FactoredEffect, UnitBlock, along_of
from cliptools.unit_effects.resnet_pooling import Pairs, PooledHeads, PooledNeurons, value_output
from cliptools.unit_effects.vit_second_order import SecondOrder

IMAGES = 3


@pytest.mark.parametrize(("shape", "scaled", "layers"), [(0, True, [0, 2]), (1, False, [1]), (5, True, [0])])
def test_parts_of_a_vit(shape: int, scaled: bool, layers: list[int]) -> None:
    """The parts against second-order, first-order and head effects from the weights, and a rest that is no difference."""
    visual = random_tower(SHAPES[shape])
    images, depth = pictures(visual, IMAGES), len(visual.transformer.resblocks)
    embedding, v = visual(images), unit_vector(visual.proj.shape[1])
    effect = SecondOrder(visual)
    by_layer = [torch.stack([second_order_effects(visual, x, layer) for x in images]) for layer in range(depth - 1)]
    rows = shuffled(sum(by_layer[layer].shape[1] for layer in layers))
    phi = torch.cat([by_layer[layer] for layer in layers], 1)[:, rows]
    unit = torch.cat([effect.units(layer) for layer in layers])[rows]
    f = 100 / embedding.norm(dim=1)
    explainer = Explainer(explained_tower(effect), vector_units(phi * f[:, None, None] if scaled else phi, unit), scaled)
    check_units(explainer, images, phi, embedding, v)
    read, along = explainer.read(images), explainer.along(v)
    for i, image in enumerate(images):
        shares = explainer.shares(read, i, along)
        direct = torch.cat([head_effects(visual, image, layer) for layer in range(depth)]) @ v * f[i]
        close(shares.direct, direct)
        every = sum(float(f[i] * effects[i].sum(0) @ v) for effects in by_layer)
        close(shares.parts["other_units"], every - shares.share.sum())
        close(shares.parts["heads"], direct.sum() - every)
        close(shares.parts["mlps"], f[i] * sum(first_order_effects(visual, image, n).sum(0) for n in range(depth)) @ v)
        close(shares.parts["rest"], f[i] * rest_of_output(visual, image) @ v)
        close(shares.through.sum(), shares.share.sum())


def test_tokens_and_heads_of_a_neuron() -> None:
    visual = random_tower(SHAPES[1])
    images, v, layer = pictures(visual, 2), unit_vector(visual.proj.shape[1]), 1
    effect = SecondOrder(visual)
    unit = effect.units(layer)[shuffled(effect.size(layer)[0])]
    units = vector_units(torch.zeros(1, len(unit), visual.proj.shape[1], dtype=torch.float64), unit)
    explainer = Explainer(explained_tower(effect), units, True)
    read, along = explainer.read(images), explainer.along(v)
    chosen = [5, 0, 11]
    through = torch.zeros(len(explainer.tower.heads), dtype=torch.float64)
    f = float(100 / visual(images[1:])[0].norm())
    for n in range(len(unit)):
        paths = token_effects(visual, images[1], layer, int(unit[n, 1])).sum(0) @ v * f
        through[-len(paths) :] += paths
        if n in chosen:
            expected = token_effects(visual, images[1], layer, int(unit[n, 1])) @ v * f  # (token, path)
            maps, first = explainer.maps(read, 1, along, [n])
            close(first[0], expected[0].sum())
            close(maps[0].flatten(), expected[1:].sum(1))
            share, head = explainer.path_shares(read, 1, along, n)
            close(share, paths)
            assert [explainer.tower.heads[h].layer for h in head.tolist()] == sorted(
                later for later in range(layer + 1, 4) for _ in range(5)
            )
    close(explainer.shares(read, 1, along).through, through)


@pytest.mark.parametrize(("shape", "scaled"), [(0, False), (1, True)])
def test_parts_of_a_resnet(shape: int, scaled: bool) -> None:
    visual = random_resnet(RESNETS[shape])
    images = resnet_pictures(visual, IMAGES)
    embedding, v = visual(images), unit_vector(RESNETS[shape]["output_dim"])
    effect = Pairs(visual)
    every = torch.stack([pair_effects(visual, image).flatten(0, 1) for image in images])
    rows, unit = shuffled(every.shape[1], 50), effect.units(4)
    phi, f = every[:, rows], 100 / embedding.norm(dim=1)
    scale = f if scaled else torch.ones_like(f)
    block = UnitBlock(4, torch.arange(len(unit)))
    s = effect.read(images, [block])[0]
    mean = (next(iter(s))[:, rows, 0] * scale[:, None]).mean(0)
    units = Units(unit[rows], mean[:, None], torch.ones(len(rows), 1, 1), torch.zeros(len(rows)), pairs=True)
    explainer = Explainer(explained_tower(effect), units, scaled)
    check_units(explainer, images, phi, embedding, v)
    read, along = explainer.read(images), explainer.along(v)
    for i, image in enumerate(images):
        shares = explainer.shares(read, i, along)
        assert list(shares.parts) == ["units", "other_units", "rest"]
        close(shares.parts["other_units"], f[i] * (every[i].sum(0) - phi[i].sum(0)) @ v)
        close(shares.parts["rest"], f[i] * value_output(visual)[2] @ v)
        heads = torch.stack([every[i][unit[:, 2] == h].sum(0) for h in range(effect.heads)]) @ v * f[i]
        close(shares.direct, heads)
        n = 7
        expected = pair_token_effects(visual, image, *unit[rows[n], 1:].tolist()) @ v * f[i]
        maps, first = explainer.maps(read, i, along, [n])
        close(first[0], expected[0])
        close(maps.flatten(), expected[1:])
        through = [shares.share[unit[rows, 2] == h].sum() for h in range(effect.heads)]
        close(shares.through, torch.stack(through))


@pytest.mark.parametrize("kind", [PooledNeurons, PooledHeads])
def test_neurons_and_heads_of_a_resnet(kind: type) -> None:
    visual = random_resnet(RESNETS[0])
    images = resnet_pictures(visual, 2)
    embedding, v = visual(images), unit_vector(11)
    effect: FactoredEffect = kind(visual)
    over = 1 if kind is PooledNeurons else 0
    phi = torch.stack([pair_effects(visual, image).sum(over) for image in images])
    explainer = Explainer(explained_tower(effect), vector_units(phi, effect.units(4)), False)
    check_units(explainer, images, phi, embedding, v)
    read, along = explainer.read(images), explainer.along(v)
    shares = explainer.shares(read, 0, along)
    close(shares.through, shares.direct)
    maps, first = explainer.maps(read, 0, along, [0, 2])
    close(maps.sum((1, 2)) + first, shares.share[[0, 2]])


def test_inner_products_with_one_vector() -> None:
    """`along` of each effect that knows it against D."""
    visual, resnet = random_tower(SHAPES[3]), random_resnet(RESNETS[2])
    effects: list[tuple[FactoredEffect, int]] = [(SecondOrder(visual), 2), (Pairs(resnet), 4), (PooledNeurons(resnet), 4)]
    for effect, layer in [*effects, (PooledHeads(resnet), 4)]:
        block = UnitBlock(layer, torch.tensor([1, 5, 3]))
        D = effect.directions(block)
        v = unit_vector(D.shape[-1])
        close(along_of(effect, block, v), D @ v)


def test_steps_and_random_orders() -> None:
    assert step_counts(3).tolist() == [0, 1, 2, 3] and step_counts(0).tolist() == [0]
    counts = step_counts(400).tolist()
    assert counts[:4] == [0, 1, 4, 9] and counts[-1] == 400 and len(counts) == 21
    one, same = random_orders(9, 1, "a.png", 4)[0], random_orders(9, 1, "a.png", 4)[0]
    assert one.equal(same) and one.sort().values.equal(torch.arange(9))
    assert not one.equal(random_orders(9, 1, "b.png", 4)[0])


def test_cosines() -> None:
    M = torch.randn(2, 7, generator=torch.Generator().manual_seed(1))
    t = torch.stack([unit_vector(7, seed) for seed in (1, 2)])
    close(cosines(M, t), torch.stack([torch.stack([m.double() @ text / m.double().norm() for text in t]) for m in M]))
