"""The pairs of classes whose spurious words push furthest together, of all ordered pairs of a list of classes.

Excluded texts only lower the total score of a pair, its clearness. So the sum of the largest scores over all texts, which needs
no comparison of texts with names, bounds the clearness from above. A pair is searched only where its bound reaches the best
pairs so far; few pairs are.
"""

import time
from collections.abc import Iterator, Sequence

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Float, Int

from cliptools.analysis.spurious import PairWords, Search
from cliptools.console import LONG, count_of, note, progress, rounded_time
from cliptools.text.classes import ClassName, ClassPair

ROUNDING = 1e-9  # relative: sums in another order differ by less
BLOCK = 128  # pairs bounded at a time
SAMPLE = 1.0  # seconds of work before the time to go is estimated


def clearest_pairs(search: Search, classes: Sequence[ClassName], count: int) -> list[PairWords]:
    """The `count` ordered pairs of largest clearness, largest first, as a search of every pair gives them.

    Pairs without words are left out.
    """
    best = _Best(search, classes, count)
    total = len(classes) * (len(classes) - 1)
    bounded = search.settings.by in ("effect", "single")
    rows = _bounded(best) if bounded else _searched(best)
    first, begin, estimated = 0, 0.0, False
    for done in progress(rows, "pairs", total, step=best.advance):
        now = time.perf_counter()
        if not first:  # the first pairs take longer, since the texts near their names are computed
            first, begin = done, now
        elif not estimated and now - begin >= SAMPLE:
            estimated, seconds = True, (now - begin) / (done - first) * (total - done)
            if seconds >= LONG:
                pairs = f"{count_of(total, 'pair')} of {count_of(len(classes), 'class')}"
                note(f"{pairs}: about {rounded_time(seconds)} to go")
    return best.results()


class _Best:
    """The best pairs so far."""

    def __init__(self, search: Search, classes: Sequence[ClassName], count: int) -> None:
        self.search, self.classes, self.count = search, classes, count
        self.ranked: list[tuple[float, int, PairWords]] = []
        """Negated clearness, number and words of each pair, in ascending order: the clearest first, of equal ones the first."""
        self._before = 0

    @property
    def reach(self) -> float:
        """The clearness that a pair needs to be among the best."""
        return -self.ranked[-1][0] if len(self.ranked) == self.count else -np.inf

    def try_pair(self, depict: int, predict: int) -> None:
        """Search one pair, and rank it among the best."""
        words = self.search.find(ClassPair(self.classes[depict], self.classes[predict]))
        if len(words.word):
            number = depict * len(self.classes) + predict
            self.ranked = sorted([*self.ranked, (-words.clearness, number, words)], key=lambda entry: entry[:2])[: self.count]

    def advance(self, done: int) -> int:
        """Return the number of pairs since the last call, for the progress bar."""
        step, self._before = done - self._before, done
        return step

    def results(self) -> list[PairWords]:
        """Words of the best pairs, the clearest first."""
        return [words for _, _, words in self.ranked]


def _searched(best: _Best) -> Iterator[int]:
    """Search every pair; yields the number of pairs done."""
    done = 0
    for depict in range(len(best.classes)):
        for predict in range(len(best.classes)):
            if depict != predict:
                best.try_pair(depict, predict)
                done += 1
                yield done


def _bounded(best: _Best) -> Iterator[int]:
    """Search the pairs whose bound reaches the best so far; yields the number of pairs done."""
    search = best.search
    pushes = np.stack([search.push(named.name) for named in best.classes])  # (class, unit)
    bound = _products_bound if search.settings.by == "single" else _ScoreBound(search)
    done, total = 0, len(best.classes)
    for first in range(total - 1):
        for start in range(first + 1, total, BLOCK):
            second = np.arange(start, min(start + BLOCK, total))
            push = pushes[second] - pushes[first]  # (pair, unit): from `first` to `second`; the reverse pair has its negative
            forward, reverse = bound(search, push)
            bounds = [(limit, first, int(other)) for limit, other in zip(forward, second, strict=True)]
            bounds += [(limit, int(other), first) for limit, other in zip(reverse, second, strict=True)]
            for limit, depict, predict in sorted(bounds, key=lambda pair: -pair[0]):
                if limit < best.reach:
                    break
                best.try_pair(depict, predict)
            done += 2 * len(second)
            yield done


Bounds = tuple[Float[np.ndarray, " pair"], Float[np.ndarray, " pair"]]
"""Bounds of the pairs, and of the reverse pairs."""


class _ScoreBound:
    """Bounds of sums over neurons (Eq. 6)."""

    def __init__(self, search: Search) -> None:
        word, gamma = search.words
        n, column = np.nonzero(word >= 0)
        shape = (len(word), len(search.texts.pool))
        self.gamma = scipy.sparse.csr_array((gamma[n, column].astype(np.float64), (n, word[n, column])), shape)  # (unit, text)

    def __call__(self, search: Search, push: Float[np.ndarray, "pair unit"]) -> Bounds:
        """The sum of the largest scores over all texts, for each pair."""
        pair, n, tied = _strongest_units(push, search.settings.neurons)
        score = scipy.sparse.csr_array((push[pair, n], (pair, n)), push.shape) @ self.gamma  # (pair, text)
        length = np.diff(score.indptr)  # (pair): number of texts with a score
        rows = np.zeros((len(push), int(length.max(initial=1))))  # (pair, text with a score), then zeros
        rows[np.repeat(np.arange(len(push)), length), np.arange(len(score.data)) - np.repeat(score.indptr[:-1], length)] = (
            score.data
        )
        forward, reverse = (_sum_of_largest(sign * rows, search.settings.words) for sign in (1, -1))
        for bound in (forward, reverse):
            bound[tied] = np.inf
        return forward, reverse


def _products_bound(search: Search, push: Float[np.ndarray, "pair unit"]) -> Bounds:
    """The sum of the largest single products, for each pair; all products of a word count."""
    forward, reverse = np.full(len(push), np.inf), np.full(len(push), np.inf)
    pair, n, tied = _strongest_units(push, search.settings.neurons)
    gamma = np.where(search.words.word >= 0, search.words.gamma, 0).astype(np.float64)  # (unit, m)
    clear = np.setdiff1d(np.arange(len(push)), tied)
    if not len(clear):
        return forward, reverse
    neuron = n[~np.isin(pair, tied)].reshape(len(clear), -1)  # (pair, n)
    product = (gamma[neuron] * push[clear[:, None], neuron][..., None]).reshape(len(clear), -1)  # (pair, n, m) -> (pair, n m)
    forward[clear], reverse[clear] = (_sum_of_largest(sign * product, search.settings.words) for sign in (1, -1))
    return forward, reverse


def _strongest_units(
    push: Float[np.ndarray, "pair unit"], count: int
) -> tuple[Int[np.ndarray, " entry"], Int[np.ndarray, " entry"], Int[np.ndarray, " tied"]]:
    """Pair and unit of the `count` largest |push| of every pair; and the pairs where ties leave the choice of units open."""
    size = np.abs(push)
    if count >= size.shape[1]:
        pair, n = np.nonzero(size >= 0)
        return pair, n, np.zeros(0, np.int64)
    least = torch.from_numpy(size).topk(count, dim=1).values[:, -1].numpy()
    among = size >= least[:, None]
    pair, n = np.nonzero(among)
    return pair, n, np.flatnonzero(among.sum(1) > count)


def _sum_of_largest(score: Float[np.ndarray, "pair text"], count: int) -> Float[np.ndarray, " pair"]:
    """The sum of the largest positive scores of each pair, at most `count` of them, plus a bound on its rounding."""
    largest = torch.from_numpy(score).topk(min(count, score.shape[1]), dim=1, sorted=False).values.numpy()
    total: Float[np.ndarray, " pair"] = np.maximum(largest, 0).sum(1) + ROUNDING * np.abs(score).sum(1)
    return total
