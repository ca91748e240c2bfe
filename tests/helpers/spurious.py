"""Inputs and checks of test_spurious.py that other tests share."""

import numpy as np

from cliptools.analysis.spurious import Words

POOL = ("cat", "cats", "black cat", "sofa", "couch", "settee", "quay", "snow", "cedar", "sour", "advent", "yacht", "frost")


UNITS, M, D = 37, 5, 20


def eq6(v: np.ndarray, r: np.ndarray, word: np.ndarray, gamma: np.ndarray, count: int, texts: int) -> list[float]:
    """Return w_j of the paper's Eq. 6, one summand after the other."""
    push = [sum(v[i] * r[n][i] for i in range(len(v))) for n in range(len(r))]
    chosen = sorted(range(len(r)), key=lambda n: (-abs(push[n]), n))[:count]
    w = [0.0] * texts
    for n in chosen:
        for j, g in zip(word[n], gamma[n], strict=True):
            if j >= 0:
                w[j] += g * push[n]
    return w


def random_words(seed: int = 0, texts: int = len(POOL)) -> tuple[np.ndarray, Words]:
    """Return unit directions, and words of which each neuron has at most M different ones, some neurons fewer."""
    rng = np.random.default_rng(seed)
    r = rng.normal(size=(UNITS, D))
    r = r / np.linalg.norm(r, axis=1, keepdims=True)
    word = np.stack([rng.permutation(texts)[:M] for _ in range(UNITS)])
    gamma = rng.normal(size=(UNITS, M))
    ended = rng.random((UNITS, M)) < 0.2
    return r, Words(np.where(ended, -1, word), np.where(ended, 0, gamma))
