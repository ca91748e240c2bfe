"""Meaning on the embedded model: the equations hold, effects carry the answer, words name the content of top images."""

import copy

import pytest
import torch
from conftest import Run
from helpers.bundle import read
from helpers.oracles import centred_statistics, second_order_effects
from open_clip import SimpleTokenizer

from cliptools.emoji.render import SceneSource, render
from cliptools.emoji.scenes import draw_scene
from cliptools.io.bundle import Bundle
from cliptools.models.load import LoadedModel, load_model
from cliptools.streaming.measure import measure
from cliptools.streaming.ranking import rank_of
from cliptools.streaming.summary import Settings
from cliptools.unit_effects.vit_second_order import SecondOrder, directions, scalars, trace
from training.batches import normalise
from training.lens import accuracies, layer_score, replacement
from training.measures import embed_classes, single_scenes

SCENES, SEED = 800, 5


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model("emoji-vit2", device="cpu")


@pytest.fixture(scope="module")
def bundle(run: Run) -> Bundle:
    """Return `clip-effects | clip-decompose --m 32` of the default layers."""
    effects = run("effects", "--limit", SCENES, "--seed", SEED)
    assert effects.returncode == 0, effects.stderr.decode()
    words = run("decompose", "--m", 32, stdin=effects.stdout)
    assert words.returncode == 0, words.stderr.decode()
    return read(words.stdout)


def pictures(count: int) -> torch.Tensor:
    return normalise(render([draw_scene(3, i) for i in range(count)], 64).image).double()


def test_factored_form_is_the_equation(model: LoadedModel) -> None:
    visual = copy.deepcopy(model.clip.visual).double()
    images = pictures(2)
    traced = trace(visual, images, [5])
    phi = torch.einsum("bnk,nkd->bnd", scalars(traced, 5), directions(visual, 5, slice(None)))
    expected = torch.stack([second_order_effects(visual, image, 5) for image in images])
    torch.testing.assert_close(phi, expected, rtol=1e-9, atol=1e-9)


def test_directions_are_those_of_the_full_matrix(model: LoadedModel) -> None:
    visual, n = copy.deepcopy(model.clip.visual).double(), 60
    images = pictures(n)
    batches = [(list(range(i, i + 20)), images[i : i + 20]) for i in range(0, n, 20)]
    effects = measure(SecondOrder(visual), lambda only: iter(batches), [6], n, Settings(top=15)).effects
    traced = trace(visual, images, [6])
    phi = torch.einsum("bnk,nkd->bnd", scalars(traced, 6), directions(visual, 6, slice(None)))
    expected = centred_statistics(phi * (100 / traced.embedding.norm(dim=-1))[:, None, None], 15, rank_of(0.98, n))
    for name in ("mean", "top_norm", "threshold", "explained_all"):
        torch.testing.assert_close(getattr(effects, name), expected[name], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(effects.component[:, 0], expected["direction"], rtol=0, atol=1e-9)


def test_default_layers_carry_the_answer_and_one_direction_each_suffices(model: LoadedModel, bundle: Bundle) -> None:
    classes = embed_classes(model.clip, SimpleTokenizer(context_length=32))
    replaced = replacement(SecondOrder(model.clip.visual), bundle, (5, 6))
    shares = accuracies(model, replaced, classes, single_scenes(1))
    lost = shares["untouched"].value - shares["mean"].value
    assert lost > 0.10
    assert shares["pc"].value - shares["mean"].value > 0.8 * lost


@pytest.mark.parametrize("layer", [5, 6])
def test_words_name_what_the_top_images_show(bundle: Bundle, layer: int) -> None:
    score = layer_score(bundle, SceneSource(SCENES, SEED), layer)
    assert score.share - score.share_half > 5 * (score.shuffled + score.shuffled_half)
