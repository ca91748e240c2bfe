"""The images of largest uncentred norm ||phi||, by which paper 2 (arXiv 2509.19943) retrieves images.

A bundle keeps the largest centred norms only, and an image of large ||phi|| need not be among these; so all images are looked
at again, for a few units. The statistics do what is wanted when 0 is given for the mean: every list is exact at once.

How many things a unit is about: the inertia of the images on which it acts most (arXiv 2509.19943).

With m_j = M(I_j) / ||M(I_j)|| for the n images of a unit's largest norms,

    inertia = 1/n sum over j of ||m_j - m||^2,   m = 1/n sum over j of m_j

0 where the model sees the same in all of them, near 1 where their embeddings have nothing in common (it is 1 - ||m||^2).
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cliptools.devices import in_halves, to_float64_device
from cliptools.effects.factored import FactoredEffect, gram_of, scale_of, unit_blocks_of
from cliptools.models.unusable import Screen, unusable
from cliptools.streaming.measure import take_in
from cliptools.streaming.principal import SymmetricStack
from cliptools.streaming.statistics import UnitStatistics


class Largest(NamedTuple):
    """Images of largest uncentred norm for each unit, in the order of the units."""

    norm: Float[Tensor, "unit n"]
    """||phi||, largest first."""
    image: Int[Tensor, "unit n"]


def largest_norms(
    paths: FactoredEffect,
    unit: Int[Tensor, "unit 3"],
    batches: Iterable[tuple[list[int], Tensor]],
    count: int,
    scaled: bool,
    screen: Screen[int] | None = None,
) -> Largest:
    """The `count` images (or all, if there are fewer) of largest ||phi|| for these units, in one pass over the images.

    Args:
        unit: Layer, neuron and head, as `paths` names them.
        scaled: Whether effects are multiplied by 100 / ||M(I)||.
        screen: Leaves out images that are not usable. None: such an image is an error.

    Raises:
        StreamError: a unit that the paths do not know.
        CliptoolsError: no image could be read; or one that is not usable.
    """
    screen = Screen() if screen is None else screen
    slabs, rows = unit_blocks_of(paths, unit)
    statistics: list[UnitStatistics] = []
    for slab in slabs:
        full = to_float64_device(gram_of(paths, slab))  # (n, k, k)
        n, k, _ = full.shape
        G = SymmetricStack(n, k, full)
        G.put(slice(None), full)
        statistics.append(UnitStatistics(G, count, 0, quantile=1.0, margin=0, centre=full.new_zeros(n, k)))
    looked = 0

    def read(_: Sequence[int], pictures: Tensor) -> tuple[list[Tensor], Tensor]:
        S, embedding = paths.read(pictures, slabs)
        return list(map(to_float64_device, S)), to_float64_device(
            embedding
        )  # few units: an image is in all statistics or in none

    for images, (S, embedding) in in_halves(batches, read):
        screen.places(images, unusable(embedding, *S, scale=scale_of(embedding, scaled)))
        looked += take_in(statistics, images, S, embedding, scaled, screen)
    screen.require(looked)
    finished = [each.finish() for each in statistics]
    back = torch.cat(rows).argsort()
    return Largest(*(torch.cat([getattr(each, f"top_{name}").cpu() for each in finished])[back] for name in Largest._fields))


UNITS_AT_ONCE = 1024


@torch.inference_mode()
def embeddings(
    visual: nn.Module, batches: Iterable[tuple[list[int], Tensor]], screen: Screen[int] | None = None
) -> tuple[list[int], Float[Tensor, "image d"]]:
    """M(I) of every usable image of the batches, and the numbers they came under.

    Args:
        screen: Leaves out images that are not usable. None: such an image is an error.
    """
    screen = Screen() if screen is None else screen
    weight = next(visual.parameters())
    numbers: list[int] = []
    parts = []
    for read, embedding in in_halves(batches, lambda _, pictures: visual(pictures.to(weight.device, weight.dtype)).float().cpu()):
        stay = screen.places(read, unusable(embedding))
        numbers += [read[place] for place in stay]
        parts.append(embedding[list(stay)])
    return numbers, torch.cat(parts) if parts else torch.zeros(0, 0)


def inertia(embedding: Float[Tensor, "image d"], chosen: Int[Tensor, "unit n"]) -> Float[Tensor, " unit"]:
    """Mean squared distance of each unit's images, at unit norm, from their mean; in float64.

    Args:
        embedding: M(I), of any norm.
        chosen: Rows of `embedding`; −1 where there is no image.

    Returns:
        NaN where a unit has fewer than two images.
    """
    unit = torch.nn.functional.normalize(embedding.double(), dim=-1)
    if not len(unit):
        return unit.new_full((len(chosen),), torch.nan)
    parts = []
    for rows in chosen.split(UNITS_AT_ONCE):
        there = (rows >= 0).double()[..., None]  # (unit, n, 1)
        n = there.sum(1)  # (unit, 1)
        m = unit[rows.clamp(min=0)] * there  # (unit, n, d)
        distance = (m - (m.sum(1) / n.clamp(min=1))[:, None]).square().sum(-1, keepdim=True)
        parts.append(torch.where(n >= 2, (distance * there).sum(1) / n, torch.nan)[:, 0])
    return torch.cat(parts) if parts else unit.new_zeros(0)
