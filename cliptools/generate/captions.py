"""Descriptions of pictures to be painted: what is asked, plain sentences without a model, and which ones may stay."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from cliptools.console import count_of, warn
from cliptools.emoji.captions import listed, with_article
from cliptools.generate.records import Task, WordList
from cliptools.io.header import digest
from cliptools.text.classes import Names, names_pattern, parse_class
from cliptools.text.emoji_concepts import concept_index

OPENINGS = ("a photo of", "a picture of", "a scene with", "an image of", "a close view of")
LINKS = ("with", "next to", "beside", "together with", "surrounded by")
ROUNDS = 2  # how often a writer is asked before too few are enough


@dataclass(frozen=True)
class Wanted:
    """What descriptions of one task must and must not say."""

    task: Task
    words: tuple[str, ...]
    """Those of the list that a description may use: neither class is among them."""
    depicted: frozenset[str]
    """Names of the depicted class, in small letters."""
    forbidden: re.Pattern[str]
    names: Names
    """All words and names of the depicted class, to be looked for in texts."""

    def fault(self, text: str, words_needed: int = 1) -> str | None:
        """Why a description may not stay, or None."""
        if self.forbidden.search(text):
            return f"names {self.task.predict}"
        if not self.depicted & self.names.named(text):
            return f"does not name {self.task.depict}"
        return "uses too few of the words" if len(self.used(text)) < min(words_needed, len(self.words)) else None

    def used(self, text: str) -> tuple[str, ...]:
        """The listed words that a text names, in the list's order; a `teddy bear` is no `bear`."""
        named = self.names.named(text)
        return tuple(word for word in self.words if word.lower() in named)


@runtime_checkable
class Writer(Protocol):
    """Where descriptions come from."""

    def begin(self, wanted: Wanted) -> None:
        """A new task is next: nothing of the last one may be felt in it."""

    def write(self, wanted: Wanted, words: Sequence[str], seed: int) -> str:
        """One description that shows the depicted class and, if it can, these words."""
        ...

    def close(self) -> None:
        """Free what it holds."""


class TemplateWriter:
    """Plain sentences: `a photo of a cat next to a rocket, a crown and a key`."""

    def write(self, wanted: Wanted, words: Sequence[str], seed: int) -> str:
        """See Writer."""
        rng = np.random.default_rng(seed)
        opening, link = str(rng.choice(OPENINGS)), str(rng.choice(LINKS))
        return f"{opening} {with_article(wanted.task.depict)} {link} {listed([with_article(word) for word in words])}"

    def begin(self, wanted: Wanted) -> None:
        """Nothing is kept from one task to the next."""

    def close(self) -> None:
        """Nothing is held."""


def wanted_of(found: WordList) -> Wanted:
    """What the descriptions of a list of words must keep to: the classes with their plurals and synonyms.

    A word with the name of a class in it is left out, and the predicted class is forbidden, wherever the name stands: `hot dog`
    is too near to `dog`. The depicted class has to be named itself.
    """
    depict, predict = parse_class(found.task.depict), parse_class(found.task.predict)
    own, forbidden = names_pattern(depict.names), names_pattern((*predict.names, *found.forbidden))
    usable = tuple(word for word in found.words if not own.search(word) and not forbidden.search(word))
    depicted = frozenset(name.lower() for name in depict.names)
    return Wanted(found.task, usable, depicted, forbidden, Names((*usable, *depicted), concept_index()))


def write_descriptions(
    writer: Writer,
    wanted: Wanted,
    *,
    asked: int,
    take: int,
    words_each: int,
    seed: int,
    watch: Callable[[Iterator[int], int], Iterator[int]],
) -> list[str]:
    """The first `take` descriptions that keep to what is wanted, no two alike.

    Words are dealt from a shuffled list, so that all of them are used about equally often. The writer is asked until
    enough have passed, at most `asked` times; are there still too few, once more as often, and then it is said.

    Args:
        words_each: Words dealt to a description.
        seed: Decides words and sentences, together with the task.
        watch: Wraps the numbers of the questions, for a progress bar.
    """
    if not wanted.words:
        warn(f"{wanted.task.title}: no word left that names neither class; no descriptions")
        return []
    writer.begin(wanted)
    hands = _deal(wanted.words, min(words_each, len(wanted.words)), seed_of(wanted.task.key, seed))
    kept: dict[str, None] = {}
    faults: dict[str, int] = {}
    for number in watch(iter(range(asked * ROUNDS)), take):
        text = " ".join(writer.write(wanted, next(hands), seed_of(wanted.task.pair, seed, number)).split())
        fault = wanted.fault(text) or ("is there already" if text in kept else None)
        if fault is None:
            kept[text] = None
        else:
            faults[fault] = faults.get(fault, 0) + 1
        if len(kept) == take:
            break
    if len(kept) < take:
        why = ", ".join(f"{count} {fault}" for fault, count in faults.items())
        warn(f"{wanted.task.title}: {len(kept)} of {count_of(take, 'description')} after {asked * ROUNDS} were asked for ({why})")
    return list(kept)


def seed_of(*parts: object) -> int:
    """A seed below 2³¹ that these parts decide."""
    return int(digest(*map(str, parts))[:8], 16) & 0x7FFFFFFF


def _deal(words: Sequence[str], each: int, seed: int) -> Iterator[list[str]]:
    """Hands of `each` different words, from a list that is shuffled anew when it runs out."""
    rng = np.random.default_rng(seed)
    left: list[str] = []
    while True:
        hand: list[str] = []
        while len(hand) < each:
            left = left or [words[i] for i in rng.permutation(len(words))]
            fresh = next((word for word in left if word not in hand), None)
            if fresh is None:  # what is left of this shuffle is in the hand already
                left = []
                continue
            left.remove(fresh)
            hand.append(fresh)
        yield hand
