"""Images to work on: found in files, folders, globs and tar archives, in a fixed order, each to be read again at any time.

Batches of preprocessed images, decoded in threads a little ahead of their use.

Whole pictures as a tower takes them: the aspect kept, sides in whole patches, in batches of one shape.
"""

import contextlib
import os
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BufferedIOBase
from pathlib import PurePosixPath
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
from cliptools.images.listing import Found, find
from cliptools.io.header import digest

MOST_BYTES = 1 << 29  # of a picture in an archive, which is read whole


@runtime_checkable
class ImageSource(Protocol):
    """Images in a fixed order, each readable any number of times and from several threads."""

    @property
    def names(self) -> Sequence[str]:
        """Their names, all different."""

    def __len__(self) -> int: ...

    def load(self, index: int) -> Image.Image:
        """Image number `index`, decoded, RGB, upright.

        Raises:
            ImageError: why it cannot be read, in a few words that do not repeat its name.
        """


class ListedImages:
    """An ImageSource over files and members of archives."""

    def __init__(self, found: Sequence[Found]) -> None:
        self.names: Sequence[str] = unambiguous(found)
        self._places = [one.place for one in found]

    def __len__(self) -> int:
        return len(self._places)

    def load(self, index: int) -> Image.Image:
        """See ImageSource."""
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


def open_images(paths: Sequence[str], stdin: BufferedIOBase | None = None) -> ListedImages:
    """The images that PATH arguments name: files, folders, globs, tar archives, `-` for a tar on standard input.

    Args:
        stdin: What `-` reads; standard input unless given.

    Raises:
        UsageError: no path at all, `-` twice, or `-` where standard input is a terminal.
        CliptoolsError: a path that does not exist, a damaged archive, or no image in any of them.
    """
    return ListedImages(find(paths, stdin))


def unambiguous(found: Sequence[Found]) -> list[str]:
    """Names that are all different: relative to the bases if that suffices, else with the bases as given, numbered if need be."""
    names = [one.name for one in found]
    if len(set(names)) < len(names):
        names = [str(PurePosixPath(one.base) / one.name) for one in found]
    times: Counter[str] = Counter()
    numbered = []
    for name in names:
        times[name] += 1
        numbered.append(name if times[name] == 1 else f"{name}#{times[name]}")
    return numbered


def list_digest(names: Sequence[str]) -> str:
    """What a bundle's header calls its list of images: a hash over the sorted names, so that order does not count."""
    return digest(*sorted(names))


def choose(source: ImageSource, limit: int | None, sample: int | None, seed: int) -> list[int]:
    """Which images to use, in list order: all, the first `limit`, or `sample` of them drawn over the whole list.

    Raises:
        UsageError: both given, or less than one asked for.
    """
    if limit is not None and sample is not None:
        raise UsageError("--limit takes the first images and --sample draws some: give one of them")
    for option, number in (("--limit", limit), ("--sample", sample)):
        if number is not None and number < 1:
            raise UsageError(f"{option} {number}: expected 1 or more")
    everything = len(source)
    if sample is not None and sample < everything:
        return sorted(np.random.default_rng(seed).choice(everything, sample, replace=False).tolist())
    return list(range(everything if limit is None else min(limit, everything)))


MOST_WORKERS = 8
AHEAD = 2  # batches decoded before they are asked for

Batch = tuple[list[int], Float[Tensor, "b 3 y x"]]
Transform = Callable[[Image.Image], Tensor]


def default_workers(source: ImageSource) -> int:
    """Threads that decode if none are asked for: one a core, at most MOST_WORKERS; none where drawing holds the interpreter."""
    return 0 if isinstance(source, SceneSource) else min(os.cpu_count() or 1, MOST_WORKERS)


@dataclass
class Skipped:
    """Images that could not be read, each counted once however often it was tried."""

    reasons: dict[str, str] = field(default_factory=dict)
    """Reason by name, in the order met."""

    def __len__(self) -> int:
        return len(self.reasons)

    def add(self, name: str, reason: str) -> None:
        """Count one and name it on standard error, the first time."""
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
    """The images of `order`, in that order, in batches of at most `batch_size`: their indices and [b, 3, y, x].

    Images that cannot be read are left out, so that a batch may be smaller; one with none left is not given at all.
    Decoding and transform run in `workers` threads (Pillow lets go of the interpreter's lock) or, with 0, right here.

    Args:
        transform: The model's preprocessing: a picture to float [3, y, x].
        workers: None: default_workers.
        strict: Whether an unreadable image ends it all.
        skipped: Is told of unreadable images.

    Raises:
        ImageError: with `strict`, the first image that cannot be read, by name.
    """

    def one(index: int) -> Tensor | ImageError:
        try:
            return transform(source.load(index))
        except ImageError as error:
            return error

    chunks = (order[start : start + batch_size] for start in range(0, len(order), batch_size))
    workers = default_workers(source) if workers is None else workers
    worked = _in_line(one, chunks) if workers == 0 else _ahead(one, chunks, workers)
    with contextlib.closing(worked):  # a reader that stops early stops the threads
        for chunk, results in worked:
            read: list[int] = []
            tensors: list[Tensor] = []
            for index, result in zip(chunk, results, strict=True):
                if isinstance(result, Tensor):
                    read.append(index)
                    tensors.append(result)
                elif strict:
                    raise ImageError(f"{source.names[index]}: {result}") from None
                else:
                    skipped.add(source.names[index], str(result))
            if read:
                yield read, torch.stack(tensors)  # (b, 3, y, x)


Work = Callable[[int], Tensor | ImageError]
Chunk = tuple[Sequence[int], Iterator[Tensor | ImageError]]


def _in_line(work: Work, chunks: Iterator[Sequence[int]]) -> Generator[Chunk, None, None]:
    for chunk in chunks:
        yield chunk, map(work, chunk)


def _ahead(work: Work, chunks: Iterator[Sequence[int]], workers: int) -> Generator[Chunk, None, None]:
    """Each chunk with its results, while threads work on the next ones."""
    threads = torch.get_num_threads()  # from now on this thread's own: what others set concerns them, and threads yet to come
    pool = ThreadPoolExecutor(workers, thread_name_prefix="images", initializer=alone)
    waiting: deque[tuple[Sequence[int], list[Future[Tensor | ImageError]]]] = deque()
    try:
        for chunk in chunks:
            waiting.append((chunk, [pool.submit(work, index) for index in chunk]))
            if len(waiting) > AHEAD:
                yield _taken(waiting)
        while waiting:
            yield _taken(waiting)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(threads)


def alone() -> None:
    """Of a thread that decodes: no threads of torch's own beside it.

    Products run on every core and wait for their slowest part, which a crowd of threads would hold up.
    """
    torch.set_num_threads(1)


def _taken(waiting: deque[tuple[Sequence[int], list[Future[Tensor | ImageError]]]]) -> Chunk:
    chunk, futures = waiting.popleft()
    return chunk, (future.result() for future in futures)


Item = TypeVar("Item")


def fitted_size(width: int, height: int, short: int, patch: tuple[int, int]) -> tuple[int, int]:
    """Width and height with the shorter side near `short` pixels and the aspect kept, as nearly as whole patches allow.

    >>> fitted_size(640, 480, 224, (32, 32))
    (288, 224)
    """
    scale = short / min(width, height)
    down, across = patch
    return max(1, round(width * scale / across)) * across, max(1, round(height * scale / down)) * down


def fitted_tensor(
    picture: Image.Image, short: int, patch: tuple[int, int], preprocessing: dict[str, Any]
) -> Float[Tensor, "3 y x"]:
    """The whole picture, resized to whole patches and normalised as the model's preprocessing says; nothing is cropped."""
    resample = Image.Resampling[preprocessing["interpolation"].upper()]
    size = fitted_size(*picture.size, short, patch)
    resized = picture if picture.size == size else picture.resize(size, resample)
    pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 255  # (3, y, x)
    mean, deviation = (torch.tensor(preprocessing[key])[:, None, None] for key in ("mean", "std"))
    return (pixels - mean) / deviation


def same_shapes(items: Iterable[tuple[Item, Tensor | None]], batch_size: int) -> Iterator[tuple[list[Item], Tensor | None]]:
    """Batches of neighbours of one shape, at most `batch_size`, in order; an item without a tensor goes by itself."""
    waiting: list[Item] = []
    tensors: list[Tensor] = []
    for item, tensor in items:
        if waiting and (tensor is None or len(waiting) == batch_size or tensors[0].shape != tensor.shape):
            yield waiting, torch.stack(tensors)
            waiting, tensors = [], []
        if tensor is None:
            yield [item], None
            continue
        waiting.append(item)
        tensors.append(tensor)
    if waiting:
        yield waiting, torch.stack(tensors)
