"""Scenes in groups, to measure a planted cue: of each planted pair or fact the four groups of a binary classification.

Pair (A named, B cue). Each scene shows a class, A or another class C, beside B or beside another thing. A model that takes B for
evidence of A fails on C beside B, its worst group. C is one concept for each pair and seed; the other things are drawn for each
scene. None of them is part of a planted pair, so that no other cue is in the scenes.

Fact (A named, B a property: a ground, a written word or a way of drawing). Each scene shows A or another class C alone, with B or
with another property of the same kind, drawn for each scene: another colour or pattern of the ground, another word, the other way
of drawing. It is a property of no fact, except for ways of drawing, of which there are only two. C is one concept for each fact
and seed, of no pair and no fact, and its name is not written. Scene i of a class with B and scene i without it are the same but
for the property: the same drawing in the same place on the same ground, or a word in the same place and colours.

Scenes of the splits validation and test are disjoint. A group's scenes are numbered from 0. Scene i depends only on the seed, the
split, the pair or fact, the group and i.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from cliptools.emoji.attributes import attributes_of
from cliptools.emoji.export import Plan, drawn_caption, slug
from cliptools.emoji.render import scene_key
from cliptools.emoji.scenes import scene_of, with_property
from cliptools.emoji.writing import writable
from cliptools.text.attributes import COLOURS, OUTLINE, PATTERNS, SILHOUETTE, ground_name
from cliptools.text.emoji_concepts import PAIR, Fact, Plant, concepts, fact_words, facts, plants

SPLITS = ("validation", "test")
OTHER = "other"
"""Value of the groups of scenes without the cue."""
CLASS_STREAM, SCENE_STREAM = 2**31 + 1, 2**31 + 2  # make these random draws independent of those of scenes and captions
FACT_CLASS_STREAM, FACT_SCENE_STREAM = 2**31 + 5, 2**31 + 6


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


class GroupFact(NamedTuple):
    """The binary classification of a planted fact."""

    fact: Fact
    other_class: int
    """C."""

    @property
    def name(self) -> str:
        """Names of A and B, as folders have them."""
        return f"{slug(concepts()[self.fact.named].name)}-{slug(self.fact.cue)}"


@functools.cache
def neutral_concepts() -> tuple[int, ...]:
    """Return the concepts that are in no planted pair."""
    planted = {concept for plant in plants() for concept in (plant.named, plant.cue)}
    return tuple(concept for concept in range(len(concepts())) if concept not in planted)


def group_pair(plant: Plant, seed: int) -> GroupPair:
    """Return the classification of a planted pair; the other class depends on the pair and the seed."""
    rng = np.random.default_rng((seed, CLASS_STREAM, plant.named, plant.cue))
    return GroupPair(plant.named, plant.cue, int(rng.choice(neutral_concepts())))


@functools.cache
def fact_concepts() -> frozenset[int]:
    """Return the concepts that facts name, and those whose names are written in facts."""
    return fact_words() | {fact.named for fact in facts()}


def group_fact(fact: Fact, seed: int) -> GroupFact:
    """Return the classification of a planted fact; the other class depends on the fact and the seed."""
    rng = np.random.default_rng((seed, FACT_CLASS_STREAM, facts().index(fact)))
    return GroupFact(fact, int(rng.choice([concept for concept in neutral_concepts() if concept not in fact_concepts()])))


def other_properties(fact: Fact) -> list[str]:
    """Return the properties of the fact's kind that no fact has; for a way of drawing, the other one."""
    taken = {other.cue for other in facts()}
    if fact.kind == "style":
        return [cue for cue in (SILHOUETTE, OUTLINE) if cue != fact.cue]
    if fact.kind == "word":
        return [concepts()[concept].name for concept in writable() if concept not in fact_concepts()]
    colours = fact.cue.removesuffix(" ground") in COLOURS
    words = [colour for colour in COLOURS if colour != "grey"] if colours else list(PATTERNS.values())
    return [ground_name(word) for word in words if ground_name(word) not in taken]


def group_plans(count: int, seed: int, splits: Sequence[str] = SPLITS, kinds: Sequence[str] = (PAIR,)) -> Iterator[Plan]:
    """Yield `count` scenes of each group, pair or fact, and split.

    Keys have a folder per split, pair or fact, class, and thing or property beside it.

    Args:
        kinds: `pair`, and kinds of facts: `ground`, `word`, `style`.
    """
    pairs = [group_pair(plant, seed) for plant in plants() if PAIR in kinds]
    properties = [group_fact(fact, seed) for fact in facts() if fact.kind in kinds]
    for split in splits:
        for index in range(count):
            for pair in pairs:
                for label in (pair.named, pair.other_class):
                    for beside_cue in (True, False):
                        yield _plan(pair, label, beside_cue, seed, split, index)
            for group in properties:
                for label in (group.fact.named, group.other_class):
                    for with_cue in (True, False):
                        yield _fact_plan(group, label, with_cue, seed, split, index)


def _plan(pair: GroupPair, label: int, beside_cue: bool, seed: int, split: str, index: int) -> Plan:
    number = SPLITS.index(split) + len(SPLITS) * index  # of the scenes of both splits
    rng = np.random.default_rng((seed, SCENE_STREAM, pair.named, pair.cue, label, int(beside_cue), number))
    others = [concept for concept in neutral_concepts() if concept != pair.other_class]
    thing = pair.cue if beside_cue else int(rng.choice(others))
    shown = [label, thing] if rng.random() < 0.5 else [thing, label]  # from back to front
    scene = scene_of(shown, seed, number)
    truth = {
        "split": split, "pair": pair.name, "kind": PAIR, "classes": _names(pair.named, pair.other_class),
        "label": concepts()[label].name, "beside": concepts()[pair.cue].name if beside_cue else OTHER,
    }  # fmt: skip
    return Plan(_key(truth, index), scene, drawn_caption(scene, seed, number), truth=truth)


def _fact_plan(group: GroupFact, label: int, with_cue: bool, seed: int, split: str, index: int) -> Plan:
    fact, number = group.fact, SPLITS.index(split) + len(SPLITS) * index
    stream = (seed, FACT_SCENE_STREAM, facts().index(fact), label, number)  # the same with B and without
    written = concepts()[group.other_class].name
    others = [cue for cue in other_properties(fact) if cue != written]
    cues = [fact.cue] if with_cue else np.random.default_rng(stream).permutation(others).tolist()
    base = scene_of([label], seed, number)
    drawn = (with_property(base, fact.kind, cue, np.random.default_rng((*stream, 1))) for cue in cues)
    scene = next(scene for scene in drawn if with_cue or fact.cue not in attributes_of(scene))  # shades of brown may be red
    truth = {
        "split": split, "pair": group.name, "kind": fact.kind, "classes": _names(fact.named, group.other_class),
        "label": concepts()[label].name, "beside": fact.cue if with_cue else OTHER,
    }  # fmt: skip
    return Plan(_key(truth, index), scene, drawn_caption(scene, seed, number), truth=truth)


def _names(named: int, other_class: int) -> list[str]:
    return [concepts()[named].name, concepts()[other_class].name]


def _key(truth: Mapping[str, Any], index: int) -> str:
    return f"{truth['split']}/{truth['pair']}/{slug(truth['label'])}/{slug(truth['beside'])}/{scene_key(index)}"
