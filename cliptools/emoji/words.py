"""Concepts in words: names with articles, captions, and the parsing of texts.

`caption` writes a caption for concepts. `parse_text` parses a text into the emoji that a scene can show (two dogs and a pizza)
and the words that ask for anything else; `concepts_in` returns only the concepts that a text names.
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
