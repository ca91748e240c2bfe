"""Histograms of norms, a row a unit, for ranks beyond the images kept. Norms come as multiples of a norm of the unit's own."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

BINS_PER_OCTAVE = 64  # 1.1 % wide
OCTAVES = (-3, 9)
BINS = (OCTAVES[1] - OCTAVES[0]) * BINS_PER_OCTAVE


def count_norms(histogram: Int[Tensor, "n bins"], norm: Float[Tensor, "n b"]) -> None:
    """Count norms; those beyond the first or the last bin in it."""
    bins = (norm.log2() - OCTAVES[0]).mul(BINS_PER_OCTAVE).nan_to_num(0, 0, 0)
    histogram.scatter_add_(1, bins.long().clamp(0, BINS - 1), torch.ones_like(bins, dtype=torch.int32))


def middle_of(histogram: Int[Tensor, "n bins"], rank: int) -> Float[Tensor, "n"]:
    """The middle of the bin in which the rank-th largest norm lies."""
    at_least = histogram.flip(1).cumsum(1)  # counts from the largest bin down
    index = BINS - 1 - (at_least >= rank).int().argmax(1)
    return torch.exp2((index + 0.5) / BINS_PER_OCTAVE + OCTAVES[0])
