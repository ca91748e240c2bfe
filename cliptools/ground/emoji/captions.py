"""Captions of scenes, and the concepts that a caption names."""

import functools
import re
from collections.abc import Sequence

import numpy as np

from cliptools.ground.class_names import word_forms
from cliptools.ground.emoji.concepts import Concept, concept_index, concepts

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
    """`a cat`, `an owl`, `a bus`, `an hourglass`, `grapes`."""
    if name.endswith("s") and not name.endswith(("ss", "us", "os")):
        return name
    vowel = (name[0].lower() in "aeio" or name.startswith(("um", "un", "hour"))) and not name.startswith(("uni", "eu", "one"))
    return f"an {name}" if vowel else f"a {name}"


def names_of(concept: Concept) -> tuple[str, ...]:
    """The name and its synonyms."""
    return (concept.name, *concept.synonyms)


def listed(phrases: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def caption(named: Sequence[int], rng: np.random.Generator | None = None) -> str:
    """A caption that names these concepts: the plain one, or with drawn template, order and synonyms."""
    everything = concepts()
    if rng is None:
        return TEMPLATES[0].format(listed([with_article(everything[c].name) for c in named]))
    shuffled = [named[i] for i in rng.permutation(len(named))]
    words = [str(rng.choice(names_of(everything[c]))) for c in shuffled]
    return str(rng.choice(TEMPLATES)).format(listed([with_article(word) for word in words]))


def concepts_in(text: str) -> tuple[int, ...]:
    """The concepts that a text names, longest names first, in the order of the text, plurals allowed."""
    found: list[tuple[int, int]] = []
    rest = text.lower()
    for pattern, concept in _patterns():
        found.extend((match.start(), concept) for match in pattern.finditer(rest))
        rest = pattern.sub(lambda match: "\0" * len(match.group()), rest)
    return tuple(dict.fromkeys(concept for _, concept in sorted(found)))


@functools.cache
def _patterns() -> tuple[tuple[re.Pattern[str], int], ...]:
    """What each name looks like in a text, the longest first. Compiled once: there are more than re's own cache holds."""
    index = concept_index()
    names = sorted(index, key=lambda name: (-len(name), name))
    return tuple((re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, word_forms(name)))})(?!\w)"), index[name]) for name in names)
