"""Descriptions of adversarial pictures to paint: their requirements, a writer of plain sentences, and the accepted texts."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from cliptools.console import count_of, warn
from cliptools.emoji.words import join_phrases, with_article
from cliptools.generate.records import Task, WordList
from cliptools.io.header import digest
from cliptools.text.classes import Names, names_pattern, parse_class
from cliptools.text.emoji_concepts import concept_index

OPENINGS = ("a photo of", "a picture of", "a scene with", "an image of", "a close view of")
LINKS = ("with", "next to", "beside", "together with", "surrounded by")
ROUNDS = 2  # the writer is asked at most ROUNDS * `questions` times


@dataclass(frozen=True)
class Requirements:
    """The requirements for descriptions of one task."""

    task: Task
    words: tuple[str, ...]
    """The words of the list that a description may use; none of them names either class."""
    depicted: frozenset[str]
    """Names of the depicted class, in lower case."""
    forbidden: re.Pattern[str]
    """Matches the names of the predicted class."""
    names: Names
    """Matcher for all words and for the names of the depicted class."""

    def fault(self, text: str, least_words: int = 1) -> str | None:
        """Return the reason for rejecting a description, or None."""
        if self.forbidden.search(text):
            return f"names {self.task.predict}"
        if not self.depicted & self.names.names_in(text):
            return f"does not name {self.task.depict}"
        return "uses too few of the words" if len(self.used_words(text)) < min(least_words, len(self.words)) else None

    def used_words(self, text: str) -> tuple[str, ...]:
        """Return the listed words that a text names, in the order of the list; `teddy bear` does not name `bear`."""
        names = self.names.names_in(text)
        return tuple(word for word in self.words if word.lower() in names)


@runtime_checkable
class Writer(Protocol):
    """A source of descriptions."""

    def begin(self, requirements: Requirements) -> None:
        """Begin a new task, independent of the last one."""

    def write(self, requirements: Requirements, words: Sequence[str], seed: int) -> str:
        """Return a description that shows the depicted class and, if possible, these words."""
        ...

    def close(self) -> None:
        """Free all resources."""


class TemplateWriter:
    """A Writer of plain sentences: `a photo of a cat next to a rocket, a crown and a key`."""

    def write(self, requirements: Requirements, words: Sequence[str], seed: int) -> str:
        """Implements Writer.write."""
        rng = np.random.default_rng(seed)
        opening, link = str(rng.choice(OPENINGS)), str(rng.choice(LINKS))
        return f"{opening} {with_article(requirements.task.depict)} {link} {join_phrases([with_article(word) for word in words])}"

    def begin(self, requirements: Requirements) -> None:
        """Does nothing: the writer keeps no state between tasks."""

    def close(self) -> None:
        """Does nothing: the writer holds no resources."""


def requirements_of(word_list: WordList) -> Requirements:
    """Return the requirements for descriptions of a word list; names of classes include their plurals and synonyms.

    Words that contain the name of a class are left out. The predicted class is forbidden even as a part of another name: `hot
    dog` is too close to `dog`. The depicted class must be named itself.
    """
    depict, predict = parse_class(word_list.task.depict), parse_class(word_list.task.predict)
    own_names, forbidden = names_pattern(depict.names), names_pattern((*predict.names, *word_list.forbidden))
    usable = tuple(word for word in word_list.words if not own_names.search(word) and not forbidden.search(word))
    depicted = frozenset(name.lower() for name in depict.names)
    return Requirements(word_list.task, usable, depicted, forbidden, Names((*usable, *depicted), concept_index()))


def write_descriptions(
    writer: Writer,
    requirements: Requirements,
    *,
    questions: int,
    take: int,
    words_each: int,
    seed: int,
    watch: Callable[[Iterator[int], int], Iterator[int]],
) -> list[str]:
    """Return the first `take` different descriptions that meet the requirements.

    Words are dealt from a shuffled list, so that all of them are used about equally often. The writer is asked until enough
    descriptions are accepted, at most ROUNDS x `questions` times; if there are still too few, a warning says so.

    Args:
        words_each: Number of words dealt to a description.
        seed: Random seed for words and sentences, together with the task.
        watch: Wraps the numbers of the questions, for a progress bar.
    """
    if not requirements.words:
        warn(f"{requirements.task.title}: no word left that names neither class; no descriptions")
        return []
    writer.begin(requirements)
    # Without the digest of the bundle, which rounding on another machine changes.
    deal_seed = seed_of(*requirements.task.fields.values(), seed)
    word_hands = _deal(requirements.words, min(words_each, len(requirements.words)), deal_seed)
    accepted, faults = dict[str, None](), Counter[str]()
    asked = max(questions * ROUNDS, take)
    for number in watch(iter(range(asked)), take):
        text = " ".join(writer.write(requirements, next(word_hands), seed_of(requirements.task.pair, seed, number)).split())
        fault = requirements.fault(text) or ("is there already" if text in accepted else None)
        if fault is None:
            accepted[text] = None
        else:
            faults[fault] += 1
        if len(accepted) == take:
            break
    if len(accepted) < take:
        rejections = ", ".join(f"{count} for {fault!r}" for fault, count in faults.items())
        count = f"{len(accepted)} of {count_of(take, 'description')} after {count_of(asked, 'question')}"
        warn(f"{requirements.task.title}: {count}; rejected: {rejections}")
    return list(accepted)


def seed_of(*parts: object) -> int:
    """Return a seed below 2³¹ derived from these parts."""
    return int(digest(*map(str, parts))[:8], 16) & 0x7FFFFFFF


def _deal(words: Sequence[str], size: int, seed: int) -> Iterator[list[str]]:
    """Yield hands of `size` different words, from a list that is shuffled again whenever it is used up."""
    rng = np.random.default_rng(seed)
    deck: list[str] = []
    while True:
        hand: list[str] = []
        while len(hand) < size:
            deck = deck or [words[i] for i in rng.permutation(len(words))]
            fresh = next((word for word in deck if word not in hand), None)
            if fresh is None:  # all words left in this shuffle are already in the hand
                deck = []
                continue
            deck.remove(fresh)
            hand.append(fresh)
        yield hand
