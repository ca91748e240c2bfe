"""Words that push an image of one class towards another (paper 1, Sec. 5.1).

The output moves towards the predicted class along v = M_text(predicted) - M_text(depicted). A neuron n pushes that way by
<v, r_n> for each unit of its effect, and a text j of its words has the coefficient gamma_j^n in r_n. Over the neurons of
largest |<v, r_n>|,

    w_j = sum over n of gamma_j^n <v, r_n>        (Eq. 6)

so a large w_j says: what j names makes these neurons act, and they act for the predicted class. The paper's public code never
sums: it ranks the single products gamma_j^n <v, r_n> and takes the words of the largest (`largest_products`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from cliptools.ground.provenance import digest


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
    """Which of the neurons asked."""
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
    """Which texts lie near one of some names: a cosine of `threshold` or more, all centred by the mean of the texts.

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
