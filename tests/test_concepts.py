"""Norms and projections of effects, word scores and recall compared with their literal forms, and their meaning on emoji-vit2."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run
from helpers.bundle import read
from helpers.oracles import second_order_effects
from helpers.second_order import SHAPES, pictures, random_tower

from cliptools.analysis.concepts import (
    active_units,
    counted_units,
    direction_scores,
    largest,
    recall,
    sparse_gamma,
    text_scores,
    unit_weights,
    word_scores,
)
from cliptools.analysis.pursuit import text_space
from cliptools.analysis.zero_shot import Share
from cliptools.emoji.render import SceneSource
from cliptools.emoji.scenes import Recipe
from cliptools.errors import StreamError
from cliptools.images.annotations import matching_names, read_annotations
from cliptools.io.bundle import Bundle
from cliptools.models.load import load_model
from cliptools.models.text_encoder import encode_pool
from cliptools.text.vocabularies import load_pool
from cliptools.unit_effects.factored import Activity, UnitActivity
from cliptools.unit_effects.vit_second_order import SecondOrder


def some_units(visual: torch.nn.Module, layers: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """Return every second neuron of some layers, in random order."""
    every = [[layer, n, -1] for layer in layers for n in range(0, visual.transformer.resblocks[0].mlp.c_proj.in_features, 2)]
    return torch.tensor(every, dtype=torch.int32)[torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))]


def literal_effects(visual: torch.nn.Module, images: torch.Tensor, unit: torch.Tensor, scale: bool) -> torch.Tensor:
    """Return phi [image, unit, d] explicitly."""
    rows = []
    for image in images:
        layers = {layer: second_order_effects(visual, image, layer) for layer in set(unit[:, 0].tolist())}
        phi = torch.stack([layers[layer][neuron] for layer, neuron, _ in unit.tolist()])
        rows.append(phi * (100 / visual(image[None])[0].norm() if scale else 1))
    return torch.stack(rows)


@pytest.mark.parametrize(("shape", "scale"), [(SHAPES[0], True), (SHAPES[1], False), (SHAPES[2], True)])
def test_norms_and_projections_are_those_of_the_formed_effects(shape: dict, scale: bool) -> None:
    visual = random_tower(shape)
    images, unit = pictures(visual, 2), some_units(visual, (0, shape["layers"] - 2))
    phi = literal_effects(visual, images, unit, scale)
    draw = torch.Generator().manual_seed(5)
    b, r = (torch.randn(phi.shape[1:], dtype=torch.float64, generator=draw) for _ in range(2))  # b outside of what D spans too
    found = UnitActivity(SecondOrder(visual), unit, b, r, scale)(images)
    torch.testing.assert_close(found.norm, (phi - b).norm(dim=-1), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.along, ((phi - b) * r).sum(-1), rtol=1e-9, atol=1e-9 * float(phi.abs().max()))
    assert torch.equal(found.embedding, visual(images))


def test_float32_keeps_small_differences() -> None:
    """For an image whose effects are the means, separate squares of phi and b would leave an error of some 3e-4 of ||b||."""
    visual = random_tower(SHAPES[0]).float()
    images, unit = pictures(visual, 2).float(), some_units(visual, (0,))
    phi = literal_effects(visual.double(), images.double(), unit, True)
    found = UnitActivity(SecondOrder(visual.float()), unit, phi[0].float(), phi[0].float(), True)(images)
    assert float((found.norm[0] / phi[0].norm(dim=-1)).median()) < 3e-6
    torch.testing.assert_close(found.norm[1].double(), (phi[1] - phi[0]).norm(dim=-1), rtol=1e-4, atol=1e-5)


def drawn_activity(images: int, units: int) -> Activity:
    draw = torch.Generator().manual_seed(2)
    norm = torch.rand(images, units, dtype=torch.float64, generator=draw)
    along = norm * (2 * torch.rand(images, units, dtype=torch.float64, generator=draw) - 1)
    return Activity(norm, along, torch.randn(images, 6, dtype=torch.float64, generator=draw))


@pytest.mark.parametrize("score", ["norm", "signed"])
def test_word_scores_are_the_papers_sum(score: str) -> None:
    units, m, texts = 13, 4, 9
    activity, random = drawn_activity(3, units), np.random.default_rng(1)
    word = torch.tensor(np.stack([random.permutation(texts)[:m] for _ in range(units)]).astype(np.int32))
    coefficient = torch.tensor(random.normal(size=(units, m)))
    word[3, 2:], coefficient[3, 2:] = -1, 0  # an early end
    tau = torch.rand(units, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    weight = unit_weights(activity, active_units(activity, tau), score)
    found = word_scores(weight, sparse_gamma(word, coefficient, texts))
    expected = torch.zeros(3, texts, dtype=torch.float64)
    for image in range(3):
        for n in range(units):
            if activity.norm[image, n] > tau[n]:
                for j, gamma in zip(word[n].tolist(), coefficient[n].tolist(), strict=True):
                    if j >= 0:
                        expected[image, j] += gamma * float((activity.norm if score == "norm" else activity.along)[image, n])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    top = largest(found, 5)
    assert top.column.tolist() == [sorted(range(texts), key=lambda j: -row[j])[:5] for row in expected.tolist()]


def test_silent_units_are_not_active() -> None:
    """Their norm is the threshold but for rounding; that of a unit that never acts is 0."""
    tau = torch.tensor([3e-4, 3e-4, 3e-4, 3e-4, 0.0, 0.0])
    norm = tau * torch.tensor([1 - 3e-7, 1, 1 + 3e-7, 1.001, 1, 1]) + torch.tensor([0, 0, 0, 0, 0, 1e-9])
    activity = Activity(norm[None], norm[None], torch.zeros(1, 2))
    assert active_units(activity, tau).tolist() == [[False, False, False, True, False, True]]


def test_equal_scores_stand_in_the_order_of_the_texts() -> None:
    assert largest(torch.tensor([[0.0, 2.0, 1.0, 2.0, 1.0]]), 4).column.tolist() == [[1, 3, 2, 4]]


def test_directions_and_texts_are_ranked_by_inner_products() -> None:
    draw = torch.Generator().manual_seed(4)
    weight, r, t = (torch.randn(*shape, dtype=torch.float64, generator=draw) for shape in ((2, 5), (5, 7), (4, 7)))
    summed = torch.stack([sum(weight[i, n] * r[n] for n in range(5)) for i in range(2)])
    torch.testing.assert_close(direction_scores(weight, r, t), torch.stack([t @ s for s in summed]), rtol=1e-12, atol=1e-12)
    t = t / t.norm(dim=1, keepdim=True)
    cosine = torch.nn.functional.cosine_similarity(summed[:, None], t[None], dim=-1)
    torch.testing.assert_close(text_scores(summed, t), cosine, rtol=1e-12, atol=1e-12)


def test_random_neurons_are_as_many_and_depend_on_the_name_alone() -> None:
    active = torch.rand(5, 40, generator=torch.Generator().manual_seed(6)) > 0.7
    names = [f"{i}.png" for i in range(5)]
    drawn = counted_units(active, "random", names, 3)
    assert torch.equal(drawn.sum(1), active.sum(1)) and not torch.equal(drawn, active)
    assert torch.equal(counted_units(active.flip(0), "random", names[::-1], 3), drawn.flip(0))
    assert not torch.equal(counted_units(active, "random", names, 4), drawn)
    assert torch.equal(counted_units(active, "active", names, 3), active)
    assert counted_units(active, "all", names, 3).all()


def test_recall_and_its_interval() -> None:
    random = np.random.default_rng(0)
    one = (random.random(1500) < 0.3).astype(int)
    found = recall(one.tolist(), [1] * 1500)
    low, high = Share(int(one.sum()), 1500).interval()
    assert (found.hits, found.names) == (int(one.sum()), 1500) and found.value == one.mean()
    assert math.isclose(found.low, low, abs_tol=0.004) and math.isclose(found.high, high, abs_tol=0.004)
    tied = recall((3 * one).tolist(), [3] * 1500)  # three names that are always found together tell no more than one
    assert math.isclose(tied.high - tied.low, found.high - found.low, rel_tol=0.05)
    uneven = recall([1, 0, 2], [1, 3, 2])  # two images more find two of two names, two find none: 7 of 14
    assert uneven.value == 0.5
    half = 1.959964 * math.sqrt(sum((h - n / 2) ** 2 for h, n in ((1, 1), (0, 3), (2, 2), (2, 2), (2, 2), (0, 2), (0, 2)))) / 14
    assert (uneven.low, uneven.high) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-9)
    for hit in (0, 1):  # equal images
        few, middle = recall([hit] * 5, [1] * 5), (5 * hit + 2) / 9
        half = 1.959964 * math.sqrt(middle * (1 - middle) / 9)  # Agresti and Coull
        assert few.value == hit
        assert (few.low, few.high) == pytest.approx((max(0, middle - half), min(1, middle + half)), abs=1e-9)
    assert recall([1, 0, 0, 0], [1, 0, 0, 0]) == recall([1], [1])  # images without names tell nothing


def test_the_interval_of_a_recall_is_that_of_the_bootstrap() -> None:
    """Over 1,000 images of one to three names, some of which are all found."""
    random = np.random.default_rng(1)
    names = random.integers(1, 4, 1000)
    hits = random.binomial(names, np.where(random.random(1000) < 0.3, 1, 0.55))
    found = recall(hits.tolist(), names.tolist())
    draws = [hits[rows].sum() / names[rows].sum() for rows in random.integers(0, 1000, (4000, 1000))]
    assert (found.low, found.high) == pytest.approx(np.percentile(draws, (2.5, 97.5)), abs=0.003)


@pytest.mark.parametrize("images", [2, 5, 20])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.97])
def test_the_interval_of_a_recall_contains_the_truth(images: int, share: float) -> None:
    random = np.random.default_rng(2)
    contained = 0
    for _ in range(400):
        names = random.integers(1, 4, images)
        together = random.random(images) < share  # half of the images find all of their names or none
        hits = np.where(random.random(images) < 0.5, names * together, random.binomial(names, share))
        found = recall(hits.tolist(), names.tolist())
        assert found.low <= found.value <= found.high
        contained += found.low <= share <= found.high
    assert contained >= 352


def test_truth_by_the_end_of_an_images_name(tmp_path: Path) -> None:
    lines = ['{"key":"cat/scene-1","names":["cat"]}', '{"key":"scene-2","names":["owl","sailboat"]}']
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    truth = read_annotations(tmp_path / "t.jsonl")
    assert truth.of("cat/scene-1.png") == truth.of("a.tar/images/cat/scene-1.webp") == ("cat",)
    assert truth.of("images/scene-2.png") == ("owl", "sailboat")
    with pytest.raises(StreamError, match="no line for scene-1"):
        truth.of("scene-1.png")
    (tmp_path / "t.jsonl").write_text(lines[0] + '\n{"key": 3}\n')
    with pytest.raises(StreamError, match="line 2 has no `key`"):
        read_annotations(tmp_path / "t.jsonl")


def test_a_synonym_names_it_too() -> None:
    from cliptools.text.emoji_concepts import concepts

    concept = next(each for each in concepts() if each.synonyms)
    assert matching_names([concept.name, "abacus"], [concept.synonyms[0].upper(), "boat"]) == [concept.name]


@pytest.fixture(scope="module")
def bundle(run: Run) -> Bundle:
    """Return `clip-effects | clip-decompose --m 8` of the default layers."""
    effects = run("effects", "--limit", 500, "--seed", 5)
    assert effects.returncode == 0, effects.stderr.decode()
    words = run("decompose", "--m", 8, stdin=effects.stdout)
    assert words.returncode == 0, words.stderr.decode()
    return read(words.stdout)


def test_words_of_active_neurons_name_what_is_shown(bundle: Bundle) -> None:
    """The recall is far above that of random neurons; the directions contain what sparse words and the threshold leave out."""
    model, source = load_model("emoji-vit2", device="cpu"), SceneSource(150, 7_000_002, Recipe(counts=(0.0, 1.0, 1.0, 0.0)))
    images = torch.stack([model.transform(source.load(i)) for i in range(len(source))])
    unit, b, r, tau, word, coefficient = (
        torch.from_numpy(bundle[name]) for name in ("unit", "mean", "direction", "threshold", "word", "coefficient")
    )
    activity = UnitActivity(SecondOrder(model.clip.visual), unit, b, r)(images)
    active, texts, pool = active_units(activity, tau), bundle.text_list("words")["texts"], load_pool("emoji")
    gamma, atoms = sparse_gamma(word, coefficient, len(texts)), text_space(encode_pool(model, pool))

    def share(scores: torch.Tensor, said: list[str] | tuple[str, ...]) -> float:
        words = [[said[j] for j in row] for row in largest(scores, 10).column.tolist()]
        names = [source.names_in(i) for i in range(len(source))]
        counts = [len(matching_names(shown, row)) for shown, row in zip(names, words, strict=True)]
        return recall(counts, [len(shown) for shown in names]).value

    def weights(neurons: str, score: str) -> torch.Tensor:
        return unit_weights(activity, counted_units(active, neurons, source.names, 0), score)

    said: Callable[[torch.Tensor], float] = lambda weight: share(word_scores(weight, gamma), texts)  # noqa: E731
    paper, signed = said(weights("active", "norm")), said(weights("active", "signed"))
    chance, directions = said(weights("random", "norm")), share(direction_scores(weights("all", "signed"), r, atoms), pool.texts)
    assert 5 < float(active.sum(1).double().mean()) < 80
    assert paper > 0.5 and signed > 0.5 and chance < 0.2
    assert directions > 0.5
