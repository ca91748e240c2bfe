"""Images as the functions of the front take them: paths, pictures, arrays and batches, numbered and read in batches."""

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cliptools.errors import UsageError
from cliptools.front.prepared import Pictures, PreparedImages
from cliptools.images.loader import Batch, ImageSource, Skipped, choose, load_batches, load_items, open_images
from cliptools.images.relocate import thumbnail_tensors
from cliptools.models.load import LoadedModel
from cliptools.models.unusable import Screen
from cliptools.streaming.ranking import canonical_order

Images = str | os.PathLike[str] | Image.Image | np.ndarray | Tensor | ImageSource | Iterable[Any]
"""Images of any kind that `open_any` takes."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How images are read; it does not change results."""

    batch_size: int = 32
    workers: int | None = None
    """Threads that decode images; None for the number of cores, at most 8."""
    strict: bool = False
    """An unreadable or unusable image is an error instead of a warning."""


def open_any(images: Images) -> ImageSource:
    """Return images of any kind as one source.

    Args:
        images: Paths (files, folders, globs, tar archives); pictures of Pillow or arrays uint8 [y, x, 3]; an ImageSource; or
            batches of preprocessed tensors [b, 3, y, x], such as a DataLoader gives. One path, picture or tensor may stand
            alone. An iterator is read to its end and kept in memory.

    Raises:
        UsageError: items of another kind, or of several kinds.
        CliptoolsError: a path does not exist or holds no images.
    """
    if isinstance(images, str | os.PathLike):
        return open_images([os.fspath(images)])
    if isinstance(images, ImageSource):
        return images
    if isinstance(images, Image.Image | Tensor):
        images = [images]
    elif isinstance(images, np.ndarray):
        images = list(images) if images.ndim == 4 else [images]
    elif isinstance(images, Iterator):
        images = list(images)
    if not isinstance(images, list | tuple):
        if not isinstance(images, Iterable):
            raise UsageError(f"images: expected paths, pictures, arrays or batches, found {type(images).__name__}")
        return PreparedImages(images)
    if not images:
        raise UsageError("images: an empty list")
    for kinds, source in (((str, os.PathLike), _open_paths), ((Image.Image, np.ndarray), Pictures)):
        if isinstance(images[0], kinds):
            if other := next((n for n, image in enumerate(images) if not isinstance(image, kinds)), None):
                first, second = type(images[0]).__name__, type(images[other]).__name__
                raise UsageError(f"images: item 0 is of type {first}, item {other} of type {second}; give images of one kind")
            return source(images)
    return PreparedImages(images)


def _open_paths(paths: Sequence[str | os.PathLike[str]]) -> ImageSource:
    return open_images([os.fspath(path) for path in paths])


def read_batches(
    source: ImageSource, order: Sequence[int], model: LoadedModel, reading: Reading, skipped: Skipped
) -> Iterator[Batch]:
    """Yield indices and preprocessed pictures [b, 3, y, x] of these images; batches that are preprocessed keep their order.

    Args:
        skipped: Collects the unreadable images.

    Raises:
        ImageError: an image cannot be read, with `Reading.strict`.
    """
    if isinstance(source, PreparedImages):
        visual: Any = model.clip.visual
        size = visual.image_size
        return source.read(tuple(size) if isinstance(size, tuple | list) else (size, size), frozenset(order))
    return load_batches(
        source,
        order,
        model.transform,
        batch_size=reading.batch_size,
        workers=reading.workers,
        strict=reading.strict,
        skipped=skipped,
    )


def read_for_models(
    source: ImageSource, order: Sequence[int], models: Sequence[LoadedModel], reading: Reading, skipped: Skipped
) -> Iterator[tuple[list[int], tuple[Tensor, ...]]]:
    """Yield indices and, for each of the models, the pictures [b, 3, y, x] as it reads them; every image is decoded once.

    Args:
        skipped: Collects the unreadable images.

    Raises:
        UsageError: the images are preprocessed already, and there is more than one model.
        ImageError: an image cannot be read, with `Reading.strict`.
    """
    if len(models) == 1:
        return ((indices, (pictures,)) for indices, pictures in read_batches(source, order, models[0], reading, skipped))
    if isinstance(source, PreparedImages):
        raise UsageError("judge: these images are preprocessed for the bundle's model; give paths, pictures or arrays")
    transforms = [model.transform for model in models]
    loaded = load_items(
        source, order, lambda picture: [transform(picture) for transform in transforms], batch_size=reading.batch_size,
        workers=reading.workers, strict=reading.strict, skipped=skipped,
    )  # fmt: skip
    return ((indices, tuple(torch.stack(column) for column in zip(*items, strict=True))) for indices, items in loaded)


@dataclass(frozen=True, kw_only=True)
class NumberedImages:
    """Images with numbers that do not depend on the order of their listing; a subset shares numbers and skipped images."""

    source: ImageSource
    indices: Sequence[int]
    """Position in the source of each number."""
    order: Sequence[int]
    """Numbers of the images to read, in the order of reading."""
    reading: Reading
    skipped: Skipped = field(default_factory=Skipped)

    @property
    def names(self) -> list[str]:
        """Return the names by number."""
        return [self.source.names[index] for index in self.indices]

    def batches(self, model: LoadedModel, only: Collection[int] | None = None) -> Iterator[Batch]:
        """Yield numbers and preprocessed pictures [b, 3, y, x] in the order of reading; with `only`, of these numbers alone."""
        number = {index: rank for rank, index in enumerate(self.indices)}
        order = [self.indices[rank] for rank in self.order if only is None or rank in only]
        loaded = read_batches(self.source, order, model, self.reading, self.skipped)
        return (([number[index] for index in indices], pictures) for indices, pictures in loaded)

    def screen(self) -> Screen[int]:
        """Return a screen that excludes images without usable numbers and counts them as skipped."""
        return Screen(lambda number: self.source.names[self.indices[number]], self.skipped.add, self.reading.strict)

    def thumbnails(self, numbers: Iterable[int], side: int) -> dict[str, np.ndarray]:
        """Return tensors with small JPEGs of the images with these numbers."""
        return thumbnail_tensors(self.source, (self.indices[number] for number in numbers), side)


def number_images(source: ImageSource, limit: int | None, sample: int | None, seed: int, reading: Reading) -> NumberedImages:
    """Return the images that `limit` or `sample` choose, numbered by name, in an order of reading drawn with the seed."""
    selected = choose(source, limit, sample, seed)
    ranks, order = canonical_order([source.names[i] for i in selected], seed)
    return NumberedImages(source=source, indices=[selected[i] for i in ranks], order=order, reading=reading)
