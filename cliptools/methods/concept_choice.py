"""The units of a concept: those that write it, and of these the ones that see it.

A unit n writes <r_n, t_c> of the concept's text t_c. It sees the concept as far as its activity a_n = <phi_n, r_n> / ||M(I)||
goes with the model's own similarity s_c = <M(I), t_c> / ||M(I)|| over images. phi_n is part of M(I), so the unit's own writing is
taken out:

    seen_nc = (cov(a_n, s_c) - var(a_n) <r_n, t_c>) / (sd(a_n) sd(s_c))

Paper 2 takes the units of largest <r_n, t_c> (`overlap`). `seen` takes those of largest

    max(0, <r_n, t_c>) max(0, seen_nc + 1 / sqrt(N))        N images looked at

so that with few images, whose correlations are chance to within 1 / sqrt(N), the first factor decides, with many both.
Measured on both embedded models: docs/results.md.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cliptools.ground.double_precision import exact
from cliptools.methods.activity import slabs_of
from cliptools.methods.frames import along_of
from cliptools.methods.paths import Paths, wide

CANDIDATES = 200  # units of largest <r, t> a concept that are looked at: of 8,192 pairs the best by both are among the first 168
LOOKED_AT = 1000  # images, drawn over those at hand


class Chosen(NamedTuple):
    """The units of each concept, the best first."""

    row: Int[Tensor, "c n"]
    overlap: Float[Tensor, "c n"]
    """<r_n, t_c>."""
    seen: Float[Tensor, "c n"] | None = None
    """seen_nc, where images were looked at."""


class Look(NamedTuple):
    """Candidates' activities on some images, and the concepts' similarities."""

    activity: Float[Tensor, "b u"]
    similarity: Float[Tensor, "b c"]
    embedding: Float[Tensor, "b d"]
    """M(I), not normalised."""


def choose_units(r: Float[Tensor, "u d"], t: Float[Tensor, "c d"], count: int) -> Chosen:
    """The `count` units of largest <r_n, t_c> for each concept; of equal ones the first."""
    overlap, row = (t.to(r) @ r.T).sort(dim=1, descending=True, stable=True)
    return Chosen(row[:, :count], overlap[:, :count])


class SeeingUnits:
    """Chooses units by what they write and see, from one look at some images; keeps sums only."""

    def __init__(self, paths: Paths, unit: Int[Tensor, "u 3"], r: Float[Tensor, "u d"], t: Float[Tensor, "c d"]) -> None:
        """
        Args:
            unit: Layer, neuron and head of a bundle's units.
            r: Their directions.
            t: The concepts' unit embeddings.
        """
        self.paths, self.t = paths, t
        self.row = choose_units(r, t, CANDIDATES).row.unique()  # ascending
        self.overlap = (t.to(r) @ r[self.row].T).double()  # (c, u)
        self.slabs, parts = slabs_of(paths, unit[self.row])
        nothing = torch.zeros_like(r[self.row])
        r_row = r[self.row, None]
        self.along = [along_of(paths, slab, nothing[part], r_row[part]) for slab, part in zip(self.slabs, parts, strict=True)]
        self.place = torch.cat(parts).argsort()  # from the slabs' order back to the candidates'
        u, c = len(self.row), len(t)
        self.count = 0
        self.a, self.aa, self.s, self.ss, self.sa = (
            torch.zeros(*n, dtype=torch.float64) for n in ((u,), (u,), (c,), (c,), (c, u))
        )

    def look(self, image: Float[Tensor, "i 3 y x"]) -> Look:
        """What the candidates do on these images; changes nothing."""
        S, embedding = self.paths.read(image, self.slabs)
        scale = 1 / wide(embedding).norm(dim=-1)  # (b,)
        alongs = [along(s, scale)[..., 0] for s, along in zip(S, self.along, strict=True)]
        activity = torch.cat(alongs, 1)[:, self.place.to(embedding.device)]
        similarity = wide(embedding) @ self.t.to(wide(embedding)).T * scale[:, None]
        return Look(*(exact(part).cpu() for part in (activity, similarity, embedding)))

    def add(self, look: Look) -> None:
        """Take these images in."""
        a, s, _ = look
        self.count += len(a)
        self.a += a.sum(0)
        self.aa += a.square().sum(0)
        self.s += s.sum(0)
        self.ss += s.square().sum(0)
        self.sa += s.T @ a

    def choose(self, count: int) -> Chosen:
        """The best `count` units of each concept; of equal ones the one of larger <r_n, t_c>."""
        seen = self._seen()
        score = self.overlap.clamp(min=0) * (seen + max(self.count, 1) ** -0.5).clamp(min=0)
        order = self.overlap.argsort(dim=1, descending=True, stable=True)
        order = order.gather(1, score.gather(1, order).argsort(dim=1, descending=True, stable=True))[:, :count]
        return Chosen(self.row[order], self.overlap.gather(1, order), seen.gather(1, order))

    def _seen(self) -> Float[Tensor, "c u"]:
        """seen_nc; 0 where nothing varies."""
        n = max(self.count, 1)
        a, s = self.a / n, self.s / n
        var_a, var_s = (self.aa / n - a.square()).clamp(min=0), (self.ss / n - s.square()).clamp(min=0)
        covariance = self.sa / n - s[:, None] * a - var_a * self.overlap
        spread = (var_s[:, None] * var_a).sqrt()
        return torch.where(spread > 1e-12, covariance / spread.clamp(min=1e-12), 0.0).clamp(-1, 1)
