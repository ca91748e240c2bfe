"""Words of an image, from the neurons that act on it (paper 1, arXiv 2406.04341, App. A.5), and their recall.

A neuron is active where ||phi_n(I) - b_n|| > tau_n. Text j of the vocabulary scores

    sum over active n of gamma_j^n ||phi_n(I) - b_n||        in the paper, or
    sum over active n of gamma_j^n <phi_n(I) - b_n, r_n>     signed: a neuron that acts against its direction lowers its words

with gamma_j^n the coefficient of text j in neuron n's direction r_n. A neuron has few texts, so gamma [u, text] is sparse.

`recall` is the share of the objects shown that are among the words, with an interval over images.
"""

import zlib
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cliptools.analysis.zero_shot import wilson
from cliptools.unit_effects.factored import Activity, acts

Score = Literal["norm", "signed"]
Neurons = Literal["active", "all", "random"]


class Largest(NamedTuple):
    """The largest values of each row, and their columns."""

    value: Float[Tensor, "b c"]
    column: Int[Tensor, "b c"]


def sparse_gamma(word: Int[Tensor, "u m"], coefficient: Float[Tensor, "u m"], texts: int) -> Float[Tensor, "u text"]:
    """gamma, sparse and in float64, from each unit's texts (-1: no text) and their coefficients."""
    named = word >= 0
    index = torch.stack([named.nonzero()[:, 0], word[named].long()])  # (2, entry)
    return torch.sparse_coo_tensor(index, coefficient[named].double(), (len(word), texts), check_invariants=True).coalesce()


def word_scores(weight: Float[Tensor, "b u"], gamma: Float[Tensor, "u text"]) -> Float[Tensor, "b text"]:
    """sum_n weight_n gamma_j^n for every text j, in float64 on the CPU; gamma is sparse."""
    return torch.sparse.mm(gamma.t(), weight.cpu().double().t()).t()  # ((text, u) @ (u, b)).t()


def active_units(activity: Activity, tau: Float[Tensor, " u"]) -> Bool[Tensor, "b u"]:
    """Mark the units with ||phi_n - b_n|| > tau_n."""
    return acts(activity.norm, tau)


def counted_units(active: Bool[Tensor, "b u"], neurons: Neurons, names: Sequence[str], seed: int) -> Bool[Tensor, "b u"]:
    """Mark the units whose words count: the active units, all units, or as many random units as are active.

    Args:
        names: Names of the images. The random units depend on the seed and the name, not on the order of the images.
    """
    if neurons == "active":
        return active
    if neurons == "all":
        return torch.ones_like(active)
    counted = torch.zeros_like(active)
    for row, name in enumerate(names):
        random = np.random.default_rng((seed, zlib.crc32(name.encode())))
        units = random.choice(active.shape[1], int(active[row].sum()), replace=False)
        counted[row, torch.from_numpy(units).to(counted.device)] = True
    return counted


def unit_weights(activity: Activity, counted: Bool[Tensor, "b u"], score: Score) -> Float[Tensor, "b u"]:
    """Return the weight of each unit's coefficients; 0 for a unit that does not count."""
    return (activity.norm if score == "norm" else activity.along) * counted


def largest(value: Float[Tensor, "b c"], count: int) -> Largest:
    """The `count` largest values of each row, largest first, equal values in the order of the row."""
    ordered, index = value.sort(dim=1, descending=True, stable=True)
    return Largest(ordered[:, :count], index[:, :count])


def text_scores(embedding: Float[Tensor, "b d"], t: Float[Tensor, "text d"]) -> Float[Tensor, "b text"]:
    """The cosine of M(I) with each text's unit-norm embedding: CLIP's own ranking."""
    return torch.nn.functional.normalize(embedding.to(t.dtype), dim=-1) @ t.T


def direction_scores(
    weight: Float[Tensor, "b u"], r: Float[Tensor, "u d"], atoms: Float[Tensor, "text d"]
) -> Float[Tensor, "b text"]:
    """<sum_n weight_n r_n, t_j>: the sum of the directions themselves, in place of their few texts."""
    return weight @ r.to(weight) @ atoms.to(weight).T  # (b, u) @ (u, d) @ (d, text)


DRAWS = 2000  # resamples of the bootstrap
SPREAD = (2.5, 97.5)  # percentiles of a 95 % interval


class Recall(NamedTuple):
    """A share of all names of all images, with its 95 % interval."""

    hits: int
    """Number of names that are among the words of their image."""
    names: int
    value: float
    low: float
    high: float


def recall(hits: Sequence[int], names: Sequence[int], seed: int = 0) -> Recall:
    """The sum of hits over the sum of names, of all images.

    The interval is a percentile bootstrap over the images with names, not over names: names of the same image are not
    independent. It contains Wilson's for as many trials as images, because draws of equal images do not vary.

    Args:
        hits: Number of each image's names that are among its words.
        names: Number of each image's names; not all 0.
    """
    hit, trial = np.asarray(hits, dtype=np.int64), np.asarray(names, dtype=np.int64)
    hit, trial = hit[trial > 0], trial[trial > 0]
    random = np.random.default_rng(seed)
    shares = []
    for _ in range(DRAWS):
        rows = random.integers(0, len(hit), len(hit))
        shares.append(hit[rows].sum() / trial[rows].sum())
    value, (low, high) = float(hit.sum() / trial.sum()), np.percentile(shares, SPREAD).tolist()
    least, most = wilson(value, len(hit))
    return Recall(int(hit.sum()), int(trial.sum()), value, min(low, least), max(high, most))
