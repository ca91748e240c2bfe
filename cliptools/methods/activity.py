"""How much, and how far along their direction, neurons act on an image beyond their mean.

Of a neuron's effect phi_n(I) = sum_k S[n, k] D[n, k, :] on an image this file gives ||phi_n - b_n|| and <phi_n - b_n, r_n>
without forming phi. With D = L Q, the rows of Q [k, d] orthonormal (so that L L^T = D D^T is the Gram matrix),

    phi - b      = (S L - b Q^T) Q - b_rest,       b_rest = b - b Q^T Q
    ||phi - b||^2 = ||S L - b Q^T||^2 + ||b_rest||^2
    <phi - b, r>  = S (D r) - <b, r>

A neuron keeps k x k numbers for it. Differences are taken before squares, so that float32 loses nothing where an image does
little to a neuron; b is a mean of effects, so b_rest is rounding.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cliptools.ground.errors import StreamError
from cliptools.methods.paths import Paths, Slab, scale_of, slices


class Activity(NamedTuple):
    """What u units do on b images; the effects times 100 / ||M(I)|| where so asked."""

    norm: Float[Tensor, "b u"]
    """||phi_n(I) - b_n||."""
    along: Float[Tensor, "b u"]
    """<phi_n(I) - b_n, r_n>."""
    embedding: Float[Tensor, "b d"]
    """M(I), not normalised."""


class _Frame(NamedTuple):
    """One layer's units: all of D, b and r that norms and projections need."""

    L: Float[Tensor, "n k j"]
    """Of D = L Q; j = min(k, d)."""
    b: Float[Tensor, "n j"]
    """b Q^T."""
    rest: Float[Tensor, " n"]
    """||b_rest||^2."""
    Dr: Float[Tensor, "n k"]
    """<D[n, k], r_n>."""
    br: Float[Tensor, " n"]
    """<b_n, r_n>."""


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
        self.frames = [_frame(paths, slab, b[row], r[row]) for slab, row in zip(self.slabs, rows, strict=True)]
        self.place = torch.cat(rows).argsort()  # from the slabs' order back to the units'

    def __call__(self, image: Float[Tensor, "i 3 y x"]) -> Activity:
        """What the units do on these images."""
        S, embedding = self.paths.read(image, self.slabs)
        scale = scale_of(embedding, self.scale)
        norms, alongs = [], []
        for s, frame in zip(S, self.frames, strict=True):
            scaled = s * scale[:, None, None]  # (i, n, k)
            inner = (scaled.transpose(0, 1) @ frame.L).transpose(0, 1) - frame.b  # (i, n, j): phi - b in the frame Q
            norms.append((inner.square().sum(-1) + frame.rest).sqrt())
            alongs.append(torch.einsum("ink,nk->in", scaled, frame.Dr) - frame.br)
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


def _frame(paths: Paths, slab: Slab, b: Float[Tensor, "n d"], r: Float[Tensor, "n d"]) -> _Frame:
    """From D, a few units at a time."""
    parts = []
    for of in slices(len(slab.neurons), paths.size(slab.layer)[1]):
        D = paths.directions(Slab(slab.layer, slab.neurons[of]))  # (n, k, d)
        b_n, r_n = b[of].to(D), r[of].to(D)
        Q, L = torch.linalg.qr(D.transpose(1, 2))  # (n, d, j), (n, j, k)
        inner = torch.einsum("nd,ndj->nj", b_n, Q)
        rest = b_n - torch.einsum("nj,ndj->nd", inner, Q)
        Dr = torch.einsum("nkd,nd->nk", D, r_n)
        parts.append(_Frame(L.transpose(1, 2), inner, rest.square().sum(-1), Dr, (b_n * r_n).sum(-1)))
    return _Frame(*(torch.cat(column) for column in zip(*parts, strict=True)))
