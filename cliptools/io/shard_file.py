"""Partials of clip-effects --shard in files: what they say of themselves, and their rows a few units at a time."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from cliptools.console import count_of
from cliptools.errors import StreamError
from cliptools.io.bundle import Place, check_finite, cliptools_header, json_tensor, layout, read_header
from cliptools.io.header import Header, canonical, model_difference
from cliptools.io.jsonl import parse
from cliptools.io.spools import RowSpool
from cliptools.io.text_file import STDIN, spooled

KIND = "partial"
OWN = ("have", "tensors")  # settings in which the partials of one run differ
LISTED = ("digest", "listed")  # of the images, what they agree on
FIELDS = {
    "centre": ("F64", "n k"), "scale": ("F32", "n"), "spread": ("F32", "n"), "length": ("F32", "n k"), "sum": ("F64", "n k"),
    "moment": ("F64", "n m"), "norm": ("F32", "n f"), "image": ("I64", "n f"), "x": ("F32", "n f k"),
    "near_norm": ("F32", "n t"), "near_image": ("I64", "n t"), "lost": ("F32", "n"), "histogram": ("I32", "n b"),
    "histogram_top": ("I32", "n"), "histogram_reach": ("F32", "n"),
}  # fmt: skip
"""Type and sides of a layer's tensors, as methods.partials has them: n units, k paths, m = k(k+1)/2, f kept images, t others."""
ADDED = ("histogram_top", "histogram_reach")
"""Tensors that the partials of earlier versions lack; their histograms have other bins."""
SAID = {
    "settings": ("effect", "units", "layers", "scale", "quantile", "top_images", "kept", "shards", "have"),
    "images": ("count", "skipped", "listed", "digest"),
}
MOST_SHARDS = 1_000_000


class PartialFile:
    """A partial, its tensors read when asked for."""

    def __init__(self, given: Path) -> None:
        """Check that it is a partial, and whole; `-` is standard input.

        Raises:
            StreamError: another kind of file, a damaged one, or none.
        """
        self.path = path = given if str(given) != STDIN else Path("standard input")
        try:
            self._place, self._copy = spooled(given, str(path))
            with self._place.open("rb") as stream:
                said = read_header(stream, str(path))
                self.header = cliptools_header(said, str(path))
                if self.header.kind != KIND:
                    raise StreamError(f"{path}: a bundle ({self.header.kind}), expected a partial of clip-effects --shard")
                self.layout = layout(said, str(path))
                found = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise StreamError(f"{path}: {error.strerror}") from None
        if found != self.header.settings.get("tensors"):
            raise StreamError(f"{path}: damaged partial (its tensors are not those it was written with); make it anew")
        if _is_earlier(self.header, self.layout):
            raise StreamError(
                f"{path}: a partial of an earlier version of clip-effects (without `{ADDED[0]}`), which this one cannot join; "
                "make it anew"
            )
        if fault := next(_faults(self.header, self.layout), None):
            raise StreamError(f"{path}: damaged partial ({fault}); make it anew")

    @property
    def have(self) -> list[int]:
        """Which shards are in it, from 1."""
        return list(self.header.settings["have"])

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
        n, k = self.layout[f"{layer}.centre"].shape
        return n, k

    def rows(self, layer: int, fields: Iterable[str], start: int, stop: int) -> dict[str, np.ndarray]:
        """Some units' rows of these tensors.

        Raises:
            StreamError: it has not got them, or they cannot be.
        """
        try:
            with safe_open(self._place, framework="numpy") as tensors:
                found = {field: tensors.get_slice(f"{layer}.{field}")[start:stop] for field in fields}
        except (SafetensorError, OSError, ValueError) as error:
            raise StreamError(f"{self.path}: damaged partial ({error})") from None
        for field, values in found.items():
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise StreamError(f"{self.path}: damaged partial (`{layer}.{field}` holds NaN or infinity); make it anew")
            listed = self.header.images["listed"]
            if field in ("image", "near_image") and values.size and (values.min() < -1 or values.max() >= listed):
                raise StreamError(
                    f"{self.path}: damaged partial (`{layer}.{field}` points outside {count_of(listed, 'image')}); make it anew"
                )
        return found

    def names(self) -> dict[int, str]:
        """The images in its lists, by their numbers.

        Raises:
            StreamError: there is no list of names, a name for each number.
        """
        try:
            with safe_open(self._place, framework="numpy") as tensors:
                names, numbers = parse(tensors.get_tensor("images").tobytes()), tensors.get_tensor("image_number").tolist()
            if isinstance(names, list) and all(isinstance(name, str) for name in names):
                return dict(zip(numbers, names, strict=True))
        except (SafetensorError, OSError, ValueError) as error:
            raise StreamError(f"{self.path}: damaged partial ({error})") from None
        raise StreamError(f"{self.path}: damaged partial (`images` is no list of names); make it anew")


def _is_earlier(header: Header, places: Mapping[str, Place]) -> bool:
    """Whether it has all tensors of its layers but those added since."""
    layers, rest = header.settings.get("layers"), FIELDS.keys() - {*ADDED}
    if not layers or not isinstance(layers, list):
        return False
    return set(places) == {f"{layer}.{field}" for layer in layers for field in rest} | {"image_number", "images"}


def _faults(header: Header, places: Mapping[str, Place]) -> Iterator[str]:
    """What is wrong with a partial's header and the shapes of its tensors."""
    for part, keys in SAID.items():
        yield from (f"its header does not say `{key}`" for key in keys if getattr(header, part).get(key) is None)
    said, have = header.settings, header.settings["have"]
    if not have or len(set(have)) < len(have) or min(have) < 1 or max(have) > said["shards"] or said["shards"] > MOST_SHARDS:
        yield f"shards {str(have)[:40]} of {said['shards']} cannot be"
    if not 1 <= said["top_images"] <= said["kept"] or header.images["count"] > header.images["listed"]:
        yield "its numbers of images cannot be"
    expected = {f"{layer}.{field}" for layer in said["layers"] for field in FIELDS} | {"image_number", "images"}
    if not said["layers"] or set(places) != expected:
        yield "it has other tensors than those of its layers"
        return
    if places["image_number"][:2] != ("I64", places["image_number"].shape[:1]) or places["images"][:2] != (
        "U8",
        places["images"].shape[:1],
    ):
        yield "`image_number` and `images` are no lists"
    for layer in said["layers"]:
        yield from _layer_faults(places, layer, said["kept"], said["top_images"])


def _layer_faults(places: Mapping[str, Place], layer: int, kept: int, top: int) -> Iterator[str]:
    """What is wrong with the shapes of one layer's tensors."""
    sizes: dict[str, int] = {"t": top}
    for field, (dtype, sides) in FIELDS.items():
        place, names = places[f"{layer}.{field}"], sides.split()
        fits = place.dtype == dtype and len(place.shape) == len(names)
        if not fits or any(sizes.setdefault(name, size) != size for name, size in zip(names, place.shape, strict=True)):
            yield f"`{layer}.{field}` is {place.dtype} {list(place.shape)}, expected {dtype} [{sides.replace(' ', ', ')}]"
            return
    if not sizes["n"] or not sizes["k"] or sizes["m"] != sizes["k"] * (sizes["k"] + 1) // 2 or sizes["f"] > kept:
        yield f"the tensors of layer {layer} have sides that do not go together"


def difference(one: Header, other: Header) -> str | None:
    """What keeps two partials from being of one run, in a few words; None if nothing does."""
    pairs: list[tuple[str, Any, Any]] = [
        (f"model's {key}", one.model.get(key), other.model.get(key)) for key in ("sha256", "precision", "preprocessing")
    ]
    if (model := model_difference(one.model, other.model)) and pairs[0][1] == pairs[0][2]:
        return f"a model with {model}"
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
        check_finite({f"{layer}.{field}": values for field, values in rows.items()})
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
