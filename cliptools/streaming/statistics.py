"""Streaming statistics of factored effects: mean, second moment, and the T images of largest centred norm, exactly.

Effects phi = S D (factored.py, Eq. 1) are never formed. About a fixed centre c of S space, x = S - c, and, with G = D D^T,

    ||x D||^2 = x G x^T

The papers want the T largest ||phi - b|| (paper 1, Sec. 3.3), where the mean b is known only after the last image. The centre is
the mean of a sample: of the first images, or one that all shards of a run share (`Basis`). Every statistic is kept about it, and
taken to the mean c + o at the end, where o is the mean of x:

* `Moments` (moments.py): the sums of x and of x^T x; the second moment about the mean is their mean less o^T o.
* `TopList` (top_list.py): the C images of largest ||x D||, with bounds on the others that rise by ||o D||.
* `NormHistogram` (ranking.py): counts of ||x D||, if the threshold's rank r = (1 - q) N is beyond C. Otherwise the threshold is
  the norm of an image of the list.

`UnitStatistics` has three beginnings: a first look; a second look, about the mean, at the images that may belong to the lists of
some units (`second_look`); and the sum of all shards (shard_statistics.py).
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cliptools.streaming.moments import Basis, Moments
from cliptools.streaming.principal import SymmetricStack
from cliptools.streaming.ranking import Bracket, NormHistogram, bracket, rank_of, ranking
from cliptools.streaming.top_list import EMPTY, TopList

BLOCK = 500_000  # numbers in a temporary: few enough to stay in the processor's cache
SAMPLE = 256  # images whose mean is the centre


class Batch(NamedTuple):
    """Scalars of b images as an effect reads them."""

    S: Float[Tensor, "b n k"]
    image: Int[Tensor, "b"]
    """Numbers of the images."""
    scale: Float[Tensor, "b"]
    """Factor by which S is to be multiplied."""


class Centred:
    """x = S - centre of buffered batches [n, b, k]: too large to be whole, computed for some units or for single rows."""

    def __init__(self, batches: Sequence[Batch], centre: Float[Tensor, "n k"]) -> None:
        self.batches = batches
        self.minus = -centre.to(batches[0].S.dtype)  # (n, k)

    def block(self, part: slice) -> Float[Tensor, "some b k"]:
        """x of a slice of units, for all images."""
        sizes = [len(batch.image) for batch in self.batches]
        x = self.minus.new_empty(len(self.minus[part]), sum(sizes), self.minus.shape[1])
        for batch, columns in zip(self.batches, x.split(sizes, 1), strict=True):
            torch.addcmul(self.minus[part, None], batch.S[:, part].transpose(0, 1), batch.scale[:, None], out=columns)
        return x

    def rows(self, unit: Int[Tensor, "s"], number: Int[Tensor, "s"]) -> Float[Tensor, "s k"]:
        """Rows of x for (unit, image) pairs; image numbers run across the batches."""
        x = self.minus.new_empty(len(unit), self.minus.shape[1])
        for batch in self.batches:
            pairs = ((number >= 0) & (number < len(batch.image))).nonzero()[:, 0]  # pairs whose image is in this batch
            n, b = unit[pairs], number[pairs]
            S = batch.S.flatten(0, 1).index_select(0, b * len(self.minus) + n)  # (b n, k) -> (pairs, k)
            x.index_copy_(0, pairs, torch.addcmul(self.minus.index_select(0, n), S, batch.scale[b, None]))
            number = number - len(batch.image)
        return x


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
    """Largest distance of the true threshold from `threshold`: 0 where that is the norm of an image that was kept."""
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
        capacity: int,
        listed: int,
        quantile: float = 0.98,
        basis: Basis | None = None,
        at_once: int = 1,
        sample: int = SAMPLE,
    ) -> None:
        """Begin a first look.

        Args:
            G: Gram matrices of the units' directions; lists and moments share their storage.
            top: T, images wanted per unit; `finish` may take fewer.
            capacity: C, images kept per unit, at least T.
            listed: N, the number of images in the whole list; some may be unreadable.
            quantile: q; the threshold is the norm that a share 1 - q of the images reaches.
            basis: The centre that all shards share. None: the mean of the first images.
            at_once: Images to buffer before lists are brought up to date.
            sample: Number of first images whose mean is the centre; those beyond C stay in the buffer until then.
        """
        n, k, like = len(G.blocks[0]), G.k, G.blocks[0]
        self.G, self.top, self.quantile = G, top, quantile
        self.at_once, self.sample = at_once, sample
        self.list = TopList(n, k, capacity, top, like, G.storage)
        self.moments = Moments(n, k, like, listed, G.storage)
        self.counted = NormHistogram.empty(n, like.device) if rank_of(quantile, listed) > capacity else None
        self.reach = like.new_zeros(n)
        """Largest error of the point about which norms were counted."""
        self.centre = torch.zeros(n, k, dtype=torch.float64, device=like.device)
        self.basis: Basis | None = None
        self.centre_is_mean = False
        """True if the centre is the mean, so that norms are final and only lists are open."""
        self.bracket: Bracket | None = None
        """Bounds on a threshold that is not the norm of an image in the list."""
        self.counting = True
        """False in a second look, whose images have been counted."""
        self._buffer: list[Batch] = []
        if basis is not None:
            self._take_basis(basis)

    @staticmethod
    def bytes_per_unit(k: int, capacity: int, itemsize: int = 4) -> int:
        """Memory that a unit with k paths takes: G and the moment; x, norms and numbers of C images, and C / 3 near misses."""
        return itemsize * (2 * SymmetricStack.numbers(k) + capacity * (k + 4)) + 16 * k

    @classmethod
    def about(cls, G: SymmetricStack, centre: Float[Tensor, "n k"], top: int) -> "UnitStatistics":
        """Begin a look in which norms are about a given centre, and lists are certain."""
        statistics = cls(G, top, top, 0, quantile=1.0)
        statistics.list.near_norm, statistics.list.near_image = statistics.list.norm[:, :0], statistics.list.image[:, :0]
        statistics.centre, statistics.centre_is_mean = centre.double(), True
        return statistics

    def second_look(self, units: Int[Tensor, "r"]) -> "UnitStatistics":
        """Begin a second look of some of the units of finished statistics, about the mean.

        The lists must forget the images that the second look reads (`list.forget`).
        """
        second = UnitStatistics.about(self.G.pick(units), self.centre[units], self.top)
        second.quantile, second.moments, second.list = self.quantile, self.moments.pick(units), self.list.pick(units)
        second.bracket = None if self.bracket is None else Bracket(*(side[units] for side in self.bracket))
        second.counting = False
        second.list.norm = torch.where(second.list.image >= 0, second._list_norms(), EMPTY)
        return second

    def update(self, S: Float[Tensor, "b n k"], images: Int[Tensor, "b"], scale: Float[Tensor, "b"] | None = None) -> None:
        """Add a batch of S times scale. Any numbers may name the images; `top_image` gives them back."""
        if len(images):
            self._buffer.append(Batch(S, images, S.new_ones(len(S)) if scale is None else scale.to(S.dtype)))
        if self._buffered >= self.at_once:
            self.take_all()

    def take_all(self) -> None:
        """Process the buffered batches; before there is a centre, those that have a place in the lists."""
        if self.basis is None and not self.centre_is_mean:
            self._take_sample(self._first_batches(self.list.capacity - self.list.filled))
            if self.list.filled + self._buffered < self.sample:
                self.G.storage.release()
                return
            self.settle_centre()
        if self._buffered:
            self._take(self._first_batches(self._buffered))
        self.G.storage.release()

    @property
    def _buffered(self) -> int:
        """Number of images in the buffer."""
        return sum(len(batch.image) for batch in self._buffer)

    def _first_batches(self, count: int) -> list[Batch]:
        """Remove the first images from the buffer, at most `count`."""
        first: list[Batch] = []
        while self._buffer and count > 0:
            batch = self._buffer.pop(0)
            size = min(count, len(batch.image))
            first.append(Batch(*(column[:size] for column in batch)))
            if size < len(batch.image):
                self._buffer.insert(0, Batch(*(column[size:] for column in batch)))
            count -= size
        return first

    def _take_sample(self, batches: Sequence[Batch]) -> None:
        """Add images to the lists, with x = S and without norms."""
        if not batches:
            return
        image, scalars = torch.cat([batch.image for batch in batches]), Centred(batches, self.centre)
        n, b = len(self.centre), len(image)
        for part in _slices(n, b * self.G.k):
            self.list.x[part, self.list.filled : self.list.filled + b] = scalars.block(part)
        self.list.append(image, scalars.minus.new_zeros(n, b))

    def settle_centre(self) -> None:
        """Unless there is a centre, take the mean of the images so far, and count those in the lists."""
        if self.basis is not None or self.centre_is_mean:
            return
        kept, images = slice(0, self.list.filled), max(self.list.filled, 1)
        centre, spread = torch.zeros_like(self.centre), torch.zeros_like(self.reach)
        waiting = Centred(self._buffer, self.centre) if self._buffered else None
        for part in self._parts():
            x = self.list.x[part, kept]  # (part, f, k): S
            total = x.sum(1, dtype=torch.float64)
            total += 0 if waiting is None else waiting.block(part).sum(1, dtype=torch.float64)
            mean = (total / (images + self._buffered)).to(x.dtype)
            x -= mean[:, None]
            centre[part] = mean.double()
            spread[part] = (x.square().sum(1) / images).amax(1).sqrt()
            self._add(part, x, self.list.norm[part, kept])
        self.moments.count = self.list.filled
        scale = (self.list.norm[:, kept].square().sum(1) / images).sqrt().clamp(min=torch.finfo(spread.dtype).tiny)
        self._take_basis(Basis(centre, scale, spread))

    def settle_all(self) -> None:
        """Process all images that have been added."""
        self.take_all()
        self.settle_centre()
        self.take_all()

    def _take_basis(self, basis: Basis) -> None:
        self.basis, self.centre, self.moments.spread = basis, basis.centre, basis.spread

    def _add(self, part: slice, x: Float[Tensor, "some b k"], norm: Float[Tensor, "some b"]) -> None:
        """Add x of a slice of units to the sums and counts, and write ||x D|| to `norm`."""
        norm.copy_(self.G.norms(part, x))
        if self.centre_is_mean:
            return
        self.moments.add(part, x)
        if self.counted is not None:
            self.counted.add(part, norm)

    def _take(self, batches: Sequence[Batch]) -> None:
        """Add images about the centre."""
        image, centred = torch.cat([batch.image for batch in batches]), Centred(batches, self.centre)
        n, b = len(self.centre), len(image)
        norm = centred.minus.new_empty(n, b)
        free = min(b, self.list.capacity - self.list.filled)
        for part in _slices(n, b * self.G.k):
            x = centred.block(part)  # (part, b, k)
            self._add(part, x, norm[part])
            if free:
                self.list.x[part, self.list.filled : self.list.filled + free] = x[:, :free]
        if free:
            self.list.append(image[:free], norm[:, :free])
        if b > free:
            self.list.enter(image[free:], norm[:, free:], lambda unit, number: centred.rows(unit, number + free))
        self.moments.count += b if self.counting else 0

    def _parts(self) -> Iterator[slice]:
        """Slices of a few units, with temporaries of C x k numbers a unit."""
        return _slices(len(self.centre), self.list.capacity * self.G.k)

    def _list_norms(self) -> Float[Tensor, "n C"]:
        """||x D|| of all images in the lists, about the present centre."""
        return torch.cat([self.G.norms(part, self.list.x[part]) for part in self._parts()])

    def finish(self, top: int | None = None) -> Finished:
        """The statistics about the mean of all images.

        Args:
            top: T, at most the one given at first [default: that].
        """
        self.settle_all()
        if not self.centre_is_mean:
            o = self.moments.mean()
            distance = self.G.length(o.to(self.list.x.dtype))  # (n): ||o D||
            rank = rank_of(self.quantile, self.moments.count)
            if self.counted is not None and rank > self.list.filled:
                self.bracket = bracket(self.counted, distance + self.reach, rank)
            for part in self._parts():
                self.list.move(part, o[part].to(self.list.x.dtype), distance[part])
            self.centre, self.centre_is_mean = self.centre + o, True
        T = min(self.top if top is None else top, self.list.filled)
        parts = [self._finish_part(part, T) for part in self._parts()]
        return Finished(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def _finish_part(self, part: slice, T: int) -> Finished:
        image, x = self.list.image[part], self.list.x[part]
        norm = self.G.norms(part, x)  # (n, C)
        norm[image < 0] = EMPTY
        order = ranking(norm, image)
        first, rank = order[:, :T], rank_of(self.quantile, self.moments.count)  # (n, T)
        last = max(rank, T) if self.bracket is None else T
        doubtful, beyond = self.list.above(part, norm.gather(1, order[:, last - 1 : last])[:, 0])
        if self.bracket is None:
            threshold = norm.gather(1, order[:, rank - 1 : rank])[:, 0]
            bound = (self.list.bound(part) - threshold).clamp(min=0)
        else:
            low, high = (side[part].to(norm) for side in self.bracket)
            threshold, bound = (low + high) / 2, (high - low) / 2
        return Finished(
            self.centre[part],
            norm.gather(1, first),
            image.gather(1, first),
            x.gather(1, first[..., None].expand(-1, -1, x.shape[2])),  # (n, T, k)
            threshold,
            bound,
            ~(beyond | (doubtful >= 0).any(1)),
            doubtful,
            beyond,
        )


def _slices(n: int, numbers: int) -> Iterator[slice]:
    """Slices of n units, few enough for temporaries of so many numbers a unit."""
    step = max(1, BLOCK // max(1, numbers))
    return (slice(start, min(start + step, n)) for start in range(0, n, step))
