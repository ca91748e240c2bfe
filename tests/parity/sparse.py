"""Matching pursuit and TextSpan, as textbooks have them."""

from typing import NamedTuple

import numpy as np

from .vit import Array


class Sparse(NamedTuple):
    chosen: list[int]  # rows of the dictionary, in order
    gamma: Array  # [m]
    residual: float  # ‖r − Σ γ_j t_j‖
    margin: float  # least lead of a chosen text over the next, in |⟨t, residual⟩|


def matching_pursuit(r: Array, t: Array, m: int) -> Sparse:
    """Greedy orthogonal matching pursuit: the text most along the residual, then least squares over all chosen."""
    chosen: list[int] = []
    rest, margin = r, np.inf
    for _ in range(m):
        score = np.array([abs(t_j @ rest) for t_j in t])
        score[chosen] = -np.inf
        order = np.argsort(-score)
        margin = min(margin, score[order[0]] - score[order[1]])
        chosen.append(int(order[0]))
        gamma = np.linalg.lstsq(t[chosen].T, r, rcond=None)[0]
        rest = r - t[chosen].T @ gamma
    return Sparse(chosen, gamma, float(np.linalg.norm(rest)), float(margin))


def refitted(r: Array, t: Array, chosen: list[int], m: int) -> Array:
    """r̂: least squares over the first m texts that the pursuit chose. [d]"""
    first = t[chosen[:m]]
    return first.T @ np.linalg.lstsq(first.T, r, rcond=None)[0]


class Spanned(NamedTuple):
    chosen: list[int]
    share: Array  # [m] of the outputs' variance
    margin: float


def text_span(outputs: Array, t: Array, m: int) -> Spanned:
    """Algorithm 1 of TextSpan (arXiv 2310.05916), on whole matrices: outputs C [image, d], texts R [text, d].

    Texts lie in the span of the outputs first. Then m times: the text of largest ‖C R_jᵀ‖, as long as it is, is projected out
    of outputs and texts.
    """
    C = outputs - outputs.mean(0)
    _, sizes, V = np.linalg.svd(C, full_matrices=False)
    V = V[sizes > 1e-9 * sizes[0]]
    R = t @ V.T @ V
    whole = (C**2).sum()
    chosen: list[int] = []
    share, margin = [], np.inf
    for _ in range(m):
        variance = np.array([((C @ R_j) ** 2).sum() for R_j in R])
        order = np.argsort(-variance)
        margin = min(margin, (variance[order[0]] - variance[order[1]]) / whole)
        best = R[order[0]] / np.linalg.norm(R[order[0]])
        chosen.append(int(order[0]))
        share.append(((C @ best) ** 2).sum() / whole)
        C = C - np.outer(C @ best, best)
        R = R - np.outer(R @ best, best)
    return Spanned(chosen, np.array(share), float(margin))
