"""Captions of scenes, and the concepts that a caption names."""

import functools
from collections.abc import Sequence

import numpy as np

from cliptools.ground.emoji.concepts import Concept, concept_index, concepts
from cliptools.ground.naming import Names

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


def plural(name: str) -> str:
    """`cats`, `boxes`, `cherries`, `wolves`, `snowmen`, and names that are plurals already as they are."""
    if with_article(name) == name:
        return name
    endings = (("mouse", "mice"), ("man", "men"), ("ox", "oxen"), ("olf", "olves"), ("eaf", "eaves"), ("nife", "nives"))
    for ending, several in endings:
        if name.endswith(ending) and not (ending == "ox" and name != ending):
            return name.removesuffix(ending) + several
    if name.endswith("y") and name[-2:-1] not in "aeiou":
        return f"{name[:-1]}ies"
    return f"{name}es" if name.endswith(("s", "x", "z", "ch", "sh")) else f"{name}s"


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
    index = concept_index()
    return tuple(dict.fromkeys(index[place.name] for place in concept_names().mentions(text)))


@functools.cache
def concept_names() -> Names:
    """All names and synonyms, to be looked for in texts. Compiled once: there are more than re's own cache holds."""
    return Names(concept_index())
