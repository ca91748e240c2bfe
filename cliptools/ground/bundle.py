"""Bundles: one safetensors file of fixed-shape statistics, read from and written to streams."""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from io import BufferedIOBase
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from cliptools.ground.errors import StreamError
from cliptools.ground.provenance import KEY, Header, digest

HEADER_LIMIT = 100_000_000  # bytes; the safetensors library's own limit
CHUNK = 1 << 20
DTYPES = {
    "unit": "int32", "top_image": "int32", "word": "int32", "sign": "int8",
    "images": "uint8", "words": "uint8", "thumbnails": "uint8", "thumbnail_offsets": "int64",
    "uncertain": "int32",
}  # fmt: skip
UNIT_ROWS = (
    "unit", "direction", "component", "component_explained", "mean", "top_norm", "top_image", "threshold",
    "explained", "explained_all", "moment", "word", "coefficient", "residual", "prefix_residual",
    "sign", "mean_scalar", "token_mean",
)  # fmt: skip
"""Tensors with one row a unit; a selection of units selects rows of these."""


@dataclass(frozen=True)
class Bundle:
    """Statistics of neurons with the header that says what they are. Tensors are numpy arrays, see DESIGN's table of names."""

    header: Header
    tensors: dict[str, np.ndarray]
    derived: frozenset[str] = frozenset()
    """Tensors that the reader has made of others and of the model's weights; they are never written."""

    def __getitem__(self, name: str) -> np.ndarray:
        return self.tensors[name]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    @property
    def units(self) -> int:
        """U, the number of units."""
        return len(self.tensors["unit"])

    def text_list(self, name: str) -> Any:
        """A JSON tensor (`images`, `words`) as what it says."""
        return json.loads(self.tensors[name].tobytes().decode("utf-8"))

    def select(self, rows: np.ndarray) -> "Bundle":
        """The same bundle with only the units of these row numbers, in this order."""
        return replace(self, tensors={k: v[rows] if k in UNIT_ROWS else v for k, v in self.tensors.items()})

    def with_tensors(self, header: Header, **added: np.ndarray) -> "Bundle":
        """A copy that says more."""
        return replace(self, header=header, tensors=self.tensors | added)

    def to_bytes(self) -> bytes:
        """The safetensors file; equal bundles give equal bytes."""
        tensors = {name: np.ascontiguousarray(value) for name, value in self.tensors.items() if name not in self.derived}
        return save(tensors, metadata={KEY: self.header.to_json()})

    def with_derived(self, **made: np.ndarray) -> "Bundle":
        """A copy with tensors that will not be written."""
        return replace(self, tensors=self.tensors | made, derived=self.derived | frozenset(made))

    @property
    def digest(self) -> str:
        """sha256 of the whole bundle, by which records name the bundle they came from."""
        return digest(self.to_bytes())


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
    if length > HEADER_LIMIT or length < 2:
        raise StreamError(f"{name}: not a safetensors file (it should begin with the length of a header, found {prefix!r})")
    text = _read_exactly(stream, length, name, "its header")
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        raise StreamError(f"{name}: not a safetensors file (its header is not JSON)") from None
    if not isinstance(header, dict):
        raise StreamError(f"{name}: not a safetensors file (its header is not a JSON object)")
    return header


def tensor_table(header: dict[str, Any], name: str) -> dict[str, str]:
    """Type and shape of every tensor that a safetensors header lists.

    Raises:
        StreamError: an entry says neither.
    """
    try:
        return {key: f"{entry['dtype']} {entry['shape']}" for key, entry in header.items() if key != "__metadata__"}
    except (TypeError, KeyError):
        raise StreamError(f"{name}: damaged file (a tensor's entry in the header is malformed)") from None


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
    for fault in faults(bundle):
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
    layout = {key: value for key, value in header.items() if key != "__metadata__"}
    try:
        size = max((int(entry["data_offsets"][1]) for entry in layout.values()), default=0)
    except (TypeError, KeyError, IndexError, ValueError):
        raise StreamError(f"{name}: damaged bundle (a tensor's entry in the header is malformed)") from None
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


def faults(bundle: Bundle) -> Iterator[str]:
    """What is wrong with shapes, types and ranges that every consumer relies on."""
    if "unit" not in bundle or bundle["unit"].ndim != 2 or bundle["unit"].shape[1] != 3:
        yield "a bundle needs a tensor `unit` of shape [units, 3]"
        return
    for key, value in bundle.tensors.items():
        if key in UNIT_ROWS and (found := len(value) if value.ndim else "no") != bundle.units:
            yield f"tensor `{key}` has {found} rows, expected one for each of {bundle.units} units"
        expected = DTYPES.get(key, "float32")
        if key in (*UNIT_ROWS, *DTYPES) and str(value.dtype) != expected:
            yield f"tensor `{key}` is {value.dtype}, expected {expected}"
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            yield f"tensor `{key}` holds NaN or infinity"
    for index, texts in (("top_image", "images"), ("word", "words")):
        if index in bundle:
            yield from _index_faults(bundle, index, texts)
    if "thumbnails" in bundle:
        offsets = bundle.tensors.get("thumbnail_offsets", np.zeros(0, np.int64))
        if len(offsets) < 1 or offsets[0] != 0 or (np.diff(offsets) < 0).any() or offsets[-1] != len(bundle["thumbnails"]):
            yield f"`thumbnail_offsets` does not divide the {len(bundle['thumbnails'])} bytes of `thumbnails`"


def _index_faults(bundle: Bundle, index: str, texts: str) -> Iterator[str]:
    try:
        listed = bundle.text_list(texts)
        count = len(listed["texts"] if texts == "words" else listed)
    except (KeyError, ValueError, TypeError):
        yield f"tensor `{index}` needs a JSON list in tensor `{texts}`"
        return
    values = bundle[index]
    if values.size and (values.min() < -1 or values.max() >= count):
        yield f"tensor `{index}` points outside the {count} entries of `{texts}`"


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
        raise StreamError(f"{name}: truncated bundle: expected {what}, the input ended {missing} bytes short")
    return b"".join(parts)
