"""Directions, means and thresholds of effects, and accuracy with effects changed (paper 1, Sec. 3.3; paper 2, Fig. 1)."""

from typing import NamedTuple

import numpy as np

from .vit import Array


class Character(NamedTuple):
    """Of one unit's effects over all images."""

    b: Array  # [d] mean
    top_image: Array  # [T]
    top_norm: Array  # [T] ‖φ − b‖
    tau: float
    r: Array  # [c, d] principal directions of the top images' rows
    explained: Array  # [c] shares of the top images' squared norm
    explained_all: float  # along the first direction, over all images


def characterise(phi: Array, top: int, above: int, components: int = 1) -> Character:
    """Of effects phi [image, d]. `above`: how many images reach tau."""
    b = phi.mean(0)
    norm = np.array([np.linalg.norm(row - b) for row in phi])
    order = np.argsort(-norm, kind="stable")
    rows = phi[order[:top]] - b  # [T, d], not centred again
    _, s, V = np.linalg.svd(rows, full_matrices=False)
    r = V[:components].copy()
    for c in range(components):  # the weight of the top images is to project positively; at T / N = 2 % most of them do
        r[c] *= np.sign(((rows @ r[c]) ** 3).sum())
    along = (((phi - b) @ r[0]) ** 2).sum() / ((phi - b) ** 2).sum()
    return Character(
        b, order[:top], norm[order[:top]], norm[order[above - 1]], r, s[:components] ** 2 / (s**2).sum(), float(along)
    )


def mean_ablated(phi: Array, b: Array) -> Array:
    """ψ = b, for every image."""
    return np.tile(b, (len(phi), 1))


def large_ablated(phi: Array, b: Array, tau: float) -> Array:
    """ψ = b only where ‖φ − b‖ > τ."""
    return np.stack([b if np.linalg.norm(row - b) > tau else row for row in phi])


def small_ablated(phi: Array, b: Array, tau: float) -> Array:
    """ψ = b only where not ‖φ − b‖ > τ."""
    return np.stack([row if np.linalg.norm(row - b) > tau else b for row in phi])


def reconstructed(phi: Array, b: Array, r: Array) -> Array:
    """ψ = b + Σ_c ⟨φ − b, r_c⟩ r_c of orthonormal r [c, d]."""
    return np.stack([b + sum(((row - b) @ r_c) * r_c for r_c in r) for row in phi])


def reconstructed_by_words(phi: Array, b: Array, r: Array, r_hat: Array) -> Array:
    """ψ = b + ⟨φ − b, r⟩ r̂."""
    return np.stack([b + ((row - b) @ r) * r_hat for row in phi])


def changed(M: Array, phi: Array, psi: Array) -> Array:
    """Outputs with φ replaced: M + Σ_n (ψ_n − φ_n), of M [image, d] and φ, ψ [unit, image, d] in one scale."""
    out = M.copy()
    for phi_n, psi_n in zip(phi, psi, strict=True):
        out += psi_n - phi_n
    return out


class Accuracy(NamedTuple):
    top1: float
    top5: float
    agreement: float
    cosine: float
    margin: float  # least lead of a best class over the next, and of a fifth over a sixth, in cosines


def accuracy(M: Array, M_changed: Array, t: Array, label: Array) -> Accuracy:
    """Zero-shot, of outputs [image, d] and class texts [c, d] at unit norm."""
    top1, top5, agree, cosine, margin = [], [], [], [], np.inf
    for before, after, c in zip(M, M_changed, label, strict=True):
        score = t @ after / np.linalg.norm(after)
        order = np.argsort(-score)
        top1.append(order[0] == c)
        top5.append(c in order[:5])
        agree.append(order[0] == np.argmax(t @ before))
        cosine.append(before @ after / np.linalg.norm(before) / np.linalg.norm(after))
        margin = min(margin, score[order[0]] - score[order[1]], score[order[4]] - score[order[5]])
    return Accuracy(*(float(np.mean(list_)) for list_ in (top1, top5, agree, cosine)), float(margin))


def wilson(share: float, n: int) -> tuple[float, float]:
    """95 % of a share of n: (p + z²/2n ± z √(p (1 − p) / n + z²/4n²)) / (1 + z²/n)."""
    z = 1.959963984540054
    middle, half = share + z * z / (2 * n), z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)
