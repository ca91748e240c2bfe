"""Images that a program gives as objects: pictures in memory, and batches that are preprocessed already."""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler

from cliptools.errors import CliptoolsError, ImageError, UsageError
from cliptools.images.decode import upright_rgb
from cliptools.images.loader import Batch

EXPECTED = "expected floats [b, 3, y, x], preprocessed as for the model, alone or first in a tuple"


def image_names(count: int) -> list[str]:
    """Return names for images that have none, sorted like the images."""
    return [f"image-{number:06d}" for number in range(count)]


class Pictures:
    """An ImageSource of pictures in memory."""

    def __init__(self, pictures: Sequence[Image.Image | np.ndarray]) -> None:
        """
        Args:
            pictures: Pictures of Pillow, or arrays uint8 [y, x, 3].

        Raises:
            UsageError: an array has another type or shape.
        """
        for number, picture in enumerate(pictures):
            if isinstance(picture, np.ndarray) and not (
                picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3 and picture.size
            ):
                raise UsageError(
                    f"images: array {number} is {picture.dtype} {list(picture.shape)}, expected a picture uint8 [y, x, 3] "
                    "(preprocessed pictures are torch tensors [b, 3, y, x])"
                )
        self._pictures = pictures
        self.names: Sequence[str] = image_names(len(pictures))

    def __len__(self) -> int:
        return len(self._pictures)

    def load(self, index: int) -> Image.Image:
        """Implements ImageSource.load."""
        picture = self._pictures[index]
        return upright_rgb(Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture)


class PreparedImages:
    """Batches of preprocessed pictures, numbered in their order; they can be read any number of times."""

    def __init__(self, batches: Iterable[Any]) -> None:
        """
        Args:
            batches: A DataLoader, or another object that gives the same batches in each iteration: tensors [b, 3, y, x], alone,
                first in a tuple or list, or as the only one of this shape in a mapping.

        Raises:
            UsageError: a DataLoader shuffles its images, a batch is something else, or there is none.
        """
        if isinstance(batches, DataLoader) and isinstance(batches.sampler, RandomSampler):
            raise UsageError("images: this DataLoader has another order in each pass; use shuffle=False")
        self._batches = batches
        self.watch: Callable[[Sequence[int], Any], None] | None = None
        """Called with the numbers of each batch that is read and with the batch, such as the labels beside its pictures."""
        self._sums: list[float] = []  # of each batch, by which a later pass is compared with the first one
        self.names: Sequence[str] = image_names(self._count())
        if not self.names:
            raise UsageError("images: no batch has an image")

    def __len__(self) -> int:
        return len(self.names)

    def load(self, index: int) -> Image.Image:
        """Refuse to load a picture, because only preprocessed numbers are known.

        Raises:
            ImageError: always.
        """
        raise ImageError("only its preprocessed numbers are known, not its picture")

    def read(self, size: tuple[int, int], only: Collection[int] | None) -> Iterator[Batch]:
        """Yield numbers and pictures [b, 3, y, x], of all images or of these alone.

        Args:
            size: Rows and columns that the model reads.

        Raises:
            UsageError: the pictures have another size, or hold NaN or infinity.
            CliptoolsError: the batches are not those of the first pass.
        """
        start = 0
        for pictures, batch in self._tensors():
            if tuple(pictures.shape[2:]) != size:
                raise UsageError(f"images: pictures of {list(pictures.shape[2:])} pixels; the model reads {list(size)}")
            if not bool(pictures.sum().isfinite() or pictures.isfinite().all()):
                first = int((~pictures.flatten(1).isfinite().all(1)).nonzero()[0])
                raise UsageError(
                    f"images: picture {start + first} holds NaN or infinity; expected the numbers that model.transform makes"
                )
            numbers = range(start, start + len(pictures))
            start += len(pictures)
            if start > len(self):
                raise CliptoolsError(f"images: more than {len(self)} images in this pass; give the same batches in each one")
            if self.watch is not None:
                self.watch(numbers, batch)
            rows = [row for row, number in enumerate(numbers) if only is None or number in only]
            if rows:
                yield [numbers[row] for row in rows], pictures[rows]

    def _count(self) -> int:
        """Return the number of images: that of the data set if all of it is read in order, else by a pass over the batches."""
        loader = self._batches
        if (
            isinstance(loader, DataLoader)
            and type(loader.batch_sampler) is BatchSampler
            and type(loader.sampler) is SequentialSampler
        ):
            whole = loader.batch_sampler.batch_size
            return len(loader) * whole if loader.drop_last else len(loader.sampler)
        return sum(len(pictures) for pictures, _ in self._tensors())

    def _tensors(self) -> Iterator[tuple[Float[Tensor, "b 3 y x"], Any]]:
        """Yield the pictures of every batch, and the batch.

        Raises:
            UsageError: a batch has no pictures.
            CliptoolsError: a batch is not that of the first pass.
        """
        for number, batch in enumerate(self._batches):
            pictures = _pictures_of(batch, number)
            total = float(pictures.sum(dtype=torch.float64))
            if number == len(self._sums):
                self._sums.append(total)
            elif not math.isclose(total, self._sums[number], rel_tol=1e-9, abs_tol=1e-9) and math.isfinite(total):
                raise CliptoolsError(
                    f"images: batch {number} differs from that of an earlier pass; give the same batches in each pass, "
                    "without shuffling and random transforms"
                )
            yield pictures, batch


def _pictures_of(batch: Any, number: int) -> Float[Tensor, "b 3 y x"]:
    """Return the pictures of a batch, without what is beside them.

    Raises:
        UsageError: there are none.
    """
    pictures = batch
    if isinstance(batch, Mapping):
        fitting = [value for value in batch.values() if isinstance(value, Tensor) and value.ndim == 4]
        pictures = fitting[0] if len(fitting) == 1 else batch
    elif isinstance(batch, tuple | list) and batch:
        pictures = batch[0]
    if not isinstance(pictures, Tensor):
        raise UsageError(f"images: batch {number} is of type {type(batch).__name__} without a tensor; {EXPECTED}")
    if pictures.ndim != 4 or pictures.shape[1] != 3 or not pictures.is_floating_point():
        raise UsageError(f"images: batch {number} has a tensor {pictures.dtype} {list(pictures.shape)}; {EXPECTED}")
    return pictures
