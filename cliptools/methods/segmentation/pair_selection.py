"""Which neuron-head pairs speak for a text (arXiv 2509.19943): those whose directions lie furthest along it, sign included."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cliptools.ground.counted import count_of
from cliptools.ground.errors import UsageError

PAPER_PAIRS, PAPER_OF = 20_000, 147_456  # per text, of all pairs of RN50x16
CHUNK = 16  # texts at a time: their products with all pairs are held together


class Selection(NamedTuple):
    """S_c for every text c."""

    S: Bool[Tensor, "text head neuron"]
    k: int
    """Pairs of each text."""


def default_pairs(pairs: int) -> int:
    """The paper's share of the pairs there are: 20,000 of RN50x16's, fewer of smaller models."""
    return max(1, round(pairs * PAPER_PAIRS / PAPER_OF))


def check_top_pairs(asked: int | None, pairs: int) -> int:
    """k as asked for, or the paper's share.

    Raises:
        UsageError: more pairs than there are.
    """
    if asked is not None and asked > pairs:
        raise UsageError(f"--top-pairs {asked}: the bundle has {count_of(pairs, 'pair')}")
    return default_pairs(pairs) if asked is None else asked


def select_pairs(
    r: Float[Tensor, "pair d"],
    unit: Int[Tensor, "pair 3"],
    t: Float[Tensor, "text d"],
    k: int,
    heads: int,
    neurons: int,
) -> Selection:
    """For each text the k pairs with the largest <r, t>, signs as they are.

    Args:
        r: PC 1 of every pair.
        unit: Layer, neuron and head of every pair.
        t: Embeddings of the texts, as the maps are to see them.
    """
    place = (unit[:, 2].long() * neurons + unit[:, 1].long()).to(r.device)  # of the pair in [head, neuron]
    S = torch.zeros(len(t), heads * neurons, dtype=torch.bool, device=r.device)
    for rows, texts in zip(S.split(CHUNK), t.split(CHUNK), strict=True):
        along = texts @ r.T  # (chunk, pair)
        rows.scatter_(1, place[along.topk(k, dim=1).indices], True)
    return Selection(S.unflatten(1, (heads, neurons)), k)
