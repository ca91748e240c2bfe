"""Captions of scenes, and the concepts that a caption names."""

import re
from collections.abc import Sequence

import numpy as np

from cliptools.ground.emoji.concepts import Concept, concept_index, concepts

TEMPLATES = ("a picture of {}", "a photo of {}", "{}", "there is {} here", "an image with {}", "a scene with {}", "emoji of {}", "look, {}")
ZERO_SHOT_TEMPLATES = ("a picture of {}", "a photo of {}", "{}")


def with_article(name: str) -> str:
    """`a cat`, `an owl`, `grapes`."""
    if name.endswith("s") and not name.endswith("ss"):
        return name
    return f"an {name}" if name[0].lower() in "aeio" or name.startswith(("um", "un")) and not name.startswith("uni") else f"a {name}"


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
    found: list[tuple[int, int]] = []
    rest = text.lower()
    for name in sorted(index, key=lambda n: (-len(n), n)):
        pattern = rf"(?<!\w){re.escape(name)}(?:s|es)?(?!\w)"
        for match in re.finditer(pattern, rest):
            found.append((match.start(), index[name]))
        rest = re.sub(pattern, lambda m: "\0" * len(m.group()), rest)
    return tuple(dict.fromkeys(concept for _, concept in sorted(found)))
