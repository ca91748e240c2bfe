"""Streaming statistics of factored effects: mean, second moment, and the images of largest centred norm, exactly.

Effects phi = S D are never formed. About a centre c in S space, x = S - c has the norm ||x D||^2 = x G x^T with the Gram
matrix G = D D^T. The largest centred norms are wanted about the mean, which is known only at the end. So:

* the first C = T + margin images are all kept, with their x; their mean is the first centre;
* from then on an image enters where its norm exceeds the smallest kept, the floor;
* whenever the count has doubled, the centre moves to the mean so far and the kept norms are computed anew.

An image dropped in epoch j had a norm of at most floor_j about c_j, hence at most floor_j + ||(mean - c_j) D|| about the
mean. Where the T-th kept norm reaches the largest of these bounds the list is certified to be the exact one.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

BINS_PER_OCTAVE = 64  # of the norm histogram: 1.1 % wide
OCTAVES = (-3, 9)  # about each unit's first root-mean-square norm
BLOCK = 4_000_000  # numbers in a temporary: small enough to stay near the processor


class Finished(NamedTuple):
    """One slab of units after the last image. n units, T top images, k paths."""

    mean: Float[Tensor, "n k"]
    """In S space, float64."""
    moment: Float[Tensor, "n k k"]
    """Second moment of S about the mean, summed over the images."""
    top_norm: Float[Tensor, "n T"]
    """Centred norms, largest first."""
    top_image: Int[Tensor, "n T"]
    top_x: Float[Tensor, "n T k"]
    """Centred scalars of the top images."""
    threshold: Float[Tensor, "n"]
    certified: Bool[Tensor, "n"]


class UnitStatistics:
    """Statistics of n units with k paths each, from batches of scalars. Memory does not depend on the number of images."""

    def __init__(
        self,
        G: Float[Tensor, "n k k"],
        top: int,
        expected: int,
        quantile: float = 0.98,
        margin: int = 16,
        centre: Float[Tensor, "n k"] | None = None,
    ) -> None:
        """
        Args:
            G: Gram matrices of the units' directions.
            top: T, images kept per unit.
            expected: The number of images to come; only the threshold's rank depends on it.
            margin: Images kept beyond T: the more, the more lists one pass can certify.
            quantile: q; the threshold is the norm that a share 1 - q of the images reaches.
            centre: The mean, where an earlier pass has found it; then every list is exact at once.
        """
        n, k, _ = G.shape
        self.G, self.top, self.quantile = G, top, quantile
        self.capacity = top + margin
        self.fixed = centre is not None
        self.centre = torch.zeros(n, k, dtype=torch.float64, device=G.device) if centre is None else centre.double()
        self.count = 0
        self.filled = 0
        self.sum = torch.zeros_like(self.centre)  # of x, about the centre
        self.moment = torch.zeros_like(G)  # of x, about the centre
        self.norm = G.new_zeros(n, self.capacity)
        self.image = torch.full((n, self.capacity), -1, dtype=torch.int64, device=G.device)
        self.x = G.new_zeros(n, self.capacity, k)
        self.floor, self.slot = G.new_zeros(n), torch.zeros(n, dtype=torch.int64, device=G.device)
        self.epochs: list[tuple[Tensor, Tensor]] = []  # (centre, floor at its end) of every epoch in which images were dropped
        self.next_move = self.capacity
        counted = rank_of(quantile, expected) > self.capacity
        bins = (OCTAVES[1] - OCTAVES[0]) * BINS_PER_OCTAVE
        self.histogram = torch.zeros(n, bins, dtype=torch.int32, device=G.device) if counted else None
        self.unit_norm = G.new_ones(n)

    @staticmethod
    def bytes_per_unit(k: int, capacity: int, itemsize: int = 4) -> int:
        """Memory that one unit with k paths takes."""
        return itemsize * (2 * k * k + capacity * (k + 3)) + 16 * k

    def update(self, S: Float[Tensor, "b n k"], images: Int[Tensor, "b"]) -> None:
        """Take in a batch. Images are numbered as the caller likes; numbers come back in top_image."""
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
            self.sum[of] += x.sum(1, dtype=torch.float64)
            self.moment[of].baddbmm_(x.transpose(1, 2), x)
            filling = self.capacity - self.filled
            norm = self._norms(x, of) if self.fixed or filling <= 0 else None
            if filling > 0:
                self._fill(x[:, :filling], images[:filling], None if norm is None else norm[:, :filling], of)
            if b > filling and norm is not None:
                self._enter(x[:, max(0, filling) :], norm[:, max(0, filling) :], images[max(0, filling) :], of)
            if self.histogram is not None and norm is not None:
                self._count_norms(norm, of)
        self.count += b
        self.filled = min(self.capacity, self.filled + b)

    def _norms(self, x: Float[Tensor, "n b k"], of: slice) -> Float[Tensor, "n b"]:
        return (torch.bmm(x, self.G[of]) * x).sum(-1).clamp(min=0).sqrt()

    def _fill(self, x: Float[Tensor, "n b k"], images: Int[Tensor, "b"], norm: Tensor | None, of: slice) -> None:
        slots = slice(self.filled, self.filled + len(images))
        self.x[of, slots], self.image[of, slots] = x, images
        if norm is not None:
            self.norm[of, slots] = norm
            if slots.stop == self.capacity:
                self.floor[of], self.slot[of] = self.norm[of].min(1)

    def _enter(self, x: Float[Tensor, "n b k"], norm: Float[Tensor, "n b"], images: Int[Tensor, "b"], of: slice) -> None:
        """Replace the smallest kept image wherever a norm exceeds it: every unit's largest newcomer, then the next."""
        left = norm.clone()
        rows = torch.arange(len(norm), device=norm.device)
        while len(rows):
            value, b = left[rows].max(1)
            better = value > self.floor[of][rows]
            rows, value, b = rows[better], value[better], b[better]
            left[rows, b] = -1
            units = rows + of.start
            slots = self.slot[units]
            self.norm[units, slots] = value
            self.image[units, slots] = images[b]
            self.x[units, slots] = x[rows, b]
            self.floor[units], self.slot[units] = self.norm[units].min(1)

    def _move_centre(self) -> None:
        """Centre on the mean so far, noting what the epoch that ends may have dropped."""
        if self.count > self.capacity:
            self.epochs.append((self.centre.clone(), self.floor.clone()))
        shift = self.sum / self.count  # (n, k)
        self._recentre(shift)
        n = len(self.norm)
        block = max(1, BLOCK // (self.capacity * shift.shape[1]))
        for start in range(0, n, block):
            of = slice(start, min(start + block, n))
            self.norm[of, : self.filled] = self._norms(self.x[of, : self.filled], of)
        self.floor, self.slot = self.norm[:, : self.filled].min(1)
        if self.count == self.capacity and self.histogram is not None:
            self.unit_norm = self.norm.square().mean(1).sqrt().clamp(min=torch.finfo(self.norm.dtype).tiny)
            self._count_norms(self.norm, slice(0, n))

    def _recentre(self, shift: Float[Tensor, "n k"]) -> None:
        """Move all sums from x about the centre to x - shift about centre + shift, where shift is the mean of x."""
        self.centre = self.centre + shift
        self.sum = self.sum - self.count * shift
        small = shift.to(self.x.dtype)
        self.moment.baddbmm_(small[:, :, None], small[:, None, :], alpha=-self.count)
        self.x[:, : self.filled] -= small[:, None]

    def _count_norms(self, norm: Float[Tensor, "n b"], of: slice) -> None:
        assert self.histogram is not None
        bins = ((norm / self.unit_norm[of, None]).log2() - OCTAVES[0]).mul(BINS_PER_OCTAVE).nan_to_num(0, 0, 0)
        self.histogram[of].scatter_add_(
            1, bins.long().clamp(0, self.histogram.shape[1] - 1), torch.ones_like(bins, dtype=torch.int32)
        )

    def finish(self) -> Finished:
        """The statistics about the mean of all images."""
        epochs = (
            self.epochs
            if self.count <= self.capacity or self.fixed
            else [*self.epochs, (self.centre.clone(), self.floor.clone())]
        )
        if not self.fixed:
            self._recentre(self.sum / max(self.count, 1))
        norm = torch.cat(
            [self._norms(self.x[i : i + 256], slice(i, i + 256)) for i in range(0, len(self.x), 256)]
        )  # (n, capacity)
        norm[:, self.filled :] = -1
        kept = min(self.top, self.filled)
        # Equal norms are told apart by their image's number, so that the order of arrival leaves no trace.
        order = torch.sort(self.image, dim=1, stable=True).indices
        order = order.gather(1, torch.sort(norm.gather(1, order), dim=1, descending=True, stable=True).indices)
        chosen = order[:, :kept]
        top_norm = norm.gather(1, chosen)
        lost = torch.zeros_like(self.floor)
        for centre, floor in epochs:
            drift = (self.centre - centre).to(norm.dtype)[:, None]  # (n, 1, k)
            lost = torch.maximum(lost, floor + self._norms(drift, slice(None))[:, 0])
        exact = self.fixed or self.count <= self.capacity
        rank = rank_of(self.quantile, self.count)
        last = max(rank, kept) if self.histogram is None else kept
        smallest = norm.gather(1, order[:, last - 1 : last])[:, 0] if last else torch.zeros_like(self.floor)
        certified = torch.ones_like(lost, dtype=torch.bool) if exact else smallest >= lost
        threshold = self._from_histogram(rank) if self.histogram is not None else norm.gather(1, order[:, rank - 1 : rank])[:, 0]
        top_x = self.x.gather(1, chosen[..., None].expand(-1, -1, self.x.shape[2]))
        return Finished(self.centre, self.moment, top_norm, self.image.gather(1, chosen), top_x, threshold, certified)

    def _from_histogram(self, rank: int) -> Float[Tensor, "n"]:
        """The middle of the bin in which the rank-th largest norm lies."""
        assert self.histogram is not None
        at_least = self.histogram.flip(1).cumsum(1)  # counts from the largest bin down
        index = self.histogram.shape[1] - 1 - (at_least >= rank).int().argmax(1)
        return self.unit_norm * torch.exp2((index + 0.5) / BINS_PER_OCTAVE + OCTAVES[0])


def rank_of(quantile: float, count: int) -> int:
    """Of `count` norms, the rank (1 = largest) that a share 1 - q of them reaches: 100 for q = 0.98 and 5,000 images."""
    return min(count, max(1, math.ceil((1 - quantile) * count - 1e-6)))
