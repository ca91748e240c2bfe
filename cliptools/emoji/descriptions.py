"""Captions that say more of a scene than its concepts: colours, sizes, places, the ground, the style and what is written."""

from typing import NamedTuple

import numpy as np

from cliptools.emoji.attributes import ground_attributes, kinds_of, places, style_of, thing_colour
from cliptools.emoji.scenes import Scene, Sprite
from cliptools.emoji.words import TEMPLATES, join_phrases, names_of, with_article
from cliptools.text.attributes import OUTLINE, SILHOUETTE, attribute_phrase
from cliptools.text.emoji_concepts import concepts


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
        name = f"{name}, {attribute_phrase(kind)},"
    elif colour and rng.random() < 0.4:
        said.append(colour)
        name = f"{colour} {name}"
    if sprite.size >= 0.5 and rng.random() < 0.2:
        said.append("large")
        name = f"large {name}"
    phrase = with_article(name)
    if style_of(sprite) in (SILHOUETTE, OUTLINE) and rng.random() < 0.4:
        said.append(style_of(sprite))
        phrase += f" as {with_article(style_of(sprite))}"
    if rng.random() < 0.3:
        said.append(place := str(rng.choice(places(sprite.x, sprite.y))))
        phrase += f" {place}"
    return phrase
