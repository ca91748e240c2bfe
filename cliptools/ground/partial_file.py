"""Partials of clip-effects --shard in files: what they say of themselves, and their rows a few units at a time."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from cliptools.ground.bundle import cliptools_header, json_tensor, read_header
from cliptools.ground.errors import StreamError
from cliptools.ground.provenance import Header, canonical
from cliptools.ground.row_spool import RowSpool

KIND = "partial"
OWN = ("have", "tensors")  # settings in which the partials of one run differ
LISTED = ("digest", "listed")  # of the images, what they agree on


class PartialFile:
    """A partial, its tensors read when asked for."""

    def __init__(self, path: Path) -> None:
        """Check that it is a partial, and whole.

        Raises:
            StreamError: another kind of file, a damaged one, or none.
        """
        self.path = path
        try:
            with path.open("rb") as stream:
                self.layout = read_header(stream, str(path))
                self.header = cliptools_header(self.layout, str(path))
                if self.header.kind != KIND:
                    raise StreamError(f"{path}: a bundle ({self.header.kind}), expected a partial of clip-effects --shard")
                found = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise StreamError(f"{path}: {error.strerror}") from None
        del self.layout["__metadata__"]
        settings = self.header.settings
        if found != settings.get("tensors"):
            raise StreamError(f"{path}: damaged partial (its tensors are not those it was written with); make it anew")

    @property
    def have(self) -> list[int]:
        """Which shards are in it, from 1."""
        return [int(i) for i in self.header.settings["have"]]

    @property
    def of(self) -> int:
        """How many shards there are."""
        return int(self.header.settings["shards"])

    @property
    def count(self) -> int:
        """Images it has seen."""
        return int(self.header.images["count"])

    def size(self, layer: int) -> tuple[int, int]:
        """Units and paths of a layer."""
        n, k = self.layout[f"{layer}.centre"]["shape"]
        return n, k

    def rows(self, layer: int, fields: Iterable[str], start: int, stop: int) -> dict[str, np.ndarray]:
        """Some units' rows of these tensors.

        Raises:
            StreamError: it has not got them.
        """
        try:
            with safe_open(self.path, framework="numpy") as tensors:
                return {field: tensors.get_slice(f"{layer}.{field}")[start:stop] for field in fields}
        except (SafetensorError, OSError, ValueError) as error:
            raise StreamError(f"{self.path}: damaged partial ({error})") from None

    def names(self) -> dict[int, str]:
        """The images in its lists, by their numbers."""
        with safe_open(self.path, framework="numpy") as tensors:
            names = json.loads(tensors.get_tensor("images").tobytes().decode("utf-8"))
            return dict(zip(tensors.get_tensor("image_number").tolist(), names, strict=True))


def difference(one: Header, other: Header) -> str | None:
    """What keeps two partials from being of one run, in a few words; None if nothing does."""
    pairs: list[tuple[str, Any, Any]] = [
        (f"model's {key}", one.model.get(key), other.model.get(key)) for key in ("sha256", "precision", "preprocessing")
    ]
    pairs += [(f"list's {key}", one.images.get(key), other.images.get(key)) for key in LISTED]
    keys = sorted((one.settings.keys() | other.settings.keys()) - set(OWN))
    pairs += [(key, one.settings.get(key), other.settings.get(key)) for key in keys]
    pairs += [("version", _version(one), _version(other))]
    for what, here, there in pairs:
        if here != there:
            return f"{what} {_short(here)} instead of {_short(there)}"
    return None


def _version(header: Header) -> Any:
    return header.history[0].get("version") if header.history else None


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else canonical(value)
    return text if len(text) <= 40 else text[:12] + "…"


def joined_header(headers: Sequence[Header]) -> Header:
    """What all of these partials of one run say together, whatever their order."""
    first = min(headers, key=lambda header: canonical([header.model, header.history]))  # the same model may go by two names
    images = first.images | {key: sum(header.images[key] for header in headers) for key in ("count", "skipped")}
    settings = {key: value for key, value in first.settings.items() if key not in OWN}
    settings["have"] = sorted(i for header in headers for i in header.settings["have"])
    return Header(KIND, first.model, images, settings, first.history)


class PartialSpool(RowSpool):
    """A partial on its way into a file."""

    def add(self, layer: int, units: int, start: int, rows: Mapping[str, np.ndarray]) -> None:
        """Some units of a layer that has `units`, from number `start` on."""
        for field, values in rows.items():
            self.put(f"{layer}.{field}", units, start, values)

    def name(self, names: Mapping[int, str]) -> None:
        """The images in the lists, by their numbers."""
        numbers = np.array(sorted(names), np.int64)
        text = json_tensor([names[number] for number in numbers.tolist()])
        self.put("image_number", len(numbers), 0, numbers)
        self.put("images", len(text), 0, text)

    def signed(self, header: Header) -> Header:
        """The header with the digest of what has been added."""
        return Header(header.kind, header.model, header.images, header.settings | {"tensors": self.digest()}, header.history)


def shards_said(have: Sequence[int], of: int) -> str:
    """`shards 1, 3-5 of 8`."""
    runs: list[list[int]] = []
    for i in sorted(have):
        if runs and i == runs[-1][1] + 1:
            runs[-1][1] = i
        else:
            runs.append([i, i])
    said = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
    return f"shard{'' if len(have) == 1 else 's'} {said} of {of}"
