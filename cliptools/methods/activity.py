"""How much units act on an image beyond their mean, ||phi_n - b_n||, and how far along their direction, <phi_n - b_n, r_n>."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cliptools.ground.errors import StreamError
from cliptools.methods.frames import frames_of
from cliptools.methods.paths import Paths, Slab, scale_of


class Activity(NamedTuple):
    """What u units do on b images; the effects times 100 / ||M(I)|| where so asked."""

    norm: Float[Tensor, "b u"]
    """||phi_n(I) - b_n||."""
    along: Float[Tensor, "b u"]
    """<phi_n(I) - b_n, r_n>."""
    embedding: Float[Tensor, "b d"]
    """M(I), not normalised."""


class UnitActivity:
    """Centred norms and projections of a bundle's units, for one batch of images after the other."""

    def __init__(
        self,
        paths: Paths,
        unit: Int[Tensor, "u 3"],
        b: Float[Tensor, "u d"],
        r: Float[Tensor, "u d"],
        scale: bool = True,
    ) -> None:
        """
        Args:
            unit: Layer, neuron and head of each unit, in any order; of layers that the paths know.
            b: Their mean effects, in the scale asked for.
            r: Their directions.
            scale: Multiply effects by 100 / ||M(I)||, as b was.
        """
        self.paths, self.scale = paths, scale
        self.slabs, rows = slabs_of(paths, unit)
        self.frames = [frames_of(paths, slab, b[row], r[row, None]) for slab, row in zip(self.slabs, rows, strict=True)]
        self.place = torch.cat(rows).argsort()  # from the slabs' order back to the units'

    def __call__(self, image: Float[Tensor, "i 3 y x"]) -> Activity:
        """What the units do on these images."""
        S, embedding = self.paths.read(image, self.slabs)
        scale = scale_of(embedding, self.scale)
        norms, alongs = [], []
        for s, (norm, along) in zip(S, self.frames, strict=True):
            norms.append(norm(s, scale))
            alongs.append(along(s, scale)[..., 0])
        place = self.place.to(embedding.device)
        return Activity(torch.cat(norms, 1)[:, place], torch.cat(alongs, 1)[:, place], embedding)


def slabs_of(paths: Paths, unit: Int[Tensor, "u 3"]) -> tuple[list[Slab], list[Int[Tensor, " n"]]]:
    """The units by layer, in order of their numbers within it, and which rows of `unit` they are.

    Raises:
        StreamError: a unit that the paths do not know.
    """
    slabs, rows = [], []
    for layer in unit[:, 0].unique().tolist():
        row = (unit[:, 0] == layer).nonzero()[:, 0]
        known, asked = (_key(each) for each in (paths.units(layer), unit[row].long()))
        number = torch.searchsorted(known, asked)
        found = torch.cat([known, known.new_full((1,), -1)])[number]
        if len(strange := (found != asked).nonzero()[:, 0]):
            _, neuron, head = unit[row[strange[0]]].tolist()
            name = f"neuron {layer}:{neuron}" if head < 0 else f"unit {layer}:{neuron}.{head}"
            raise StreamError(f"the bundle has a {name}, which the model has not")
        order = number.argsort(stable=True)
        slabs.append(Slab(layer, number[order]))
        rows.append(row[order])
    return slabs, rows


def _key(unit: Int[Tensor, "n 3"]) -> Int[Tensor, " n"]:
    """One number for neuron and head, in the order of units."""
    return ((unit[:, 1] + 1) << 32) + unit[:, 2] + 1
