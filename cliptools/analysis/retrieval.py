"""Retrieval of a unit's images by the uncentred norm, and their inertia: how alike the images are on which a unit acts most.

Paper 2 (arXiv 2509.19943) retrieves the images of largest uncentred norm ||phi||. A bundle has only the largest centred norms,
and an image of large ||phi|| need not be among these, so `largest_norms` reads all images again, for a few units. With 0 in
place of the mean, the streaming statistics are exact from the start.

The inertia of a unit, with m_j = M(I_j) / ||M(I_j)|| for the n images of its largest norms, is

    inertia = 1/n sum over j of ||m_j - m||^2 = 1 - ||m||^2,   m = 1/n sum over j of m_j

It is 0 where the model sees the same in all images, and near 1 where their embeddings have nothing in common.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cliptools.devices import in_halves, to_float64_device
from cliptools.models.unusable import Screen, unusable
from cliptools.streaming.measure import take_in
from cliptools.streaming.principal import SymmetricStack
from cliptools.streaming.statistics import UnitStatistics
from cliptools.unit_effects.factored import FactoredEffect, gram_of, scale_of, unit_blocks_of


class Largest(NamedTuple):
    """Images of largest uncentred norm for each unit, in the order of the units."""

    norm: Float[Tensor, "unit n"]
    """||phi||, largest first."""
    image: Int[Tensor, "unit n"]


def largest_norms(
    effect: FactoredEffect,
    unit: Int[Tensor, "unit 3"],
    batches: Iterable[tuple[list[int], Tensor]],
    count: int,
    scaled: bool,
    screen: Screen[int] | None = None,
) -> Largest:
    """The `count` images (or all, if there are fewer) of largest ||phi|| for these units, in one pass over the images.

    Args:
        unit: Layer, neuron and head of each unit.
        scaled: True to multiply effects by 100 / ||M(I)||.
        screen: Leaves out images that are not usable. None: such an image is an error.

    Raises:
        StreamError: a unit that the effect does not have.
        CliptoolsError: no image could be read, or an image is not usable.
    """
    screen = Screen() if screen is None else screen
    blocks, rows = unit_blocks_of(effect, unit)
    statistics: list[UnitStatistics] = []
    for block in blocks:
        full = to_float64_device(gram_of(effect, block))  # (n, k, k)
        n, k, _ = full.shape
        G = SymmetricStack(n, k, full)
        G.put(slice(None), full)
        statistics.append(UnitStatistics.about(G, full.new_zeros(n, k), count))
    count_read = 0

    def read(_: Sequence[int], pictures: Tensor) -> tuple[list[Tensor], Tensor]:
        S, embedding = effect.read(pictures, blocks)
        # S of all blocks at once, so that an image enters all statistics or none.
        return list(map(to_float64_device, S)), to_float64_device(embedding)

    for images, (S, embedding) in in_halves(batches, read):
        screen.places(images, unusable(embedding, *S, scale=scale_of(embedding, scaled)))
        count_read += len(take_in(statistics, images, S, embedding, scaled, screen))
    screen.require(count_read)
    finished = [block_statistics.finish() for block_statistics in statistics]
    order = torch.cat(rows).argsort()  # (unit): from the order of the blocks back to that of `unit`
    norm, image = (torch.cat([getattr(part, name).cpu() for part in finished]) for name in ("top_norm", "top_image"))
    return Largest(norm[order], image[order])


UNITS_AT_ONCE = 1024  # units whose images' embeddings are held at a time


@torch.inference_mode()
def embeddings(
    visual: nn.Module, batches: Iterable[tuple[list[int], Tensor]], screen: Screen[int] | None = None
) -> tuple[list[int], Float[Tensor, "image d"]]:
    """Numbers and M(I) of all usable images of the batches.

    Args:
        screen: Leaves out images that are not usable. None: such an image is an error.
    """
    screen = Screen() if screen is None else screen
    weight = next(visual.parameters())
    numbers: list[int] = []
    parts = []

    def embed(_: Sequence[int], pictures: Tensor) -> Tensor:
        embedding: Tensor = visual(pictures.to(weight.device, weight.dtype))
        return embedding.float().cpu()

    for images, embedding in in_halves(batches, embed):
        usable = screen.places(images, unusable(embedding))
        numbers += [images[place] for place in usable]
        parts.append(embedding[list(usable)])
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
        exists = (rows >= 0).double()[..., None]  # (unit, n, 1)
        n = exists.sum(1)  # (unit, 1)
        m = unit[rows.clamp(min=0)] * exists  # (unit, n, d)
        distance = (m - (m.sum(1) / n.clamp(min=1))[:, None]).square().sum(-1, keepdim=True)  # (unit, n, 1)
        parts.append(torch.where(n >= 2, (distance * exists).sum(1) / n, torch.nan)[:, 0])  # (unit, 1) -> (unit)
    return torch.cat(parts) if parts else unit.new_zeros(0)
