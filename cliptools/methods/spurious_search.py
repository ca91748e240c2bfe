"""One search for spurious words after the other, over the same neurons and texts."""

import functools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from cliptools.ground.class_names import names_pattern
from cliptools.ground.class_pairs import ClassPair
from cliptools.methods.spurious_words import (
    Words,
    best,
    centred,
    contributions,
    drawn,
    largest_product_of,
    largest_products,
    overlap_scores,
    similar_scores,
    strongest,
    word_scores,
)

SHOWN_NEURONS = 5
DEPICTED = 4096  # depicted classes whose names among the texts are remembered
OVERLAP, RANDOM = ("overlap", "random-overlap"), ("random", "random-overlap")


class Settings(NamedTuple):
    """What the result depends on."""

    by: Literal["effect", "single", "overlap", "random", "random-overlap", "similar"] = "effect"
    neurons: int = 100
    words: int = 25
    seed: int = 0
    near: float = 0.7
    """The centred cosine from which a text is too near to a name of the predicted class."""


class Texts(NamedTuple):
    """The pool, and what else is named, with unit-norm embeddings."""

    pool: Sequence[str]
    t: Float[np.ndarray, "text d"]
    named: dict[str, Float[np.ndarray, " d"]]
    """Every name of every class, and what is to be left out."""


class Found(NamedTuple):
    """The words of one pair."""

    pair: ClassPair
    word: Int[np.ndarray, " word"]
    """Rows of the pool, strongest first."""
    score: Float[np.ndarray, " word"]
    removed: Int[np.ndarray, " gone"]
    """Texts left out that would have stood among them."""

    @property
    def clearness(self) -> float:
        """The total score of the words: how far they push together."""
        return float(self.score.sum())


class Search:
    """Spurious words of any pair of classes."""

    def __init__(
        self,
        r: Float[np.ndarray, "unit d"],
        words: Words,
        texts: Texts,
        settings: Settings,
        excluded: Sequence[str] = (),
        blocked: Sequence[str] = (),
    ) -> None:
        """
        Args:
            r: Unit directions.
            words: Their words, as rows of the pool.
            excluded: Left out for every pair, with plurals and near texts; each among `texts.named`.
            blocked: Left out for every pair, just these (case does not count).
        """
        self.r, self.words, self.texts, self.settings, self.excluded = r.astype(np.float64), words, texts, settings, excluded
        never = {text.casefold() for text in blocked}
        self.atoms = centred(texts.t, texts.t)
        self.open = np.array([text.casefold() not in never for text in texts.pool], dtype=bool)
        self._near = functools.cache(self._named_or_near)
        self._push = functools.cache(self._pushed_by)
        self._depicted = functools.lru_cache(DEPICTED)(self._naming)

    def find(self, pair: ClassPair) -> Found:
        """The words of one pair; none where nothing is left."""
        if self.settings.by == "single":
            return self._find_products(pair)
        score, allowed = self._scores(pair), self._allowed(pair)
        word = best(score, allowed, self.settings.words)
        reach = score[word[-1]] if len(word) == self.settings.words else 0.0
        removed = best(np.where(score >= reach, score, 0.0), ~allowed, len(score))
        return Found(pair, word, score[word], removed)

    def _find_products(self, pair: ClassPair) -> Found:
        n = self._neurons(pair)
        push, words, allowed = self._pushes(pair)[n], self.words.of(n), self._allowed(pair)
        found = largest_products(push, words, self.texts.pool, allowed, self.settings.words)
        left = np.where(allowed, 0.0, largest_product_of(push, words, len(self.texts.pool)))
        return Found(pair, found.word, found.score, best(np.where(left >= found.reach, left, 0.0), ~allowed, len(left)))

    def shares(self, pair: ClassPair, text: int) -> list[tuple[int, float]]:
        """Units and their shares of one text's score, as gamma_j^n <v, r_n> / w_j, the largest in absolute value first.

        All shares of a text sum to 1; single ones may be negative, or more than 1. None where no neurons were asked.
        """
        if self.settings.by == "similar":
            return []
        n = self._neurons(pair)
        push = self._pushes(pair)[n]
        if self.settings.by == "single":  # the score is one neuron's
            return [(int(n[int(contributions(push, self.words.of(n), text).argmax())]), 1.0)]
        overlap = self.settings.by in OVERLAP
        part = (self.r[n] @ self.atoms[text]) * push if overlap else contributions(push, self.words.of(n), text)
        share = part / part.sum()
        order = np.argsort(-np.abs(share), kind="stable")[:SHOWN_NEURONS]
        return [(int(n[i]), float(share[i])) for i in order if share[i]]

    def _scores(self, pair: ClassPair) -> Float[np.ndarray, " text"]:
        if self.settings.by == "similar":
            named = self.texts.named
            return similar_scores(named[pair.predict.name] - named[pair.depict.name], self.texts.t)
        n = self._neurons(pair)
        push = self._pushes(pair)[n]
        if self.settings.by in OVERLAP:
            return overlap_scores(push, self.r[n], self.atoms)
        return word_scores(push, self.words.of(n), len(self.texts.pool))

    def _neurons(self, pair: ClassPair) -> Int[np.ndarray, " n"]:
        if self.settings.by in RANDOM:
            return drawn(len(self.r), self.settings.neurons, self.settings.seed, pair.name)
        return strongest(self._pushes(pair), self.settings.neurons)

    def _pushes(self, pair: ClassPair) -> Float[np.ndarray, " unit"]:
        """<v, r_n> with v = M_text(predicted) - M_text(depicted)."""
        return self._push(pair.predict.name) - self._push(pair.depict.name)

    def _pushed_by(self, name: str) -> Float[np.ndarray, " unit"]:
        return self.r @ self.texts.named[name]

    def _allowed(self, pair: ClassPair) -> Bool[np.ndarray, " text"]:
        """Not the predicted class, nor near it; not a name of the depicted one, which the pictures show anyway.

        In the public code, whose list `single` is, the depicted class stays.
        """
        if self.settings.by == "single":
            return self.open & ~self._near(tuple(dict.fromkeys((*pair.predict.names, *self.excluded))))
        return (
            self.open
            & ~self._depicted(pair.depict.names)
            & ~self._near(tuple(dict.fromkeys((*pair.predict.names, *self.excluded))))
        )

    def push(self, name: str) -> Float[np.ndarray, " unit"]:
        """<M_text(name), r_n> of every unit."""
        return self._push(name)

    def _naming(self, names: tuple[str, ...]) -> Bool[np.ndarray, " text"]:
        own = names_pattern(names)
        return np.array([own.fullmatch(text) is not None for text in self.texts.pool], dtype=bool)

    def _named_or_near(self, names: tuple[str, ...]) -> Bool[np.ndarray, " text"]:
        pattern = names_pattern(names)
        naming = np.array([pattern.search(text) is not None for text in self.texts.pool], dtype=bool)
        c = np.stack([self.texts.named[name] for name in names])
        near: Bool[np.ndarray, " text"] = (self.atoms @ centred(c, self.texts.t).T >= self.settings.near).any(1)
        return naming | near
