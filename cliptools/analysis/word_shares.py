"""Two measures of how much of every word of a vocabulary is in an image, summed over a stream of images in bounded memory.

With t_w the text of word w and U_w its units, the words of an image are measured by

    units          <sum over n in U_w of phi_n(I), t_w> / ||M(I)||       the signed share of clip-shift (concept_units.py)
    similarities   <M(I), t_w> / ||M(I)||                                CLIP's own similarity, without units

Both are linear in the image's side of the effects. With phi_n = sum_k S[n, k] D[n, k, :] (factored.py), the share of word w is a
sum of |U_w| K products of S with <D[n, k], t_w>, which the weights alone give. So all words of a vocabulary cost one forward
pass, as one concept does; the norm of sum phi_n, the share of the papers, is not linear and would cost a product of width d for
each word. The part of each unit in the sum is kept too: it tells which units carry a difference.

The units of a word (`units_of_words`) are those of largest

    max(0, <r_n, t_w>) max(0, seen_n(w) + 1 / sqrt(N))        N images of the bundle

as `best_units` of concept_units.py chooses them for a concept, but the correlation seen_n(w) = corr(a_n, <e, t_w>) comes from the
read directions of the bundle (seen.py) and not from a first look at the images: with a whole vocabulary the look would keep
a number for every unit and word. The choice then depends on the bundle alone, so two runs with one bundle compare equal units,
and the choice does not depend on the images that are compared. Without read directions the units are those of largest <r_n, t_w>.

`WordSums` keeps the moments of each measure, word and group up to the fourth, which the limits of an alarm need: a covariance of
the embeddings would give means and variances only. With blocks, `OpenBlocks` holds the sums of those blocks whose last image is
still to come: one a group where blocks are consecutive images, so memory does not grow with the number of images.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from cliptools.analysis.concept_units import ConceptUnits, best_units, choose_units
from cliptools.analysis.seen import ReadDirections
from cliptools.analysis.shift_statistics import GroupMoments, Neighbours
from cliptools.unit_effects.factored import FactoredEffect, UnitBlock, slices, unit_blocks_of, wide

AT_ONCE = 1 << 24  # numbers of an array


def units_of_words(
    r: Float[Tensor, "u d"], t: Float[Tensor, "w d"], count: int, read: ReadDirections | None = None, images: int = 0
) -> ConceptUnits:
    """Choose the `count` units of each word; of equal ones that of larger <r_n, t_w>, then the first.

    Args:
        read: Read directions of the units, by which they are chosen too.
        images: N, the images of which these are.
    """
    step = max(1, AT_ONCE // len(r))
    parts = [_units_of(r.double(), t[start : start + step].double(), count, read, images) for start in range(0, len(t), step)]
    seen = [part.seen for part in parts if part.seen is not None]
    row, overlap = torch.cat([part.row for part in parts]), torch.cat([part.overlap for part in parts])
    return ConceptUnits(row, overlap, torch.cat(seen) if seen else None)


def _units_of(
    r: Float64[Tensor, "u d"], t: Float64[Tensor, "w d"], count: int, read: ReadDirections | None, images: int
) -> ConceptUnits:
    """Choose the units of some of the words."""
    if read is None:
        return choose_units(r, t, count)
    seen = read.in_float64().correlations(t).T  # (u, w) -> (w, u)
    return best_units(t @ r.T, seen, images, count)


class Words(NamedTuple):
    """The words of b images."""

    part: Float[Tensor, "b w n"]
    """<phi_n(I), t_w> / ||M(I)|| of each unit of each word; their sum over n is the word's share. Empty without units."""
    similarity: Float[Tensor, "b w"]
    """<M(I), t_w> / ||M(I)||."""
    embedding: Float[Tensor, "b d"]
    """M(I), not normalised."""


class _BlockTerms(NamedTuple):
    """Pairs of a word and one of its units in a block of units."""

    unit: Int[Tensor, " p"]
    """Position of the unit in the block."""
    place: Int[Tensor, " p"]
    """Position of the pair in [w n], flattened."""
    Dt: Float[Tensor, "p k"]
    """<D[n, k], t_w>."""


class WordMeasure:
    """Measures the words of one batch of images after the other."""

    def __init__(
        self, effect: FactoredEffect, unit: Int[Tensor, "u 3"], row: Int[Tensor, "w n"], t: Float[Tensor, "w d"]
    ) -> None:
        """
        Args:
            unit: Layer, neuron and head of a bundle's units.
            row: Rows of `unit` that belong to each word; with n = 0 only similarities are measured.
            t: Unit-norm embeddings of the words.
        """
        self.effect, self.t, self.shape = effect, t, tuple(row.shape)
        members = row.unique() if row.numel() else torch.zeros(1, dtype=torch.int64)  # a forward pass needs a unit
        self.blocks, rows = unit_blocks_of(effect, unit[members])
        place_of = torch.searchsorted(members, row.flatten())  # (w n): position of each pair's unit among the members
        self.terms = []
        for block, part in zip(self.blocks, rows, strict=True):
            position = torch.full((len(members),), -1)
            position[part] = torch.arange(len(part))
            unit_of = position[place_of]  # (w n): position in the block, -1 for units of other blocks
            place = (unit_of >= 0).nonzero()[:, 0]
            place = place[unit_of[place].argsort(stable=True)]  # by unit, so that D is formed once for each
            self.terms.append(self._terms(block, unit_of[place], place))

    def _terms(self, block: UnitBlock, unit: Int[Tensor, " p"], place: Int[Tensor, " p"]) -> _BlockTerms:
        """Return the inner products of D with the words, from D of a few units at a time; `unit` is ascending."""
        words, products = (place // self.shape[1]).to(self.t.device), []  # (p)
        for rows in slices(len(block.neurons), self.effect.size(block.layer)[1]):
            D = self.effect.directions(block.part(rows))  # (n, k, d)
            first, last = torch.searchsorted(unit, torch.tensor([rows.start, rows.stop])).tolist()
            step = max(1, AT_ONCE // D[0].numel())
            for start in range(first, last, step):
                some = slice(start, min(start + step, last))
                t = self.t[words[some]].to(D)  # (p, d)
                products.append(torch.einsum("pkd,pd->pk", D[unit[some].to(D.device) - rows.start], t))
        Dt = torch.cat(products) if products else torch.zeros(0, 1)
        return _BlockTerms(unit.to(Dt.device), place.to(Dt.device), Dt)

    def __call__(self, image: Float[Tensor, "i 3 y x"]) -> Words:
        """The words of these images."""
        S, embedding = self.effect.read(image, self.blocks)
        embedding = wide(embedding)
        part = embedding.new_zeros(len(embedding), self.shape[0] * self.shape[1])  # (b, w n)
        for s, (unit, place, Dt) in zip(S, self.terms, strict=True):
            step = max(1, AT_ONCE // max(1, s[:, 0].numel()))
            for start in range(0, len(unit), step):
                some = slice(start, start + step)
                part[:, place[some]] = (s[:, unit[some]] * Dt[some]).sum(-1).to(part)  # (b, p, k) * (p, k) -> (b, p)
        length = embedding.norm(dim=-1, keepdim=True)  # (b, 1)
        similarity = embedding @ self.t.to(embedding).T / length  # (b, d) @ (d, w)
        return Words((part / length).unflatten(1, self.shape), similarity, embedding)


class OpenBlocks:
    """Means over blocks of images, each made as soon as the stream has passed the last image of its block."""

    def __init__(self, block: Int[np.ndarray, " image"], order: Sequence[int]) -> None:
        """
        Args:
            block: Block of every image.
            order: The images that will be read, ascending.
        """
        self.block = block
        self.last = np.full(int(block.max()) + 1, -1)
        np.maximum.at(self.last, block[list(order)], order)
        self.sums: dict[int, tuple[int, Float64[np.ndarray, " c"]]] = {}
        """Number of images, and sum of their values, of each block that is not complete."""

    def add(self, images: Sequence[int], value: Float64[np.ndarray, "b c"]) -> None:
        """Add the values of images, which follow those added before."""
        for b in dict.fromkeys(self.block[list(images)].tolist()):
            rows = value[self.block[list(images)] == b]
            count, total = self.sums.get(b, (0, 0.0))
            self.sums[b] = count + len(rows), total + rows.sum(0)

    def complete(self, image: int | None) -> tuple[Int[np.ndarray, " k"], Float64[np.ndarray, "k c"]] | None:
        """Remove the blocks that end with this image or before it, and return their numbers and means; None if there is none.

        Args:
            image: The image that was read last. None at the end of the stream.
        """
        ready = [b for b in self.sums if image is None or self.last[b] <= image]
        if not ready:
            return None
        counts, sums = zip(*(self.sums.pop(b) for b in ready), strict=True)
        return np.array(ready), np.stack(sums) / np.array(counts)[:, None]


class WordSums:
    """Moments of c measures in each of g groups, over images or over blocks, with the means of p parts of these measures."""

    def __init__(self, groups: int, measures: int, parts: int) -> None:
        self.moments, self.neighbours = GroupMoments(groups, measures), Neighbours(groups, measures)
        self.images = np.zeros(groups, np.int64)
        """Number of images in every group."""
        self._part_sum = np.zeros((groups, parts))

    def add(self, group: Int[np.ndarray, " b"], value: Float64[np.ndarray, "b cp"]) -> None:
        """Add the values of b images, or the means of b blocks, of these groups: the measures, followed by the parts."""
        measures, parts = np.split(value, [self.moments.mean.shape[1]], axis=1)
        self.moments.add(group, measures)
        self.neighbours.add(group, measures)
        np.add.at(self._part_sum, group, parts)

    def part_means(self) -> Float64[np.ndarray, "g p"]:
        """Means of the parts; zeros for a group without values."""
        return self._part_sum / np.maximum(self.moments.count, 1)[:, None]

    def alike(self) -> Float64[np.ndarray, " c"]:
        """Correlation of neighbours by each measure; NaN where it is not defined."""
        values = (self.neighbours.correlation(self.moments, c) for c in range(self.moments.mean.shape[1]))
        return np.array([np.nan if value is None else value for value in values])
