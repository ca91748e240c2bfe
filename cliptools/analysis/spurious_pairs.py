"""The pairs of classes whose words push furthest together, of all pairs: each bounded from above, few searched.

Words that are left out only lower the total score of a pair. So the sum of its largest scores over all texts, which needs no
comparison of texts with names, bounds it from above; a pair is searched only where that reaches the best pairs so far.
"""

import time
from collections.abc import Iterator, Sequence

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Float, Int

from cliptools.analysis.spurious import Found, Search
from cliptools.console import LONG, count_of, note, progress, rounded_time
from cliptools.text.classes import ClassName, ClassPair

ROUNDING = 1e-9  # relative; sums in another order differ by less
BLOCK = 128  # pairs bounded at a time
SAMPLE = 1.0  # seconds of work that an estimate rests on


def clearest_pairs(search: Search, classes: Sequence[ClassName], count: int) -> list[Found]:
    """The `count` ordered pairs of largest clearness, largest first, as a search of every pair gives them; without empty ones."""
    best = _Best(search, classes, count)
    total = len(classes) * (len(classes) - 1)
    bounded = search.settings.by in ("effect", "single")
    rows = _bounded(best) if bounded else _searched(best)
    first, begin, told = 0, 0.0, False
    for done in progress(rows, "pairs", total, step=best.advance):
        now = time.perf_counter()
        if not first:  # the first pairs take long, since the texts near their names are looked for
            first, begin = done, now
        elif not told and now - begin >= SAMPLE:
            told, left = True, (now - begin) / (done - first) * (total - done)
            if left >= LONG:
                named = f"{count_of(total, 'pair')} of {count_of(len(classes), 'class')}"
                note(f"{named}: about {rounded_time(left)} to go")
    return best.found()


class _Best:
    """The best pairs so far."""

    def __init__(self, search: Search, classes: Sequence[ClassName], count: int) -> None:
        self.search, self.classes, self.count = search, classes, count
        self.kept: list[tuple[float, int, Found]] = []
        """Clearness negated and number of the pair, so that they sort as they are to stand."""
        self._before = 0

    @property
    def reach(self) -> float:
        """The clearness that a pair needs to stand among the pairs that are kept."""
        return -self.kept[-1][0] if len(self.kept) == self.count else -np.inf

    def try_pair(self, depict: int, predict: int) -> None:
        """Search one pair."""
        found = self.search.find(ClassPair(self.classes[depict], self.classes[predict]))
        if len(found.word):
            number = depict * len(self.classes) + predict
            self.kept = sorted([*self.kept, (-found.clearness, number, found)], key=lambda kept: kept[:2])[: self.count]

    def advance(self, done: int) -> int:
        """Pairs since the last time."""
        step, self._before = done - self._before, done
        return step

    def found(self) -> list[Found]:
        """The pairs, the clearest first."""
        return [found for _, _, found in self.kept]


def _searched(best: _Best) -> Iterator[int]:
    """Every pair; yields how many are done."""
    done = 0
    for depict in range(len(best.classes)):
        for predict in range(len(best.classes)):
            if depict != predict:
                best.try_pair(depict, predict)
                done += 1
                yield done


def _bounded(best: _Best) -> Iterator[int]:
    """The pairs whose bound reaches the best so far; yields how many are done."""
    search = best.search
    pushes = np.stack([search.push(each.name) for each in best.classes])  # (class, unit)
    bound = _products_bound if search.settings.by == "single" else _ScoreBound(search)
    done, total = 0, len(best.classes)
    for first in range(total - 1):
        for start in range(first + 1, total, BLOCK):
            others = np.arange(start, min(start + BLOCK, total))
            push = pushes[others] - pushes[first]  # (pair, unit) from `first` to each other; the way back is its negative
            there, back = bound(search, push)
            tried = [(limit, first, int(other)) for limit, other in zip(there, others, strict=True)]
            tried += [(limit, int(other), first) for limit, other in zip(back, others, strict=True)]
            for limit, depict, predict in sorted(tried, key=lambda pair: -pair[0]):
                if limit < best.reach:
                    break
                best.try_pair(depict, predict)
            done += 2 * len(others)
            yield done


Bounds = tuple[Float[np.ndarray, " pair"], Float[np.ndarray, " pair"]]
"""Bounds of the pairs, and of the same pairs the other way round."""


class _ScoreBound:
    """Bounds of sums over neurons (Eq. 6)."""

    def __init__(self, search: Search) -> None:
        word, gamma = search.words
        n, column = np.nonzero(word >= 0)
        shape = (len(word), len(search.texts.pool))
        self.gamma = scipy.sparse.csr_array((gamma[n, column].astype(np.float64), (n, word[n, column])), shape)  # (unit, text)

    def __call__(self, search: Search, push: Float[np.ndarray, "pair unit"]) -> Bounds:
        """For each pair the sum of the largest scores of all texts."""
        pair, n, unclear = _strongest(push, search.settings.neurons)
        score = scipy.sparse.csr_array((push[pair, n], (pair, n)), push.shape) @ self.gamma  # (pair, text)
        length = np.diff(score.indptr)
        rows = np.zeros((len(push), int(length.max(initial=1))))  # (pair, text with a score), zeros behind
        rows[np.repeat(np.arange(len(push)), length), np.arange(len(score.data)) - np.repeat(score.indptr[:-1], length)] = (
            score.data
        )
        there, back = (_largest(sign * rows, search.settings.words) for sign in (1, -1))
        for bound in (there, back):
            bound[unclear] = np.inf
        return there, back


def _products_bound(search: Search, push: Float[np.ndarray, "pair unit"]) -> Bounds:
    """For each pair the sum of the largest single products, those of one word all counted."""
    there, back = np.full(len(push), np.inf), np.full(len(push), np.inf)
    pair, n, unclear = _strongest(push, search.settings.neurons)
    gamma = np.where(search.words.word >= 0, search.words.gamma, 0).astype(np.float64)  # (unit, m)
    clear = np.setdiff1d(np.arange(len(push)), unclear)
    if not len(clear):
        return there, back
    own = n[~np.isin(pair, unclear)].reshape(len(clear), -1)  # (pair, n)
    product = (gamma[own] * push[clear[:, None], own][..., None]).reshape(len(clear), -1)
    there[clear], back[clear] = (_largest(sign * product, search.settings.words) for sign in (1, -1))
    return there, back


def _strongest(
    push: Float[np.ndarray, "pair unit"], count: int
) -> tuple[Int[np.ndarray, " entry"], Int[np.ndarray, " entry"], Int[np.ndarray, " some"]]:
    """Pair and unit of the `count` largest |push| of every pair; and pairs where equal ones leave that open."""
    size = np.abs(push)
    if count >= size.shape[1]:
        pair, n = np.nonzero(size >= 0)
        return pair, n, np.zeros(0, np.int64)
    least = torch.from_numpy(size).topk(count, dim=1).values[:, -1].numpy()
    among = size >= least[:, None]
    pair, n = np.nonzero(among)
    return pair, n, np.flatnonzero(among.sum(1) > count)


def _largest(score: Float[np.ndarray, "pair text"], count: int) -> Float[np.ndarray, " pair"]:
    """The sum of the largest positive scores of each pair, at most `count`, and what rounding may add."""
    largest = torch.from_numpy(score).topk(min(count, score.shape[1]), dim=1, sorted=False).values.numpy()
    total: Float[np.ndarray, " pair"] = np.maximum(largest, 0).sum(1) + ROUNDING * np.abs(score).sum(1)
    return total
