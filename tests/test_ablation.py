"""Changed outputs against full effects replaced one by one, and the word score against a loop."""

import numpy as np
import pytest
import torch
from oracles import second_order_effects
from test_second_order import SHAPES, pictures, random_tower

from cliptools.methods.ablation import Ablation, Change, Units
from cliptools.methods.changed import ChangedOutputs
from cliptools.methods.paths import Paths
from cliptools.methods.second_order import SecondOrder
from cliptools.methods.word_score import strongest_positive, word_score


def random_units(phi: torch.Tensor, unit: torch.Tensor, components: int = 3, sizes: tuple[int, ...] = (2, 5)) -> Units:
    """Means of the effects, and directions and fits as no statistics would find them."""
    random = torch.Generator().manual_seed(5)
    b, d = phi.mean(0), phi.shape[2]
    directions = torch.randn(len(unit), d, components, generator=random, dtype=phi.dtype)
    r = torch.linalg.qr(directions).Q.transpose(1, 2)
    fitted = {m: torch.randn(b.shape, generator=random, dtype=phi.dtype) / m for m in sizes}
    return Units(unit, b, r, (phi - b).norm(dim=-1).quantile(0.6, dim=0), fitted)


def literal(phi: torch.Tensor, units: Units, change: Change) -> torch.Tensor:
    """psi [image, unit, d], from full effects."""
    b, r = units.mean, units.component
    centred = phi - b
    beyond = centred.norm(dim=-1, keepdim=True) > units.threshold[:, None]
    if change.kind == "mean":
        return b.expand_as(phi)
    if change.kind in ("large", "small"):
        return torch.where(beyond if change.kind == "large" else ~beyond, b, phi)
    if change.kind == "words":
        return b + (centred * r[:, 0]).sum(-1, keepdim=True) * units.fitted[change.size]
    psi = b.expand_as(phi).clone()
    for j in range(change.size):
        psi += (centred * r[:, j]).sum(-1, keepdim=True) * r[:, j]
    return psi


def settings_for(unit: torch.Tensor, changes: list[Change]) -> list[list[tuple[Change, torch.Tensor]]]:
    """Every change of all units, of some, of some with the others at their means, and nothing at all."""
    count = len(unit)
    everything = torch.ones(count, dtype=torch.bool)
    some = torch.rand(count, generator=torch.Generator().manual_seed(9)) < 0.4
    first = unit[:, 0] == unit[0, 0]
    settings = [[(change, everything)] for change in changes]
    settings += [[(change, some), (Change("mean"), ~some)] for change in changes if change.kind in ("pc", "words")]
    return [*settings, [(Change("mean"), first & ~some)], [(changes[0], first)], []]


CHANGES = [Change("mean"), Change("large"), Change("small"), Change("pc", 1), Change("pc", 3), Change("words", 2)]
CHANGES += [Change("words", 5)]


def check(paths: Paths, visual: torch.nn.Module, images: torch.Tensor, phi: torch.Tensor, units: Units, scaled: bool) -> None:
    """Ablation with statistics in the images' scale or raw, against effects replaced one by one."""
    changes = [change for change in CHANGES if change.kind != "pc" or change.size <= units.component.shape[1]]
    settings = settings_for(units.unit, changes)
    found = ChangedOutputs(visual, [(Ablation(paths, units, settings), scaled)], [])(images)
    embedding = visual(images)
    scale = 100 / embedding.norm(dim=-1) if scaled else torch.ones(len(images), dtype=torch.float64)
    torch.testing.assert_close(found[0], embedding, rtol=1e-9, atol=1e-9)
    for setting, output in zip(settings, found[1:], strict=True):
        expected = embedding * scale[:, None]
        for change, rows in setting:
            psi = literal(phi, units, change)
            for n in rows.nonzero()[:, 0]:
                expected = expected + psi[:, n] - phi[:, n]
        expected = expected / scale[:, None]
        torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


def scaled_effects(phi: torch.Tensor, visual: torch.nn.Module, images: torch.Tensor, scaled: bool) -> torch.Tensor:
    return phi * (100 / visual(images).norm(dim=-1))[:, None, None] if scaled else phi


@pytest.mark.parametrize(("shape", "scaled"), [(0, True), (1, False)])
def test_second_order_effects_replaced_one_by_one(shape: int, scaled: bool) -> None:
    visual = random_tower(SHAPES[shape])
    images, layers = pictures(visual, 4), [0, 2]
    phi = torch.cat([torch.stack([second_order_effects(visual, x, layer) for x in images]) for layer in layers], 1)
    paths = SecondOrder(visual)
    unit = torch.cat([paths.units(layer) for layer in layers])
    shuffled = torch.randperm(len(unit), generator=torch.Generator().manual_seed(3))[: len(unit) - 5]  # a part, in any order
    phi = scaled_effects(phi, visual, images, scaled)[:, shuffled]
    check(paths, visual, images, phi, random_units(phi, unit[shuffled]), scaled)


def test_word_score_is_a_count() -> None:
    rng = np.random.default_rng(0)
    shown = rng.random((30, 10, 12)) < 0.2
    word = np.stack([rng.choice(20, 6, replace=False) for _ in range(30)])
    coefficient = rng.normal(size=(30, 6))
    word[3], coefficient[5] = -1, -1.0
    concept_of = np.array([i if i < 12 else -1 for i in range(20)])
    words = strongest_positive(word, coefficient, 3)
    expected = []
    for u in range(30):
        positive = sorted(((c, w) for c, w in zip(coefficient[u], word[u], strict=True) if c > 0 and w >= 0), reverse=True)[:3]
        assert [w for w in words[u] if w >= 0] == [w for _, w in positive]
        named = {w for _, w in positive if w < 12}
        expected.append(np.mean([bool(named & set(np.flatnonzero(image))) for image in shown[u]]))
    score = word_score(words, concept_of, shown)
    assert np.isclose(score.share, np.mean(expected)) and score.neurons == 30
    assert 0 < score.shuffled < 1 and score.ratio == score.share / score.shuffled
