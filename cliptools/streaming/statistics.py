"""Streaming statistics of factored effects: mean, second moment, and the images of largest centred norm, exactly.

Effects phi = S D are never formed. About a centre c in S space, x = S - c has the norm ||x D||^2 = x G x^T with the Gram
matrix G = D D^T. The largest centred norms are wanted about the mean, which is known only at the end. So:

* the first C = T + margin images are all kept, with their x; their mean is the first centre;
* from then on an image enters where its norm exceeds the smallest kept, the floor;
* whenever the count has grown by a quarter, norms are taken about the mean so far: an epoch ends. The sums and x stay about
  the first centre; centre and mean so far differ by the offset o, and ||(x - o) D||^2 = x G x^T - 2 x (G o) + o G o^T.
  Towards the end, where the floor is close to the T-th norm and every bit that the mean moves counts, epochs are shorter.

The norm of a dropped image grows by no more than the mean moves after its epoch, ||(mean - mean then) D||. Where the T-th kept
norm reaches the largest of these bounds the list is certified to be the exact one. Where it does not, the images
that may belong to it are mostly among the near misses (near_misses.py), and a second look at these alone settles it.

The threshold is the norm of rank r = (1 - q) N. Up to the C images kept it is exact; beyond, it is bounded (threshold.py).
"""

from collections.abc import Iterator, Sequence
from copy import copy
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cliptools.streaming.batch_buffer import Batch, Centred, Epochs, NearMisses, Offset, Waiting, exchanges, next_epoch
from cliptools.streaming.principal import SymmetricStack
from cliptools.streaming.ranking import Bracket, CountedNorms, rank_of, ranking

BLOCK = 500_000  # numbers in a temporary: small enough to stay near the processor


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
    threshold_bound: Float[Tensor, "n"]
    """The true threshold is no further than this from `threshold`: 0 where it is the norm of an image kept."""
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
        shared: bool = False,
    ) -> None:
        """
        Args:
            G: Gram matrices of the units' directions.
            top: T, images kept per unit; `finish` may take fewer.
            expected: The number of images to come, roughly; the epochs and how the threshold is found depend on it.
            margin: Images kept beyond T: the more, the more lists one pass can certify.
            quantile: q; the threshold is the norm that a share 1 - q of the images reaches.
            centre: The mean, where an earlier pass has found it; then every list is exact at once.
            at_once: Images to wait for before lists are brought up to date, which costs nearly the same for few and for many.
            shared: The centre is not the mean, but stays, as of all shards: near misses are remembered, and moments added up in
                float64.
        """
        n, k, like = len(G.blocks[0]), G.k, G.blocks[0]
        self.G, self.top, self.quantile, self.expected = G, top, quantile, expected
        self.capacity = top + margin
        self.fixed = centre is not None
        self.centre = torch.zeros(n, k, dtype=torch.float64, device=like.device) if centre is None else centre.double()
        self.at_once = at_once
        self.waiting = Waiting()
        self.count = 0
        self.filled = 0
        self.sum = torch.zeros_like(self.centre)  # of x, about the centre
        self.moment = SymmetricStack(n, k, self.sum if shared else like)  # x^T x about the centre, summed over the images
        self.norm = like.new_zeros(n, self.capacity)
        self.image = torch.full((n, self.capacity), -1, dtype=torch.int64, device=like.device)
        self.x = like.new_zeros(n, self.capacity, k)
        self.floor = like.new_zeros(n)
        self.near = NearMisses(n, top, like) if shared else None  # else since the first image was dropped
        self.offset: Offset | None = None  # since the first epoch
        self.epochs: Epochs | None = None
        self.bound = torch.full_like(self.norm[:, 0], torch.inf)  # of what was dropped, about the mean
        self.seen = False  # whether every image has been counted, so that only the list is open
        self.next_move = self.capacity
        beyond = rank_of(quantile, expected) > self.capacity
        self.counted = CountedNorms(n, like.device, expected) if beyond else None
        if self.counted and shared:
            self.counted.refer_to(None, 0)
        self.bracket: Bracket | None = None  # of the threshold, where it is not the norm of an image kept

    @staticmethod
    def bytes_per_unit(k: int, capacity: int, itemsize: int = 4) -> int:
        """Memory that one unit with k paths takes."""
        return itemsize * (2 * SymmetricStack.numbers(k) + capacity * (k + 3) + Epochs.MOST * k) + 16 * k

    def update(self, S: Float[Tensor, "b n k"], images: Int[Tensor, "b"], scale: Float[Tensor, "b"] | None = None) -> None:
        """Take in a batch, S times scale. Images are numbered as the caller likes; numbers come back in top_image."""
        self.waiting.add(Batch(S, images, S.new_ones(len(S)) if scale is None else scale.to(S.dtype)))
        if len(self.waiting) >= self.at_once:
            self.take_all()

    def take_all(self) -> None:
        """Take in the batches that wait."""
        while len(self.waiting):
            # Never step over the end of an epoch: epochs must not depend on the batch size.
            self._take(self.waiting.take(len(self.waiting) if self.fixed else self.next_move - self.count))
            if self.count == self.next_move and not self.fixed:
                self._move_centre()
                self.next_move = next_epoch(self.count, self.expected)

    def _take(self, batches: Sequence[Batch]) -> None:
        image = torch.cat([batch.image for batch in batches])
        n, b, like = len(self.norm), len(image), batches[0].S
        norm, centred = like.new_empty(n, b), Centred(batches, self.centre)
        filling = min(b, self.capacity - self.filled)
        known = self.fixed or filling <= 0  # else all are kept, and norms and moment will be made of them
        for of in _slices(n, b * self.G.k):
            x = centred.block(of)  # (some, b, k)
            if filling > 0:
                self.x[of, self.filled : self.filled + filling] = x[:, :filling]
            if not self.seen:
                self.sum[of] += x.sum(1, dtype=torch.float64)
            if known and not self.seen:
                self.moment.add_outer(of, x)
            if known:
                norm[of] = self._norms(x, of)
            if known and not self.seen and self.counted:
                self.counted.add(of, x, norm[of], self.offset)
        if filling > 0:
            self._fill(image[:filling], norm[:, :filling] if known else None)
        if b > filling:
            self._enter(centred, image, norm, filling)
        self.count += 0 if self.seen else b
        self.filled = min(self.capacity, self.filled + b)

    def _norms(self, x: Float[Tensor, "n b k"], of: slice) -> Float[Tensor, "n b"]:
        if self.offset is None:
            return self.G.quadratic(of, x).clamp(min=0).sqrt()
        return (self.G.quadratic(of, x, self.offset.pull[of]) + self.offset.square[of, None]).clamp(min=0).sqrt()

    def _fill(self, images: Int[Tensor, "b"], norm: Float[Tensor, "n b"] | None) -> None:
        """The next places, whose x are there already, are these images'."""
        slots = slice(self.filled, self.filled + len(images))
        self.image[:, slots] = images
        if norm is not None:
            self.norm[:, slots] = norm
            if slots.stop == self.capacity:
                self.floor = self.norm.amin(1)

    def _enter(self, centred: Centred, image: Int[Tensor, "b"], norm: Float[Tensor, "n b"], first: int) -> None:
        """Of the kept images and the newcomers from `first` on, keep the largest; the others are near misses at best."""
        images, norm = image[first:], norm[:, first:]
        dropped, whose = norm, images.expand(len(norm), -1)
        units = (norm.amax(1) > self.floor).nonzero()[:, 0]
        if len(units):
            dropped, whose = dropped.clone(), whose.clone()
            for some, exchanged in exchanges(self.norm, norm, units):
                dropped[some] = exchanged.dropped
                whose[some] = exchanged.pick(self.image[some], whose[some])
                row, slot, newcomer = exchanged.places(self.capacity)
                row = some[row]
                self.norm[row, slot] = norm[row, newcomer]
                self.image[row, slot] = images[newcomer]
                self.x.flatten(0, 1).index_copy_(0, row * self.capacity + slot, centred.rows(row, newcomer + first))
                self.floor[some] = exchanged.floor
        if not self.fixed:
            self.near = self.near or NearMisses(len(self.norm), self.top, self.norm)
        if self.near:
            self.near.take(dropped, whose)
        if self.epochs:
            self.epochs.drop(dropped)

    def _move_centre(self) -> None:
        """Take norms about the mean so far: the first time by moving the centre, from then on by an offset from it."""
        mean = self.sum / self.count  # (n, k), about the centre
        if self.count > self.capacity:
            self._end_epoch(mean.to(self.x.dtype))
        else:
            self._recentre(mean)
            for of in self._blocks():
                self.norm[of] = self._norms(self.x[of], of)
            none = torch.zeros_like(self.x[:, 0])
            self.offset, self.epochs = Offset(none, none, none[:, 0]), Epochs(none, self.G)
        self.floor = self.norm.amin(1)
        if self.counted:
            self.counted.refer_to(self.offset, self.count)
        if self.counted and self.count == self.capacity:
            self.counted.add(slice(0, len(self.norm)), self.x, self.norm, self.offset)

    def _end_epoch(self, o: Float[Tensor, "n k"]) -> None:
        """Norms about another offset, in O(k) each, as they are known about the old one."""
        assert self.offset is not None and self.epochs is not None  # since the lists are full
        old, pull = self.offset, self.G.times(o)
        self.offset = Offset(o, pull, (o * pull).sum(1))
        across = torch.bmm((pull - old.pull)[:, None], self.x.transpose(1, 2))[:, 0]  # (n, capacity): <x D, (o - old) D>
        self.norm = (self.norm.square() - 2 * across + (self.offset.square - old.square)[:, None]).clamp(min=0).sqrt()
        self.epochs.end(o)
        if self.near:
            self.near.move(self.G.length(o - old.o))

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
        return _slices(len(self.norm), self.capacity * self.G.k)

    def finish(self, top: int | None = None) -> Finished:
        """The statistics about the mean of all images, as `moment` is from now on.

        Args:
            top: T, at most the one given at first [default: that].
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
        parts = [self._finish_some(of, self.top if top is None else top) for of in self._blocks()]
        return Finished(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def _finish_some(self, of: slice, top: int) -> Finished:
        image, x = self.image[of], self.x[of]
        norm = self._norms(x, of)  # (n, capacity)
        norm[image < 0] = -1
        kept = min(top, self.filled)
        order = ranking(norm, image)
        chosen = order[:, :kept]
        rank = rank_of(self.quantile, self.count)
        last = max(rank, kept) if self.bracket is None else kept
        doubtful, beyond = image[:, :0], torch.zeros(len(norm), dtype=torch.bool, device=norm.device)
        if self.near:
            reached = norm.gather(1, order[:, last - 1 : last])[:, 0]
            doubtful, beyond = self.near.above(of, reached, self.bound[of])
        if self.bracket is None:
            threshold = norm.gather(1, order[:, rank - 1 : rank])[:, 0]
            bound = self._beyond(of, threshold)
        else:
            low, high = (side[of].to(norm) for side in self.bracket)
            threshold, bound = (low + high) / 2, (high - low) / 2
        top_x = x.gather(1, chosen[..., None].expand(-1, -1, x.shape[2]))
        certified = ~(beyond | (doubtful >= 0).any(1))
        top_norm, top_image = norm.gather(1, chosen), image.gather(1, chosen)
        return Finished(self.centre[of], top_norm, top_image, top_x, threshold, bound, certified, doubtful, beyond)

    def _beyond(self, of: slice, norm: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        """The most by which a dropped image's norm may exceed these norms of images kept; 0 where none can."""
        if self.near is None:
            return torch.zeros_like(norm)
        most = torch.maximum(self.near.norm[of].amax(1), self.near.lost[of])
        return (torch.minimum(most, self.bound[of]) - norm).clamp(min=0)

    def again(self, rows: Int[Tensor, "r"]) -> "UnitStatistics":
        """Some units for a second look, about the mean that the first has found, with all that is kept of them."""
        made = copy(self)  # and no buffers of its own but these
        made.G, made.centre, made.sum, made.moment = self.G.pick(rows), self.centre[rows], self.sum[rows], self.moment.pick(rows)
        made.norm, made.image, made.x, made.floor = self.norm[rows], self.image[rows], self.x[rows], self.floor[rows]
        made.bracket = None if self.bracket is None else Bracket(*(side[rows] for side in self.bracket))
        made.counted = None
        made.fixed, made.seen, made.at_once, made.waiting = True, True, 1, Waiting()
        made.near = made.epochs = made.offset = None
        for of in made._blocks():
            made.norm[of] = made._norms(made.x[of], of)
        return made

    def forget(self, images: Int[Tensor, "i"] | None) -> None:
        """Make room for these images, or for all (None), which are to come again."""
        again = torch.ones_like(self.image, dtype=torch.bool) if images is None else torch.isin(self.image, images)
        self.image[again], self.norm[again] = -1, -1
        self.floor = self.norm.amin(1)


def _slices(n: int, each: int) -> Iterator[slice]:
    """Of n units a few at a time, with so many numbers each."""
    step = max(1, BLOCK // each)
    return (slice(start, min(start + step, n)) for start in range(0, n, step))
