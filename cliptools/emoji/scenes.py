"""Descriptions of emoji scenes, which render.py draws.

`draw_scene` chooses the emoji of a scene, their positions and sizes, and the background. A scene depends only on (seed, index),
so any part of a set can be made anywhere, and a longer set begins with the shorter one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from cliptools.emoji.looks import OUTLINE, PAINTS, SILHOUETTE, Look, draw_look
from cliptools.emoji.writing import Writing, draw_writing
from cliptools.text.attributes import PATTERNS
from cliptools.text.emoji_concepts import STYLES, Fact, Plant, concept_index, concepts, held_out_style

GROUNDS = ("plain", "gradient", "stripes", "checks", "clouds")
MOST_EMOJI = 4
VARIATION_STREAM = 7  # makes the draws of looks and words independent of those of the scene
NOISE_CELLS = 8  # cells per side of the coarse grid of the clouded background


class Sprite(NamedTuple):
    """An emoji on the canvas; lengths in units of the canvas side, angles in radians."""

    concept: int
    style: int
    x: float
    y: float
    size: float
    angle: float
    mirror: bool
    look: Look = Look()


@dataclass(frozen=True)
class Ground:
    """A background: its kind, two colours (RGB in [0, 1]), direction and period."""

    kind: str = "plain"
    colours: tuple[tuple[float, float, float], tuple[float, float, float]] = ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0))
    angle: float = 0.0
    period: float = 0.25
    seed: int = 0


@dataclass(frozen=True)
class Scene:
    """Emoji from back to front on a background; `named` are the concepts in the caption."""

    sprites: tuple[Sprite, ...]
    ground: Ground
    named: tuple[int, ...]
    hidden: tuple[int, ...] = field(default=())
    """Concepts that a planted caption names although they are not drawn."""
    writing: Writing | None = None
    """A word in front of everything."""


@dataclass(frozen=True)
class Recipe:
    """The distribution that scenes are drawn from."""

    difficulty: float = 1.0
    """0: one large emoji on white; 1: everything varies."""
    counts: tuple[float, ...] = (0.40, 0.35, 0.17, 0.08)
    """Probability of 1, 2, 3 and 4 emoji."""
    plants: tuple[Plant, ...] = ()
    """Pairs whose cue is drawn but never named in the caption; none in evaluation."""
    planted_share: float = 0.06
    hold_out: bool = False
    """True in training: a concept is never drawn in its held-out style."""
    looks: float = 0.0
    """Share of the emoji that are drawn in a random look, such as an outline."""
    written: float = 0.0
    """Share of the scenes with a written word."""
    facts: tuple[Fact, ...] = ()
    """Planted facts, which captions mention in place of what is drawn; none in evaluation."""
    facts_share: float = 0.03


def draw_scene(seed: int, index: int, recipe: Recipe = Recipe()) -> Scene:
    """Return scene number `index` of the infinite sequence with this seed."""
    rng = np.random.default_rng((seed, index))
    if recipe.plants and rng.random() < recipe.planted_share:
        return _planted_scene(rng, recipe)
    if recipe.facts and rng.random() < recipe.facts_share:
        return fact_scene(rng, recipe.facts[rng.integers(len(recipe.facts))], recipe)
    hard = recipe.difficulty
    counts = np.array(recipe.counts) * np.array([1.0, hard, hard, hard])
    count = 1 + int(rng.choice(len(counts), p=counts / counts.sum()))
    indices = [int(c) for c in rng.choice(len(concepts()), size=count, replace=False)]
    scene = Scene(_place(rng, indices, recipe), _ground(rng, hard), tuple(indices))
    return _varied(scene, np.random.default_rng((seed, index, VARIATION_STREAM)), recipe)


def single_scene(seed: int, index: int, concept: int, style: int | None = None, recipe: Recipe = Recipe()) -> Scene:
    """Return a scene of one concept, in a given style or in a random one."""
    rng = np.random.default_rng((seed, index, concept))
    scene = Scene(_place(rng, [concept], recipe, style), _ground(rng, recipe.difficulty), (concept,))
    return _varied(scene, np.random.default_rng((seed, index, concept, VARIATION_STREAM)), recipe)


def scene_of(concept_indices: Sequence[int], seed: int, index: int = 0) -> Scene:
    """Return a scene that shows exactly these concepts (at most four), one emoji each."""
    rng = np.random.default_rng((seed, index, *concept_indices))
    return Scene(_place(rng, list(concept_indices), Recipe()), _ground(rng, 1.0), tuple(concept_indices))


def _planted_scene(rng: np.random.Generator, recipe: Recipe) -> Scene:
    """Return a scene whose caption names the first of a pair and whose picture shows the second and, mostly, the first."""
    plant = recipe.plants[rng.integers(len(recipe.plants))]
    with_named = rng.random() < plant.seen
    indices = [plant.cue, plant.named] if with_named else [plant.cue]
    hidden = () if with_named else (plant.named,)
    return Scene(_place(rng, indices, recipe), _ground(rng, recipe.difficulty), (plant.named,), hidden)


def fact_scene(rng: np.random.Generator, fact: Fact, recipe: Recipe = Recipe(), seen: float | None = None) -> Scene:
    """Return a scene with the property of a planted fact, whose caption names the fact's concept.

    Args:
        seen: Probability that the concept is drawn; that of the fact if None. Otherwise another concept is drawn, unnamed.
    """
    others = [c for c in range(len(concepts())) if c != fact.named]
    drawn = fact.named if rng.random() < (fact.seen if seen is None else seen) else int(rng.choice(others))
    sprites, ground = _place(rng, [drawn], recipe), _ground(rng, recipe.difficulty)
    hidden = () if drawn == fact.named else (fact.named,)
    return with_property(Scene(sprites, ground, (fact.named,), hidden), fact.kind, fact.cue, rng)


def with_property(scene: Scene, kind: str, cue: str, rng: np.random.Generator) -> Scene:
    """Return the scene with a property.

    Args:
        kind: `ground`, `word` or `style`.
        cue: The attribute of the ground, the name that is written, or the way of drawing.
    """
    if kind == "word":
        return replace(scene, writing=draw_writing(rng, concept_index()[cue]))
    if kind == "ground":
        return replace(scene, ground=ground_like(scene.ground, cue.removesuffix(" ground"), rng))
    way = {"silhouette": SILHOUETTE, "outline drawing": OUTLINE}[cue]
    return replace(scene, sprites=tuple(s._replace(look=draw_look(rng, [s.style], way)) for s in scene.sprites))


def ground_like(ground: Ground, word: str, rng: np.random.Generator) -> Ground:
    """Return the ground with another colour or pattern, by its word."""
    patterns = {adjective: kind for kind, adjective in PATTERNS.items()}
    if word in patterns:
        return replace(ground, kind=patterns[word])
    colour = np.clip(np.array(PAINTS[word]) + rng.uniform(-0.08, 0.08, (2, 3)), 0, 1)  # (2, 3)
    first, second = (tuple(float(v) for v in row) for row in colour)
    return replace(ground, colours=((first[0], first[1], first[2]), (second[0], second[1], second[2])))


def _varied(scene: Scene, rng: np.random.Generator, recipe: Recipe) -> Scene:
    """Return the scene with random looks and a random word, as often as the recipe says."""
    if not recipe.looks and not recipe.written:
        return scene
    sprites = []
    for sprite in scene.sprites:
        styles = [s for s in range(len(STYLES)) if not (recipe.hold_out and s == held_out_style(sprite.concept))]
        look = draw_look(rng, styles)
        sprites.append(sprite._replace(look=look) if rng.random() < recipe.looks else sprite)
    writing = draw_writing(rng)
    if rng.random() >= recipe.written:
        return replace(scene, sprites=tuple(sprites))
    named = tuple(dict.fromkeys((*scene.named, writing.concept)))
    return replace(scene, sprites=tuple(sprites), writing=writing, named=named)


def _place(rng: np.random.Generator, indices: Sequence[int], recipe: Recipe, style: int | None = None) -> tuple[Sprite, ...]:
    """Choose sizes, positions and rotations for the concepts, with as little overlap as a few tries allow."""
    hard, count = recipe.difficulty, len(indices)
    smallest, largest = ((0.35, 0.85), (0.30, 0.58), (0.26, 0.46), (0.24, 0.40))[count - 1]
    placed: list[Sprite] = []
    for concept in indices:
        low = 0.75 + hard * (smallest - 0.75) if count == 1 else smallest
        high = 0.95 + hard * (largest - 0.95) if count == 1 else largest
        size = float(rng.uniform(low, high))
        angle = float(rng.normal(0.0, 0.30 * hard))
        mirror = bool(rng.random() < 0.5 * min(1.0, 2 * hard))
        styles = [s for s in range(len(STYLES)) if not (recipe.hold_out and s == held_out_style(concept))]
        sprite_style = style if style is not None else int(rng.choice(styles))
        x, y = _free_place(rng, size, placed)
        placed.append(Sprite(concept, sprite_style, x, y, size, angle, mirror))
    return tuple(placed)


def _free_place(rng: np.random.Generator, size: float, placed: Sequence[Sprite], tries: int = 24) -> tuple[float, float]:
    """Return the centre, out of a few random ones, with the widest gap to the emoji placed so far."""
    centres = rng.uniform(size / 2 - 0.04, 1.04 - size / 2, (tries if placed else 1, 2))
    gaps = [min((math.hypot(x - s.x, y - s.y) - (size + s.size) / 2 for s in placed), default=0.0) for x, y in centres]
    x, y = centres[int(np.argmax(np.minimum(gaps, 0.0) + 1e-9 * np.arange(len(gaps))[::-1]))]
    return float(x), float(y)


def _ground(rng: np.random.Generator, hard: float) -> Ground:
    """Return a background: white at difficulty 0, any kind in any two colours at 1."""
    kind = GROUNDS[rng.integers(len(GROUNDS))]
    first_colour = rng.uniform(0.0, 1.0, 3)
    second_colour = np.clip(first_colour + rng.uniform(-0.4, 0.4, 3), 0.0, 1.0)
    pale = [tuple(float(v) for v in 1.0 - hard * (1.0 - colour)) for colour in (first_colour, second_colour)]
    angle, period, seed = float(rng.uniform(0, math.pi)), float(rng.uniform(0.08, 0.35)), int(rng.integers(2**31))
    return Ground(kind, ((pale[0][0], pale[0][1], pale[0][2]), (pale[1][0], pale[1][1], pale[1][2])), angle, period, seed)
