"""The images of largest uncentred norm ||phi||, by which paper 2 (arXiv 2509.19943) retrieves images.

A bundle keeps the largest centred norms only, and an image of large ||phi|| need not be among these; so all images are looked
at again, for a few units. The statistics do what is wanted when 0 is given for the mean: every list is exact at once.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cliptools.ground.double_precision import home
from cliptools.ground.halving import in_halves
from cliptools.ground.unusable import Screen, unusable
from cliptools.methods.activity import slabs_of
from cliptools.methods.engine import take_in
from cliptools.methods.paths import Paths, gram_of, scale_of
from cliptools.methods.statistics import UnitStatistics
from cliptools.methods.symmetric import SymmetricStack


class Largest(NamedTuple):
    """Of each unit, in the order given."""

    norm: Float[Tensor, "unit n"]
    """||phi||, largest first."""
    image: Int[Tensor, "unit n"]


def largest_norms(
    paths: Paths,
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
    slabs, rows = slabs_of(paths, unit)
    statistics: list[UnitStatistics] = []
    for slab in slabs:
        full = home(gram_of(paths, slab))  # (n, k, k)
        n, k, _ = full.shape
        G = SymmetricStack(n, k, full)
        G.put(slice(None), full)
        statistics.append(UnitStatistics(G, count, 0, quantile=1.0, margin=0, centre=full.new_zeros(n, k)))
    looked = 0

    def read(_: Sequence[int], pictures: Tensor) -> tuple[list[Tensor], Tensor]:
        S, embedding = paths.read(pictures, slabs)
        return list(map(home, S)), home(embedding)  # of few units: each image is in the statistics of all or of none

    for images, (S, embedding) in in_halves(batches, read):
        screen.places(images, unusable(embedding, *S, scale=scale_of(embedding, scaled)))
        looked += take_in(statistics, images, S, embedding, scaled, screen)
    screen.require(looked)
    finished = [each.finish() for each in statistics]
    back = torch.cat(rows).argsort()
    return Largest(*(torch.cat([getattr(each, f"top_{name}").cpu() for each in finished])[back] for name in Largest._fields))
