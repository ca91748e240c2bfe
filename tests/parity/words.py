"""Words of images and of pairs of classes, and concepts over groups, from neurons' directions and sparse texts."""

import numpy as np

from .vit import Array


def chosen_neurons(v: Array, r: Array, count: int) -> list[int]:
    """Sec. 5.1: the neurons of largest |⟨v, r_n⟩|."""
    return [int(n) for n in np.argsort([-abs(v @ r_n) for r_n in r], kind="stable")[:count]]


def spurious_scores(v: Array, r: Array, gamma: Array, neurons: list[int]) -> Array:
    """Eq. 6: w_j = Σ_n γ_j^n ⟨v, r_n⟩, γ [neuron, text] with zeros for texts not chosen. [text]"""
    w = np.zeros(gamma.shape[1])
    for j in range(len(w)):
        for n in neurons:
            w[j] += gamma[n, j] * (v @ r[n])
    return w


def overlaps(r: Array, t: Array) -> Array:
    """⟨t_j, r_n⟩ in the place of γ: [neuron, text]."""
    return np.array([[t_j @ r_n for t_j in t] for r_n in r])


def similar_scores(v: Array, t: Array) -> Array:
    """The baseline without neurons: the cosine of each text with v. [text]"""
    return np.array([t_j @ v / np.linalg.norm(t_j) / np.linalg.norm(v) for t_j in t])


def near(t: Array, names: Array, least: float) -> list[int]:
    """Texts whose cosine with one of the names is `least` or more."""
    cosine = t @ names.T / np.linalg.norm(t, axis=1)[:, None] / np.linalg.norm(names, axis=1)
    return [int(j) for j in np.flatnonzero((cosine >= least).any(1))]


def concept_scores(phi: Array, b: Array, tau: Array, gamma: Array) -> tuple[Array, list[int]]:
    """App. A.5 of one image's effects [neuron, d]: Σ_n γ_j^n ‖φ_n − b_n‖ over active neurons, and which are active."""
    norm = [np.linalg.norm(phi_n - b_n) for phi_n, b_n in zip(phi, b, strict=True)]
    active = [n for n in range(len(phi)) if norm[n] > tau[n]]
    w = np.zeros(gamma.shape[1])
    for n in active:
        w += gamma[n] * norm[n]
    return w, active


def concept_scores_signed(phi: Array, b: Array, r: Array, gamma: Array) -> Array:
    """Σ_n γ_j^n ⟨φ_n − b_n, r_n⟩ over all neurons."""
    w = np.zeros(gamma.shape[1])
    for n in range(len(phi)):
        w += gamma[n] * ((phi[n] - b[n]) @ r[n])
    return w


def units_of_concept(r: Array, t: Array, k: int) -> list[int]:
    """The k units of largest ⟨r, t⟩."""
    return [int(n) for n in np.argsort([-(r_n @ t) for r_n in r], kind="stable")[:k]]


def concept_share(phi: Array, M: Array, units: list[int]) -> float:
    """‖Σ_k φ‖ / ‖M(I)‖ of one image's effects [unit, d] in the scale of M."""
    total = np.zeros(phi.shape[1])
    for n in units:
        total += phi[n]
    return float(np.linalg.norm(total) / np.linalg.norm(M))


def point_biserial(value: Array, label: Array) -> float:
    """(mean where 1 − mean where 0) / s · √(n1 n0 / n²), s with n in the denominator."""
    one, zero = value[label == 1], value[label == 0]
    return float((one.mean() - zero.mean()) / value.std() * np.sqrt(len(one) * len(zero)) / len(value))


def inertia(M: Array) -> float:
    """Mean squared distance of embeddings [image, d], at unit norm, from their mean."""
    u = np.stack([row / np.linalg.norm(row) for row in M])
    mean = u.mean(0)
    return float(np.mean([((row - mean) ** 2).sum() for row in u]))
