"""Where the tensors of a safetensors file lie, as its header says: one after the other, without holes, none over another.

Bundles: one safetensors file of fixed-shape statistics, read from and written to streams.
"""

import itertools
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from io import BufferedIOBase
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from cliptools.console import count_of
from cliptools.errors import CliptoolsError, StreamError
from cliptools.io.bundle_faults import UNIT_ROWS, faults
from cliptools.io.header import KEY, Header, digest
from cliptools.io.jsonl import parse

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


LARGEST_HEADER = 100_000_000  # bytes; the safetensors library's own limit
READ_HEADER = 1 << 24  # bytes; what is read here, hundreds of times what any bundle needs
CHUNK = 1 << 20


@dataclass(frozen=True)
class Bundle:
    """Statistics of neurons with the header that says what they are. Tensors are numpy arrays, see DESIGN's table of names."""

    header: Header
    tensors: dict[str, np.ndarray]
    derived: frozenset[str] = frozenset()
    """Tensors that the reader has made of others and of the model's weights; they are never written."""

    def __getitem__(self, name: str) -> np.ndarray:
        """A tensor by name.

        Raises:
            StreamError: the bundle has none of this name.
        """
        if name not in self.tensors:
            raise StreamError(f"the bundle has no tensor `{name}`, which is needed here")
        return self.tensors[name]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    @property
    def units(self) -> int:
        """U, the number of units."""
        return len(self.tensors["unit"])

    def text_list(self, name: str) -> Any:
        """A JSON tensor (`images`, `words`) as what it says."""
        return parse(self[name].tobytes())

    def select(self, rows: np.ndarray) -> "Bundle":
        """The same bundle with only the units of these row numbers, in this order."""
        return replace(self, tensors={k: v[rows] if k in UNIT_ROWS else v for k, v in self.tensors.items()})

    def with_tensors(self, header: Header, **added: np.ndarray) -> "Bundle":
        """A copy that says more."""
        return replace(self, header=header, tensors=self.tensors | added)

    def to_bytes(self) -> bytes:
        """The safetensors file; equal bundles give equal bytes.

        Raises:
            CliptoolsError: a tensor holds NaN or infinity, which no reader would take.
        """
        tensors = {name: np.ascontiguousarray(value) for name, value in self.tensors.items() if name not in self.derived}
        check_finite(tensors)
        return save(tensors, metadata={KEY: self.header.to_json()})

    def with_derived(self, **made: np.ndarray) -> "Bundle":
        """A copy with tensors that will not be written."""
        return replace(self, tensors=self.tensors | made, derived=self.derived | frozenset(made))

    @property
    def digest(self) -> str:
        """sha256 of the whole bundle, by which records name the bundle they came from."""
        return digest(self.to_bytes())


def check_finite(tensors: Mapping[str, np.ndarray]) -> None:
    """Nothing that is written holds NaN or infinity, whatever became of the images before.

    Raises:
        CliptoolsError: a tensor does.
    """
    for name, values in tensors.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise CliptoolsError(
                f"tensor `{name}` would hold NaN or infinity, so nothing is written: numbers too large for float32; "
                "try --scale raw or another --precision, and check the weights"
            )


def json_tensor(value: Any) -> np.ndarray:
    """A JSON value as a uint8 tensor."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return np.frombuffer(text.encode("utf-8"), dtype=np.uint8)


def read_header(stream: BufferedIOBase, name: str) -> dict[str, Any]:
    """The JSON header of a safetensors stream, leaving the stream at the first tensor byte.

    Raises:
        StreamError: the stream is empty, cut, or no safetensors file.
    """
    prefix = _read_exactly(stream, 8, name, "its first 8 bytes")
    (length,) = struct.unpack("<Q", prefix)
    if READ_HEADER < length <= LARGEST_HEADER:
        raise StreamError(f"{name}: a header of {length} bytes, at most {READ_HEADER} are read (is this a safetensors file?)")
    if length > LARGEST_HEADER or length < 2:
        raise StreamError(f"{name}: not a safetensors file (it should begin with the length of a header, found {prefix!r})")
    text = _read_exactly(stream, length, name, "its header")
    try:
        header = parse(text)
    except ValueError as error:
        why = "" if isinstance(error, json.JSONDecodeError) else f": {error}"
        raise StreamError(f"{name}: not a safetensors file (its header is not JSON{why})") from None
    if not isinstance(header, dict):
        raise StreamError(f"{name}: not a safetensors file (its header is not a JSON object)")
    return header


def tensor_table(header: dict[str, Any], name: str) -> dict[str, str]:
    """Type and shape of every tensor that a safetensors header lists.

    Raises:
        StreamError: an entry says neither.
    """
    table = {}
    for key, entry in header.items():
        if key == "__metadata__":
            continue
        said = (entry.get("dtype"), entry.get("shape")) if isinstance(entry, dict) else (None, None)
        if not isinstance(said[0], str) or not isinstance(said[1], list):
            raise StreamError(f"{name}: damaged file (tensor {key[:40]!r} should have dtype and shape)")
        table[key] = f"{said[0]} {said[1]}"
    return table


def is_bundle(header: dict[str, Any]) -> bool:
    """Whether a safetensors header has the suite's own part."""
    metadata = header.get("__metadata__")
    return isinstance(metadata, dict) and isinstance(metadata.get(KEY), str)


def cliptools_header(header: dict[str, Any], name: str) -> Header:
    """The suite's own part of a safetensors header."""
    if not is_bundle(header):
        raise StreamError(f"{name}: a safetensors file, but not a bundle of cliptools (no {KEY!r} in its metadata)")
    return Header.from_json(header["__metadata__"][KEY], name)


def read_bundle(stream: BufferedIOBase, name: str) -> Bundle:
    """Read one bundle to its end and check that it is whole and consistent.

    Raises:
        StreamError: empty, truncated, damaged, followed by other bytes, inconsistent, or not a bundle.
    """
    bundle = read_unchecked(stream, name)
    for fault in faults(bundle.tensors):
        raise StreamError(f"{name}: {fault}")
    return with_shares(bundle)


def read_unchecked(stream: BufferedIOBase, name: str) -> Bundle:
    """Read one bundle to its end, whatever its tensors hold.

    Raises:
        StreamError: empty, truncated, damaged, followed by other bytes, or not a bundle.
    """
    header = read_header(stream, name)
    ours = cliptools_header(header, name)
    if ours.kind == "partial":
        raise StreamError(
            f"{name}: a partial of clip-effects --shard, no bundle yet; clip-merge makes one of all shards' partials"
        )
    size = size_of(layout(header, name))
    data = _read_exactly(stream, size, name, f"{size} bytes of tensors")
    if stream.read(1):
        raise StreamError(f"{name}: there are more bytes after the end of the bundle")
    packed = json.dumps(header).encode()
    try:
        tensors = load(struct.pack("<Q", len(packed)) + packed + data)
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise StreamError(f"{name}: damaged bundle ({error})") from None
    return Bundle(ours, tensors)


def with_shares(bundle: Bundle) -> Bundle:
    """Pairs of neurons and heads with `explained` and `explained_all`, which say the same: 1 for all that ever acted."""
    if "sign" not in bundle:
        return bundle
    acted = (bundle["sign"] != 0).astype(np.float32)
    return bundle.with_derived(explained=acted, explained_all=acted)


def _read_exactly(stream: BufferedIOBase, size: int, name: str, what: str) -> bytes:
    """Exactly `size` bytes, read in chunks so that a lying header cannot ask for memory that no data fills."""
    parts: list[bytes] = []
    missing = size
    while missing and (part := stream.read(min(missing, CHUNK))):
        parts.append(part)
        missing -= len(part)
    if missing:
        found = size - missing
        if not found and size == 8:
            raise StreamError(f"{name}: empty input, expected a bundle (did the command before it fail?)")
        raise StreamError(f"{name}: truncated bundle: expected {what}, the input ended {count_of(missing, 'byte')} short")
    return b"".join(parts)
