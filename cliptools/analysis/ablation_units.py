"""The terms of replaced effects, for units of one layer, from their statistics.

With mean b_n and directions r_nc of unit n, and phi_n = sum_k S[n, k] D[n, k], replacing effects takes four quantities of a
batch of images:

    <phi_n - b_n, r_nc>                     a number for each unit and direction, and the same with r^_n for r
    ||phi_n - b_n||                         a number for each unit
    sum over n of b_n - phi_n               a vector; over all units, or those of a mask
    sum over n of x_n r_nc                  a vector

`AblationTerms` is the interface to them. `VectorTerms` has b and r as vectors of the joint space. `PairTerms` is for units of one
path each, phi_n = s_n w_n, for which the mean of s_n and the sign of r = +-w / ||w|| suffice: no vector of a pair is formed.
"""

from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cliptools.devices import float64_device, to_float64, to_float64_device
from cliptools.unit_effects.factored import (
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


@runtime_checkable
class AblationTerms(Protocol):
    """The four quantities of the module's docstring. Effects are S D times the image's scale; vectors are in float64."""

    @property
    def projections(self) -> Projections:
        """Coefficients of <phi - b, r>."""
        ...

    @property
    def norms(self) -> Norms:
        """Coefficients of ||phi - b||."""
        ...

    def projections_on(self, fit: Float[Tensor, "n d"]) -> Projections:
        """Coefficients of <phi - b, r^>, with vectors r^ other than the directions."""
        ...

    def mean_change(
        self, S: Float[Tensor, "b n k"], scale: Float[Tensor, " b"], mask: Bool[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "b d"]:
        """Sum over n of b_n - phi_n: over the units for which the mask is true on the image, or all units."""
        ...

    def reconstruction(self, x: Float[Tensor, "b n"], component: int) -> Float[Tensor, "b d"]:
        """Sum over n of x_n r_nc for one component c."""
        ...


class VectorTerms:
    """Units whose means and directions are vectors."""

    def __init__(self, effect: FactoredEffect, block: UnitBlock, b: Float[Tensor, "n d"], r: Float[Tensor, "n c d"]) -> None:
        """
        Args:
            b: Means; cast to the type and device of D.
            r: Directions; cast likewise.
        """
        like = effect.directions(UnitBlock(block.layer, block.neurons[:1]))  # (1, k, d): for its type and device
        self.effect, self.block = effect, block
        self.b, self.r = b.to(like), r.to(like)
        self.sum_b = to_float64(b).sum(0).to(float64_device(like))

    @cached_property
    def projections(self) -> Projections:
        """Coefficients of <phi - b, r>."""
        return projections_of(self.effect, self.block, self.b, self.r)

    @cached_property
    def norms(self) -> Norms:
        """Coefficients of ||phi - b||."""
        return norms_of(self.effect, self.block, self.b)

    def projections_on(self, fit: Float[Tensor, "n d"]) -> Projections:
        """Coefficients of <phi - b, r^>."""
        return projections_of(self.effect, self.block, self.b, fit[:, None])

    def mean_change(
        self, S: Float[Tensor, "b n k"], scale: Float[Tensor, " b"], mask: Bool[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "b d"]:
        """Sum over n of b_n - phi_n."""
        masked = S if mask is None else S * mask[..., None]  # (b, n, k)
        b = self.sum_b if mask is None else to_float64(mask.to(self.b) @ self.b)  # (d,), or (b, n) @ (n, d)
        return b - to_float64(total_of(self.effect, self.block, masked)) * to_float64_device(scale)[:, None]

    def reconstruction(self, x: Float[Tensor, "b n"], component: int) -> Float[Tensor, "b d"]:
        """Sum over n of x_n r_nc."""
        return to_float64(x @ self.r[:, component])  # (b, n) @ (n, d)


class PairTerms:
    """Units of one path, whose directions follow from the weights."""

    def __init__(self, effect: FactoredEffect, block: UnitBlock, s: Float[Tensor, " n"], sign: Float[Tensor, " n"]) -> None:
        """
        Args:
            s: Means of the scalars.
            sign: Sign of r along w; 0 for a unit that never acted.
        """
        w = gram_of(effect, block)[:, 0, 0].sqrt()  # (n, 1, 1) -> (n): ||w||
        self.effect, self.block, self.s = effect, block, s.to(w)
        sign = sign.to(w)
        self.norms = Norms(w[:, None, None], (self.s * w)[:, None], torch.zeros_like(w))
        self.projections = Projections((sign * w)[:, None, None], (self.s * sign * w)[:, None])
        self.unit = torch.where(w > 0, sign / w, 0.0)  # r = unit * w

    def projections_on(self, fit: Float[Tensor, "n d"]) -> Projections:
        """Coefficients of <phi - b, r^> = (s - mean s) <w, r^>."""
        overlap = overlaps_of(self.effect, self.block, fit[:, None])  # (n, 1, 1)
        return Projections(overlap, self.s[:, None] * overlap[:, 0])

    def mean_change(
        self, S: Float[Tensor, "b n k"], scale: Float[Tensor, " b"], mask: Bool[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "b d"]:
        """Sum over n of b_n - phi_n."""
        change = self.s[:, None] - S * scale[:, None, None]  # (b, n, 1): mean s - s
        return to_float64(total_of(self.effect, self.block, change if mask is None else change * mask[..., None]))

    def reconstruction(self, x: Float[Tensor, "b n"], component: int) -> Float[Tensor, "b d"]:
        """Sum over n of x_n r_n; a pair has one direction only."""
        return to_float64(total_of(self.effect, self.block, (x * self.unit)[..., None]))
