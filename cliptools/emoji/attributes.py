"""The true attributes of a scene, from its description and the colours of the artwork, and captions that mention them."""

import colorsys
import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cliptools.emoji.looks import OUTLINE, SILHOUETTE, TINTED
from cliptools.emoji.scenes import Ground, Scene, Sprite
from cliptools.emoji.words import TEMPLATES, join_phrases, names_of, with_article
from cliptools.text import attributes as words
from cliptools.text.emoji_concepts import STYLES, concepts, sprites

LARGE, SMALL = 0.5, 0.33  # side of an emoji, in units of the canvas side, that counts as large or small
SIDE = 0.14  # distance of a centre from that of the canvas at which the emoji lies to one side
MAIN = 0.35  # share of its pixels that give a thing its colour


def colour_name(rgb: Sequence[float]) -> str:
    """Return the basic colour term of a colour; RGB in [0, 1]."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(float(v) for v in rgb))
    if value < 0.2 or (value < 0.4 and saturation < 0.4):
        return "black"
    if saturation < 0.15:
        return "white" if value > 0.85 else "grey"
    degrees = 360 * hue
    if degrees < 16 or degrees >= 345:
        return "pink" if saturation < 0.5 and value > 0.7 else "red" if value > 0.4 else "brown"
    if degrees < 45:
        return "brown" if value < 0.7 else "orange"
    for end, name in ((68, "yellow"), (165, "green"), (255, "blue"), (290, "purple")):
        if degrees < end:
            return name
    return "purple" if value < 0.6 else "pink"


@functools.cache
def artwork_colour(style: int, concept: int) -> str | None:
    """Return the colour of most pixels of a drawing; None where no colour covers enough of it."""
    opaque = sprites()[style, concept][:, ::2, ::2].reshape(4, -1).T
    opaque = opaque[opaque[:, 3] > 128].astype(float)
    names, counts = np.unique([_quantised(*(int(v) // 16 for v in 255 * p[:3] / p[3])) for p in opaque], return_counts=True)
    best = int(counts.argmax())
    return str(names[best]) if counts[best] >= MAIN * counts.sum() else None


@functools.cache
def _quantised(red: int, green: int, blue: int) -> str:
    return colour_name([(level + 0.5) / 16 for level in (red, green, blue)])


def attributes_of(scene: Scene) -> tuple[str, ...]:
    """Return the attributes that are true of a scene: of any of its things, of its ground, and of the whole."""
    of_things = [word for sprite in scene.sprites for word in thing_attributes(sprite)]
    number = words.NUMBERS[len(scene.sprites) - 1]
    writing = words.WRITINGS[0 if scene.writing and scene.writing.text else 1]
    return tuple(dict.fromkeys([*of_things, *ground_attributes(scene.ground), number, writing]))


def thing_attributes(sprite: Sprite) -> tuple[str, ...]:
    """Return the colour, size, places, style and kinds of a thing."""
    size = ("large",) if sprite.size >= LARGE else ("small",) if sprite.size < SMALL else ()
    colour = thing_colour(sprite)
    return (*((colour,) if colour else ()), *size, *places(sprite.x, sprite.y), style_of(sprite), *kinds_of(sprite.concept))


def thing_colour(sprite: Sprite) -> str | None:
    """Return the main colour of a thing, if it has one."""
    if sprite.look.way in (TINTED, SILHOUETTE, OUTLINE):
        return sprite.look.paint
    return artwork_colour(sprite.style, sprite.concept)


def style_of(sprite: Sprite) -> str:
    """Return the name of the way in which a thing is drawn."""
    looks = {SILHOUETTE: words.SILHOUETTE, OUTLINE: words.OUTLINE}
    return looks.get(sprite.look.way, words.STYLES[STYLES[sprite.style]])


def places(x: float, y: float) -> tuple[str, ...]:
    """Return where a centre lies on the canvas."""
    left, right, top, bottom, middle = words.PLACES
    sides = [name for name, far in ((left, 0.5 - x), (right, x - 0.5), (top, 0.5 - y), (bottom, y - 0.5)) if far > SIDE]
    return tuple(sides) or (middle,)


def kinds_of(concept: int) -> tuple[str, ...]:
    """Return the kinds of things that a concept belongs to, the more general one first."""
    return words.KINDS[concepts()[concept].subgroup]


def ground_attributes(ground: Ground) -> tuple[str, ...]:
    """Return the pattern and the colours of a ground."""
    seen = ground.colours[:1] if ground.kind == "plain" else ground.colours
    names = dict.fromkeys(words.ground_name(colour_name(colour)) for colour in seen)
    return (*names, words.ground_name(words.PATTERNS[ground.kind]))


class Description(NamedTuple):
    """A caption and the attributes that it mentions."""

    text: str
    attributes: tuple[str, ...]


def describe(scene: Scene, rng: np.random.Generator) -> Description:
    """Return a caption of what is drawn, with random attributes: `a picture of a red cat on the left, on a striped ground`."""
    said: list[str] = []
    things = [_thing(sprite, rng, said) for sprite in (scene.sprites[i] for i in rng.permutation(len(scene.sprites)))]
    if scene.writing and scene.writing.text and rng.random() < 0.8:
        things.append(f"the word {scene.writing.text}")
        said.append("written word")
    text = str(rng.choice(TEMPLATES)).format(join_phrases(things)).replace(",,", ",").removesuffix(",")
    ground = ground_attributes(scene.ground)
    if rng.random() < 0.5:
        word = str(rng.choice(ground))
        said.append(word)
        text += f" on {with_article(word)}"
    styles = {style_of(sprite) for sprite in scene.sprites}
    if len(styles) == 1 and rng.random() < 0.3:
        said.append(style := styles.pop())
        text += f", {with_article(style)}"
    return Description(text, tuple(dict.fromkeys(said)))


def _thing(sprite: Sprite, rng: np.random.Generator, said: list[str]) -> str:
    """Return a phrase for a thing, and append the attributes that it mentions."""
    name = str(rng.choice(names_of(concepts()[sprite.concept])))
    colour = thing_colour(sprite)
    if rng.random() < 0.1:
        said.append(kind := kinds_of(sprite.concept)[-1])
        name = f"{name}, {words.attribute_phrase(kind)},"
    elif colour and rng.random() < 0.4:
        said.append(colour)
        name = f"{colour} {name}"
    if sprite.size >= 0.5 and rng.random() < 0.2:
        said.append("large")
        name = f"large {name}"
    phrase = with_article(name)
    if style_of(sprite) in (words.SILHOUETTE, words.OUTLINE) and rng.random() < 0.4:
        said.append(style_of(sprite))
        phrase += f" as {with_article(style_of(sprite))}"
    if rng.random() < 0.3:
        said.append(place := str(rng.choice(places(sprite.x, sprite.y))))
        phrase += f" {place}"
    return phrase
