"""Batches that become smaller where the device has not the memory for them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from cliptools.ground.counted import count_of
from cliptools.ground.errors import out_of_memory
from cliptools.ground.progress import warn

Item = TypeVar("Item")
Result = TypeVar("Result")
Pictures = TypeVar("Pictures", Tensor, Tensor | None)


def in_halves(
    batches: Iterable[tuple[Sequence[Item], Pictures]], work: Callable[[Sequence[Item], Pictures], Result]
) -> Iterator[tuple[Sequence[Item], Result]]:
    """What `work` makes of each batch, or of parts of it: half of what the device ran out of memory with, from then on.

    Args:
        batches: Whatever tells images apart, and their pictures [b, 3, y, x]; None at most for one image by itself.
        work: Must change nothing before it can no longer fail.

    Raises:
        RuntimeError: a single picture is too much, or `work` fails of something else.
    """
    most: int | None = None
    for items, pictures in batches:
        start = 0
        while start < len(items):
            size = len(items) - start if most is None else min(most, len(items) - start)
            some = slice(start, start + size)
            result = _tried(work, items[some], pictures if size == len(items) or pictures is None else pictures[some])
            if result is None:
                most = size // 2
                warn(f"out of memory with {count_of(size, 'image')} at a time; going on with {most}")
                continue
            yield items[some], result[0]
            start += size


def _tried(work: Callable[[Sequence[Item], Pictures], Result], items: Sequence[Item], pictures: Pictures) -> tuple[Result] | None:
    """The result; None where it was too much. A function of its own, so that nothing holds on to what the failure held."""
    try:
        return (work(items, pictures),)
    except (RuntimeError, MemoryError) as error:
        if len(items) == 1 or not out_of_memory(error):
            raise
    torch.cuda.empty_cache()  # does nothing elsewhere
    return None
