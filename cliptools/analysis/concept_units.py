"""Shares of an image's embedding that the units of a concept contribute (paper 2, arXiv 2509.19943, distribution shift).

    share_c(I) = ||sum over n in U_c of phi_n(I)|| / ||M(I)||

U_c are a few units (`choose_units`). With phi_n = sum_k S[n, k] D[n, k, :] the sum over so few units is one product, S of
them all [b, n k] times D [n k, d]. The share forgets on which side of the origin the sum lies, <sum phi_n, t_c> / ||M(I)|| does
not.

Sets of units drawn at random are measured beside, so that it can be said what chance gives on the same images.

The units of a concept: those that write it, and of these the ones that see it.

A unit n writes <r_n, t_c> of the concept's text t_c. It sees the concept as far as its activity a_n = <phi_n, r_n> / ||M(I)||
goes with the model's own similarity s_c = <M(I), t_c> / ||M(I)|| over images. phi_n is part of M(I), so the unit's own writing is
taken out:

    seen_nc = (cov(a_n, s_c) - var(a_n) <r_n, t_c>) / (sd(a_n) sd(s_c))

Paper 2 takes the units of largest <r_n, t_c> (`overlap`). `seen` takes those of largest

    max(0, <r_n, t_c>) max(0, seen_nc + 1 / sqrt(N))        N images looked at

so that with few images, whose correlations are chance to within 1 / sqrt(N), the first factor decides, with many both.
Measured on both embedded models: docs/results.md.

How far the share of a concept's units follows the concept on the images at hand, as the model itself sees it.

It is the correlation over images of the share with <M(I), t> / ||M(I)||, from which the units' own part, <sum phi_n, t> /
||M(I)||, is taken: they are part of M(I), and would follow themselves. What chance gives is the same of sets of units drawn
at random. Only sums over parts of the images are kept, for an interval by the jackknife (correlations.py). Parts are blocks, or
every hundredth image where images are independent.

Units chosen by what they see on the very images (`SeeingUnits`) follow these better than others, the more so the fewer: on
emoji-vit, with 20 directions as concepts, by 0.23 over 20 images, 0.14 over 50, 0.08 over 100 and 0.03 over 300.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cliptools.analysis.correlations import NEAR_ONE, SUMS, correlations, interval_of
from cliptools.devices import to_float64
from cliptools.effects.factored import FactoredEffect, projections_of, unit_blocks_of, wide


class Shares(NamedTuple):
    """Shares of concepts in the embeddings of b images."""

    norm: Float[Tensor, "b c"]
    """||sum phi_n(I)|| / ||M(I)||."""
    signed: Float[Tensor, "b c"]
    """<sum phi_n(I), t_c> / ||M(I)||."""
    text: Float[Tensor, "b c"]
    """<M(I), t_c> / ||M(I)||: CLIP's own answer, no unit asked."""
    random_norm: Float[Tensor, "b s"]
    """||sum phi_n(I)|| / ||M(I)|| of the sets drawn at random."""
    random_signed: Float[Tensor, "b s c"]
    """<sum phi_n(I), t_c> / ||M(I)|| of these."""
    embedding: Float[Tensor, "b d"]
    """M(I), not normalised."""


class ConceptShare:
    """Shares of some concepts, for one batch of images after the other."""

    def __init__(
        self,
        paths: FactoredEffect,
        unit: Int[Tensor, "u 3"],
        row: Int[Tensor, "c n"],
        t: Float[Tensor, "c d"],
        random: Int[Tensor, "s n"] | None = None,
    ) -> None:
        """
        Args:
            unit: Layer, neuron and head of a bundle's units.
            row: Which of them are each concept's.
            t: The concepts' unit embeddings.
            random: Which of them are in each set drawn at random.
        """
        self.paths, self.t = paths, t
        sets = row if random is None else torch.cat([row, random])
        asked = sets.unique()
        self.slabs, parts = unit_blocks_of(paths, unit[asked])
        self.sets = len(sets)
        self.terms = []  # of each slab, for each set: its units in the slab [m], and their D [m k, d]
        for slab, part in zip(self.slabs, parts, strict=True):
            D = paths.directions(slab)  # (n, k, d): only units of some set
            here = [torch.isin(asked[part], mine).nonzero()[:, 0] for mine in sets]
            self.terms.append([(m.to(D.device), D[m.to(D.device)].flatten(0, 1)) for m in here])

    def __call__(self, image: Float[Tensor, "i 3 y x"]) -> Shares:
        """The concepts' shares of these images."""
        S, embedding = self.paths.read(image, self.slabs)
        embedding = wide(embedding)
        total = embedding.new_zeros(len(embedding), self.sets, self.t.shape[1])  # (b, set, d): sum phi_n
        for s, terms in zip(S, self.terms, strict=True):
            for of, (units, D) in enumerate(terms):
                total[:, of] += s[:, units].flatten(1) @ D
        size, t = embedding.norm(dim=-1, keepdim=True), self.t.to(embedding)
        norm, own, other = total.norm(dim=-1) / size, total[:, : len(t)], total[:, len(t) :]
        signed, text = (own * t).sum(-1) / size, embedding @ t.T / size
        return Shares(norm[:, : len(t)], signed, text, norm[:, len(t) :], other @ t.T / size[..., None], embedding)


def random_sets(units: int, size: int, sets: int) -> Int[Tensor, "s n"]:
    """Sets of so many of the units, drawn at random, always the same; none where there are too few units to draw from."""
    if units < 4 * size:
        return torch.zeros(0, size, dtype=torch.int64)
    generator = torch.Generator().manual_seed(0)
    return torch.stack([torch.randperm(units, generator=generator)[:size] for _ in range(sets)])


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

    def __init__(self, paths: FactoredEffect, unit: Int[Tensor, "u 3"], r: Float[Tensor, "u d"], t: Float[Tensor, "c d"]) -> None:
        """
        Args:
            unit: Layer, neuron and head of a bundle's units.
            r: Their directions.
            t: The concepts' unit embeddings.
        """
        self.paths, self.t = paths, t
        self.row = choose_units(r, t, CANDIDATES).row.unique()  # ascending
        self.overlap = (t.to(r) @ r[self.row].T).double()  # (c, u)
        self.slabs, parts = unit_blocks_of(paths, unit[self.row])
        nothing = torch.zeros_like(r[self.row])
        r_row = r[self.row, None]
        self.along = [
            projections_of(paths, slab, nothing[part], r_row[part]) for slab, part in zip(self.slabs, parts, strict=True)
        ]
        self.place = torch.cat(parts).argsort()  # from the slabs' order back to the candidates'
        u, c = len(self.row), len(t)
        self.count = 0
        self.a, self.aa, self.s, self.ss, self.sa = (
            torch.zeros(*n, dtype=torch.float64) for n in ((u,), (u,), (c,), (c,), (c, u))
        )

    def look(self, image: Float[Tensor, "i 3 y x"]) -> Look:
        """Measure the candidates on these images, without changing the sums."""
        S, embedding = self.paths.read(image, self.slabs)
        scale = 1 / wide(embedding).norm(dim=-1)  # (b,)
        alongs = [along(s, scale)[..., 0] for s, along in zip(S, self.along, strict=True)]
        activity = torch.cat(alongs, 1)[:, self.place.to(embedding.device)]
        similarity = wide(embedding) @ self.t.to(wide(embedding)).T * scale[:, None]
        return Look(*(to_float64(part).cpu() for part in (activity, similarity, embedding)))

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


SETS = 20  # drawn at random
PARTS = 100  # of independent images
SIGMAS = 1.959964  # above the mean of the sets: what one in forty exceeds


class Followed(NamedTuple):
    """A correlation with its 95 % interval, and what one set of random units in forty exceeds."""

    value: float
    low: float | None
    high: float | None
    size: int
    chance: float | None
    """None where there are too few units to draw from."""


class Following:
    """Sums for it, of c concepts and s random sets."""

    def __init__(self, concepts: int, sets: int, parts: int) -> None:
        self.sums = np.zeros((parts, concepts, SUMS))
        self.random = np.zeros((sets, concepts, SUMS))
        self.shift: tuple[np.ndarray, ...] | None = None

    def add(
        self,
        part: Int[np.ndarray, " b"],
        share: Float[np.ndarray, "b c"],
        rest: Float[np.ndarray, "b c"],
        random_share: Float[np.ndarray, "b s c"],
        random_rest: Float[np.ndarray, "b s c"],
    ) -> None:
        """Some images.

        Args:
            part: Which part each is of.
            share: What is asked whether it follows.
            rest: The model's own similarity less the units' part.
            random_share: The same of the sets drawn at random, whatever the concept.
            random_rest: Likewise.
        """
        values = (share, rest, random_share, random_rest)
        if self.shift is None:  # near 0, sums of squares lose no digits
            self.shift = tuple(value.mean(0) for value in values)
        x, y, random_x, random_y = (value - mean for value, mean in zip(values, self.shift, strict=True))
        np.add.at(self.sums, part, _terms(x, y))
        self.random += _terms(random_x, random_y).sum(0)

    def of(self, concept: int) -> Followed | None:
        """None where the correlation is not defined."""
        sums = self.sums[:, concept]
        if np.isnan(value := float(correlations(sums.sum(0)))):
            return None
        interval = interval_of(sums)
        by_chance = correlations(self.random[:, concept])
        by_chance = by_chance[~np.isnan(by_chance)]
        chance = _exceeded(by_chance) if len(by_chance) > 2 else None
        low, high = (None, None) if interval is None else interval[1:]
        return Followed(value, low, high, int(sums[:, 0].sum()), chance)


def _exceeded(by_chance: Float[np.ndarray, " s"]) -> float:
    """The correlation that one set in forty exceeds, by the spread of artanh r: below 1, with few images too."""
    z = np.arctanh(np.clip(by_chance, -NEAR_ONE, NEAR_ONE))
    return float(np.tanh(z.mean() + SIGMAS * z.std(ddof=1)))


def _terms(x: Float[np.ndarray, "*some"], y: Float[np.ndarray, "*some"]) -> Float[np.ndarray, "*some 6"]:
    return np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], -1)
