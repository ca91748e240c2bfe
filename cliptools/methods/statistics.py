"""Streaming statistics of factored effects: mean, second moment, and the images of largest centred norm, exactly.

Effects phi = S D are never formed. About a centre c in S space, x = S - c has the norm ||x D||^2 = x G x^T with the Gram
matrix G = D D^T. The largest centred norms are wanted about the mean, which is known only at the end. So:

* the first C = T + margin images are all kept, with their x; their mean is the first centre;
* from then on an image enters where its norm exceeds the smallest kept, the floor;
* whenever the count has doubled, the centre moves to the mean so far and the kept norms are computed anew.

The norm of a dropped image grows by no more than the centre moves, ||(mean - centre) D||. Where the T-th kept norm reaches the
largest of these bounds the list is certified to be the exact one. Where it does not, the images
that may belong to it are mostly among the near misses (near_misses.py), and a second look at these alone settles it.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cliptools.methods.near_misses import NearMisses
from cliptools.methods.symmetric import SymmetricStack

BINS_PER_OCTAVE = 64  # of the norm histogram: 1.1 % wide
OCTAVES = (-3, 9)  # about each unit's first root-mean-square norm
BLOCK = 4_000_000  # numbers in a temporary: small enough to stay near the processor


class Finished(NamedTuple):
    """One slab of units after the last image. n units, T top images, k paths."""

    mean: Float[Tensor, "n k"]
    """In S space, float64."""
    top_norm: Float[Tensor, "n T"]
    """Centred norms, largest first."""
    top_image: Int[Tensor, "n T"]
    top_x: Float[Tensor, "n T k"]
    """Centred scalars of the top images."""
    threshold: Float[Tensor, "n"]
    certified: Bool[Tensor, "n"]
    """Whether the top images are known to be right."""
    doubtful: Int[Tensor, "n R"]
    """Images that may belong among them; -1 where none is."""
    beyond: Bool[Tensor, "n"]
    """Whether images may that are not named in `doubtful`."""


class UnitStatistics:
    """Statistics of n units with k paths each, from batches of scalars. Memory does not depend on the number of images."""

    def __init__(
        self,
        G: SymmetricStack,
        top: int,
        expected: int,
        quantile: float = 0.98,
        margin: int = 16,
        centre: Float[Tensor, "n k"] | None = None,
        at_once: int = 1,
        scale: Float[Tensor, "n"] | None = None,
    ) -> None:
        """
        Args:
            G: Gram matrices of the units' directions.
            top: T, images kept per unit.
            expected: The number of images to come; only the threshold's rank depends on it.
            margin: Images kept beyond T: the more, the more lists one pass can certify.
            quantile: q; the threshold is the norm that a share 1 - q of the images reaches.
            centre: The mean, where an earlier pass has found it; then every list is exact at once.
            at_once: Images to wait for before lists are brought up to date, which costs nearly the same for few and for many.
            scale: With it the centre is not the mean, but stays: near misses are remembered, norms counted in bins about this
                root-mean-square norm, and moments added up in float64.
        """
        n, k, like = len(G.blocks[0]), G.k, G.blocks[0]
        self.G, self.top, self.quantile = G, top, quantile
        self.capacity = top + margin
        self.fixed = centre is not None
        self.centre = torch.zeros(n, k, dtype=torch.float64, device=like.device) if centre is None else centre.double()
        self.at_once = at_once
        self.waiting: list[tuple[Tensor, Tensor]] = []
        self.count = 0
        self.filled = 0
        self.sum = torch.zeros_like(self.centre)  # of x, about the centre
        self.moment = SymmetricStack(n, k, like if scale is None else self.sum)  # x^T x about the centre, summed over the images
        self.norm = like.new_zeros(n, self.capacity)
        self.image = torch.full((n, self.capacity), -1, dtype=torch.int64, device=like.device)
        self.x = like.new_zeros(n, self.capacity, k)
        self.floor = like.new_zeros(n)
        self.near = None if scale is None else NearMisses(n, top, like)  # else since the first image was dropped
        self.seen = False  # whether every image has been counted, so that only the list is open
        self.next_move = self.capacity
        counted = rank_of(quantile, expected) > self.capacity
        bins = (OCTAVES[1] - OCTAVES[0]) * BINS_PER_OCTAVE
        self.histogram = torch.zeros(n, bins, dtype=torch.int32, device=like.device) if counted else None
        self.unit_norm = like.new_ones(n) if scale is None else scale.to(like)

    @staticmethod
    def bytes_per_unit(k: int, capacity: int, itemsize: int = 4) -> int:
        """Memory that one unit with k paths takes."""
        return itemsize * (2 * SymmetricStack.numbers(k) + capacity * (k + 3)) + 16 * k

    def update(self, S: Float[Tensor, "b n k"], images: Int[Tensor, "b"]) -> None:
        """Take in a batch. Images are numbered as the caller likes; numbers come back in top_image."""
        self.waiting.append((S, images))
        if sum(len(each) for _, each in self.waiting) >= self.at_once:
            self.take_all()

    def take_all(self) -> None:
        """Take in the batches that wait."""
        if not self.waiting:
            return
        S, images = self.waiting[0]
        if len(self.waiting) > 1:  # one by itself need not be copied
            S, images = (torch.cat(parts) for parts in zip(*self.waiting, strict=True))
        self.waiting = []
        done = 0
        while done < len(S):
            # Never step over the moment at which the centre moves: epochs must not depend on the batch size.
            step = min(len(S) - done, self.next_move - self.count) if not self.fixed else len(S) - done
            self._take(S[done : done + step], images[done : done + step])
            done += step
            if self.count == self.next_move and not self.fixed:
                self._move_centre()
                self.next_move *= 2

    def _take(self, S: Float[Tensor, "b n k"], images: Int[Tensor, "b"]) -> None:
        b, n, k = S.shape
        centre = self.centre.to(S.dtype)
        block = max(1, BLOCK // (b * k))
        for start in range(0, n, block):
            of = slice(start, min(start + block, n))
            x = S[:, of].transpose(0, 1).contiguous() - centre[of, None]  # (block, b, k)
            if not self.seen:
                self.sum[of] += x.sum(1, dtype=torch.float64)
                if self.fixed or self.count >= self.capacity:  # else all are kept, and the moment will be made of them
                    self.moment.add_outer(of, x)
            filling = self.capacity - self.filled
            norm = self._norms(x, of) if self.fixed or filling <= 0 else None
            if filling > 0:
                self._fill(x[:, :filling], images[:filling], None if norm is None else norm[:, :filling], of)
            if b > filling and norm is not None:
                self._enter(x[:, max(0, filling) :], norm[:, max(0, filling) :], images[max(0, filling) :], of)
            if self.histogram is not None and norm is not None and not self.seen:
                self._count_norms(norm, of)
        self.count += 0 if self.seen else b
        self.filled = min(self.capacity, self.filled + b)

    def _norms(self, x: Float[Tensor, "n b k"], of: slice) -> Float[Tensor, "n b"]:
        return self.G.quadratic(of, x).clamp(min=0).sqrt()

    def _fill(self, x: Float[Tensor, "n b k"], images: Int[Tensor, "b"], norm: Tensor | None, of: slice) -> None:
        slots = slice(self.filled, self.filled + len(images))
        self.x[of, slots], self.image[of, slots] = x, images
        if norm is not None:
            self.norm[of, slots] = norm
            if slots.stop == self.capacity:
                self.floor[of] = self.norm[of].amin(1)

    def _enter(self, x: Float[Tensor, "n b k"], norm: Float[Tensor, "n b"], images: Int[Tensor, "b"], of: slice) -> None:
        """Of the kept images and the newcomers, keep the largest; the others are near misses at best."""
        n, b = norm.shape
        dropped, whose = norm, images.expand(n, b)
        rows = (norm.amax(1) > self.floor[of]).nonzero()[:, 0]
        if len(rows):
            units, new = rows + of.start, norm[rows]
            both = torch.cat([self.norm[units], new], 1)  # (row, capacity + b)
            leaves = torch.zeros_like(both, dtype=torch.bool)
            leaves.scatter_(1, both.topk(b, largest=False, sorted=False).indices, True)
            dropped, whose = dropped.clone(), whose.clone()
            dropped[rows] = both[leaves].view(-1, b)
            whose[rows] = torch.cat([self.image[units], whose[rows]], 1)[leaves].view(-1, b)
            # In every row as many newcomers stay as kept images leave, so the two lists of places match.
            row, slot = leaves[:, : self.capacity].nonzero(as_tuple=True)
            _, newcomer = (~leaves[:, self.capacity :]).nonzero(as_tuple=True)
            self.norm[units[row], slot] = new[row, newcomer]
            self.image[units[row], slot] = images[newcomer]
            self.x[units[row], slot] = x[rows[row], newcomer]
            self.floor[units] = self.norm[units].amin(1)
        if not self.fixed:
            self.near = self.near or NearMisses(len(self.norm), self.top, self.norm)
        if self.near:
            self.near.take(of, dropped, whose)

    def _move_centre(self) -> None:
        """Centre on the mean so far, noting what the epoch that ends may have dropped."""
        shift = self.sum / self.count  # (n, k)
        if self.count > self.capacity:  # ||x - shift||^2 in O(k), as the norms about the old centre are known
            small = shift.to(self.x.dtype)
            reach = self.G.times(small)
            across = torch.bmm(self.x, reach[..., None])[..., 0]  # (n, capacity): <x D, shift D>
            self.norm = (self.norm.square() - 2 * across + (small * reach).sum(1)[:, None]).clamp(min=0).sqrt()
            if self.near:
                self.near.move((small * reach).sum(1).clamp(min=0).sqrt())
            self._recentre(shift)
        else:
            self._recentre(shift)
            for of in self._blocks():
                self.norm[of] = self._norms(self.x[of], of)
        self.floor = self.norm[:, : self.filled].amin(1)
        if self.count == self.capacity and self.histogram is not None:
            self.unit_norm = self.norm.square().mean(1).sqrt().clamp(min=torch.finfo(self.norm.dtype).tiny)
            self._count_norms(self.norm, slice(0, len(self.norm)))

    def _recentre(self, shift: Float[Tensor, "n k"]) -> None:
        """Move all sums from x about the centre to x - shift about centre + shift, where shift is the mean of x."""
        self.centre = self.centre + shift
        self.sum = self.sum - self.count * shift
        small = shift.to(self.x.dtype)
        self.x[:, : self.filled] -= small[:, None]
        if self.count > self.capacity:
            self.moment.add_outer(slice(None), shift[:, None], -float(self.count))
            return
        self.moment.clear()  # a difference of squares would lose what is small beside the mean
        for of in self._blocks():
            self.moment.add_outer(of, self.x[of, : self.filled])

    def _blocks(self) -> Iterator[slice]:
        """Units a few at a time, with all that is kept of them."""
        step = max(1, BLOCK // (self.capacity * self.G.k))
        return (slice(start, min(start + step, len(self.norm))) for start in range(0, len(self.norm), step))

    def _count_norms(self, norm: Float[Tensor, "n b"], of: slice) -> None:
        assert self.histogram is not None
        bins = ((norm / self.unit_norm[of, None]).log2() - OCTAVES[0]).mul(BINS_PER_OCTAVE).nan_to_num(0, 0, 0)
        self.histogram[of].scatter_add_(
            1, bins.long().clamp(0, self.histogram.shape[1] - 1), torch.ones_like(bins, dtype=torch.int32)
        )

    def finish(self) -> Finished:
        """The statistics about the mean of all images, as `moment` is from now on."""
        self.take_all()
        if not self.fixed:
            shift = self.sum / max(self.count, 1)
            if self.near:
                self.near.move(self._norms(shift.to(self.norm.dtype)[:, None], slice(None))[:, 0])
            self._recentre(shift)
        return Finished(*(torch.cat(column) for column in zip(*map(self._finish_some, self._blocks()), strict=True)))

    def _finish_some(self, of: slice) -> Finished:
        image, x = self.image[of], self.x[of]
        norm = self._norms(x, of)  # (n, capacity)
        norm[image < 0] = -1
        kept = min(self.top, self.filled)
        # Equal norms are told apart by their image's number, so that the order of arrival leaves no trace.
        order = torch.sort(image, dim=1, stable=True).indices
        order = order.gather(1, torch.sort(norm.gather(1, order), dim=1, descending=True, stable=True).indices)
        chosen = order[:, :kept]
        rank = rank_of(self.quantile, self.count)
        last = max(rank, kept) if self.histogram is None else kept
        doubtful, beyond = image[:, :0], torch.zeros(len(norm), dtype=torch.bool, device=norm.device)
        if self.near:
            doubtful, beyond = self.near.above(of, norm.gather(1, order[:, last - 1 : last])[:, 0])
        counted = self.histogram is not None
        threshold = self._from_histogram(rank, of) if counted else norm.gather(1, order[:, rank - 1 : rank])[:, 0]
        top_x = x.gather(1, chosen[..., None].expand(-1, -1, x.shape[2]))
        certified = ~(beyond | (doubtful >= 0).any(1))
        top_norm, top_image = norm.gather(1, chosen), image.gather(1, chosen)
        return Finished(self.centre[of], top_norm, top_image, top_x, threshold, certified, doubtful, beyond)

    def again(self, rows: Int[Tensor, "r"]) -> "UnitStatistics":
        """Some units for a second look, about the mean that the first has found, with all that is kept of them."""
        made = UnitStatistics(self.G.pick(rows), self.top, 0, self.quantile, self.capacity - self.top, self.centre[rows])
        made.seen, made.count, made.filled = True, self.count, self.filled
        made.moment, made.sum, made.unit_norm = self.moment.pick(rows), self.sum[rows], self.unit_norm[rows]
        made.histogram = None if self.histogram is None else self.histogram[rows]
        made.image, made.x = self.image[rows], self.x[rows]
        made.norm = made._norms(made.x, slice(None))
        return made

    def forget(self, images: Int[Tensor, "i"] | None) -> None:
        """Make room for these images, or for all (None), which are to come again."""
        again = torch.ones_like(self.image, dtype=torch.bool) if images is None else torch.isin(self.image, images)
        self.image[again], self.norm[again] = -1, -1
        self.floor = self.norm.amin(1)

    def _from_histogram(self, rank: int, of: slice) -> Float[Tensor, "n"]:
        """The middle of the bin in which the rank-th largest norm lies."""
        assert self.histogram is not None
        at_least = self.histogram[of].flip(1).cumsum(1)  # counts from the largest bin down
        index = self.histogram.shape[1] - 1 - (at_least >= rank).int().argmax(1)
        return self.unit_norm[of] * torch.exp2((index + 0.5) / BINS_PER_OCTAVE + OCTAVES[0])


def rank_of(quantile: float, count: int) -> int:
    """Of `count` norms, the rank (1 = largest) that a share 1 - q of them reaches: 100 for q = 0.98 and 5,000 images."""
    return min(count, max(1, math.ceil((1 - quantile) * count - 1e-6)))
