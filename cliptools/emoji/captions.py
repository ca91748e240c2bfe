"""Captions of scenes, and the concepts that a caption names.

Texts as scenes can show them: how many of each concept, and the words that say more than a scene shows.
"""

import functools
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cliptools.text.classes import Mention, Names, word_forms
from cliptools.text.emoji_concepts import Concept, concept_index, concepts

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


ONE_TO_TWELVE = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
NUMBERS = {word: number for number, word in enumerate(ONE_TO_TWELVE, 1)} | {"both": 2, "dozen": 12, "pair": 2, "couple": 2}
MOST_DIGITS = 3
SINGLE = ("a", "an", "another", "single")
DEFINITE = ("the", "this", "that", "these", "those")
NEGATIONS = ("no", "without", "not", "neither", "zero")
ALSO = ("or", "nor")
"""What goes on with the last name: `no cat or dog` has neither."""
TOGETHER = (
    "and", "with", "plus", "also", "together", "next", "to", "beside", "near", "surrounded", "by", "&", "of", "there", "here",
    "is", "are", "look", "any",
)  # fmt: skip
"""Words that say no more than that things are in one picture, which a scene shows."""
FRAME = re.compile(
    r"\W*(?:(?:look|here|there|this|is|are)\b\W*)*(?:(?:a|an|the)\s+)?(?:close\s+)?"
    r"(?:photo|photograph|picture|image|scene|view|emoji)s?\s+(?:of|with|showing)\b"
)
"""The beginning of a text that speaks of the picture itself."""
BREAKS = (",", ".", ";", ":", "!", "?", "and")


class Reading(NamedTuple):
    """The part of a text that a scene can show, and the rest."""

    concepts: tuple[int, ...]
    """One entry for each emoji, in the order of the text: two dogs are two entries."""
    names: tuple[str, ...]
    """For each entry the name that the text has for it."""
    unread: tuple[str, ...]
    """Words that ask for something a scene does not show: colours, places, things without an emoji."""

    @property
    def phrase(self) -> str:
        """The emoji in words: `two dogs and a pizza`."""
        counts = Counter(self.names)
        return listed([with_article(name) if n == 1 else f"{in_words(n)} {plural(name)}" for name, n in counts.items()])

    def cut(self, most: int) -> "Reading":
        """Leave out further copies, the last ones first, until no more than `most` emoji are left."""
        kept = list(range(len(self.concepts)))
        for i in reversed(range(len(self.concepts))):
            if len(kept) > most and self.concepts[i] in self.concepts[:i]:
                kept.remove(i)
        return self._replace(concepts=tuple(self.concepts[i] for i in kept), names=tuple(self.names[i] for i in kept))


@functools.lru_cache(maxsize=1024)
def read(text: str) -> Reading:
    """Read a text: `two dogs and a red pizza` as two dogs and a pizza, with `red` left over.

    A number goes with the next name; a plural without one is two. A concept named again is one more, but with `the` it is the
    same. What stands behind `no` or `without` is not shown.
    """
    lower = text.lower()
    frame = FRAME.match(lower)
    end = frame.end() if frame else 0
    shown: list[tuple[int, str]] = []
    negated = False
    unread: list[str] = []
    for place in concept_names().mentions(text):
        if place.start < end:  # the frame itself has the name of an emoji
            unread, end = [], 0
        words = _words(lower[end : place.start])
        count, definite = _count(words, _spaced(lower[place.start : place.stop]) != _spaced(place.name))
        if negated and words and words[0] in ALSO:
            words, count = words[1:], 0
        negated = not count
        name = _singular(place, lower, count)
        concept = concept_index()[name]
        already = sum(concept == other for other, _ in shown)
        shown += [(concept, name)] * (max(0, count - already) if definite and already else count)
        unread += words
        end = place.stop
    unread += _words(lower[end:])
    left = [word for word in unread if word not in (*TOGETHER, *SINGLE, *DEFINITE) and re.search(r"\w", word)]
    return Reading(tuple(c for c, _ in shown), tuple(name for _, name in shown), tuple(dict.fromkeys(left)))


def drawn_names(reading: Reading) -> list[str]:
    """The concepts of a reading by their own names, one for each emoji."""
    return [concepts()[concept].name for concept in reading.concepts]


def in_words(number: int) -> str:
    """`two`; in digits above twelve."""
    return ONE_TO_TWELVE[number - 1] if number <= len(ONE_TO_TWELVE) else str(number)


def _words(gap: str) -> list[str]:
    """The words and signs between two names."""
    return re.findall(r"['’]?\w+(?:['’-]\w+)*|[^\w\s]", gap)


def _spaced(name: str) -> str:
    return re.sub(r"[\s-]+", " ", name)


def _count(words: list[str], is_plural: bool) -> tuple[int, bool]:
    """How many are meant behind these words, and whether they are known from before; words that say so are taken away."""
    first = max((i + 1 for i, word in enumerate(words) if word in BREAKS), default=0)
    count, definite = 2 if is_plural else 1, any(word in DEFINITE for word in words[first:])
    for i in reversed(range(first, len(words))):
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
    """The name that is meant: two `houses` are two of the emoji house, though there is one of houses."""
    if count > 1:
        written = text[place.start : place.stop]
        singular = next((name for name in concept_index() if name != written and written in word_forms(name)), None)
        return singular or place.name
    return place.name
