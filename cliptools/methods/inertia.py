"""How many things a unit is about: the inertia of the images on which it acts most (arXiv 2509.19943).

With m_j = M(I_j) / ||M(I_j)|| for the n images of a unit's largest norms,

    inertia = 1/n sum over j of ||m_j - m||^2,   m = 1/n sum over j of m_j

0 where the model sees the same in all of them, near 1 where their embeddings have nothing in common (it is 1 - ||m||^2).
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cliptools.ground.halving import in_halves
from cliptools.ground.unusable import Screen, unusable

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
