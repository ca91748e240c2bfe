"""Where the tensors of a safetensors file lie, as its header says: one after the other, without holes, none over another."""

import itertools
import math
from typing import Any, NamedTuple

from cliptools.ground.errors import StreamError

SIZES = {
    "F64": 8, "F32": 4, "F16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
"""Bytes of a number, of the types that numpy knows too."""
MOST_SIDES = 8


class Place(NamedTuple):
    """A tensor's type and shape, and its bytes, counted from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def layout(header: dict[str, Any], name: str) -> dict[str, Place]:
    """Where each tensor of a safetensors header lies.

    Raises:
        StreamError: an entry that is malformed or contradicts itself; tensors that overlap, or bytes that are of none.
    """
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise StreamError(f"{name}: damaged file (its metadata should be texts by name)")
    places = {key: _place(entry, key, name) for key, entry in header.items() if key != "__metadata__"}
    end, before = 0, "the header"
    for key, place in sorted(places.items(), key=lambda item: (item[1].start, item[1].stop)):
        if place.start != end:
            found = f"overlaps {before}" if place.start < end else f"leaves {place.start - end} bytes unused behind {before}"
            raise StreamError(f"{name}: damaged file (tensor {key[:40]!r} {found})")
        end, before = place.stop, f"tensor {key[:40]!r}"
    return places


def _place(entry: Any, key: str, name: str) -> Place:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise StreamError(f"{name}: damaged file (tensor {key[:40]!r} should have dtype, shape and data_offsets)")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not (_are_sizes(shape) and len(shape) <= MOST_SIDES and _are_sizes(offsets) and len(offsets) == 2):
        raise StreamError(f"{name}: damaged file (the shape or the offsets of tensor {key[:40]!r} are none)")
    if dtype not in SIZES if isinstance(dtype, str) else True:
        raise StreamError(f"{name}: tensor {key[:40]!r} is of type {str(dtype)[:20]!r}, expected one of {', '.join(SIZES)}")
    needed, given = math.prod(shape) * SIZES[dtype], offsets[1] - offsets[0]
    if needed != given:
        raise StreamError(f"{name}: damaged file (tensor {key[:40]!r} of {dtype} {shape} needs {needed} bytes, has {given})")
    return Place(dtype, tuple(shape), *offsets)


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 1 << 63 for size in value)


def size_of(places: dict[str, Place]) -> int:
    """Bytes of all tensors."""
    return max(itertools.chain((0,), (place.stop for place in places.values())))
