"""Spurious words: texts that push an image of one class towards another (paper 1, arXiv 2406.04341, Sec. 5.1).

The output moves towards the predicted class along v = M_text(predicted) - M_text(depicted). Neuron n pushes that way by
<v, r_n> for each unit of its effect, and text j has the coefficient gamma_j^n in r_n. Summed over the neurons of largest
|<v, r_n>|,

    w_j = sum over n of gamma_j^n <v, r_n>        (Eq. 6)

A large w_j means: an image that shows what text j names makes these neurons act, and they act for the predicted class. The
paper's public code does not sum: it ranks the single products gamma_j^n <v, r_n> and takes the words of the largest
(`largest_products`).

The functions compute the scores from arrays. `Search` finds the words of one pair of classes after the other, over the same
neurons and texts, and excludes texts that name a class or lie near its names.
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
    """Row of the texts; -1 after the last word."""
    gamma: Float[np.ndarray, "n m"]
    """Coefficients."""

    def of(self, n: Int[np.ndarray, " part"]) -> "Words":
        """Words of some of the neurons."""
        return Words(self.word[n], self.gamma[n])


def strongest_units(push: Float[np.ndarray, " unit"], count: int) -> Int[np.ndarray, " n"]:
    """The `count` units of largest |<v, r_n>|, largest first; the first of equal ones."""
    size = np.abs(push)
    if count < len(size):
        least = np.partition(size, len(size) - count)[len(size) - count]
        among = np.flatnonzero(size >= least)
    else:
        among = np.arange(len(size))
    return among[np.argsort(-size[among], kind="stable")][:count]


def random_units(units: int, count: int, seed: int, pair: str) -> Int[np.ndarray, " n"]:
    """Random units, as a baseline: other units for each pair, which do not depend on the other pairs of a run."""
    rng = np.random.default_rng([seed, int(digest(pair)[:16], 16)])
    return np.sort(rng.choice(units, size=min(count, units), replace=False))


def word_scores(push: Float[np.ndarray, " n"], words: Words, texts: int) -> Float[np.ndarray, " text"]:
    """w_j (Eq. 6) of every text; 0 for a text that is not among the words of these neurons.

    Args:
        push: <v, r_n> of the neurons.
        words: Words of the neurons.
        texts: Number of texts.
    """
    summands = words.gamma.astype(np.float64) * push[:, None]  # (n, m)
    return np.bincount(words.word.ravel() + 1, weights=summands.ravel(), minlength=texts + 1)[1:]  # entry 0 sums words of -1


class Products(NamedTuple):
    """Words of single products, each word once with its largest product; largest first."""

    word: Int[np.ndarray, " word"]
    score: Float[np.ndarray, " word"]
    neuron: Int[np.ndarray, " word"]
    """Row of the neuron in `push`."""
    reach: float
    """The smallest product that was taken, which a further word would have to reach; 0 where fewer than `count` were taken."""


def largest_products(
    push: Float[np.ndarray, " n"], words: Words, pool: Sequence[str], allowed: Bool[np.ndarray, " text"], count: int
) -> Products:
    """The words of the `count` largest positive gamma_j^n <v, r_n> of allowed texts.

    A word of several of these products is listed once, so there may be fewer words than `count`. Of equal products the one
    whose word is later in the alphabet comes first, as in the public code.
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
    """The largest positive gamma_j^n <v, r_n> of every text; 0 where no product is positive."""
    largest = np.zeros(texts + 1)
    np.maximum.at(largest, words.word + 1, words.gamma.astype(np.float64) * push[:, None])  # (1 + text): entry 0 is for -1
    return largest[1:]


def contributions(push: Float[np.ndarray, " n"], words: Words, text: int) -> Float[np.ndarray, " n"]:
    """gamma_j^n <v, r_n> of every neuron for text j; the sum over the neurons is w_j."""
    return np.where(words.word == text, words.gamma.astype(np.float64), 0.0).sum(1) * push


def similar_scores(v: Float[np.ndarray, " d"], t: Float[np.ndarray, "text d"]) -> Float[np.ndarray, " text"]:
    """The cosine of each unit-norm text with v: a baseline without neurons."""
    length = float(np.linalg.norm(v))
    return t @ v / length if length else np.zeros(len(t))


def overlap_scores(
    push: Float[np.ndarray, " n"], r: Float[np.ndarray, "n d"], t: Float[np.ndarray, "text d"]
) -> Float[np.ndarray, " text"]:
    """w_j = sum over n of <t_j, r_n> <v, r_n>: Eq. 6 with the overlap <t_j, r_n> in place of the coefficient gamma_j^n.

    In a sparse sum texts compete: of two similar texts, the first one chosen leaves nothing for the other, and a cue that the
    model takes for the predicted class is similar to the name of that class. Overlaps do not compete.

    Args:
        t: The texts, centred by `centred`.
    """
    return t @ (push @ r)  # (text, d) @ (d,)


def centred(x: Float[np.ndarray, "row d"], t: Float[np.ndarray, "text d"]) -> Float[np.ndarray, "row d"]:
    """Embeddings less the mean of the vocabulary t, at unit norm again: the space of the pursuit."""
    difference = x - t.mean(0)
    norm: Float[np.ndarray, "row 1"] = np.linalg.norm(difference, axis=1, keepdims=True)
    return difference / np.where(norm > 0, norm, 1)


def near_texts(
    t: Float[np.ndarray, "text d"],
    c: Float[np.ndarray, "name d"],
    threshold: float,
    atoms: Float[np.ndarray, "text d"] | None = None,
) -> Bool[np.ndarray, " text"]:
    """Mark the texts near a name: a cosine of `threshold` or more, all embeddings centred by the mean of the texts.

    Uncentred, any two texts of a CLIP model are similar: they share a large common part, whose size depends on the model.

    Args:
        t: The texts.
        c: The names.
        atoms: The centred texts, if they are computed already.
    """
    atoms = centred(t, t) if atoms is None else atoms
    near: Bool[np.ndarray, " text"] = (atoms @ centred(c, t).T >= threshold).any(1)
    return near


def best_texts(score: Float[np.ndarray, " text"], allowed: Bool[np.ndarray, " text"], count: int) -> Int[np.ndarray, " word"]:
    """The `count` allowed texts of largest positive score, largest first; the first of equal ones."""
    usable = np.flatnonzero(allowed & (score > 0))
    return usable[np.argsort(-score[usable], kind="stable")][:count]


SHOWN_NEURONS = 5  # neurons listed with a word
DEPICTED = 4096  # depicted classes in the cache
OVERLAP, RANDOM = ("overlap", "random-overlap"), ("random", "random-overlap")  # values of `by`, by scores and by neurons


By = Literal["effect", "single", "overlap", "random", "random-overlap", "similar"]
"""Scores of a word."""


class Settings(NamedTuple):
    """Settings that the result depends on."""

    by: By = "effect"
    neurons: int = 100
    words: int = 25
    seed: int = 0
    near: float = 0.7
    """Centred cosine with a name of the predicted class from which a text is excluded."""


class Texts(NamedTuple):
    """The vocabulary, and further names, with unit-norm embeddings."""

    pool: Sequence[str]
    t: Float[np.ndarray, "text d"]
    named: dict[str, Float[np.ndarray, " d"]]
    """Embeddings of all names of all classes, and of the texts to exclude."""


class PairWords(NamedTuple):
    """The spurious words of one pair of classes."""

    pair: ClassPair
    word: Int[np.ndarray, " word"]
    """Rows of the vocabulary, largest score first."""
    score: Float[np.ndarray, " word"]
    removed: Int[np.ndarray, " removed"]
    """Rows of the excluded texts whose scores would have placed them among the words."""

    @property
    def clearness(self) -> float:
        """The total score of the words: their push together."""
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
            r: Directions of the units.
            words: Words of these units, as rows of the vocabulary.
            texts: The vocabulary and the names.
            excluded: Texts to exclude for every pair, with their plurals and near texts; all of them are in `texts.named`.
            blocked: Texts to exclude for every pair, these alone (case does not count).
        """
        self.r, self.words, self.texts, self.settings, self.excluded = r.astype(np.float64), words, texts, settings, excluded
        block_list = {text.casefold() for text in blocked}
        self.atoms = centred(texts.t, texts.t)
        self.unblocked = np.array([text.casefold() not in block_list for text in texts.pool], dtype=bool)  # (text)
        self._near = functools.cache(self._named_or_near)
        self._push = functools.cache(self._push_of_name)
        self._depicted = functools.lru_cache(DEPICTED)(self._named)

    def find(self, pair: ClassPair) -> PairWords:
        """The words of one pair; no words where all texts of positive score are excluded."""
        if self.settings.by == "single":
            return self._find_products(pair)
        score, allowed = self._scores(pair), self._allowed(pair)
        word = best_texts(score, allowed, self.settings.words)
        reach = score[word[-1]] if len(word) == self.settings.words else 0.0
        removed = best_texts(np.where(score >= reach, score, 0.0), ~allowed, len(score))
        return PairWords(pair, word, score[word], removed)

    def _find_products(self, pair: ClassPair) -> PairWords:
        n = self._neurons(pair)
        push, words, allowed = self._pushes(pair)[n], self.words.of(n), self._allowed(pair)
        products = largest_products(push, words, self.texts.pool, allowed, self.settings.words)
        score = np.where(allowed, 0.0, largest_product_of(push, words, len(self.texts.pool)))  # (text): of excluded texts
        removed = best_texts(np.where(score >= products.reach, score, 0.0), ~allowed, len(score))
        return PairWords(pair, products.word, products.score, removed)

    def shares(self, pair: ClassPair, text: int) -> list[tuple[int, float]]:
        """Units and their shares gamma_j^n <v, r_n> / w_j of the score of text j, the largest absolute value first.

        The shares of all neurons sum to 1; a share may be negative, or more than 1. Empty with `similar`, which uses no neurons.
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
        """The score of every text, by the settings."""
        if self.settings.by == "similar":
            named = self.texts.named
            return similar_scores(named[pair.predict.name] - named[pair.depict.name], self.texts.t)
        n = self._neurons(pair)
        push = self._pushes(pair)[n]
        if self.settings.by in OVERLAP:
            return overlap_scores(push, self.r[n], self.atoms)
        return word_scores(push, self.words.of(n), len(self.texts.pool))

    def _neurons(self, pair: ClassPair) -> Int[np.ndarray, " n"]:
        """The neurons that the scores of a pair are summed over."""
        if self.settings.by in RANDOM:
            return random_units(len(self.r), self.settings.neurons, self.settings.seed, pair.name)
        return strongest_units(self._pushes(pair), self.settings.neurons)

    def _pushes(self, pair: ClassPair) -> Float[np.ndarray, " unit"]:
        """<v, r_n> of every unit, with v = M_text(predicted) - M_text(depicted)."""
        return self._push(pair.predict.name) - self._push(pair.depict.name)

    def _push_of_name(self, name: str) -> Float[np.ndarray, " unit"]:
        return self.r @ self.texts.named[name]  # (unit, d) @ (d,)

    def _allowed(self, pair: ClassPair) -> Bool[np.ndarray, " text"]:
        """Mark the texts that may be words: no names of the predicted class nor texts near these, no names of the depicted class.

        Pictures show the depicted class anyway. `single` follows the public code, which keeps names of the depicted class.
        """
        if self.settings.by == "single":
            return self.unblocked & ~self._near(tuple(dict.fromkeys((*pair.predict.names, *self.excluded))))
        return (
            self.unblocked
            & ~self._depicted(pair.depict.names)
            & ~self._near(tuple(dict.fromkeys((*pair.predict.names, *self.excluded))))
        )

    def push(self, name: str) -> Float[np.ndarray, " unit"]:
        """<M_text(name), r_n> of every unit."""
        return self._push(name)

    def _named(self, names: tuple[str, ...]) -> Bool[np.ndarray, " text"]:
        """Mark the texts that are one of these names."""
        pattern = names_pattern(names)
        return np.array([pattern.fullmatch(text) is not None for text in self.texts.pool], dtype=bool)

    def _named_or_near(self, names: tuple[str, ...]) -> Bool[np.ndarray, " text"]:
        """Mark the texts that contain one of these names or are near one."""
        pattern = names_pattern(names)
        named = np.array([pattern.search(text) is not None for text in self.texts.pool], dtype=bool)
        c = np.stack([self.texts.named[name] for name in names])  # (name, d)
        return named | near_texts(self.texts.t, c, self.settings.near, self.atoms)
