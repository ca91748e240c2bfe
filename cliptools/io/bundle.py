"""Bundles: safetensors files with the statistics of neurons, read from and written to streams.

A bundle is untrusted input. Its header is parsed as strict JSON; `layout` bounds what is read, and names a tensor whose entry is
invalid; safetensors rejects gaps, overlaps and all other faults of the format; then bundle_faults checks the tensors.
Streams are read by hand, because safetensors reads only files and bytes that are in memory.
"""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from io import BufferedIOBase
from typing import Any, NamedTuple, TypeVar

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from cliptools.console import count_of
from cliptools.errors import CliptoolsError, StreamError
from cliptools.io.bundle_faults import faults
from cliptools.io.bundle_schema import CODES, TENSORS
from cliptools.io.header import KEY, Header, digest
from cliptools.io.jsonl import parse

LARGEST_HEADER = 100_000_000  # bytes; the safetensors library's own limit
READ_HEADER = 1 << 24  # bytes; the largest header that is read, hundreds of times the size of any bundle's
CHUNK = 1 << 20
LONGEST_REASON = 200  # characters of a message of safetensors, which quotes names of tensors whole
OTHERS = {
    "partial": "a partial of clip-effects --shard, not a bundle; clip-merge joins the partials of all shards",
    "mask": "a mask of clip-edit, not a bundle; clip-ablate and clip-segment apply it by --mask",
    "edit": "a checkpoint of clip-edit, not a bundle; --pretrained or clip-ablate --against names it",
    "activity": "activities of clip-effects --per-image, not a bundle; a bundle is the other output of clip-effects",
}
"""Kinds of streams that are not bundles, with the message for them."""
Same = TypeVar("Same", bound="Bundle")  # the class of the bundle itself; beartype cannot check `Self` in methods
UNIT_ROWS = frozenset(name for name, field in TENSORS.items() if field.has_unit_rows)


@dataclass(frozen=True)
class Bundle:
    """Statistics of neurons, as numpy arrays by name, and the header that describes them."""

    header: Header
    """Model, images, settings and history."""
    tensors: dict[str, np.ndarray]
    """The tensors by name, which docs/format.md lists; `bundle[name]` is one of them."""
    derived: frozenset[str] = frozenset()
    """Names of tensors computed from others and from the model's weights; they are never written."""

    def __getitem__(self, name: str) -> np.ndarray:
        """Return a tensor by name.

        Raises:
            StreamError: the bundle has no tensor of this name.
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
        """Return the parsed value of a JSON tensor (`images`, `words`)."""
        return parse(self[name].tobytes())

    def select(self: Same, rows: np.ndarray) -> Same:
        """Return the bundle with only the units of these rows, in this order."""
        tensors = {name: value[rows] if name in UNIT_ROWS else value for name, value in self.tensors.items()}
        return replace(self, tensors=tensors)

    def with_tensors(self: Same, header: Header, **added: np.ndarray) -> Same:
        """Return a copy with another header and additional tensors."""
        return replace(self, header=header, tensors=self.tensors | added)

    def to_bytes(self) -> bytes:
        """Return the safetensors file; equal bundles give equal bytes.

        Raises:
            CliptoolsError: a tensor holds NaN or infinity, which no reader accepts.
        """
        tensors = {name: np.ascontiguousarray(value) for name, value in self.tensors.items() if name not in self.derived}
        check_finite(tensors)
        return save(tensors, metadata={KEY: self.header.to_json()})

    def with_derived(self: Same, **derived: np.ndarray) -> Same:
        """Return a copy with additional tensors that will not be written."""
        return replace(self, tensors=self.tensors | derived, derived=self.derived | frozenset(derived))

    @property
    def digest(self) -> str:
        """sha256 of the whole bundle; records refer to their bundle by it."""
        return digest(self.to_bytes())


def check_finite(tensors: Mapping[str, np.ndarray]) -> None:
    """Check that no tensor to be written holds NaN or infinity.

    Raises:
        CliptoolsError: a tensor holds some.
    """
    for name, values in tensors.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise CliptoolsError(
                f"tensor `{name}` would hold NaN or infinity, so nothing is written: the numbers are too large for float32; "
                "try --scale raw or another --precision, and check the weights"
            )


def json_tensor(value: Any) -> np.ndarray:
    """Return a JSON value as a uint8 tensor."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return np.frombuffer(text.encode("utf-8"), dtype=np.uint8)


def read_header(stream: BufferedIOBase, name: str) -> dict[str, Any]:
    """Read the JSON header of a safetensors stream and leave the stream at the first byte of the tensors.

    Raises:
        StreamError: the stream is empty, truncated or not a safetensors file.
    """
    prefix = _read_exactly(stream, 8, name, "its first 8 bytes")
    (length,) = struct.unpack("<Q", prefix)
    if READ_HEADER < length <= LARGEST_HEADER:
        raise StreamError(f"{name}: a header of {length} bytes, at most {READ_HEADER} are read (is this a safetensors file?)")
    if length > LARGEST_HEADER or length < 2:
        raise StreamError(f"{name}: not a safetensors file (expected the length of its header first, found {prefix!r})")
    text = _read_exactly(stream, length, name, "its header")
    try:
        header = parse(text)
    except ValueError as error:
        reason = "" if isinstance(error, json.JSONDecodeError) else f": {error}"
        raise StreamError(f"{name}: not a safetensors file (its header is not JSON{reason})") from None
    if not isinstance(header, dict):
        raise StreamError(f"{name}: not a safetensors file (its header is not a JSON object)")
    return header


def tensor_table(header: dict[str, Any], name: str) -> dict[str, str]:
    """Return type and shape of every tensor that a safetensors header lists, as text.

    Raises:
        StreamError: an entry lacks one of them.
    """
    table = {}
    for key, entry in header.items():
        if key == "__metadata__":
            continue
        dtype, shape = (entry.get("dtype"), entry.get("shape")) if isinstance(entry, dict) else (None, None)
        if not isinstance(dtype, str) or not isinstance(shape, list):
            raise StreamError(f"{name}: damaged file (tensor {key[:40]!r} needs dtype and shape)")
        table[key] = f"{dtype} {shape}"
    return table


def is_bundle(header: dict[str, Any]) -> bool:
    """Return whether a safetensors header contains a header of cliptools."""
    metadata = header.get("__metadata__")
    return isinstance(metadata, dict) and isinstance(metadata.get(KEY), str)


def cliptools_header(header: dict[str, Any], name: str) -> Header:
    """Return the header of cliptools within a safetensors header.

    Raises:
        StreamError: the file is not a bundle, or this header is invalid.
    """
    if not is_bundle(header):
        raise StreamError(f"{name}: a safetensors file, but not a bundle of cliptools (no {KEY!r} in its metadata)")
    return Header.from_json(header["__metadata__"][KEY], name)


def read_bundle(stream: BufferedIOBase, name: str) -> Bundle:
    """Read one bundle to its end and check that it is complete and consistent.

    Raises:
        StreamError: empty, truncated, damaged, followed by other bytes, inconsistent, or not a bundle.
    """
    bundle = read_unchecked(stream, name)
    for fault in faults(bundle.tensors):
        raise StreamError(f"{name}: {fault}")
    return with_shares(bundle)


def read_unchecked(stream: BufferedIOBase, name: str) -> Bundle:
    """Read one bundle to its end without checking the values of its tensors.

    Raises:
        StreamError: empty, truncated, damaged, followed by other bytes, or not a bundle.
    """
    header = read_header(stream, name)
    bundle_header = cliptools_header(header, name)
    if bundle_header.kind in OTHERS:
        raise StreamError(f"{name}: {OTHERS[bundle_header.kind]}")
    size = max((place.stop for place in layout(header, name).values()), default=0)
    data = _read_exactly(stream, size, name, f"{size} bytes of tensors")
    if stream.read(1):
        raise StreamError(f"{name}: extra bytes after the end of the bundle")
    packed = json.dumps(header).encode()
    try:
        tensors = load(struct.pack("<Q", len(packed)) + packed + data)
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise StreamError(f"{name}: damaged bundle ({str(error)[:LONGEST_REASON]})") from None
    return Bundle(bundle_header, tensors)


def with_shares(bundle: Bundle) -> Bundle:
    """Return a bundle of neuron-head pairs with `explained` and `explained_all`: 1 for pairs that were ever active, else 0."""
    if "sign" not in bundle:
        return bundle
    active = (bundle["sign"] != 0).astype(np.float32)  # int8 [U] -> float32 [U]
    return bundle.with_derived(explained=active, explained_all=active)


def _read_exactly(stream: BufferedIOBase, size: int, name: str, title: str) -> bytes:
    """Read exactly `size` bytes, in chunks, so that a false size in the header cannot allocate memory without data.

    Raises:
        StreamError: the input ends before.
    """
    parts: list[bytes] = []
    remaining = size
    while remaining and (part := stream.read(min(remaining, CHUNK))):
        parts.append(part)
        remaining -= len(part)
    if remaining:
        if remaining == size == 8:
            raise StreamError(f"{name}: empty input, expected a bundle (did the command before it fail?)")
        raise StreamError(f"{name}: truncated bundle: expected {title}, the input ends {count_of(remaining, 'byte')} short")
    return b"".join(parts)


SIZES = {code: np.dtype(name).itemsize for name, code in CODES.items()}
"""Bytes per number, by safetensors' names of types."""


class Place(NamedTuple):
    """Type and shape of a tensor, and the end of its bytes, counted from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    stop: int


def layout(header: dict[str, Any], name: str) -> dict[str, Place]:
    """Return the place of each tensor that a safetensors header lists.

    By hand for what safetensors does not do: it accepts other keys and lists as entries, and does not name the tensor whose type
    or size is invalid. It does reject gaps and overlaps.

    Raises:
        StreamError: an entry is malformed or contradicts itself.
    """
    return {key: _place(entry, f"tensor {key[:40]!r}", name) for key, entry in header.items() if key != "__metadata__"}


def _place(entry: Any, tensor: str, name: str) -> Place:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise StreamError(f"{name}: damaged file ({tensor} needs dtype, shape and data_offsets)")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise StreamError(f"{name}: damaged file ({tensor} has an invalid shape or offsets)")
    if not isinstance(dtype, str) or dtype not in SIZES:
        raise StreamError(f"{name}: {tensor} has type {str(dtype)[:20]!r}, expected one of {', '.join(SIZES)}")
    required, available = math.prod(shape) * SIZES[dtype], offsets[1] - offsets[0]
    if required != available:
        raise StreamError(f"{name}: damaged file ({tensor} of {dtype} {shape} needs {required} bytes, has {available})")
    return Place(dtype, tuple(shape), offsets[1])


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= 8 and all(type(size) is int and 0 <= size < 1 << 63 for size in value)
