"""Files with the partial statistics of a shard (clip-effects --shard), whose rows are read a few units at a time."""

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int
from safetensors import SafetensorError, safe_open

from cliptools.console import count_of
from cliptools.errors import StreamError
from cliptools.io.bundle import LONGEST_REASON, Place, check_finite, cliptools_header, json_tensor, layout, read_header
from cliptools.io.bundle_schema import CODES, PARTIAL, PARTIAL_IMAGES, required_fields
from cliptools.io.header import Header, canonical, model_difference
from cliptools.io.jsonl import parse
from cliptools.io.spools import TensorSpool
from cliptools.io.text_file import STDIN, seekable_copy

KIND = "partial"
OWN = ("have", "tensors")  # settings that differ between the partials of one run
LISTED = ("digest", "listed")  # fields of the images that are equal in the partials of one run
ADDED = ("embedding", "embedding_number")
"""Tensors that partials of earlier versions lack."""
EMBEDDINGS_AT_ONCE = 4096
MOST_SHARDS = 1_000_000


class PartialFile:
    """A partial in a file; its tensors are read on demand."""

    def __init__(self, file: Path) -> None:
        """Open a file, or standard input for `-`, and check that it is a complete partial.

        Raises:
            StreamError: the file is missing, damaged or of another kind.
        """
        self.path = path = file if str(file) != STDIN else Path("standard input")
        try:
            self._place, self._copy = seekable_copy(file, str(path))
            with self._place.open("rb") as stream:
                header = read_header(stream, str(path))
                self.header = cliptools_header(header, str(path))
                if self.header.kind != KIND:
                    raise StreamError(f"{path}: a bundle ({self.header.kind}), expected a partial of clip-effects --shard")
                self.layout = layout(header, str(path))
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise StreamError(f"{path}: {error.strerror}") from None
        if digest != self.header.settings.get("tensors"):
            raise StreamError(f"{path}: damaged partial (the digest of its tensors does not match its header); create it again")
        if _is_earlier(self.header, self.layout):
            raise StreamError(
                f"{path}: a partial of an earlier version of clip-effects (without `{ADDED[0]}`), which this version cannot "
                "join; create it again"
            )
        with self._opened() as tensors:  # safetensors checks that they fill the file without gaps and overlaps
            tensors.keys()
        if fault := next(_faults(self.header, self.layout), None):
            raise StreamError(f"{path}: damaged partial ({fault}); create it again")

    @property
    def shards(self) -> list[int]:
        """Numbers of the shards in this partial, from 1."""
        return list(self.header.settings["have"])

    @property
    def shard_count(self) -> int:
        """Number of shards of the run."""
        return int(self.header.settings["shards"])

    @property
    def count(self) -> int:
        """Number of images measured."""
        return int(self.header.images["count"])

    def size(self, layer: int) -> tuple[int, int]:
        """Return the number of units and of factored effects of a layer."""
        n, k = self.layout[f"{layer}.centre"].shape
        return n, k

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Any]:
        """Open the file by safetensors.

        Raises:
            StreamError: safetensors rejects it, or what is done with its tensors fails by their values.
        """
        try:
            with safe_open(self._place, framework="numpy") as tensors:
                yield tensors
        except (SafetensorError, OSError, ValueError) as error:
            raise StreamError(f"{self.path}: damaged partial ({str(error)[:LONGEST_REASON]})") from None

    def rows(self, layer: int, fields: Iterable[str], start: int, stop: int) -> dict[str, np.ndarray]:
        """Read the rows of some units from tensors of a layer.

        Raises:
            StreamError: the rows are missing or invalid.
        """
        with self._opened() as tensors:
            rows = {field: tensors.get_slice(f"{layer}.{field}")[start:stop] for field in fields}
        for field, values in rows.items():
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise StreamError(f"{self.path}: damaged partial (`{layer}.{field}` holds NaN or infinity); create it again")
            image_count = self.header.images["listed"]
            if field in ("image", "near_image") and values.size and (values.min() < -1 or values.max() >= image_count):
                raise StreamError(
                    f"{self.path}: damaged partial (`{layer}.{field}` has an index outside {count_of(image_count, 'image')}); "
                    "create it again"
                )
        return rows

    def names(self) -> dict[int, str]:
        """Return the names of the images in its lists, by number.

        Raises:
            StreamError: the list of names is damaged, or its length differs from that of the numbers.
        """
        with self._opened() as tensors:
            names, numbers = parse(tensors.get_tensor("images").tobytes()), tensors.get_tensor("image_number").tolist()
            if isinstance(names, list) and all(isinstance(name, str) for name in names):
                return dict(zip(numbers, names, strict=True))
        raise StreamError(f"{self.path}: damaged partial (`images` is not a list of names); create it again")

    def embeddings(self) -> Iterator[tuple[Int[np.ndarray, " b"], Float32[np.ndarray, "b d"]]]:
        """Yield the numbers and the embeddings M(I) of all its images, in ascending order.

        Raises:
            StreamError: numbers are not ascending or not those of listed images, or an embedding is zero, NaN or infinite.
        """
        with self._opened() as tensors:
            numbers, embeddings = tensors.get_tensor("embedding_number"), tensors.get_slice("embedding")
            listed = self.header.images["listed"]
            if len(numbers) and (numbers[0] < 0 or numbers[-1] >= listed or (np.diff(numbers) <= 0).any()):
                raise StreamError(
                    f"{self.path}: damaged partial (`embedding_number` is not ascending below {listed}); create it again"
                )
            for start in range(0, len(numbers), EMBEDDINGS_AT_ONCE):
                rows = embeddings[start : min(start + EMBEDDINGS_AT_ONCE, len(numbers))]
                if not np.isfinite(rows).all() or not rows.any(axis=1).all():
                    raise StreamError(f"{self.path}: damaged partial (`embedding` holds NaN, infinity or zeros); create it again")
                yield numbers[start : start + EMBEDDINGS_AT_ONCE], rows


def _is_earlier(header: Header, places: Mapping[str, Place]) -> bool:
    """Return whether a file has all tensors of its layers except those of ADDED."""
    layers = header.settings.get("layers")
    if not layers or not isinstance(layers, list):
        return False
    return not {*ADDED} & {*places} and {f"{layers[0]}.centre", "image_number", "images"} <= {*places}


def _faults(header: Header, places: Mapping[str, Place]) -> Iterator[str]:
    """Yield the faults of a partial's header and of the shapes of its tensors."""
    for part in ("settings", "images"):
        missing = (key for key in required_fields(part, "partial") if getattr(header, part).get(key) is None)
        yield from (f"its header has no `{key}`" for key in missing)
    settings, shards = header.settings, header.settings["have"]
    if (
        not shards
        or len(set(shards)) < len(shards)
        or min(shards) < 1
        or max(shards) > settings["shards"]
        or settings["shards"] > MOST_SHARDS
    ):
        yield f"invalid shards {str(shards)[:40]} of {settings['shards']}"
    if not 1 <= settings["top_images"] <= settings["kept"] or header.images["count"] > header.images["listed"]:
        yield "its counts of images contradict each other"
    expected = {f"{layer}.{field}" for layer in settings["layers"] for field in PARTIAL} | PARTIAL_IMAGES.keys()
    if not settings["layers"] or set(places) != expected:
        yield "its tensors are not those of its layers"
        return
    for name, field in PARTIAL_IMAGES.items():
        place, dtype, axes = places[name], CODES[field.dtype], field.axes.split()
        if place.dtype != dtype or len(place.shape) != len(axes):
            yield f"`{name}` is {place.dtype} {list(place.shape)}, expected {dtype} [{', '.join(axes)}]"
            return
    if {places["embedding"].shape[0], places["embedding_number"].shape[0]} != {header.images["count"]}:
        yield "its embeddings are not those of its images"
    for layer in settings["layers"]:
        yield from _layer_faults(places, layer, settings["kept"], settings["top_images"])


def _layer_faults(places: Mapping[str, Place], layer: int, kept_images: int, top: int) -> Iterator[str]:
    """Yield the faults in the types and shapes of one layer's tensors."""
    sizes: dict[str, int] = {"t": top}
    for name, field in PARTIAL.items():
        place, dtype, axes = places[f"{layer}.{name}"], CODES[field.dtype], field.axes.split()
        valid = place.dtype == dtype and len(place.shape) == len(axes)
        if not valid or any(sizes.setdefault(axis, size) != size for axis, size in zip(axes, place.shape, strict=True)):
            yield f"`{layer}.{name}` is {place.dtype} {list(place.shape)}, expected {dtype} [{', '.join(axes)}]"
            return
    if not sizes["n"] or not sizes["k"] or sizes["m"] != sizes["k"] * (sizes["k"] + 1) // 2 or sizes["f"] > kept_images:
        yield f"the shapes of layer {layer}'s tensors contradict each other"


def run_difference(first: Header, other: Header) -> str | None:
    """Return why two partials are not of one run, in a few words; None if they are."""
    pairs: list[tuple[str, Any, Any]] = [
        (f"model's {key}", first.model.get(key), other.model.get(key)) for key in ("sha256", "precision", "preprocessing")
    ]
    if (model := model_difference(first.model, other.model)) and pairs[0][1] == pairs[0][2]:
        return f"a model with {model}"
    pairs += [(f"list's {key}", first.images.get(key), other.images.get(key)) for key in LISTED]
    keys = sorted((first.settings.keys() | other.settings.keys()) - set(OWN))
    pairs += [(key, first.settings.get(key), other.settings.get(key)) for key in keys]
    pairs += [("version", _version(first), _version(other))]
    for field, value, other_value in pairs:
        if value != other_value:
            return f"{field} {_short_text(value)} instead of {_short_text(other_value)}"
    return None


def _version(header: Header) -> Any:
    return header.history[0].get("version") if header.history else None


def _short_text(value: Any) -> str:
    text = value if isinstance(value, str) else canonical(value)
    return text if len(text) <= 40 else text[:12] + "…"


def joined_header(headers: Sequence[Header]) -> Header:
    """Return the header of several partials of one run joined; their order does not matter."""
    first = min(headers, key=lambda header: canonical([header.model, header.history]))  # one model may have two names
    images = first.images | {key: sum(header.images[key] for header in headers) for key in ("count", "skipped")}
    settings = {key: value for key, value in first.settings.items() if key not in OWN}
    settings["have"] = sorted(i for header in headers for i in header.settings["have"])
    return Header(KIND, first.model, images, settings, first.history)


class PartialSpool(TensorSpool):
    """A partial that is written to a file."""

    def add(self, layer: int, units: int, start: int, rows: Mapping[str, np.ndarray]) -> None:
        """Add rows for units of a layer from number `start` on; `units` is the number of all its units."""
        check_finite({f"{layer}.{field}": values for field, values in rows.items()})
        for field, values in rows.items():
            self.put(f"{layer}.{field}", units, start, values)

    def add_names(self, names: Mapping[int, str]) -> None:
        """Add the names of the images in the lists, by number."""
        numbers = np.array(sorted(names), np.int64)
        text = json_tensor([names[number] for number in numbers.tolist()])
        self.put("image_number", len(numbers), 0, numbers)
        self.put("images", len(text), 0, text)

    def add_embeddings(self, count: int, batches: Iterable[tuple[Int[np.ndarray, " b"], Float[np.ndarray, "b d"]]]) -> None:
        """Add the embeddings of all images, in ascending order of their numbers."""
        if not count:
            self.put("embedding", 0, 0, np.zeros((0, 0), np.float32))
            self.put("embedding_number", 0, 0, np.zeros(0, np.int64))
        start = 0
        for numbers, rows in batches:
            check_finite({"embedding": rows})
            self.put("embedding", count, start, rows.astype(np.float32, copy=False))
            self.put("embedding_number", count, start, numbers)
            start += len(numbers)

    def with_digest(self, header: Header) -> Header:
        """Return the header with the digest of the tensors added."""
        return Header(header.kind, header.model, header.images, header.settings | {"tensors": self.digest()}, header.history)


def shards_text(numbers: Sequence[int], count: int) -> str:
    """Return numbers of shards as messages show them: `shards 1, 3-5 of 8`."""
    runs: list[list[int]] = []
    for i in sorted(numbers):
        if runs and i == runs[-1][1] + 1:
            runs[-1][1] = i
        else:
            runs.append([i, i])
    ranges = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
    return f"shard{'' if len(numbers) == 1 else 's'} {ranges} of {count}"
