"""Statistics of some units of a layer, in the form in which replacing their effects uses them.

Of b_n and the directions r_nc, with phi_n = sum_k S[n, k] D[n, k], four things are asked about a batch of images:

    <phi_n - b_n, r_nc>                     a number for each unit and direction, and the same with r^_n for r
    ||phi_n - b_n||                         a number for each unit
    sum over n of b_n - phi_n               a vector; over all units, or those that a mask names
    sum over n of x_n r_nc                  a vector

`KnownVectors` has b and r as vectors of the joint space. `KnownPairs` are units of one path each, phi_n = s_n w_n, of which
the mean of s_n and the sign of r = +-w / ||w|| say everything: no vector of a pair is formed.
"""

from functools import cached_property
from typing import Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cliptools.devices import float64_device, to_float64, to_float64_device
from cliptools.effects.factored import (
    FactoredEffect,
    Norms,
    Projections,
    UnitBlock,
    gram_of,
    norms_of,
    overlaps_of,
    projections_of,
    total_of,
)


class Known(Protocol):
    """The four quantities of the module's docstring. Effects are S D times the image's scale; vectors come in float64."""

    @property
    def along(self) -> Projections:
        """For <phi - b, r>."""
        ...

    @property
    def norms(self) -> Norms:
        """For ||phi - b||."""
        ...

    def onto(self, fit: Float[Tensor, "n d"]) -> Projections:
        """For <phi - b, r^>, with other vectors r^ than the directions."""
        ...

    def fall(
        self, S: Float[Tensor, "b n k"], scale: Float[Tensor, " b"], mask: Bool[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "b d"]:
        """Sum of b_n - phi_n, over the units that the mask names on each image, or all."""
        ...

    def spread(self, x: Float[Tensor, "b n"], component: int) -> Float[Tensor, "b d"]:
        """Sum of x_n r_nc."""
        ...


class KnownVectors:
    """Units whose means and directions are vectors."""

    def __init__(self, paths: FactoredEffect, slab: UnitBlock, b: Float[Tensor, "n d"], r: Float[Tensor, "n c d"]) -> None:
        """
        Args:
            b, r: In the type that S will have, or will be cast to that of D.
        """
        like = paths.directions(UnitBlock(slab.layer, slab.neurons[:1]))
        self.paths, self.slab = paths, slab
        self.b, self.r = b.to(like), r.to(like)
        self.sum_b = to_float64(b).sum(0).to(float64_device(like))

    @cached_property
    def along(self) -> Projections:
        """For <phi - b, r>."""
        return projections_of(self.paths, self.slab, self.b, self.r)

    @cached_property
    def norms(self) -> Norms:
        """For ||phi - b||."""
        return norms_of(self.paths, self.slab, self.b)

    def onto(self, fit: Float[Tensor, "n d"]) -> Projections:
        """For <phi - b, r^>."""
        return projections_of(self.paths, self.slab, self.b, fit[:, None])

    def fall(
        self, S: Float[Tensor, "b n k"], scale: Float[Tensor, " b"], mask: Bool[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "b d"]:
        """Sum of b_n - phi_n."""
        those = S if mask is None else S * mask[..., None]
        b = self.sum_b if mask is None else to_float64(mask.to(self.b) @ self.b)
        return b - to_float64(total_of(self.paths, self.slab, those)) * to_float64_device(scale)[:, None]

    def spread(self, x: Float[Tensor, "b n"], component: int) -> Float[Tensor, "b d"]:
        """Sum of x_n r_nc."""
        return to_float64(x @ self.r[:, component])


class KnownPairs:
    """Units of one path, whose directions are the weights'."""

    def __init__(self, paths: FactoredEffect, slab: UnitBlock, s: Float[Tensor, " n"], sign: Float[Tensor, " n"]) -> None:
        """
        Args:
            s: Means of the scalars.
            sign: Of r along w; 0 for a unit that never acted.
        """
        w = gram_of(paths, slab)[:, 0, 0].sqrt()  # ||w||: (n)
        self.paths, self.slab, self.s = paths, slab, s.to(w)
        sign = sign.to(w)
        self.norms = Norms(w[:, None, None], (self.s * w)[:, None], torch.zeros_like(w))
        self.along = Projections((sign * w)[:, None, None], (self.s * sign * w)[:, None])
        self.unit = torch.where(w > 0, sign / w, 0.0)  # r = unit * w

    def onto(self, fit: Float[Tensor, "n d"]) -> Projections:
        """For <phi - b, r^> = (s - mean s) <w, r^>."""
        overlap = overlaps_of(self.paths, self.slab, fit[:, None])  # (n, 1, 1)
        return Projections(overlap, self.s[:, None] * overlap[:, 0])

    def fall(
        self, S: Float[Tensor, "b n k"], scale: Float[Tensor, " b"], mask: Bool[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "b d"]:
        """Sum of b_n - phi_n."""
        lost = self.s[:, None] - S * scale[:, None, None]  # (b, n, 1)
        return to_float64(total_of(self.paths, self.slab, lost if mask is None else lost * mask[..., None]))

    def spread(self, x: Float[Tensor, "b n"], component: int) -> Float[Tensor, "b d"]:
        """Sum of x_n r_n; there is but one direction."""
        return to_float64(total_of(self.paths, self.slab, (x * self.unit)[..., None]))
