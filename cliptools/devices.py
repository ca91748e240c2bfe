"""Limits of devices: no float64 on Apple's MPS (tensors go to the CPU), and memory (a batch is retried in halves)."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from cliptools.console import warn
from cliptools.errors import SingleItemError, out_of_memory

WITHOUT_FLOAT64 = ("mps",)  # device types; they also lack the decompositions of torch.linalg


def to_float64_device(x: Tensor) -> Tensor:
    """Return the tensor, as a copy on the CPU if its device has no float64."""
    return x.cpu() if x.device.type in WITHOUT_FLOAT64 else x


def to_float64(x: Tensor) -> Tensor:
    """Return the tensor in float64, on its own device if that has float64, else on the CPU."""
    return to_float64_device(x).double()


def to_like(x: Tensor, like: Tensor) -> Tensor:
    """Return the tensor in the type of another tensor, on that tensor's device."""
    return x.to(like.dtype).to(like.device)


def float64_device(x: Tensor) -> torch.device:
    """Return the device of `to_float64_device(x)`."""
    return torch.device("cpu") if x.device.type in WITHOUT_FLOAT64 else x.device


Item = TypeVar("Item")
Result = TypeVar("Result")
BatchTensor = TypeVar("BatchTensor", Tensor, Tensor | None, tuple[Tensor, ...])


@dataclass
class Limit:
    """The largest batch known to fit into the memory of the device."""

    largest: int | None = None
    """None until a batch has failed."""


interrupted_kinds: set[str] = set()
"""Kinds of batches whose generator was closed early: if memory ran out at that time, the use of the results needed it."""


def in_halves(
    batches: Iterable[tuple[Sequence[Item], BatchTensor]],
    work: Callable[[Sequence[Item], BatchTensor], Result],
    kind: str = "images",
    limit: Limit | None = None,
) -> Iterator[tuple[Sequence[Item], Result]]:
    """Yield the results of `work` per batch; after running out of memory, retry in halves and keep to the smaller size.

    Args:
        batches: Items with their tensor [b, ...], or a tuple of such tensors; None for items without a tensor.
        work: Must not change any state before the last step that can fail.
        kind: Name of the items in the warning.
        limit: Updated, so that the caller can pass it on with further batches [default: a limit for this call only].

    Raises:
        SingleItemError: a single item does not fit into memory.
        RuntimeError: `work` fails for another reason.
    """
    limit = Limit() if limit is None else limit
    try:
        yield from _parts(batches, work, kind, limit)
    except GeneratorExit:
        interrupted_kinds.add(kind)
        raise


def _parts(
    batches: Iterable[tuple[Sequence[Item], BatchTensor]],
    work: Callable[[Sequence[Item], BatchTensor], Result],
    kind: str,
    limit: Limit,
) -> Iterator[tuple[Sequence[Item], Result]]:
    for items, batch in batches:
        start = 0
        while start < len(items):
            size = len(items) - start if limit.largest is None else min(limit.largest, len(items) - start)
            part = slice(start, start + size)
            tensor = batch if size == len(items) else _part(batch, part)  # (b, ...) -> (size, ...)
            result = _try_work(work, items[part], tensor, kind)
            if result is None:
                limit.largest = size // 2
                warn(f"out of memory with {size} {kind} at a time; continuing with {limit.largest}")
                continue
            yield items[part], result[0]
            start += size


def _part(batch: BatchTensor, rows: slice) -> BatchTensor:
    """Return some rows of a tensor, or of each tensor of a tuple."""
    if batch is None:
        return batch
    return tuple(tensor[rows] for tensor in batch) if isinstance(batch, tuple) else batch[rows]


def _try_work(
    work: Callable[[Sequence[Item], BatchTensor], Result], items: Sequence[Item], tensor: BatchTensor, kind: str
) -> tuple[Result] | None:
    """Return the result in a tuple, or None if memory ran out.

    This is a function of its own so that no local variable keeps the tensors of the failed call alive.
    """
    try:
        return (work(items, tensor),)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        if len(items) == 1:
            raise SingleItemError(str(error), kind.removesuffix("s")) from error
    release_cached_memory()
    return None


def release_cached_memory() -> None:
    """Return memory that torch caches but does not use to the device; no effect without an accelerator."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
