"""Words that push an image of one class towards another (paper 1, Sec. 5.1).

The output moves towards the predicted class along v = M_text(predicted) - M_text(depicted). A neuron n pushes that way by
<v, r_n> for each unit of its effect, and a text j of its words has the coefficient gamma_j^n in r_n. Over the neurons of
largest |<v, r_n>|,

    w_j = sum over n of gamma_j^n <v, r_n>        (Eq. 6)

so a large w_j says: what j names makes these neurons act, and they act for the predicted class. The paper's public code never
sums: it ranks the single products gamma_j^n <v, r_n> and takes the words of the largest (`largest_products`).

One search for spurious words after the other, over the same neurons and texts.
"""

import functools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from cliptools.io.header import digest
from cliptools.text.classes import ClassPair, names_pattern


class Words(NamedTuple):
    """The pursuit's words of some neurons."""

    word: Int[np.ndarray, "n m"]
    """Row of the texts; -1 for none."""
    gamma: Float[np.ndarray, "n m"]

    def of(self, n: Int[np.ndarray, " some"]) -> "Words":
        """Those of a part of the neurons."""
        return Words(self.word[n], self.gamma[n])


def strongest(push: Float[np.ndarray, " unit"], count: int) -> Int[np.ndarray, " n"]:
    """The units of largest |<v, r_n>|, largest first; the first of equal ones."""
    size = np.abs(push)
    if count < len(size):
        least = np.partition(size, len(size) - count)[len(size) - count]
        among = np.flatnonzero(size >= least)
    else:
        among = np.arange(len(size))
    return among[np.argsort(-size[among], kind="stable")][:count]


def drawn(units: int, count: int, seed: int, pair: str) -> Int[np.ndarray, " n"]:
    """Random units, the baseline: drawn anew for each pair, the same whatever other pairs are asked for."""
    rng = np.random.default_rng([seed, int(digest(pair)[:16], 16)])
    return np.sort(rng.choice(units, size=min(count, units), replace=False))


def word_scores(push: Float[np.ndarray, " n"], words: Words, texts: int) -> Float[np.ndarray, " text"]:
    """w (Eq. 6) of every text, 0 for those that none of the neurons has.

    Args:
        push: <v, r_n> of the neurons.
        words: Theirs.
        texts: How many texts there are.
    """
    summands = words.gamma.astype(np.float64) * push[:, None]  # (n, m)
    return np.bincount(words.word.ravel() + 1, weights=summands.ravel(), minlength=texts + 1)[1:]  # the first took the -1


class Products(NamedTuple):
    """Words of single products, each once, by its largest; largest first."""

    word: Int[np.ndarray, " word"]
    score: Float[np.ndarray, " word"]
    neuron: Int[np.ndarray, " word"]
    """Index of the neuron among those asked."""
    reach: float
    """The smallest product taken, from which on a word would have stood among them; 0 where there are not so many."""


def largest_products(
    push: Float[np.ndarray, " n"], words: Words, pool: Sequence[str], allowed: Bool[np.ndarray, " text"], count: int
) -> Products:
    """The words of the `count` largest positive gamma_j^n <v, r_n> of allowed texts.

    A word of several of these products stands once, so that there may be fewer words than `count`. Of equal products the one
    whose word comes later in the alphabet goes first, as in the public code.
    """
    product = words.gamma.astype(np.float64) * push[:, None]  # (n, m)
    usable = (words.word >= 0) & (product > 0) & allowed[words.word]
    n, column = np.nonzero(usable)
    score, word = product[n, column], words.word[n, column]
    if len(score) > count:
        among = np.flatnonzero(score >= np.partition(score, len(score) - count)[len(score) - count])
        n, score, word = n[among], score[among], word[among]
    order = sorted(range(len(score)), key=lambda i: (score[i], pool[int(word[i])]), reverse=True)[:count]
    reach = float(score[order[-1]]) if len(order) == count else 0.0
    largest: dict[int, int] = {}
    for i in order:
        largest.setdefault(int(word[i]), i)
    first = list(largest.values())
    return Products(word[first], score[first], n[first], reach)


def largest_product_of(push: Float[np.ndarray, " n"], words: Words, texts: int) -> Float[np.ndarray, " text"]:
    """The largest positive gamma_j^n <v, r_n> of every text, 0 for those that have none."""
    largest = np.zeros(texts + 1)
    np.maximum.at(largest, words.word + 1, words.gamma.astype(np.float64) * push[:, None])  # the first takes the -1
    return largest[1:]


def contributions(push: Float[np.ndarray, " n"], words: Words, text: int) -> Float[np.ndarray, " n"]:
    """gamma_j^n <v, r_n> of each neuron for one text j; they sum to w_j."""
    return np.where(words.word == text, words.gamma.astype(np.float64), 0.0).sum(1) * push


def similar_scores(v: Float[np.ndarray, " d"], t: Float[np.ndarray, "text d"]) -> Float[np.ndarray, " text"]:
    """The baseline that knows no neurons: the cosine of each unit-norm text with v."""
    length = float(np.linalg.norm(v))
    return t @ v / length if length else np.zeros(len(t))


def overlap_scores(
    push: Float[np.ndarray, " n"], r: Float[np.ndarray, "n d"], t: Float[np.ndarray, "text d"]
) -> Float[np.ndarray, " text"]:
    """w_j = sum over n of <t_j, r_n> <v, r_n>: Eq. 6 with what each text has of r_n by itself.

    In a sparse sum texts compete: of two alike, the one taken first leaves the other nothing, and a cue that the model
    takes for the predicted class is alike to that class's own name. Here none takes anything from another.

    Args:
        t: The texts, centred (see centred).
    """
    return t @ (push @ r)


def centred(x: Float[np.ndarray, "row d"], t: Float[np.ndarray, "text d"]) -> Float[np.ndarray, "row d"]:
    """Embeddings less the mean of the pool t, made unit norm again: the space of the pursuit."""
    left = x - t.mean(0)
    norm: Float[np.ndarray, "row 1"] = np.linalg.norm(left, axis=1, keepdims=True)
    return left / np.where(norm > 0, norm, 1)


def near_texts(
    t: Float[np.ndarray, "text d"],
    c: Float[np.ndarray, "name d"],
    threshold: float,
    atoms: Float[np.ndarray, "text d"] | None = None,
) -> Bool[np.ndarray, " text"]:
    """Mark the texts that lie near one of some names: a cosine of `threshold` or more, all centred by the mean of the texts.

    Uncentred, any two texts of a CLIP look alike: they share a large common part, whose size differs from model to model.

    Args:
        atoms: The texts centred, where that is done already.
    """
    atoms = centred(t, t) if atoms is None else atoms
    near: Bool[np.ndarray, " text"] = (atoms @ centred(c, t).T >= threshold).any(1)
    return near


def best(score: Float[np.ndarray, " text"], allowed: Bool[np.ndarray, " text"], count: int) -> Int[np.ndarray, " word"]:
    """The allowed texts of the largest positive scores, largest first; the first of equal ones."""
    usable = np.flatnonzero(allowed & (score > 0))
    return usable[np.argsort(-score[usable], kind="stable")][:count]


SHOWN_NEURONS = 5
DEPICTED = 4096  # depicted classes whose names among the texts are remembered
OVERLAP, RANDOM = ("overlap", "random-overlap"), ("random", "random-overlap")


class Settings(NamedTuple):
    """Settings that the result depends on."""

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
