"""Changed outputs compared with full effects that are replaced one by one, and the word score compared with a loop."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.first_order import first_order_effects
from helpers.indirect import indirect_effects, prepared
from helpers.oracles import second_order_effects
from helpers.resnet_paths import SHAPES as RESNETS
from helpers.resnet_paths import pair_effects, random_resnet
from helpers.resnet_paths import pictures as resnet_pictures
from helpers.second_order import SHAPES, pictures, random_tower
from helpers.textspan import head_effects

from cliptools.analysis.ablation import Ablation, Change, ChangedOutputs, Joint, OmittedUnits, Units
from cliptools.analysis.pursuit import fitted, pursue
from cliptools.analysis.zero_shot import Guessing, Share, Tally, score, standing
from cliptools.unit_effects.factored import FactoredEffect, UnitBlock, unit_blocks_of
from cliptools.unit_effects.resnet_pooling import Pairs, PooledHeads, PooledNeurons
from cliptools.unit_effects.vit_direct import FirstOrder, Heads
from cliptools.unit_effects.vit_second_order import SecondOrder
from training.word_score import strongest_positive, word_score


def random_units(phi: torch.Tensor, unit: torch.Tensor, components: int = 3, sizes: tuple[int, ...] = (2, 5)) -> Units:
    """Return means of the effects, and random directions and fits that no statistics would give."""
    random = torch.Generator().manual_seed(5)
    b, d = phi.mean(0), phi.shape[2]
    directions = torch.randn(len(unit), d, components, generator=random, dtype=phi.dtype)
    r = torch.linalg.qr(directions).Q.transpose(1, 2)
    fitted = {m: torch.randn(b.shape, generator=random, dtype=phi.dtype) / m for m in sizes}
    fitted[sizes[-1]][1] = 0.0  # a unit without texts
    return Units(unit, b, r, (phi - b).norm(dim=-1).quantile(0.6, dim=0), fitted)


def literal(phi: torch.Tensor, units: Units, change: Change) -> torch.Tensor:
    """Return psi [image, unit, d] from full effects."""
    b, r = units.mean, units.component
    centred = phi - b
    beyond = centred.norm(dim=-1, keepdim=True) > units.threshold[:, None]
    if change.kind == "mean":
        return b.expand_as(phi)
    if change.kind in ("large", "small"):
        return torch.where(beyond if change.kind == "large" else ~beyond, b, phi)
    if change.kind == "words":
        fit = units.fitted[change.size]
        if change.along == "unit-texts":
            length = fit.square().sum(-1, keepdim=True).sqrt()
            fit = torch.where(length > 0, fit / length, 0.0)
        onto = r[:, 0] if change.along == "direction" else fit
        return b + (centred * onto).sum(-1, keepdim=True) * fit
    psi = b.expand_as(phi).clone()
    for j in range(change.size):
        psi += (centred * r[:, j]).sum(-1, keepdim=True) * r[:, j]
    return psi


def settings_for(unit: torch.Tensor, changes: list[Change]) -> list[list[tuple[Change, torch.Tensor]]]:
    """Return every change of all units, of some units, of some units with the others at their means, and no change."""
    count = len(unit)
    everything = torch.ones(count, dtype=torch.bool)
    some = torch.rand(count, generator=torch.Generator().manual_seed(9)) < 0.4
    first = unit[:, 0] == unit[0, 0]
    settings = [[(change, everything)] for change in changes]
    settings += [[(change, some), (Change("mean"), ~some)] for change in changes if change.kind in ("pc", "words")]
    return [*settings, [(Change("mean"), first & ~some)], [(changes[0], first)], []]


CHANGES = [Change("mean"), Change("large"), Change("small"), Change("pc", 1), Change("pc", 3), Change("words", 2)]
CHANGES += [Change("words", 5), Change("words", 5, "texts"), Change("words", 2, "texts"), Change("words", 5, "unit-texts")]


def check(
    paths: FactoredEffect, visual: torch.nn.Module, images: torch.Tensor, phi: torch.Tensor, units: Units, scaled: bool
) -> None:
    """Compare Ablation, with statistics in the images' scale or raw, with effects that are replaced one by one."""
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


@pytest.mark.parametrize("scaled", [True, False])
def test_several_effects_of_a_vit_from_one_forward_pass(scaled: bool) -> None:
    visual = random_tower(SHAPES[1])
    images = pictures(visual, 4)
    oracles = [
        (SecondOrder(visual), [1], second_order_effects),
        (FirstOrder(visual), [0, 3], first_order_effects),
        (Heads(visual), [1, 3], head_effects),
    ]
    asked, expected = [], []
    for paths, layers, effects in oracles:
        phi = torch.cat([torch.stack([effects(visual, x, layer) for x in images]) for layer in layers], 1)
        phi = scaled_effects(phi, visual, images, scaled)
        units = random_units(phi, torch.cat([paths.units(layer) for layer in layers]))
        check(paths, visual, images, phi, units, scaled)
        everything = torch.ones(len(units.unit), dtype=torch.bool)
        asked.append((Ablation(paths, units, [[(Change("large"), everything)], [(Change("words", 5), everything)]]), scaled))
        expected += [literal(phi, units, change).sum(1) - phi.sum(1) for change in (Change("large"), Change("words", 5))]
    passes = []
    handle = visual.conv1.register_forward_hook(lambda *_: passes.append(1))
    found = ChangedOutputs(visual, asked, [])(images)
    handle.remove()
    assert len(passes) == 1 and not any(module._forward_hooks for module in visual.modules())
    scale = 100 / found[0].norm(dim=-1, keepdim=True) if scaled else 1.0
    for output, moved in zip(found[1:], expected, strict=True):
        torch.testing.assert_close(output, found[0] + moved / scale, rtol=1e-9, atol=1e-9 * float(output.abs().max()))


@pytest.mark.parametrize(("shape", "scaled"), [(0, True), (1, False)])
def test_pairs_neurons_and_heads_of_a_resnet(shape: int, scaled: bool) -> None:
    visual = random_resnet(RESNETS[shape])
    images = resnet_pictures(visual, 4)
    r = scaled_effects(torch.stack([pair_effects(visual, x).flatten(0, 1) for x in images]), visual, images, scaled)
    every = r.unflatten(1, (-1, visual.attnpool.num_heads))  # (image, neuron, head, d)
    few = torch.randperm(every.shape[1], generator=torch.Generator().manual_seed(3))[:30]
    asked = [
        (Pairs(visual), every[:, few].flatten(1, 2), Pairs(visual).units(4).unflatten(0, every.shape[1:3])[few].flatten(0, 1)),
        (PooledNeurons(visual), every[:, few].sum(2), PooledNeurons(visual).units(4)[few]),
        (PooledHeads(visual), every.sum(1), PooledHeads(visual).units(4)),
    ]
    for paths, phi, unit in asked:
        check(paths, visual, images, phi, random_units(phi, unit), scaled)


def test_words_of_pairs_are_the_same_at_unit_length() -> None:
    """A pair acts along r, and pursuit projects r onto its texts: paper 2's formula equals this suite's, paper 1's is shorter."""
    visual = random_resnet(RESNETS[0])
    images = resnet_pictures(visual, 3)
    paths, everything = Pairs(visual), torch.arange(len(Pairs(visual).units(4)))
    w = paths.directions(UnitBlock(4, everything))[:, 0]
    r = torch.nn.functional.normalize(w, dim=1)
    random = torch.Generator().manual_seed(3)
    atoms = torch.nn.functional.normalize(torch.randn(40, r.shape[1], generator=random, dtype=r.dtype), dim=1)
    found = pursue(r, atoms, 3)
    ones = torch.ones(len(r), 1, dtype=r.dtype)
    units = Units(paths.units(4), 0.1 * ones, ones[:, None], ones[:, 0], {3: fitted(r, atoms, found.word)}, pairs=True)
    whole = torch.ones(len(r), dtype=torch.bool)
    settings = [[(Change("words", 3, along), whole)] for along in ("direction", "unit-texts", "texts")]
    _, direction, unit_texts, texts = ChangedOutputs(visual, [(Ablation(paths, units, settings), False)], [])(images)
    scale = float(direction.abs().max())
    torch.testing.assert_close(unit_texts, direction, rtol=1e-7, atol=1e-7 * scale)
    assert (texts - direction).abs().max() > 1e-2 * scale


@pytest.mark.parametrize("scaled", [True, False])
def test_pairs_by_their_scalars_and_those_left_out(scaled: bool) -> None:
    """Sign and mean scalar give the same as vectors; units that are not in the bundle are at their means in every setting."""
    visual = random_resnet(RESNETS[0])
    images = resnet_pictures(visual, 5)
    phi = scaled_effects(torch.stack([pair_effects(visual, x).flatten(0, 1) for x in images]), visual, images, scaled)
    paths, random = Pairs(visual), torch.Generator().manual_seed(7)
    kept = torch.rand(phi.shape[1], generator=random) < 0.2
    unit, w = paths.units(4)[kept], paths.directions(UnitBlock(4, kept.nonzero()[:, 0]))[:, 0]
    sign = torch.randint(-1, 2, (len(unit),), generator=random).double()  # some never acted
    sign[phi[:, kept].std(0).sum(-1) == 0] = 0
    s = (phi[:, kept].mean(0) * w).sum(-1) / w.square().sum(-1).clamp(min=1e-300)
    r = sign[:, None] * w / w.norm(dim=-1, keepdim=True).clamp(min=1e-300)
    vectors = replace(random_units(phi[:, kept], unit), component=r[:, None])
    scalars = replace(vectors, mean=s[:, None], component=sign[:, None, None], pairs=True)
    left, changes = phi[:, ~kept], [change for change in CHANGES if change != Change("pc", 3)]
    settings = settings_for(unit, changes)
    rest = OmittedUnits(unit_blocks_of(paths, paths.units(4)[~kept])[0], left.mean(0).sum(0))
    with_rest, without = (Ablation(paths, scalars, settings, of) for of in (rest, None))
    found = ChangedOutputs(visual, [(with_rest, scaled), (without, scaled), (Ablation(paths, vectors, settings), scaled)], [])(
        images
    )
    others, plain, by_vectors = found[1:].split(len(settings))
    tolerance = {"rtol": 1e-9, "atol": 1e-9 * float(found.abs().max())}
    torch.testing.assert_close(plain, by_vectors, **tolerance)
    scale = 100 / found[0].norm(dim=-1, keepdim=True) if scaled else 1.0
    torch.testing.assert_close(others, plain + ((left.mean(0) - left).sum(1) / scale), **tolerance)
    check(paths, visual, images, phi[:, kept], vectors, scaled)


def test_indirect_effects_one_by_one_and_all_at_once() -> None:
    visual, layers = random_tower(SHAPES[2]), [0, 2]
    images = pictures(visual, 5)
    paths = prepared(visual, images, layers, 6)
    phi = torch.cat([indirect_effects(visual, images, layer, paths.sample[layer].tolist()) for layer in layers], 1)
    phi = scaled_effects(phi, visual, images, True)
    unit = torch.cat([paths.units(layer) for layer in layers])
    check(paths, visual, images, phi, random_units(phi, unit), True)
    joint = Joint(dict(paths.sample), dict(paths.means))
    untouched, found = ChangedOutputs(visual, [], [joint])(images)
    torch.testing.assert_close(untouched, visual(images), rtol=1e-12, atol=1e-12)
    x = visual._embeds(images)
    for number, block in enumerate(visual.transformer.resblocks):  # written out, with the means of the untouched pass
        x = x + block.ls_1(block.attention(block.ln_1(x)))
        p = block.mlp.gelu(block.mlp.c_fc(block.ln_2(x)))
        for place, n in enumerate(paths.sample.get(number, torch.arange(0)).tolist()):
            p[:, :, n] = paths.means[number][:, place]
        x = x + block.ls_2(block.mlp.c_proj(p))
    expected = visual.ln_post(x[:, 0]) @ visual.proj
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))
    assert not any(module._forward_hooks for module in visual.modules())


def test_nothing_to_change_is_the_model_alone() -> None:
    for visual, images, paths in (
        (tower := random_tower(SHAPES[2]), pictures(tower, 3), SecondOrder(tower)),
        (resnet := random_resnet(RESNETS[0]), resnet_pictures(resnet, 3), Pairs(resnet)),
    ):
        phi = torch.zeros(3, 4, visual(images).shape[1], dtype=torch.float64)
        units = random_units(phi, paths.units(4 if paths.units(4).numel() else 0)[:4], 1)
        found = ChangedOutputs(visual, [(Ablation(paths, units, [[], []]), True)], [])(images)
        torch.testing.assert_close(found, visual(images).expand(3, -1, -1), rtol=1e-9, atol=1e-9)


def test_a_sum_of_texts_is_the_pursuit_of_so_many() -> None:
    torch.manual_seed(0)
    r = torch.nn.functional.normalize(torch.randn(9, 12, dtype=torch.float64))
    atoms = torch.nn.functional.normalize(torch.randn(40, 12, dtype=torch.float64))
    r[4] = 0  # a unit that never acted has no texts
    word = pursue(r, atoms, 6).word
    for m in (1, 3, 6):
        shorter = pursue(r, atoms, m)
        torch.testing.assert_close((fitted(r, atoms, word[:, :m]) - r).norm(dim=1), shorter.residual, rtol=1e-9, atol=1e-9)


def test_scores_are_counts() -> None:
    random = torch.Generator().manual_seed(2)
    output, text = torch.randn(3, 40, 6, generator=random), torch.randn(11, 6, generator=random)
    text[7] = text[2]  # equal scores: the first of the two wins
    label = torch.randint(0, 11, (40,), generator=random)
    tally = Tally(3)
    for part in (slice(0, 17), slice(17, 40)):
        tally.add(score(output[:, part], text, label[part]))
    ranked = [[sorted(range(11), key=lambda c: -float(z.double() @ text[c].double())) for z in each] for each in output]
    for s in range(3):
        places = [order.index(int(c)) for order, c in zip(ranked[s], label, strict=True)]
        assert tally.top1(s) == Share(sum(place == 0 for place in places), 40)
        assert tally.top5(s) == Share(sum(place < 5 for place in places), 40)
        same = [a[0] == b[0] for a, b in zip(ranked[s], ranked[0], strict=True)]
        assert tally.agreement(s) == np.mean(same)
        cosines = [float(a @ b / (a.norm() * b.norm())) for a, b in zip(output[s].double(), output[0].double(), strict=True)]
        assert tally.cosine(s) == pytest.approx(np.mean(cosines), abs=1e-12)


@pytest.mark.parametrize(
    ("hits", "trials", "classes", "expected"),
    [
        (3, 3, 100, "above"), (3, 3, 4, "above"), (1, 1, 1000, "above"), (12, 500, 100, "above"), (9, 12, 2, "open"),
        (1, 10, 10, "chance"), (5, 500, 100, "chance"), (60, 500, 10, "chance"), (0, 10, 526, "chance"), (250, 500, 2, "chance"),
        (0, 7, 1000, "chance"), (2, 12, 10, "chance"),
        (0, 2, 3, "open"), (0, 3, 100, "open"), (1, 2, 2, "open"), (2, 2, 4, "open"), (5, 5, 1, "open"),
    ],
)  # fmt: skip
def test_how_few_images_stand_to_guessing(hits: int, trials: int, classes: int, expected: str) -> None:
    """The probability is compared with sums of the binomial distribution, term by term."""
    assert standing(Share(hits, trials), 1 / classes) == expected

    def probability(values: range, p: float) -> float:
        return sum(math.comb(trials, k) * p**k * (1 - p) ** (trials - k) for k in values)

    better = probability(range(hits, trials + 1), 1 / classes) <= 0.05
    worse = probability(range(hits + 1), (1 + 1 / classes) / 2) <= 0.01
    assert expected == ("above" if better else "chance" if worse else "open")


def dealt(label: np.ndarray, best: np.ndarray, names: list[str]) -> Guessing:
    guessing = Guessing(names)
    for part in np.array_split(np.arange(len(label)), 3):  # as batches
        guessing.add(label[part], best[part])
    return guessing


def test_labels_dealt_anew() -> None:
    """Mean and deviation of the number of right answers are compared with random permutations of the labels."""
    rng = np.random.default_rng(0)
    label, best = (rng.choice(4, 60, p=p) for p in ([0.6, 0.2, 0.1, 0.1], [0.5, 0.1, 0.1, 0.3]))
    mean, spread = dealt(label, best, list("abcd"))._shuffled_hits()
    hits = [(rng.permutation(label) == best).sum() for _ in range(20_000)]
    assert mean == pytest.approx(np.mean(hits), abs=0.1) and spread == pytest.approx(np.std(hits), rel=0.03)


def test_unbalanced_labels_and_names_that_stand_twice() -> None:
    rng = np.random.default_rng(1)
    ten = [str(number) for number in range(10)]
    unbalanced = rng.choice(10, 400, p=[0.8] + [0.2 / 9] * 9)
    prefers = rng.choice(10, 400, p=[0.5] + [0.5 / 9] * 9)  # the same class, and knows nothing of the images
    blind = dealt(unbalanced, prefers, ten)
    assert standing(blind.share, 1 / 10) == "above" and blind.standing() == "chance" and blind.expected > 120
    knows = np.where(rng.random(400) < 0.4, unbalanced, prefers)
    assert dealt(unbalanced, knows, ten).standing() == "above"
    for rare in (0, 1, 12):  # sorted by class: nearly all images are of one, which the model often takes for another
        label = np.repeat([3, 5], [400 - rare, rare])
        best = np.where(rng.random(400) < 0.6, (label + rng.integers(1, 10, 400)) % 10, label)
        assert dealt(label, best, ten).standing() == "above"
    assert dealt(np.arange(400) % 10, np.zeros(400, int), ten).standing() == "chance"  # all taken for one class
    assert dealt(np.zeros(400, int), np.full(400, 7), ten).standing() == "chance"
    assert dealt(np.zeros(3, int), np.zeros(3, int), ten).standing() == "above"
    twice = dealt(np.array([0, 1, 2, 2]), np.array([0, 0, 2, 2]), ["crane", "crane", "dog"])
    assert twice.guess == pytest.approx(3 / 4 / 2)  # of four images one can never be right, two names to draw from
    assert dealt(np.ones(9, int), np.zeros(9, int), ["crane", "crane", "dog"]).expected == 0


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
