"""Batches of preprocessed images, decoded in threads a little ahead of their use."""

import contextlib
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from cliptools.ground.errors import ImageError
from cliptools.ground.images import ImageSource
from cliptools.ground.progress import warn
from cliptools.ground.scene_images import SceneSource

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
