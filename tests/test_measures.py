"""Measures of the embedded models: intervals, interventions, and the model card."""

import numpy as np
import pytest
import torch

import training  # noqa: F401  (applies the torchvision remedy first)
from cliptools.analysis.zero_shot import Share
from cliptools.text.emoji_concepts import plants
from training.card import card, merge, read_sections, table
from training.measures import recall_at, two_emoji_scenes, unseen_combinations
from training.plant_effects import bootstrap, scenes_without, shown_last, unplanted


@pytest.mark.parametrize(
    ("hits", "trials", "low", "high"), [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0)]
)
def test_wilson_interval(hits: int, trials: int, low: float, high: float) -> None:
    assert Share(hits, trials).interval() == pytest.approx((low, high), abs=1e-4)


def test_bootstrap_covers_the_mean_and_narrows() -> None:
    values = np.random.default_rng(0).normal(1.0, 1.0, 900)
    mean, low, high = bootstrap(values)
    assert low < mean < high
    assert high - low == pytest.approx(2 * 1.96 / 30, rel=0.1)


def test_found_counts_named_concepts_among_the_best() -> None:
    scenes = two_emoji_scenes(3)
    z = torch.zeros(3, 526)
    for row, scene in zip(z, scenes, strict=True):
        row[scene.named[0]] = 1.0  # one of the two is found; nothing else scores below it
        row[scene.named[1]] = -1.0
    assert recall_at(z, torch.eye(526), scenes, 2) == Share(3, 6)


def test_unseen_combinations_wear_the_style_kept_out() -> None:
    for scene in unseen_combinations(1):
        (sprite,) = scene.sprites
        assert sprite.concept % 5 == 0 and sprite.style == sprite.concept // 5 % 3


def test_the_intervention_changes_one_concept_and_nothing_else() -> None:
    plant = plants()[0]
    (base,) = scenes_without({plant.named, plant.cue}, 1, 0)
    assert not {plant.named, plant.cue} & {s.concept for s in base.sprites}
    cue, control = shown_last(base, plant.cue), shown_last(base, unplanted()[0])
    assert cue.sprites[-1] == control.sprites[-1]._replace(concept=plant.cue)
    assert cue.sprites[:-1] == control.sprites[:-1] == base.sprites[:-1] and cue.ground == base.ground


def test_sections_are_merged_and_printed(tmp_path) -> None:
    merge(tmp_path, {"Accuracy": [{"measure": "top-1", "share": 0.5, "of": 1200}]})
    merge(tmp_path, {"Words": [{"layer": 5, "learned": True}]})
    merge(tmp_path, {"Accuracy": [{"measure": "top-1", "share": 0.25, "of": 1200}]})
    sections = read_sections(tmp_path)
    assert list(sections) == ["Accuracy", "Words"]
    assert list(table(sections["Accuracy"])) == ["| measure | share | of |", "| --- | --- | --- |", "| top-1 | 0.250 | 1,200 |"]
    assert "## Words\n\n| layer | learned |\n| --- | --- |\n| 5 | yes |" in card("emoji-vit2", sections)
