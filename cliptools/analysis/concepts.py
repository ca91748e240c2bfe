"""The words of an image, from the neurons that act on it (paper 1, arXiv 2406.04341, App. A.5).

A neuron is active where ||phi_n(I) - b_n|| > tau_n. A text j of the pool scores

    sum over active n of gamma_j^n ||phi_n(I) - b_n||        as the paper has it, or
    sum over active n of gamma_j^n <phi_n(I) - b_n, r_n>     signed: where a neuron acts against its direction, against its words

with gamma_j^n the coefficient of text j in neuron n's direction r_n. A neuron has few texts, so gamma [u, text] is sparse.

Of what images show, how much was found: recall with its interval over images.
"""

import zlib
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cliptools.effects.factored import Activity

Score = Literal["norm", "signed"]
Neurons = Literal["active", "all", "random"]


class Best(NamedTuple):
    """The largest values of each row, and their columns."""

    value: Float[Tensor, "b c"]
    column: Int[Tensor, "b c"]


def sparse_gamma(word: Int[Tensor, "u m"], coefficient: Float[Tensor, "u m"], texts: int) -> Float[Tensor, "u text"]:
    """gamma, sparse, in float64, from each unit's texts (-1: none) and their coefficients."""
    named = word >= 0
    index = torch.stack([named.nonzero()[:, 0], word[named].long()])  # (2, entry)
    return torch.sparse_coo_tensor(index, coefficient[named].double(), (len(word), texts), check_invariants=True).coalesce()


def word_scores(weight: Float[Tensor, "b u"], gamma: Float[Tensor, "u text"]) -> Float[Tensor, "b text"]:
    """sum_n weight_n gamma_j^n for every text j, in float64 on the CPU; gamma sparse."""
    return torch.sparse.mm(gamma.t(), weight.cpu().double().t()).t()


def active_units(activity: Activity, tau: Float[Tensor, " u"]) -> Bool[Tensor, "b u"]:
    """Mark the units with ||phi_n - b_n|| > tau_n."""
    return activity.norm > tau.to(activity.norm)


def counted_units(active: Bool[Tensor, "b u"], neurons: Neurons, names: Sequence[str], seed: int) -> Bool[Tensor, "b u"]:
    """The units whose words count: the active ones, all, or as many drawn at random as are active.

    Args:
        names: The images' names. The draw depends on the seed and on the name, not on the order of the images.
    """
    if neurons == "active":
        return active
    if neurons == "all":
        return torch.ones_like(active)
    drawn = torch.zeros_like(active)
    for row, name in enumerate(names):
        random = np.random.default_rng((seed, zlib.crc32(name.encode())))
        chosen = random.choice(active.shape[1], int(active[row].sum()), replace=False)
        drawn[row, torch.from_numpy(chosen).to(drawn.device)] = True
    return drawn


def unit_weights(activity: Activity, counted: Bool[Tensor, "b u"], score: Score) -> Float[Tensor, "b u"]:
    """Return the weight of each unit's coefficients; 0 for a unit that does not count."""
    return (activity.norm if score == "norm" else activity.along) * counted


def best(value: Float[Tensor, "b c"], count: int) -> Best:
    """The `count` largest of each row, largest first, equal ones in the order of the row."""
    ordered, index = value.sort(dim=1, descending=True, stable=True)
    return Best(ordered[:, :count], index[:, :count])


def text_scores(embedding: Float[Tensor, "b d"], t: Float[Tensor, "text d"]) -> Float[Tensor, "b text"]:
    """CLIP's own ranking: the cosine of M(I) with each text's unit embedding."""
    return torch.nn.functional.normalize(embedding.to(t.dtype), dim=-1) @ t.T


def direction_scores(
    weight: Float[Tensor, "b u"], r: Float[Tensor, "u d"], atoms: Float[Tensor, "text d"]
) -> Float[Tensor, "b text"]:
    """<sum_n weight_n r_n, t_j>: the same sum of the directions themselves, not of the few texts each is written with."""
    return weight @ r.to(weight) @ atoms.to(weight).T


DRAWS = 2000
SPREAD = (2.5, 97.5)  # percentiles of a 95 % interval


class Recall(NamedTuple):
    """A share of all names of all images, with its 95 % interval."""

    found: int
    names: int
    value: float
    low: float
    high: float


def recall(found: Sequence[int], names: Sequence[int], seed: int = 0) -> Recall:
    """Names found over names there are, summed over images.

    The interval is a percentile bootstrap over images, not over names: names that share an image are not independent.

    Args:
        found: How many names were found in each image.
        names: How many there are in it, at least one in some image.
    """
    hits, trials = np.asarray(found, dtype=np.int64), np.asarray(names, dtype=np.int64)
    random = np.random.default_rng(seed)
    drawn = []
    for _ in range(DRAWS):
        rows = random.integers(0, len(hits), len(hits))
        drawn.append(hits[rows].sum() / max(1, trials[rows].sum()))
    low, high = np.percentile(drawn, SPREAD)
    return Recall(int(hits.sum()), int(trials.sum()), float(hits.sum() / trials.sum()), float(low), float(high))
