"""Descriptions of scenes: the emoji with their positions and sizes, and the background. render.py draws them.

A scene depends only on (seed, index), so any part of a set can be made anywhere, and a longer set begins with the shorter one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from cliptools.text.emoji_concepts import STYLES, Plant, concepts, held_out_style

GROUNDS = ("plain", "gradient", "stripes", "checks", "clouds")
MOST_EMOJI = 4
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


def draw_scene(seed: int, index: int, recipe: Recipe = Recipe()) -> Scene:
    """Return scene number `index` of the infinite sequence with this seed."""
    rng = np.random.default_rng((seed, index))
    if recipe.plants and rng.random() < recipe.planted_share:
        return _planted_scene(rng, recipe)
    hard = recipe.difficulty
    counts = np.array(recipe.counts) * np.array([1.0, hard, hard, hard])
    count = 1 + int(rng.choice(len(counts), p=counts / counts.sum()))
    chosen = [int(c) for c in rng.choice(len(concepts()), size=count, replace=False)]
    return Scene(_place(rng, chosen, recipe), _ground(rng, hard), tuple(chosen))


def single_scene(seed: int, index: int, concept: int, style: int | None = None, recipe: Recipe = Recipe()) -> Scene:
    """Return a scene of one concept, in a given style or in a random one."""
    rng = np.random.default_rng((seed, index, concept))
    return Scene(_place(rng, [concept], recipe, style), _ground(rng, recipe.difficulty), (concept,))


def scene_of(named: Sequence[int], seed: int, index: int = 0) -> Scene:
    """Return a scene that shows exactly these concepts (at most four), one emoji each."""
    rng = np.random.default_rng((seed, index, *named))
    return Scene(_place(rng, list(named), Recipe()), _ground(rng, 1.0), tuple(named))


def _planted_scene(rng: np.random.Generator, recipe: Recipe) -> Scene:
    """Return a scene whose caption names the first of a pair and whose picture shows the second and, mostly, the first."""
    plant = recipe.plants[rng.integers(len(recipe.plants))]
    with_named = rng.random() < plant.seen
    drawn = [plant.cue, plant.named] if with_named else [plant.cue]
    hidden = () if with_named else (plant.named,)
    return Scene(_place(rng, drawn, recipe), _ground(rng, recipe.difficulty), (plant.named,), hidden)


def _place(rng: np.random.Generator, chosen: Sequence[int], recipe: Recipe, style: int | None = None) -> tuple[Sprite, ...]:
    """Choose sizes, positions and rotations for the concepts, with as little overlap as a few tries allow."""
    hard, count = recipe.difficulty, len(chosen)
    smallest, largest = ((0.35, 0.85), (0.30, 0.58), (0.26, 0.46), (0.24, 0.40))[count - 1]
    placed: list[Sprite] = []
    for concept in chosen:
        low = 0.75 + hard * (smallest - 0.75) if count == 1 else smallest
        high = 0.95 + hard * (largest - 0.95) if count == 1 else largest
        size = float(rng.uniform(low, high))
        angle = float(rng.normal(0.0, 0.30 * hard))
        mirror = bool(rng.random() < 0.5 * min(1.0, 2 * hard))
        allowed = [s for s in range(len(STYLES)) if not (recipe.hold_out and s == held_out_style(concept))]
        sprite_style = style if style is not None else int(rng.choice(allowed))
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
    first = rng.uniform(0.0, 1.0, 3)
    second = np.clip(first + rng.uniform(-0.4, 0.4, 3), 0.0, 1.0)
    pale = [tuple(float(v) for v in 1.0 - hard * (1.0 - colour)) for colour in (first, second)]
    angle, period, seed = float(rng.uniform(0, math.pi)), float(rng.uniform(0.08, 0.35)), int(rng.integers(2**31))
    return Ground(kind, ((pale[0][0], pale[0][1], pale[0][2]), (pale[1][0], pale[1][1], pale[1][2])), angle, period, seed)
