"""float64 where it exists: on the CPU and on CUDA, but not on Apple's MPS, whose numbers go to the CPU for it.

Batches that become smaller where the device has not the memory for them.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from cliptools.console import warn
from cliptools.errors import SingleItemError, out_of_memory

WITHOUT_FLOAT64 = ("mps",)  # these also lack the decompositions of torch.linalg


def home(x: Tensor) -> Tensor:
    """The tensor itself, or a copy on the CPU where its device has no float64."""
    return x.cpu() if x.device.type in WITHOUT_FLOAT64 else x


def exact(x: Tensor) -> Tensor:
    """The tensor in float64, on its own device where that has it, else on the CPU."""
    return home(x).double()


def back(x: Tensor, like: Tensor) -> Tensor:
    """The tensor in the type of another, and then on its device."""
    return x.to(like.dtype).to(like.device)


def device_for(x: Tensor) -> torch.device:
    """The device of `home(x)`."""
    return torch.device("cpu") if x.device.type in WITHOUT_FLOAT64 else x.device


Item = TypeVar("Item")
Result = TypeVar("Result")
Pictures = TypeVar("Pictures", Tensor, Tensor | None)


@dataclass
class Limit:
    """The largest batch that the device has room for, as far as is known."""

    most: int | None = None
    """None while nothing has failed."""


left_off: set[str] = set()
"""Kinds of batches that were not read to their end: where memory has run out, what was done with their results was too much."""


def in_halves(
    batches: Iterable[tuple[Sequence[Item], Pictures]],
    work: Callable[[Sequence[Item], Pictures], Result],
    kind: str = "images",
    limit: Limit | None = None,
) -> Iterator[tuple[Sequence[Item], Result]]:
    """Results of `work` for each batch, or for parts of it: half of what the device ran out of memory with, from then on.

    Args:
        batches: Items, and their tensor [b, ...]; None for items without one.
        work: Must change nothing before it can no longer fail.
        kind: The items, in the warning.
        limit: Is kept up to date, for callers that come back with further batches. None: a limit of this call's own.

    Raises:
        SingleItemError: a single item is too much.
        RuntimeError: `work` fails of something else.
    """
    limit = Limit() if limit is None else limit
    try:
        yield from _parts(batches, work, kind, limit)
    except GeneratorExit:
        left_off.add(kind)
        raise


def _parts(
    batches: Iterable[tuple[Sequence[Item], Pictures]],
    work: Callable[[Sequence[Item], Pictures], Result],
    kind: str,
    limit: Limit,
) -> Iterator[tuple[Sequence[Item], Result]]:
    for items, pictures in batches:
        start = 0
        while start < len(items):
            size = len(items) - start if limit.most is None else min(limit.most, len(items) - start)
            some = slice(start, start + size)
            result = _tried(work, items[some], pictures if size == len(items) or pictures is None else pictures[some], kind)
            if result is None:
                limit.most = size // 2
                warn(f"out of memory with {size} {kind} at a time; going on with {limit.most}")
                continue
            yield items[some], result[0]
            start += size


def _tried(
    work: Callable[[Sequence[Item], Pictures], Result], items: Sequence[Item], pictures: Pictures, kind: str
) -> tuple[Result] | None:
    """The result; None where it was too much. A function of its own, so that nothing holds on to what the failure held."""
    try:
        return (work(items, pictures),)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        if len(items) == 1:
            raise SingleItemError(str(error), kind.removesuffix("s")) from error
    release_cached_memory()
    return None


def release_cached_memory() -> None:
    """Give back to the device what torch holds of its memory without using it; nothing on a machine without one."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
