"""Scenes in groups, to measure a planted cue: of each planted pair (A named, B cue) the four groups of a binary classification.

Each scene shows a class, A or another class C, beside B or beside another thing. A model that takes B for evidence of A fails on
C beside B, its worst group. C is one concept for each pair and seed; the other things are drawn for each scene. None of them is
part of a planted pair, so that no other cue is in the scenes. Scenes of the splits validation and test are disjoint.

A group's scenes are numbered from 0. Scene i depends only on the seed, the split, the pair, the group and i.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from cliptools.emoji.export import Plan, drawn_caption, slug
from cliptools.emoji.render import scene_key
from cliptools.emoji.scenes import scene_of
from cliptools.text.emoji_concepts import Plant, concepts, plants

SPLITS = ("validation", "test")
OTHER = "other"
"""Value of the groups of scenes without the cue."""
CLASS_STREAM, SCENE_STREAM = 2**31 + 1, 2**31 + 2  # make these random draws independent of those of scenes and captions


class GroupPair(NamedTuple):
    """The binary classification of a planted pair."""

    named: int
    """A."""
    cue: int
    """B."""
    other_class: int
    """C."""

    @property
    def name(self) -> str:
        """Names of A and B, as folders have them."""
        return f"{slug(concepts()[self.named].name)}-{slug(concepts()[self.cue].name)}"


@functools.cache
def neutral_concepts() -> tuple[int, ...]:
    """Return the concepts that are in no planted pair."""
    planted = {concept for plant in plants() for concept in (plant.named, plant.cue)}
    return tuple(concept for concept in range(len(concepts())) if concept not in planted)


def group_pair(plant: Plant, seed: int) -> GroupPair:
    """Return the classification of a planted pair; the other class depends on the pair and the seed."""
    rng = np.random.default_rng((seed, CLASS_STREAM, plant.named, plant.cue))
    return GroupPair(plant.named, plant.cue, int(rng.choice(neutral_concepts())))


def group_plans(count: int, seed: int, splits: Sequence[str] = SPLITS) -> Iterator[Plan]:
    """Yield `count` scenes of each group, pair and split, with keys in a folder per split, pair, class and thing beside it."""
    pairs = [group_pair(plant, seed) for plant in plants()]
    for split in splits:
        for index in range(count):
            for pair in pairs:
                for label in (pair.named, pair.other_class):
                    for beside_cue in (True, False):
                        yield _plan(pair, label, beside_cue, seed, split, index)


def _plan(pair: GroupPair, label: int, beside_cue: bool, seed: int, split: str, index: int) -> Plan:
    number = SPLITS.index(split) + len(SPLITS) * index  # of the scenes of both splits
    rng = np.random.default_rng((seed, SCENE_STREAM, pair.named, pair.cue, label, int(beside_cue), number))
    others = [concept for concept in neutral_concepts() if concept != pair.other_class]
    thing = pair.cue if beside_cue else int(rng.choice(others))
    shown = [label, thing] if rng.random() < 0.5 else [thing, label]  # from back to front
    scene = scene_of(shown, seed, number)
    names = [concept.name for concept in concepts()]
    beside = names[pair.cue] if beside_cue else OTHER
    truth = {
        "split": split, "pair": pair.name, "classes": [names[pair.named], names[pair.other_class]], "label": names[label],
        "beside": beside,
    }  # fmt: skip
    key = f"{split}/{pair.name}/{slug(names[label])}/{slug(beside)}/{scene_key(index)}"
    return Plan(key, scene, drawn_caption(scene, seed, number), truth=truth)
