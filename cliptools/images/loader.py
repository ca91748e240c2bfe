"""Open images and load them in batches.

* `open_images` lists the images of PATH arguments in a fixed order, as an `ImageSource` that loads each image on request.
* `load_batches` yields preprocessed batches, decoded in threads slightly ahead of their use; `load_items` yields what another
  transform makes of the pictures.
* `fitted_tensor` and `same_shapes` keep whole pictures: resized with their aspect to whole patches, in batches of one shape.

By hand, because torch's DataLoader neither decodes in threads nor leaves out and counts images that cannot be read.
"""

import contextlib
import hashlib
import os
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BufferedIOBase
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from cliptools.console import warn
from cliptools.emoji.render import SceneSource
from cliptools.errors import ImageError, UsageError
from cliptools.images.decode import decode
from cliptools.images.listing import ListedImage, find
from cliptools.io.header import digest

MOST_BYTES = 1 << 29  # size of a picture in an archive, which is read into memory at once
MOST_WORKERS = 8
AHEAD = 2  # number of batches decoded in advance

Batch = tuple[list[int], Float[Tensor, "b 3 y x"]]
Transform = Callable[[Image.Image], Tensor]
Item = TypeVar("Item")


@runtime_checkable
class ImageSource(Protocol):
    """Images in a fixed order; each can be loaded any number of times and from several threads."""

    @property
    def names(self) -> Sequence[str]:
        """The names of the images, all different."""

    def __len__(self) -> int: ...

    def load(self, index: int) -> Image.Image:
        """Load image number `index` as an upright RGB image.

        Raises:
            ImageError: the image cannot be read; the message gives the reason without the image's name.
        """


class ListedImages:
    """An ImageSource of files and archive members."""

    def __init__(self, images: Sequence[ListedImage]) -> None:
        self.names: Sequence[str] = unambiguous(images)
        self._places = [image.place for image in images]

    def __len__(self) -> int:
        return len(self._places)

    def load(self, index: int) -> Image.Image:
        """Implements ImageSource.load."""
        place = self._places[index]
        if isinstance(place, str):
            return decode(place)
        if place.size > MOST_BYTES:
            raise ImageError(f"{place.size} bytes in an archive, where at most {MOST_BYTES} are read")
        try:
            stream = place.read()
        except OSError as error:
            raise ImageError((error.strerror or str(error)).lower()) from None
        return decode(stream)

    def content(self, index: int) -> bytes | None:
        """Return the digest of an image's bytes; None if they cannot be read."""
        place = self._places[index]
        try:
            with Path(place).open("rb") if isinstance(place, str) else place.read() as stream:
                return hashlib.file_digest(stream, "blake2b").digest()
        except OSError:
            return None


def open_images(paths: Sequence[str], stdin: BufferedIOBase | None = None) -> ListedImages:
    """Open the images that PATH arguments name: files, folders, globs, tar archives, `-` for a tar on standard input.

    Args:
        stdin: Stream to read for `-`; standard input if None.

    Raises:
        UsageError: no path is given, `-` is given twice, or `-` is given while standard input is a terminal.
        CliptoolsError: a path does not exist, an archive is damaged, or there is no image at all.
    """
    return ListedImages(find(paths, stdin))


def unambiguous(images: Sequence[ListedImage]) -> list[str]:
    """Return names that are all different: relative to the bases if possible, else with the bases, numbered if necessary."""
    names = [image.name for image in images]
    if len(set(names)) < len(names):
        names = [str(PurePosixPath(image.base) / image.name) for image in images]
    counts: Counter[str] = Counter()
    numbered = []
    for name in names:
        counts[name] += 1
        numbered.append(name if counts[name] == 1 else f"{name}#{counts[name]}")
    return numbered


def list_digest(names: Sequence[str]) -> str:
    """Return the digest of an image list for a bundle's header: a hash of the sorted names, independent of their order."""
    return digest(*sorted(names))


def choose(source: ImageSource, limit: int | None, sample: int | None, seed: int) -> list[int]:
    """Return the indices of the images to use, in order: all, the first `limit`, or `sample` drawn from the whole list.

    Raises:
        UsageError: both are given, or one of them is below 1.
    """
    if limit is not None and sample is not None:
        raise UsageError("--limit takes the first images and --sample draws some: give one of them")
    for option, number in (("--limit", limit), ("--sample", sample)):
        if number is not None and number < 1:
            raise UsageError(f"{option} {number}: expected 1 or more")
    total = len(source)
    if sample is not None and sample < total:
        return sorted(np.random.default_rng(seed).choice(total, sample, replace=False).tolist())
    return list(range(total if limit is None else min(limit, total)))


def default_workers(source: ImageSource) -> int:
    """Return the default number of decoding threads: one per core, at most MOST_WORKERS; 0 for scenes, which hold the GIL."""
    return 0 if isinstance(source, SceneSource) else min(os.cpu_count() or 1, MOST_WORKERS)


@dataclass
class Skipped:
    """Unreadable images, each counted once, however often it was tried."""

    reasons: dict[str, str] = field(default_factory=dict)
    """Reason by image name, in the order of their first failure."""

    def __len__(self) -> int:
        return len(self.reasons)

    def add(self, name: str, reason: str) -> None:
        """Count an image and name it on standard error, the first time it fails."""
        if name not in self.reasons:
            self.reasons[name] = reason
            warn(f"{name}: skipped, {reason}")


def load_batches(
    source: ImageSource,
    order: Sequence[int],
    transform: Transform,
    *,
    batch_size: int,
    workers: int | None,
    strict: bool,
    skipped: Skipped,
) -> Iterator[Batch]:
    """Yield the images of `order`, in that order, in batches of at most `batch_size`: their indices and [b, 3, y, x].

    Args:
        transform: The model's preprocessing, from a picture to float [3, y, x].

    The other arguments and the errors are those of load_items.
    """
    items = load_items(source, order, transform, batch_size=batch_size, workers=workers, strict=strict, skipped=skipped)
    with contextlib.closing(items):
        for indices, tensors in items:
            yield indices, torch.stack(tensors)  # (b, 3, y, x)


def load_items(
    source: ImageSource,
    order: Sequence[int],
    transform: Callable[[Image.Image], Item],
    *,
    batch_size: int,
    workers: int | None,
    strict: bool,
    skipped: Skipped,
) -> Generator[tuple[list[int], list[Item]], None, None]:
    """Yield the images of `order`, in that order, in batches of at most `batch_size`: their indices and their transforms.

    Unreadable images are left out, so that a batch may be smaller; a batch with no image left is not yielded.
    Decoding and transform run in `workers` threads (Pillow releases the GIL), or in this thread if `workers` is 0.

    Args:
        transform: Function of a picture; it is called once for each.
        workers: Number of threads; None for default_workers.
        strict: True if an unreadable image is an error.
        skipped: Collects the unreadable images.

    Raises:
        ImageError: with `strict`, an image cannot be read; the message names it.
    """

    def load(index: int) -> Item | ImageError:
        try:
            return transform(source.load(index))
        except ImageError as error:
            return error

    chunks = (order[start : start + batch_size] for start in range(0, len(order), batch_size))
    workers = default_workers(source) if workers is None else workers
    chunk_results = _run_inline(load, chunks) if workers == 0 else _run_ahead(load, chunks, workers)
    with contextlib.closing(chunk_results):  # a consumer that stops early stops the threads
        for chunk, results in chunk_results:
            indices: list[int] = []
            items: list[Item] = []
            for index, result in zip(chunk, results, strict=True):
                if not isinstance(result, ImageError):
                    indices.append(index)
                    items.append(result)
                elif strict:
                    raise ImageError(f"{source.names[index]}: {result}") from None
                else:
                    skipped.add(source.names[index], str(result))
            if indices:
                yield indices, items


def _run_inline(
    work: Callable[[int], Item], chunks: Iterator[Sequence[int]]
) -> Generator[tuple[Sequence[int], Iterator[Item]], None, None]:
    for chunk in chunks:
        yield chunk, map(work, chunk)


def _run_ahead(
    work: Callable[[int], Item], chunks: Iterator[Sequence[int]], workers: int
) -> Generator[tuple[Sequence[int], Iterator[Item]], None, None]:
    """Yield each chunk with its results, while threads work on the next chunks."""
    threads = torch.get_num_threads()  # this call fixes the count for this thread; later calls elsewhere concern other threads
    pool = ThreadPoolExecutor(workers, thread_name_prefix="images", initializer=limit_torch_threads)
    queue: deque[tuple[Sequence[int], list[Future[Item]]]] = deque()
    try:
        for chunk in chunks:
            queue.append((chunk, [pool.submit(work, index) for index in chunk]))
            if len(queue) > AHEAD:
                yield _next_chunk(queue)
        while queue:
            yield _next_chunk(queue)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(threads)


def limit_torch_threads() -> None:
    """Limit torch to one thread in a decoding thread.

    Matrix products of the main thread use every core and wait for the slowest, which many further threads would delay.
    """
    torch.set_num_threads(1)


def _next_chunk(queue: deque[tuple[Sequence[int], list[Future[Item]]]]) -> tuple[Sequence[int], Iterator[Item]]:
    chunk, futures = queue.popleft()
    return chunk, (future.result() for future in futures)


def fitted_size(width: int, height: int, short: int, patch: tuple[int, int]) -> tuple[int, int]:
    """Return width and height in whole patches, with the shorter side near `short` pixels and the aspect nearly kept.

    >>> fitted_size(640, 480, 224, (32, 32))
    (288, 224)
    """
    scale = short / min(width, height)
    down, across = patch
    return max(1, round(width * scale / across)) * across, max(1, round(height * scale / down)) * down


def fitted_tensor(
    picture: Image.Image, short: int, patch: tuple[int, int], preprocessing: dict[str, Any]
) -> Float[Tensor, "3 y x"]:
    """Return the whole picture, uncropped, resized to whole patches and normalised as in the model's preprocessing."""
    resample = Image.Resampling[preprocessing["interpolation"].upper()]
    size = fitted_size(*picture.size, short, patch)
    resized = picture if picture.size == size else picture.resize(size, resample)
    pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 255  # (3, y, x)
    mean, deviation = (torch.tensor(preprocessing[key])[:, None, None] for key in ("mean", "std"))
    return (pixels - mean) / deviation


def same_shapes(items: Iterable[tuple[Item, Tensor | None]], batch_size: int) -> Iterator[tuple[list[Item], Tensor | None]]:
    """Yield batches of at most `batch_size` consecutive items of one shape; an item without a tensor is yielded alone."""
    batch: list[Item] = []
    tensors: list[Tensor] = []
    for item, tensor in items:
        if batch and (tensor is None or len(batch) == batch_size or tensors[0].shape != tensor.shape):
            yield batch, torch.stack(tensors)  # (b, 3, y, x)
            batch, tensors = [], []
        if tensor is None:
            yield [item], None
            continue
        batch.append(item)
        tensors.append(tensor)
    if batch:
        yield batch, torch.stack(tensors)
