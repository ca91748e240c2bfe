"""Descriptions of emoji scenes, which render.py draws, and of scenes in words: captions, and the parsing of texts.

`draw_scene` chooses the emoji of a scene, their positions and sizes, and the background. A scene depends only on (seed, index),
so any part of a set can be made anywhere, and a longer set begins with the shorter one.

`caption` writes a caption for concepts. `parse_text` parses a text into the emoji that a scene can show (two dogs and a pizza)
and the words that ask for anything else; `concepts_in` returns only the concepts that a text names.
"""

import functools
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from cliptools.emoji.looks import OUTLINE, PAINTS, SILHOUETTE, Look, draw_look
from cliptools.emoji.writing import Writing, draw_writing
from cliptools.text.attributes import PATTERNS
from cliptools.text.classes import Mention, Names, word_forms
from cliptools.text.emoji_concepts import STYLES, Concept, Fact, Plant, concept_index, concepts, held_out_style

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


TEMPLATES = (
    "a picture of {}",
    "a photo of {}",
    "{}",
    "there is {} here",
    "an image with {}",
    "a scene with {}",
    "emoji of {}",
    "look, {}",
)
ZERO_SHOT_TEMPLATES = ("a picture of {}", "a photo of {}", "{}")


def with_article(name: str) -> str:
    """Return the name with its article: `a cat`, `an owl`, `a bus`, `an hourglass`, `grapes`."""
    if name.endswith("s") and not name.endswith(("ss", "us", "os")):
        return name
    vowel = (name[0].lower() in "aeio" or name.startswith(("um", "un", "hour"))) and not name.startswith(("uni", "eu", "one"))
    return f"an {name}" if vowel else f"a {name}"


def plural(name: str) -> str:
    """Return the plural of a name: `cats`, `boxes`, `cherries`, `wolves`, `snowmen`; plurals are unchanged."""
    if with_article(name) == name:
        return name
    endings = (("mouse", "mice"), ("man", "men"), ("ox", "oxen"), ("olf", "olves"), ("eaf", "eaves"), ("nife", "nives"))
    for ending, plural_ending in endings:
        if name.endswith(ending) and not (ending == "ox" and name != ending):
            return name.removesuffix(ending) + plural_ending
    if name.endswith("y") and name[-2:-1] not in "aeiou":
        return f"{name[:-1]}ies"
    return f"{name}es" if name.endswith(("s", "x", "z", "ch", "sh")) else f"{name}s"


def names_of(concept: Concept) -> tuple[str, ...]:
    """Return the name of a concept and its synonyms."""
    return (concept.name, *concept.synonyms)


def join_phrases(phrases: Sequence[str]) -> str:
    """Join phrases as `a`, `a and b`, `a, b and c`."""
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def caption(indices: Sequence[int], rng: np.random.Generator | None = None) -> str:
    """Return a caption that names these concepts: a plain one, or one with random template, order and synonyms."""
    all_concepts = concepts()
    if rng is None:
        return TEMPLATES[0].format(join_phrases([with_article(all_concepts[c].name) for c in indices]))
    shuffled = [indices[i] for i in rng.permutation(len(indices))]
    words = [str(rng.choice(names_of(all_concepts[c]))) for c in shuffled]
    return str(rng.choice(TEMPLATES)).format(join_phrases([with_article(word) for word in words]))


def concepts_in(text: str) -> tuple[int, ...]:
    """Return the concepts that a text names, in its order; longer names take precedence, plurals count."""
    index = concept_index()
    return tuple(dict.fromkeys(index[place.name] for place in concept_names().mentions(text)))


@functools.cache
def concept_names() -> Names:
    """Return the matcher for all names and synonyms, compiled once, since they exceed the cache of re."""
    return Names(concept_index())


ONE_TO_TWELVE = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
NUMBERS = {word: number for number, word in enumerate(ONE_TO_TWELVE, 1)} | {"both": 2, "dozen": 12, "pair": 2, "couple": 2}
MOST_DIGITS = 3
SINGLE = ("a", "an", "another", "single")
DEFINITE = ("the", "this", "that", "these", "those")
NEGATIONS = ("no", "without", "not", "neither", "zero")
ALSO = ("or", "nor")
"""Words that continue a negation: `no cat or dog` has neither."""
TOGETHER = (
    "and", "with", "plus", "also", "together", "next", "to", "beside", "near", "surrounded", "by", "&", "of", "there", "here",
    "is", "are", "look", "any",
)  # fmt: skip
"""Words that only say that things are in one picture, which a scene can show."""
FRAME = re.compile(
    r"\W*(?:(?:look|here|there|this|is|are)\b\W*)*(?:(?:a|an|the)\s+)?(?:close\s+)?"
    r"(?:photo|photograph|picture|image|scene|view|emoji)s?\s+(?:of|with|showing)\b"
)
"""The beginning of a text about the picture itself, such as `a photo of`."""
BREAKS = (",", ".", ";", ":", "!", "?", "and")


class Reading(NamedTuple):
    """The part of a text that a scene can show, and the rest."""

    concepts: tuple[int, ...]
    """One entry per emoji, in the order of the text: two dogs are two entries."""
    names: tuple[str, ...]
    """The text's name of each entry."""
    unread: tuple[str, ...]
    """Words that ask for something a scene cannot show: colours, places, things without an emoji."""

    @property
    def phrase(self) -> str:
        """The emoji in words: `two dogs and a pizza`."""
        counts = Counter(self.names)
        return join_phrases([with_article(name) if n == 1 else f"{in_words(n)} {plural(name)}" for name, n in counts.items()])

    def limited_to(self, limit: int) -> "Reading":
        """Return the reading without further copies, removed from the end, until at most `limit` emoji are left."""
        positions = list(range(len(self.concepts)))
        for i in reversed(range(len(self.concepts))):
            if len(positions) > limit and self.concepts[i] in self.concepts[:i]:
                positions.remove(i)
        return self._replace(concepts=tuple(self.concepts[i] for i in positions), names=tuple(self.names[i] for i in positions))


@functools.lru_cache(maxsize=1024)
def parse_text(text: str) -> Reading:
    """Parse a text: `two dogs and a red pizza` is two dogs and a pizza, with `red` left over.

    A number belongs to the next name; a plural without a number counts as two. A concept named again counts as one more, except
    after `the`.
    Names after `no` or `without` are not shown.
    """
    lower = text.lower()
    frame = FRAME.match(lower)
    end = frame.end() if frame else 0
    entries: list[tuple[int, str]] = []
    negated = False
    unread: list[str] = []
    for place in concept_names().mentions(text):
        if place.start < end:  # the frame itself contains the name of an emoji
            unread, end = [], 0
        words = _words(lower[end : place.start])
        count, definite = _count(words, _with_spaces(lower[place.start : place.stop]) != _with_spaces(place.name))
        if negated and words and words[0] in ALSO:
            words, count = words[1:], 0
        negated = not count
        name = _singular(place, lower, count)
        concept = concept_index()[name]
        earlier = sum(concept == named_concept for named_concept, _ in entries)
        entries += [(concept, name)] * (max(0, count - earlier) if definite and earlier else count)
        unread += words
        end = place.stop
    unread += _words(lower[end:])
    unread_words = [word for word in unread if word not in (*TOGETHER, *SINGLE, *DEFINITE) and re.search(r"\w", word)]
    return Reading(tuple(c for c, _ in entries), tuple(name for _, name in entries), tuple(dict.fromkeys(unread_words)))


def drawn_names(reading: Reading) -> list[str]:
    """Return the main names of the concepts of a reading, one per emoji."""
    return [concepts()[concept].name for concept in reading.concepts]


def in_words(number: int) -> str:
    """Return a number as a word, or in digits above twelve."""
    return ONE_TO_TWELVE[number - 1] if number <= len(ONE_TO_TWELVE) else str(number)


def _words(gap: str) -> list[str]:
    """Split the text between two names into words and punctuation."""
    return re.findall(r"['’]?\w+(?:['’-]\w+)*|[^\w\s]", gap)


def _with_spaces(name: str) -> str:
    return re.sub(r"[\s-]+", " ", name)


def _count(words: list[str], is_plural: bool) -> tuple[int, bool]:
    """Return the count that these words give, and True if they refer to something named before; used words are removed."""
    start = max((i + 1 for i, word in enumerate(words) if word in BREAKS), default=0)
    count, definite = 2 if is_plural else 1, any(word in DEFINITE for word in words[start:])
    for i in reversed(range(start, len(words))):
        word = words[i]
        if word in NEGATIONS:
            del words[i]
            return 0, False
        if word in SINGLE or word in NUMBERS or (word.isdecimal() and len(word) <= MOST_DIGITS):
            del words[i]
            single = word in SINGLE or (word == "pair" and not is_plural)  # a pair of scissors is one emoji
            count = 1 if single else NUMBERS.get(word) or int(word)
            if i and words[i - 1] in NEGATIONS:
                del words[i - 1]
                count = 0
            break
    return count, definite


def _singular(place: Mention, text: str, count: int) -> str:
    """Return the intended name: two `houses` means the emoji `house` twice, although there is an emoji `houses`."""
    if count > 1:
        spelling = text[place.start : place.stop]
        singular = next((name for name in concept_index() if name != spelling and spelling in word_forms(name)), None)
        return singular or place.name
    return place.name
