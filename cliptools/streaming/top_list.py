"""The images of largest norm of every unit, while images stream by.

About a fixed centre c of S space, x = S - c has the norm ||x D||, with ||x D||^2 = x G x^T and G = D D^T. For each of n units a
`TopList` keeps

* the C images of largest norm, with their x;
* the numbers and norms of the next R images, without x: the near misses, which cost little;
* the largest norm of all other images, `lost`.

At the end the mean c + o is known. The norms of the C images are computed again about the mean. Every other norm has changed by
at most ||o D||, so that near misses and `lost` become upper bounds. Where the T-th norm reaches all bounds, the list of the first
T is certified. Where it does not, the near misses of larger bounds are in doubt, and a second look at these images alone settles
the list; only if the bound of `lost` is larger too, any image may belong to it.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cliptools.streaming.storage import Storage

NORMS_AT_ONCE = 500_000  # norms sorted at a time, so that temporaries stay small for any number of units
EMPTY = -1  # norm and image number of an empty place


class Exchange(NamedTuple):
    """The places of a list that new images take, for n rows of m kept and b new norms of which the m largest stay."""

    leaves: Int[Tensor, "n b"]
    """Places of the b norms that leave; those of new norms are counted from m."""
    dropped: Float[Tensor, "n b"]
    """The norms that leave, smallest first."""

    def places(self, m: int) -> tuple[Int[Tensor, "s"], Int[Tensor, "s"], Int[Tensor, "s"]]:
        """For every kept norm that leaves: its row, its place, and the new norm that takes the place."""
        old = self.leaves < m
        n, b = old.shape
        stays = old.new_ones(n, b + 1).scatter_(1, torch.where(old, b, self.leaves - m), False)[:, :b]  # column b is a dummy
        row, column = old.nonzero(as_tuple=True)
        return row, self.leaves[row, column], stays.nonzero(as_tuple=True)[1]


def exchange(kept: Float[Tensor, "n m"], new: Float[Tensor, "n b"]) -> Exchange:
    """The exchange that keeps the m largest norms of every row."""
    values, order = torch.cat([kept, new], 1).topk(new.shape[1], largest=False)  # (n, b)
    return Exchange(order, values)


class TopList:
    """The top images of n units with k paths each; places are in no order."""

    def __init__(self, n: int, k: int, capacity: int, near: int, like: Tensor, storage: Storage | None = None) -> None:
        """
        Args:
            capacity: C, images kept with their x.
            near: R, further images kept by norm and number.
            like: A tensor of the type and device of x.
            storage: Memory for x.
        """
        self.norm = like.new_full((n, capacity), EMPTY)
        self.image = torch.full((n, capacity), EMPTY, dtype=torch.int64, device=like.device)
        self.x = (Storage() if storage is None else storage).zeros(like, n, capacity, k)
        self.filled = 0
        """Places that hold an image, the same number for all units."""
        self.near_norm = like.new_full((n, near), EMPTY)
        self.near_image = torch.full((n, near), EMPTY, dtype=torch.int64, device=like.device)
        self.lost = like.new_full((n,), EMPTY)
        """Bound on the norms of all other images."""

    @property
    def capacity(self) -> int:
        """C."""
        return self.norm.shape[1]

    def append(self, image: Int[Tensor, "b"], norm: Float[Tensor, "n b"]) -> None:
        """Put images into the next free places, which have their x already."""
        places = slice(self.filled, self.filled + len(image))
        self.image[:, places], self.norm[:, places] = image, norm
        self.filled = places.stop

    def enter(
        self, image: Int[Tensor, "b"], norm: Float[Tensor, "n b"], rows: Callable[[Tensor, Tensor], Float[Tensor, "s k"]]
    ) -> None:
        """Keep the C largest norms of those kept and new ones, in a list without free places.

        Args:
            rows: Function that gives x of (unit, new image) pairs.
        """
        dropped, dropped_image = norm, image.expand(len(norm), -1)  # (n, b) both
        units = (norm.amax(1) > self.norm.amin(1)).nonzero()[:, 0]
        if len(units):
            dropped, dropped_image = dropped.clone(), dropped_image.clone()
        for part in self._in_parts(units, self.capacity + norm.shape[1]):
            moved = exchange(self.norm[part], norm[part])
            images = torch.cat([self.image[part], dropped_image[part]], 1)  # (n, C + b)
            dropped[part], dropped_image[part] = moved.dropped, images.gather(1, moved.leaves)
            row, place, newcomer = moved.places(self.capacity)
            row = part[row]
            self.norm[row, place], self.image[row, place] = norm[row, newcomer], image[newcomer]
            self.x.flatten(0, 1).index_copy_(0, row * self.capacity + place, rows(row, newcomer))
        if self.near_norm.shape[1]:
            self._drop(dropped, dropped_image)

    def _drop(self, norm: Float[Tensor, "n b"], image: Int[Tensor, "n b"]) -> None:
        """Keep the R largest norms of the near misses and these images, and the largest of the others as `lost`."""
        R, largest = self.near_norm.shape[1], norm.amax(1)
        enters = largest > self.near_norm.amin(1)
        self.lost = torch.where(enters, self.lost, torch.maximum(self.lost, largest))
        for part in self._in_parts(enters.nonzero()[:, 0], R + norm.shape[1]):
            values, order = torch.cat([self.near_norm[part], norm[part]], 1).topk(R + 1)  # (n, R + 1), the largest first
            images = torch.cat([self.near_image[part], image[part]], 1)
            self.near_norm[part], self.near_image[part] = values[:, :R], images.gather(1, order[:, :R])
            self.lost[part] = torch.maximum(self.lost[part], values[:, R])

    @staticmethod
    def _in_parts(units: Int[Tensor, "r"], norms: int) -> Iterator[Int[Tensor, "some"]]:
        yield from units.split(max(1, NORMS_AT_ONCE // norms)) if len(units) else ()

    def move(self, part: slice, o: Float[Tensor, "n k"], distance: Float[Tensor, "n"]) -> None:
        """Move the centre of a slice of units by o, and raise the bounds on all norms without x by the distance ||o D||."""
        self.x[part, : self.filled] -= o[:, None]
        near, lost = self.near_norm[part], self.lost[part]
        self.near_norm[part] = torch.where(near >= 0, near + distance[:, None], near)
        self.lost[part] = torch.where(lost >= 0, lost + distance, lost)

    def above(self, part: slice, norm: Float[Tensor, "n"]) -> tuple[Int[Tensor, "n R"], Bool[Tensor, "n"]]:
        """For a slice of units, the near misses that may have more than this norm, else -1; true where any image may."""
        image = self.near_image[part]
        return image.where(self.near_norm[part] > norm[:, None], torch.full_like(image, EMPTY)), self.lost[part] > norm

    def bound(self, part: slice) -> Float[Tensor, "n"]:
        """Bound on the norms of all images without x of a slice of units; below 0 where there are none."""
        near = self.near_norm[part]
        return torch.cat([near, self.lost[part, None]], 1).amax(1)

    def pick(self, units: Int[Tensor, "r"]) -> "TopList":
        """A list of some of the units without near misses, for a second look about the mean."""
        n, k = len(units), self.x.shape[2]
        picked = TopList(n, k, 0, 0, self.x)
        picked.norm, picked.image, picked.x = self.norm[units], self.image[units], self.x[units]
        picked.filled = self.filled
        return picked

    def forget(self, images: Int[Tensor, "i"] | None) -> None:
        """Remove these images, or all (None); their places are free for images of any norm."""
        removed = torch.ones_like(self.image, dtype=torch.bool) if images is None else torch.isin(self.image, images)
        self.image[removed], self.norm[removed] = EMPTY, EMPTY
