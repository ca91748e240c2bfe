"""Units of a concept, the share of an image's embedding that they contribute, and how far that share follows the concept.

Paper 2 (arXiv 2509.19943), distribution shift. Three steps, each with a class of its own:

1. Choice of units (`choose_units`, `UnitSelector`). Unit n writes <r_n, t_c> of the concept's text t_c. It sees the concept as
far as its activity a_n = <phi_n, r_n> / ||M(I)|| goes with the model's own similarity s_c = <M(I), t_c> / ||M(I)|| over images.
phi_n is part of M(I), so the part that the unit itself writes is subtracted:

    seen_nc = (cov(a_n, s_c) - var(a_n) <r_n, t_c>) / (sd(a_n) sd(s_c))

The paper takes the units of largest <r_n, t_c> (`overlap`). `seen` takes those of largest

    max(0, <r_n, t_c>) max(0, seen_nc + 1 / sqrt(N))        N images looked at

With few images correlations are chance to within 1 / sqrt(N) and the first factor decides; with many images both factors do.
docs/results.md has measurements on both embedded models.

2. Shares (`ConceptShare`). With U_c the units of concept c,

    share_c(I) = ||sum over n in U_c of phi_n(I)|| / ||M(I)||

With phi_n = sum_k S[n, k] D[n, k, :] the sum over so few units is one product, S of all of them [b, n k] times D [n k, d]. The
share loses the side of the origin on which the sum lies; <sum phi_n, t_c> / ||M(I)|| keeps it. Sets of units drawn at random
are measured too, to show what chance gives on the same images.

3. Correlation of the share with the concept over images (`ShareCorrelations`), as the model itself sees the concept: with
<M(I), t> / ||M(I)|| less the units' own part <sum phi_n, t> / ||M(I)||, since otherwise the units would correlate with
themselves. The same correlation for the random sets gives the level of chance. Only sums over parts of the images are kept, for
a jackknife interval (correlations.py). Parts are blocks, or every hundredth image where images are independent.

Units that were chosen on the very images (`UnitSelector`) follow these better than other images, the more so the fewer the
images: on emoji-vit of cliptools 0.1.0, with 20 directions as concepts, by 0.23 over 20 images, 0.14 over 50, 0.08 over 100 and
0.03 over 300.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from cliptools.analysis.correlations import NEAR_ONE, SUMS, correlations, interval_of
from cliptools.devices import to_float64
from cliptools.unit_effects.factored import FactoredEffect, projections_of, unit_blocks_of, wide


class Shares(NamedTuple):
    """Shares of concepts in the embeddings of b images."""

    norm: Float[Tensor, "b c"]
    """||sum phi_n(I)|| / ||M(I)||."""
    signed: Float[Tensor, "b c"]
    """<sum phi_n(I), t_c> / ||M(I)||."""
    text: Float[Tensor, "b c"]
    """<M(I), t_c> / ||M(I)||: CLIP's own similarity, without units."""
    random_norm: Float[Tensor, "b s"]
    """||sum phi_n(I)|| / ||M(I)|| of the random sets."""
    random_signed: Float[Tensor, "b s c"]
    """<sum phi_n(I), t_c> / ||M(I)|| of the random sets."""
    embedding: Float[Tensor, "b d"]
    """M(I), not normalised."""


class ConceptShare:
    """Shares of c concepts, for one batch of images after the other."""

    def __init__(
        self,
        effect: FactoredEffect,
        unit: Int[Tensor, "u 3"],
        row: Int[Tensor, "c n"],
        t: Float[Tensor, "c d"],
        random: Int[Tensor, "s n"] | None = None,
    ) -> None:
        """
        Args:
            unit: Layer, neuron and head of a bundle's units.
            row: Rows of `unit` that belong to each concept.
            t: Unit-norm embeddings of the concepts.
            random: Rows of `unit` in each random set.
        """
        self.effect, self.t = effect, t
        sets = row if random is None else torch.cat([row, random])
        members = sets.unique()
        self.blocks, parts = unit_blocks_of(effect, unit[members])
        self.sets = len(sets)
        self.terms = []  # of each block, for each set: its units in the block (m,), and their D (m k, d)
        for block, part in zip(self.blocks, parts, strict=True):
            D = effect.directions(block)  # (n, k, d): only units of some set
            positions = [torch.isin(members[part], members_of_set).nonzero()[:, 0] for members_of_set in sets]
            self.terms.append([(m.to(D.device), D[m.to(D.device)].flatten(0, 1)) for m in positions])  # (m, k, d) -> (m k, d)

    def __call__(self, image: Float[Tensor, "i 3 y x"]) -> Shares:
        """The concepts' shares of these images."""
        S, embedding = self.effect.read(image, self.blocks)
        embedding = wide(embedding)
        total = embedding.new_zeros(len(embedding), self.sets, self.t.shape[1])  # (b, set, d): sum phi_n
        for s, terms in zip(S, self.terms, strict=True):
            for number, (units, D) in enumerate(terms):
                total[:, number] += s[:, units].flatten(1) @ D  # (b, m k) @ (m k, d)
        length, t = embedding.norm(dim=-1, keepdim=True), self.t.to(embedding)  # (b, 1), (c, d)
        norm, concept_sums, random_sums = total.norm(dim=-1) / length, total[:, : len(t)], total[:, len(t) :]
        signed, text = (concept_sums * t).sum(-1) / length, embedding @ t.T / length  # (b, c), (b, c)
        random_signed = random_sums @ t.T / length[..., None]  # (b, s, d) @ (d, c)
        return Shares(norm[:, : len(t)], signed, text, norm[:, len(t) :], random_signed, embedding)


def random_sets(units: int, size: int, sets: int) -> Int[Tensor, "s n"]:
    """`sets` random sets of `size` units each, drawn with a fixed seed; no sets if there are fewer than 4 `size` units."""
    if units < 4 * size:
        return torch.zeros(0, size, dtype=torch.int64)
    generator = torch.Generator().manual_seed(0)
    return torch.stack([torch.randperm(units, generator=generator)[:size] for _ in range(sets)])


CANDIDATES = 200  # units of largest <r, t> measured for a concept: of 8,192 pairs the best by both factors are in the first 168
LOOKED_AT = 1000  # images that units are chosen by, drawn from all images


class ConceptUnits(NamedTuple):
    """The units of each concept, the best first."""

    row: Int[Tensor, "c n"]
    """Rows of the bundle's units."""
    overlap: Float[Tensor, "c n"]
    """<r_n, t_c>."""
    seen: Float[Tensor, "c n"] | None = None
    """seen_nc; None if the units were chosen without it."""


class CandidateActivity(NamedTuple):
    """Activities of the candidate units on b images, and similarities of the concepts."""

    activity: Float[Tensor, "b u"]
    """a_n."""
    similarity: Float[Tensor, "b c"]
    """s_c."""
    embedding: Float[Tensor, "b d"]
    """M(I), not normalised."""


def choose_units(r: Float[Tensor, "u d"], t: Float[Tensor, "c d"], count: int) -> ConceptUnits:
    """The `count` units of largest <r_n, t_c> for each concept; of equal ones the first."""
    overlap, row = (t.to(r) @ r.T).sort(dim=1, descending=True, stable=True)
    return ConceptUnits(row[:, :count], overlap[:, :count])


def best_units(overlap: Float64[Tensor, "c u"], seen: Float64[Tensor, "c u"], images: int, count: int) -> ConceptUnits:
    """The `count` units of largest max(0, <r_n, t_c>) max(0, seen_nc + 1 / sqrt(N)); of equal ones that of larger <r_n, t_c>.

    Args:
        images: N, the number of images that seen_nc comes from.
    """
    score = overlap.clamp(min=0) * (seen + max(images, 1) ** -0.5).clamp(min=0)  # (c, u)
    order = overlap.argsort(dim=1, descending=True, stable=True)
    row = order.gather(1, score.gather(1, order).argsort(dim=1, descending=True, stable=True))[:, :count]
    return ConceptUnits(row, overlap.gather(1, row), seen.gather(1, row))


class UnitSelector:
    """Chooses units by what they write and see, from one pass over some images; keeps only sums over these."""

    def __init__(
        self, effect: FactoredEffect, unit: Int[Tensor, "u 3"], r: Float[Tensor, "u d"], t: Float[Tensor, "c d"]
    ) -> None:
        """
        Args:
            unit: Layer, neuron and head of a bundle's units.
            r: Directions of these units.
            t: Unit-norm embeddings of the concepts.
        """
        self.effect, self.t = effect, t
        self.row = choose_units(r, t, CANDIDATES).row.unique()  # (c, n) -> (u,), ascending: the candidates of all concepts
        self.overlap = (t.to(r) @ r[self.row].T).double()  # (c, u)
        self.blocks, parts = unit_blocks_of(effect, unit[self.row])
        zero = torch.zeros_like(r[self.row])
        r_row = r[self.row, None]  # (u, 1, d)
        self.projections = [
            projections_of(effect, block, zero[part], r_row[part]) for block, part in zip(self.blocks, parts, strict=True)
        ]
        self.order = torch.cat(parts).argsort()  # (u,): from the order of the blocks back to that of the candidates
        u, c = len(self.row), len(t)
        self.count = 0
        self.a, self.aa, self.s, self.ss, self.sa = (
            torch.zeros(*n, dtype=torch.float64) for n in ((u,), (u,), (c,), (c,), (c, u))
        )

    def measure(self, image: Float[Tensor, "i 3 y x"]) -> CandidateActivity:
        """Measure the candidates on these images, without changing the sums."""
        S, embedding = self.effect.read(image, self.blocks)
        scale = 1 / wide(embedding).norm(dim=-1)  # (b,)
        parts = [projection(s, scale)[..., 0] for s, projection in zip(S, self.projections, strict=True)]  # (b, n) a block
        activity = torch.cat(parts, 1)[:, self.order.to(embedding.device)]  # (b, u)
        similarity = wide(embedding) @ self.t.to(wide(embedding)).T * scale[:, None]  # (b, c)
        return CandidateActivity(*(to_float64(part).cpu() for part in (activity, similarity, embedding)))

    def add(self, measured: CandidateActivity) -> None:
        """Add these images to the sums."""
        a, s, _ = measured
        self.count += len(a)
        self.a += a.sum(0)
        self.aa += a.square().sum(0)
        self.s += s.sum(0)
        self.ss += s.square().sum(0)
        self.sa += s.T @ a  # (c, b) @ (b, u)

    def choose(self, count: int) -> ConceptUnits:
        """The best `count` units of each concept; of equal ones the one of larger <r_n, t_c>."""
        chosen = best_units(self.overlap, self._seen(), self.count, count)
        return chosen._replace(row=self.row[chosen.row])

    def _seen(self) -> Float[Tensor, "c u"]:
        """seen_nc; 0 where a_n or s_c does not vary."""
        n = max(self.count, 1)
        a, s = self.a / n, self.s / n
        var_a, var_s = (self.aa / n - a.square()).clamp(min=0), (self.ss / n - s.square()).clamp(min=0)
        covariance = self.sa / n - s[:, None] * a - var_a * self.overlap  # (c, u)
        spread = (var_s[:, None] * var_a).sqrt()  # (c, u)
        return torch.where(spread > 1e-12, covariance / spread.clamp(min=1e-12), 0.0).clamp(-1, 1)


SETS = 20  # random sets of units
PARTS = 100  # parts of independent images for the jackknife
SIGMAS = 1.959964  # standard deviations above the mean of the random sets, which one set in forty exceeds


class ShareCorrelation(NamedTuple):
    """Correlation of a concept's share with the model's own similarity, with its 95 % interval."""

    value: float
    low: float | None
    high: float | None
    size: int
    """Number of images."""
    chance: float | None
    """Correlation that one random set in forty exceeds; None where there are too few units to draw sets from."""


class ShareCorrelations:
    """Sums for the correlations of c concepts and s random sets."""

    def __init__(self, concepts: int, sets: int, parts: int) -> None:
        self.sums = np.zeros((parts, concepts, SUMS))
        self.random = np.zeros((sets, concepts, SUMS))
        self.shift: tuple[np.ndarray, ...] | None = None

    def add(
        self,
        part: Int[np.ndarray, " b"],
        share: Float[np.ndarray, "b c"],
        other: Float[np.ndarray, "b c"],
        random_share: Float[np.ndarray, "b s c"],
        random_other: Float[np.ndarray, "b s c"],
    ) -> None:
        """Add b images to the sums.

        Args:
            part: Number of the part that each image belongs to.
            share: Shares of the concepts.
            other: The model's own similarity less the units' part.
            random_share: Shares of the random sets, for every concept.
            random_other: The model's own similarity less the part of these sets.
        """
        values = (share, other, random_share, random_other)
        if self.shift is None:  # subtracted from all values, because sums of squares lose no digits near 0
            self.shift = tuple(value.mean(0) for value in values)
        x, y, random_x, random_y = (value - mean for value, mean in zip(values, self.shift, strict=True))
        np.add.at(self.sums, part, _terms(x, y))
        self.random += _terms(random_x, random_y).sum(0)

    def correlation(self, concept: int) -> ShareCorrelation | None:
        """The correlation of one concept; None where it is not defined."""
        sums = self.sums[:, concept]
        if np.isnan(value := float(correlations(sums.sum(0)))):
            return None
        interval = interval_of(sums)
        random = correlations(self.random[:, concept])  # (s,)
        random = random[~np.isnan(random)]
        chance = _chance_level(random) if len(random) > 2 else None
        low, high = (None, None) if interval is None else interval[1:]
        return ShareCorrelation(value, low, high, int(sums[:, 0].sum()), chance)


def _chance_level(random: Float[np.ndarray, " s"]) -> float:
    """The correlation that one random set in forty exceeds, by the spread of artanh r, which keeps it below 1."""
    z = np.arctanh(np.clip(random, -NEAR_ONE, NEAR_ONE))
    return float(np.tanh(z.mean() + SIGMAS * z.std(ddof=1)))


def _terms(x: Float[np.ndarray, "*values"], y: Float[np.ndarray, "*values"]) -> Float[np.ndarray, "*values 6"]:
    """The terms of the sums in correlations.py, of every pair of values."""
    return np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], -1)
