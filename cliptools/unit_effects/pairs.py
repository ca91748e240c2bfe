"""Directions and means of neuron-head pairs of any tower, which follow from the weights and one number a pair.

A pair acts along one vector w of the weights: in a ResNet's pooling W_O^h W_V^h[:, n] (resnet_pooling.py), in a ViT that pools by
attention A_g w_n (vit_pooling.py). Bundles have the sign of r = +-w / ||w|| and the mean of the scalar s, with b = mean(s) w.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cliptools.towers.kinds import output_width
from cliptools.unit_effects.factored import slices, unit_blocks_of
from cliptools.unit_effects.resnet_pooling import Pairs
from cliptools.unit_effects.vit_pooling import TokenPairs

PairEffect = Pairs | TokenPairs
"""The effects whose units are pairs."""


def unit_directions(effect: PairEffect, unit: Int[Tensor, "u 3"], sign: Int[Tensor, "u"]) -> Float[Tensor, "u d"]:
    """r = +-w / ||w|| of these pairs, zeros where the sign is 0; float32, on the CPU.

    Raises:
        StreamError: a pair that the model does not have.
    """
    r = torch.empty(len(unit), output_width(effect.visual))
    for rows, w in _directions(effect, unit):
        r[rows] = (nn.functional.normalize(w, dim=1).cpu() * sign[rows, None]).float()
    return r


def pair_means(effect: PairEffect, unit: Int[Tensor, "u 3"], mean: Float[Tensor, "u"]) -> Float[Tensor, "u d"]:
    """Mean effects of these pairs, from the means of their scalars; float32, on the CPU.

    Raises:
        StreamError: a pair that the model does not have.
    """
    b = torch.empty(len(unit), output_width(effect.visual))
    for rows, w in _directions(effect, unit):
        b[rows] = (w.cpu() * mean[rows, None]).float()
    return b


def _directions(effect: PairEffect, unit: Int[Tensor, "u 3"]) -> Iterator[tuple[Int[Tensor, " n"], Float[Tensor, "n d"]]]:
    """w of some of the pairs at a time, with their rows in `unit`."""
    for block, rows in zip(*unit_blocks_of(effect, unit), strict=True):
        for part in slices(len(rows), 1):
            yield rows[part], effect.directions(block.part(part))[:, 0]
