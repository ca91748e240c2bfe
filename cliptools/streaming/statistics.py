"""Streaming statistics of factored effects: mean, second moment, and the T images of largest centred norm, exactly.

Effects phi = S D (factored.py, Eq. 1) are never formed. About a centre c of S space, x = S - c has the norm

    ||x D||^2 = x G x^T,    G = D D^T

The papers use the T largest ||phi - b|| (paper 1, Sec. 3.3), where the mean b is known only after the last image. So:

* The first C = T + margin images are all kept, with their x; their mean is the first centre.
* From then on an image enters a unit's list if its norm exceeds the smallest one kept, the floor.
* Whenever the count has grown by a quarter, norms are taken about the mean so far: an epoch ends. Sums and x stay about the
  first centre; with the offset o of the mean so far, ||(x - o) D||^2 = x G x^T - 2 x (G o) + o G o^T. Near the end, where the
  floor is close to the T-th norm and every shift of the mean counts, epochs are shorter.

A dropped image's norm grows by no more than the mean moves after its epoch, ||(mean - mean then) D||. Where the T-th kept norm
reaches the largest of these bounds, the list is certified to be exact. Where it does not, the images that may belong to the list
are mostly among the near misses (batch_buffer.py), and a second look at these alone makes the list exact.

The threshold is the norm of rank r = (1 - q) N: exact if r <= C, else bounded by histograms (ranking.py).
"""

from collections.abc import Iterator, Sequence
from copy import copy
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cliptools.streaming.batch_buffer import Batch, BatchBuffer, Centred, Epochs, NearMisses, Offset, exchanges, next_epoch
from cliptools.streaming.principal import SymmetricStack
from cliptools.streaming.ranking import Bracket, CountedNorms, rank_of, ranking

BLOCK = 500_000  # numbers in a temporary: few enough to stay in the processor's cache


class Finished(NamedTuple):
    """Statistics of n units with k paths each after the last image, with T top images."""

    mean: Float[Tensor, "n k"]
    """Mean of S, in float64."""
    top_norm: Float[Tensor, "n T"]
    """Centred norms, largest first."""
    top_image: Int[Tensor, "n T"]
    top_x: Float[Tensor, "n T k"]
    """S less its mean, of the top images."""
    threshold: Float[Tensor, "n"]
    threshold_bound: Float[Tensor, "n"]
    """Largest distance of the true threshold from `threshold`; 0 where that is the norm of a listed image."""
    certified: Bool[Tensor, "n"]
    """True where the top images are known to be the right ones."""
    doubtful: Int[Tensor, "n R"]
    """Images that may belong among them; -1 where there are fewer than R."""
    beyond: Bool[Tensor, "n"]
    """True where images that are not in `doubtful` may also belong among them."""


class UnitStatistics:
    """Statistics of n units with k paths each, from batches of scalars, in memory that does not grow with the images."""

    def __init__(
        self,
        G: SymmetricStack,
        top: int,
        expected: int,
        quantile: float = 0.98,
        margin: int = 16,
        centre: Float[Tensor, "n k"] | None = None,
        at_once: int = 1,
        shared: bool = False,
    ) -> None:
        """
        Args:
            G: Gram matrices of the units' directions.
            top: T, images kept per unit; `finish` may take fewer.
            expected: Approximate number of images to come, for the length of epochs and the way to the threshold.
            quantile: q; the threshold is the norm that a share 1 - q of the images reaches.
            margin: Images kept beyond T: the more, the more lists a single pass can certify.
            centre: The mean, if an earlier pass has computed it; then every list is exact at once.
            at_once: Images to buffer before the lists are updated.
            shared: The centre is not the mean, but fixed, because all shards use the same: near misses are recorded from the
                start, and moments are summed in float64.
        """
        n, k, like = len(G.blocks[0]), G.k, G.blocks[0]
        self.G, self.top, self.quantile, self.expected = G, top, quantile, expected
        self.capacity = top + margin  # C
        self.fixed = centre is not None
        self.centre = torch.zeros(n, k, dtype=torch.float64, device=like.device) if centre is None else centre.double()
        self.at_once = at_once
        self.buffer = BatchBuffer()
        self.count = 0
        self.filled = 0  # places of the lists that hold an image
        self.sum = torch.zeros_like(self.centre)  # [n, k]: of x, about the centre
        self.moment = SymmetricStack(n, k, self.sum if shared else like)  # [n, k, k]: sum of x^T x, about the centre
        self.norm = like.new_zeros(n, self.capacity)  # about the offset
        self.image = torch.full((n, self.capacity), -1, dtype=torch.int64, device=like.device)
        self.x = like.new_zeros(n, self.capacity, k)
        self.floor = like.new_zeros(n)
        self.near = NearMisses(n, top, like) if shared else None  # otherwise created with the first dropped image
        self.offset: Offset | None = None  # of the mean so far, from the first epoch on
        self.epochs: Epochs | None = None
        self.bound = torch.full_like(self.norm[:, 0], torch.inf)  # on the norm of every dropped image, about the mean
        self.complete = False  # in a second look: mean and moment are known, only the lists are open
        self.next_move = self.capacity
        beyond = rank_of(quantile, expected) > self.capacity
        self.counted = CountedNorms(n, like.device, expected) if beyond else None
        if self.counted and shared:
            self.counted.refer_to(None, 0)
        self.bracket: Bracket | None = None  # of a threshold that is not the norm of a listed image

    @staticmethod
    def bytes_per_unit(k: int, capacity: int, itemsize: int = 4) -> int:
        """Memory that a unit with k paths takes."""
        return itemsize * (2 * SymmetricStack.numbers(k) + capacity * (k + 3) + Epochs.MOST * k) + 16 * k

    def update(self, S: Float[Tensor, "b n k"], images: Int[Tensor, "b"], scale: Float[Tensor, "b"] | None = None) -> None:
        """Add a batch of S times scale. Any numbers may name the images; `top_image` gives them back."""
        self.buffer.add(Batch(S, images, S.new_ones(len(S)) if scale is None else scale.to(S.dtype)))
        if len(self.buffer) >= self.at_once:
            self.take_all()

    def take_all(self) -> None:
        """Process the buffered batches."""
        while len(self.buffer):
            # Stop at the end of an epoch: epochs must not depend on the batch size.
            self._take(self.buffer.take(len(self.buffer) if self.fixed else self.next_move - self.count))
            if self.count == self.next_move and not self.fixed:
                self._move_centre()
                self.next_move = next_epoch(self.count, self.expected)

    def _take(self, batches: Sequence[Batch]) -> None:
        image = torch.cat([batch.image for batch in batches])
        n, b, like = len(self.norm), len(image), batches[0].S
        norm, centred = like.new_empty(n, b), Centred(batches, self.centre)
        filling = min(b, self.capacity - self.filled)
        settled = self.fixed or filling <= 0  # else all images enter, and norms and moments follow from x when the lists are full
        for part in _slices(n, b * self.G.k):
            x = centred.block(part)  # [part, b, k]
            if filling > 0:
                self.x[part, self.filled : self.filled + filling] = x[:, :filling]
            if not self.complete:
                self.sum[part] += x.sum(1, dtype=torch.float64)
            if settled and not self.complete:
                self.moment.add_outer(part, x)
            if settled:
                norm[part] = self._norms(x, part)
            if settled and not self.complete and self.counted:
                self.counted.add(part, x, norm[part], self.offset)
        if filling > 0:
            self._fill(image[:filling], norm[:, :filling] if settled else None)
        if b > filling:
            self._enter(centred, image, norm, filling)
        self.count += 0 if self.complete else b
        self.filled = min(self.capacity, self.filled + b)

    def _norms(self, x: Float[Tensor, "n b k"], part: slice) -> Float[Tensor, "n b"]:
        """||(x - o) D|| of a slice of units."""
        if self.offset is None:
            return self.G.quadratic(part, x).clamp(min=0).sqrt()
        square = self.G.quadratic(part, x, self.offset.pull[part]) + self.offset.square[part, None]
        return square.clamp(min=0).sqrt()

    def _fill(self, images: Int[Tensor, "b"], norm: Float[Tensor, "n b"] | None) -> None:
        """Put these images into the next free places, which have their x already."""
        places = slice(self.filled, self.filled + len(images))
        self.image[:, places] = images
        if norm is not None:
            self.norm[:, places] = norm
            if places.stop == self.capacity:
                self.floor = self.norm.amin(1)

    def _enter(self, centred: Centred, image: Int[Tensor, "b"], norm: Float[Tensor, "n b"], first: int) -> None:
        """Keep the largest of the listed images and the new ones from `first` on; the other images may be near misses."""
        images, norm = image[first:], norm[:, first:]
        dropped, dropped_image = norm, images.expand(len(norm), -1)  # [n, b] both
        units = (norm.amax(1) > self.floor).nonzero()[:, 0]
        if len(units):
            dropped, dropped_image = dropped.clone(), dropped_image.clone()
            for part, exchanged in exchanges(self.norm, norm, units):
                dropped[part] = exchanged.dropped
                dropped_image[part] = exchanged.pick(self.image[part], dropped_image[part])
                row, place, newcomer = exchanged.places(self.capacity)
                row = part[row]
                self.norm[row, place] = norm[row, newcomer]
                self.image[row, place] = images[newcomer]
                self.x.flatten(0, 1).index_copy_(0, row * self.capacity + place, centred.rows(row, newcomer + first))
                self.floor[part] = exchanged.floor
        if not self.fixed:
            self.near = self.near or NearMisses(len(self.norm), self.top, self.norm)
        if self.near:
            self.near.take(dropped, dropped_image)
        if self.epochs:
            self.epochs.drop(dropped)

    def _move_centre(self) -> None:
        """Take norms about the mean so far: the first time by moving the centre, from then on by an offset from it."""
        mean = self.sum / self.count  # [n, k], about the centre
        if self.count > self.capacity:
            self._end_epoch(mean.to(self.x.dtype))
        else:
            self._recentre(mean)
            for part in self._parts():
                self.norm[part] = self._norms(self.x[part], part)
            zero = torch.zeros_like(self.x[:, 0])  # [n, k]
            self.offset, self.epochs = Offset(zero, zero, zero[:, 0]), Epochs(zero, self.G)
        self.floor = self.norm.amin(1)
        if self.counted:
            self.counted.refer_to(self.offset, self.count)
        if self.counted and self.count == self.capacity:
            self.counted.add(slice(0, len(self.norm)), self.x, self.norm, self.offset)

    def _end_epoch(self, o: Float[Tensor, "n k"]) -> None:
        """Turn norms about the old offset into norms about this one, in O(k) a norm."""
        assert self.offset is not None and self.epochs is not None  # since the lists are full
        old, pull = self.offset, self.G.times(o)
        self.offset = Offset(o, pull, (o * pull).sum(1))
        across = torch.bmm((pull - old.pull)[:, None], self.x.transpose(1, 2))[:, 0]  # [n, C]: <x D, (o - old) D>
        self.norm = (self.norm.square() - 2 * across + (self.offset.square - old.square)[:, None]).clamp(min=0).sqrt()
        self.epochs.end(o)
        if self.near:
            self.near.move(self.G.length(o - old.o))

    def _recentre(self, shift: Float[Tensor, "n k"]) -> None:
        """Move all sums from x about the centre to x - shift about centre + shift, where shift is the mean of x."""
        self.centre = self.centre + shift
        self.sum = self.sum - self.count * shift
        self.x[:, : self.filled] -= shift.to(self.x.dtype)[:, None]
        if self.count > self.capacity:
            self.moment.add_outer(slice(None), shift[:, None], -float(self.count))
            return
        self.moment.clear()  # and sum anew: a difference of squares would lose moments that are small beside the mean
        for part in self._parts():
            self.moment.add_outer(part, self.x[part, : self.filled])

    def _parts(self) -> Iterator[slice]:
        """Slices of a few units, with temporaries of C x k numbers a unit."""
        return _slices(len(self.norm), self.capacity * self.G.k)

    def finish(self, top: int | None = None) -> Finished:
        """The statistics about the mean of all images; from now on `moment` is about it too.

        Args:
            top: T, at most that of `__init__` [default: that of `__init__`].
        """
        self.take_all()
        if not self.fixed:
            shift = self.sum / max(self.count, 1)
            o = shift.to(self.norm.dtype)
            if self.near:
                self.near.move(self.G.length(o if self.offset is None else o - self.offset.o))
            if self.epochs:
                self.epochs.end(o)
                self.bound = self.epochs.bound()
            if self.counted and (rank := rank_of(self.quantile, self.count)) > self.filled:
                self.bracket = self.counted.bracket(o, self.G, rank)
            self._recentre(shift)
            self.offset = None
        parts = [self._finish_part(part, self.top if top is None else top) for part in self._parts()]
        return Finished(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def _finish_part(self, part: slice, top: int) -> Finished:
        image, x = self.image[part], self.x[part]
        norm = self._norms(x, part)  # [n, C]
        norm[image < 0] = -1
        T, rank = min(top, self.filled), rank_of(self.quantile, self.count)
        order = ranking(norm, image)
        first = order[:, :T]  # [n, T]
        last = max(rank, T) if self.bracket is None else T
        doubtful, beyond = image[:, :0], torch.zeros(len(norm), dtype=torch.bool, device=norm.device)
        if self.near:
            least = norm.gather(1, order[:, last - 1 : last])[:, 0]
            doubtful, beyond = self.near.above(part, least, self.bound[part])
        if self.bracket is None:
            threshold = norm.gather(1, order[:, rank - 1 : rank])[:, 0]
            bound = self._excess(part, threshold)
        else:
            low, high = (side[part].to(norm) for side in self.bracket)
            threshold, bound = (low + high) / 2, (high - low) / 2
        top_x = x.gather(1, first[..., None].expand(-1, -1, x.shape[2]))  # [n, T, k]
        certified = ~(beyond | (doubtful >= 0).any(1))
        top_norm, top_image = norm.gather(1, first), image.gather(1, first)
        return Finished(self.centre[part], top_norm, top_image, top_x, threshold, bound, certified, doubtful, beyond)

    def _excess(self, part: slice, norm: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        """Bound on the excess of a dropped image's norm over these norms; 0 where no image can exceed them."""
        if self.near is None:
            return torch.zeros_like(norm)
        most = torch.maximum(self.near.norm[part].amax(1), self.near.lost[part])
        return (torch.minimum(most, self.bound[part]) - norm).clamp(min=0)

    def again(self, rows: Int[Tensor, "r"]) -> "UnitStatistics":
        """Statistics of some of the units for a second look, about the mean that the first look has computed."""
        second = copy(self)  # shares all attributes that are not replaced below
        second.G, second.moment = self.G.pick(rows), self.moment.pick(rows)
        second.centre, second.sum, second.floor = self.centre[rows], self.sum[rows], self.floor[rows]
        second.norm, second.image, second.x = self.norm[rows], self.image[rows], self.x[rows]
        second.bracket = None if self.bracket is None else Bracket(*(side[rows] for side in self.bracket))
        second.fixed, second.complete, second.at_once, second.buffer = True, True, 1, BatchBuffer()
        second.counted = second.near = second.epochs = second.offset = None
        for part in second._parts():
            second.norm[part] = second._norms(second.x[part], part)
        return second

    def forget(self, images: Int[Tensor, "i"] | None) -> None:
        """Remove these images from the lists, or all (None), before a second look at them."""
        removed = torch.ones_like(self.image, dtype=torch.bool) if images is None else torch.isin(self.image, images)
        self.image[removed], self.norm[removed] = -1, -1
        self.floor = self.norm.amin(1)


def _slices(n: int, numbers: int) -> Iterator[slice]:
    """Slices of n units, small enough for temporaries of so many numbers a unit."""
    step = max(1, BLOCK // numbers)
    return (slice(start, min(start + step, n)) for start in range(0, n, step))
