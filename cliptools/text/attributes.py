"""Attributes of the embedded world: words for what scenes have beside their concepts, in groups of which each scene has a value.

Nouns alone cannot say what a unit sees that acts on white things of every kind. The kinds of things are Unicode's own subgroups.
"""

import functools
from typing import NamedTuple

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "grey", "white")
PATTERNS = {"plain": "plain", "gradient": "graded", "stripes": "striped", "checks": "chequered", "clouds": "clouded"}
"""Adjectives by the kind of ground."""
NUMBERS = ("one thing", "two things", "three things", "four things")
SIZES = ("small", "large")
PLACES = ("on the left", "on the right", "at the top", "at the bottom", "in the middle")
STYLES = {"fluent": "glossy drawing", "noto": "soft drawing", "twemoji": "flat drawing"}
"""Names by the style of the artwork."""
SILHOUETTE, OUTLINE = "silhouette", "outline drawing"
WRITINGS = ("written word", "no word")

KINDS: dict[str, tuple[str, ...]] = {
    "animal-mammal": ("animal", "mammal"),
    "animal-bird": ("animal", "feathered animal"),
    "animal-amphibian": ("animal",),
    "animal-reptile": ("animal", "reptile"),
    "animal-marine": ("animal", "sea animal"),
    "animal-bug": ("animal", "small creature"),
    "plant-flower": ("plant", "flower"),
    "plant-other": ("plant",),
    "food-fruit": ("food", "fruit"),
    "food-vegetable": ("food", "vegetable"),
    "food-prepared": ("food", "dish"),
    "food-asian": ("food", "Asian food"),
    "food-sweet": ("food", "dessert"),
    "drink": ("drink",),
    "dishware": ("household item",),
    "place-map": ("place",),
    "place-geographic": ("place", "landscape"),
    "place-building": ("place", "building"),
    "place-religious": ("place", "building"),
    "place-other": ("place",),
    "transport-ground": ("vehicle", "land vehicle"),
    "transport-water": ("vehicle", "water vehicle"),
    "transport-air": ("vehicle", "aircraft"),
    "hotel": ("household item",),
    "time": ("device",),
    "sky-weather": ("weather",),
    "event": ("celebration",),
    "award-medal": ("celebration",),
    "sport": ("sports equipment",),
    "game": ("toy",),
    "arts-crafts": ("toy",),
    "clothing": ("something to wear",),
    "sound": ("sound",),
    "music": ("sound",),
    "musical-instrument": ("sound", "musical instrument"),
    "phone": ("device",),
    "computer": ("device",),
    "light-video": ("device",),
    "book-paper": ("office item",),
    "money": ("office item",),
    "mail": ("office item",),
    "writing": ("office item",),
    "office": ("office item",),
    "lock": ("household item",),
    "tool": ("tool",),
    "science": ("scientific instrument",),
    "medical": ("scientific instrument",),
    "household": ("household item",),
    "other-object": ("place",),
}
"""Names by Unicode's subgroup, the more general one first."""


def ground_name(word: str) -> str:
    """Return the attribute of a ground of a colour or pattern: `red ground`."""
    return f"{word} ground"


def attribute_phrase(word: str) -> str:
    """Return an attribute as a caption names it: `something red`, `a striped ground`, `an animal`, `two things`."""
    if word in COLOURS or word in SIZES or word in PLACES:
        return f"something {word}"
    if (
        word.endswith("s")
        or word.startswith("one ")
        or word in ("sound", "sports equipment", "weather", "food", "something to wear", "no word")
    ):
        return word
    return f"{'an' if word[0].lower() in 'aeiou' else 'a'} {word}"


class Group(NamedTuple):
    """A group of attributes: its name and the words."""

    name: str
    words: tuple[str, ...]


@functools.cache
def attribute_groups() -> tuple[Group, ...]:
    """Return all groups of attributes."""
    return (
        Group("colour", COLOURS),
        Group("ground", tuple(map(ground_name, COLOURS))),
        Group("pattern", tuple(map(ground_name, PATTERNS.values()))),
        Group("number", NUMBERS),
        Group("size", SIZES),
        Group("place", PLACES),
        Group("style", (*STYLES.values(), SILHOUETTE, OUTLINE)),
        Group("kind", tuple(dict.fromkeys(word for words in KINDS.values() for word in words))),
        Group("writing", WRITINGS),
    )


@functools.cache
def attributes() -> tuple[str, ...]:
    """Return the words of all groups, in order."""
    return tuple(word for group in attribute_groups() for word in group.words)


@functools.cache
def attribute_index() -> dict[str, int]:
    """Return the position of every attribute in `attributes()`."""
    return {word: number for number, word in enumerate(attributes())}
