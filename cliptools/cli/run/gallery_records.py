"""Pictures and records for clip-gallery: images, and the output of clip-concepts, clip-segment,
clip-advgen and clip-explain.

Every image and every picture is listed once, however many units and records refer to it. Records come from files, so their fields
are checked (by hand, because msgspec's messages do not quote the value found), and their model must be the bundle's.
"""

import hashlib
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cliptools.cli.run.sheet import open_named
from cliptools.console import count_of, warn
from cliptools.errors import CliptoolsError, ImageError, StreamError, UsageError
from cliptools.generate.records import read_records
from cliptools.images.decode import decode, small_jpeg, thumbnail_bytes
from cliptools.io.bundle import Bundle
from cliptools.io.header import model_difference, reason_of
from cliptools.io.jsonl import parse, rounded
from cliptools.io.text_file import file_beside, open_file_or_stdin

SEGMENTS = "segments.json"  # ending of the files that clip-segment --out-dir writes for each image, and once their whole name
DIGITS = 3
TYPES = {str: "a text", bool: "true or false", dict: "an object", list: "a list", float: "a number"}
NO_PICTURE = -1
Fetch = Callable[[str], bytes | None]
"""A function that returns the picture of an image as JPEG, given its name; None if it has no picture."""


class PictureTable:
    """Names of images and their pictures, numbered in the order of their first use.

    Args:
        bundle: Source of thumbnails, if there are no paths.
        paths: Files and folders with the images.
        pixels: Longer side of pictures that are read from paths or files.

    Raises:
        UsageError: The paths hold no images.
    """

    def __init__(self, bundle: Bundle, paths: tuple[str, ...], pixels: int) -> None:
        self.names: list[str] = []
        self.picture_of: list[int] = []
        self.pictures: list[bytes] = []
        self.pixels, self.paths = pixels, paths
        self._number: dict[str, int] = {}
        self._picture_number: dict[bytes, int] = {}
        self._fetch = self._from_paths(paths) if paths else _from_thumbnails(bundle)

    def image(self, name: str) -> int:
        """Return the number of the image with this name; add a new image with its picture."""
        if name not in self._number:
            self._number[name] = len(self.names)
            self.names.append(name)
            self.picture_of.append(self._add(self._fetch(name)))
        return self._number[name]

    def picture(self, path: str) -> int:
        """Return the number of the picture in a file; NO_PICTURE, with a warning, if it cannot be read."""
        try:
            return self._add(small_jpeg(decode(path), self.pixels))
        except ImageError as error:
            warn(f"{path}: {error}")
            return NO_PICTURE

    def report_missing(self) -> None:
        """Warn of images without a picture.

        Raises:
            UsageError: Paths were given, and they have none of the images.
        """
        missing_names = [name for name, number in zip(self.names, self.picture_of, strict=True) if number == NO_PICTURE]
        if not missing_names:
            return
        if self.paths and len(missing_names) == len(self.names):
            raise UsageError(f"--images-from: none of the images is there (looked for {', '.join(missing_names[:3])} …)")
        remedy = "" if self.paths else "; clip-effects --thumbnails 96 keeps them in the bundle, --images-from PATH reads them"
        warn(f"{len(missing_names)} of {count_of(len(self.names), 'image')} without a picture{remedy}")

    def data(self) -> dict[str, Any]:
        """Return the page's lists of names and of the numbers of their pictures."""
        return {"images": self.names, "picture": self.picture_of}

    def _add(self, jpeg: bytes | None) -> int:
        if not jpeg:
            return NO_PICTURE
        content = hashlib.sha256(jpeg).digest()
        if content not in self._picture_number:
            self._picture_number[content] = len(self.pictures)
            self.pictures.append(jpeg)
        return self._picture_number[content]

    def _from_paths(self, paths: tuple[str, ...]) -> Fetch:
        picture_of = open_named(paths)

        def fetch(name: str) -> bytes | None:
            picture = picture_of(name)
            return None if picture is None else small_jpeg(picture, self.pixels)

        return fetch


def _from_thumbnails(bundle: Bundle) -> Fetch:
    if "thumbnails" not in bundle:
        return lambda name: None
    index = {str(name): i for i, name in enumerate(bundle.text_list("images"))}

    def fetch(name: str) -> bytes | None:
        return thumbnail_bytes(bundle["thumbnails"], bundle["thumbnail_offsets"], index[name]) if name in index else None

    return fetch


@dataclass(frozen=True)
class Fields:
    """A record that checks the types of its fields when they are read."""

    where: str
    """File and line, for messages."""
    record: dict[str, Any]

    def get(self, key: str, kind: type) -> Any:
        """Return a field.

        Raises:
            StreamError: The field is missing, or of another type.
        """
        value = self.record.get(key)
        if not _has_type(value, kind):
            actual = f"{value!r}"[:40] if key in self.record else "nothing"
            raise StreamError(f"{self.where}: `{key}` should be {TYPES[kind]}, found {actual}")
        return value

    def optional(self, key: str, kind: type) -> Any:
        """Return a field; None if it is missing or null."""
        return self.get(key, kind) if self.record.get(key) is not None else None

    def number(self, key: str) -> float:
        """Return a number, rounded to the digits that the page shows."""
        return rounded(self.get(key, float), DIGITS)

    def texts(self, key: str) -> list[str]:
        """Return a list of texts; empty if the field is missing."""
        return [str(text) for text in self.optional(key, list) or ()]

    def objects(self, key: str) -> "list[Fields]":
        """Return a list of objects; empty if the field is missing."""
        values = self.optional(key, list) or []
        if not all(isinstance(value, dict) for value in values):
            raise StreamError(f"{self.where}: `{key}` should be a list of objects")
        return [Fields(f"{self.where}, `{key}`", value) for value in values]


def concept_records(path: Path, bundle: Bundle, images: PictureTable) -> list[dict[str, Any]]:
    """Return the records of clip-concepts for the page: images and the words that describe them."""
    records = []
    for line in _lines(path, bundle, "clip-concepts"):
        record: dict[str, Any] = {"image": images.image(line.get("image", str))}
        if not isinstance(line.record.get("concepts"), list):
            raise StreamError(f"{line.where}: not a record of clip-concepts (it has no list `concepts`)")
        record["concepts"] = [[concept.get("word", str), concept.number("score")] for concept in line.objects("concepts")]
        record["neurons"] = [_neuron(neuron) for neuron in line.objects("neurons")]
        if line.optional("active", float) is not None:
            record["active"] = line.number("active")
        for key in ("truth", "found"):
            if key in line.record:
                record[key] = line.texts(key)
        records.append(record)
    return records


def mask_records(folder: Path, bundle: Bundle, images: PictureTable) -> list[dict[str, Any]]:
    """Return the finished records in the --out-dir of clip-segment for the page: masks of texts in images, or label maps."""
    records = []
    for path in _finished(folder):
        try:
            segments = parse(path.read_bytes())
        except (OSError, ValueError):
            raise StreamError(f"{path}: damaged, expected records of clip-segment") from None
        for segment in Fields(str(path), {"records": segments}).objects("records"):
            _check_model(segment, bundle)
            record: dict[str, Any] = {"image": images.image(segment.get("image", str)), "method": segment.optional("method", str)}
            record["picture"] = images.picture(str(_inside(folder, segment.get("overlay", str))))
            if segment.optional("text", str) is not None:
                record |= {"text": segment.get("text", str), "score": segment.number("score"), "share": segment.number("share")}
            else:
                record["found"] = [[label.get("class", str), label.number("share")] for label in segment.objects("found")]
            records.append(record)
    if not records:
        raise CliptoolsError(f"{folder}: no finished output of clip-segment --out-dir (it contains no {SEGMENTS})")
    return records


def fooled_records(path: Path, bundle: Bundle, images: PictureTable) -> list[dict[str, Any]]:
    """Return the records of clip-advgen for the page: pictures, and whether they fool the model."""
    records = []
    for line in _lines(path, bundle, "clip-advgen"):
        record: dict[str, Any] = {key: line.get(key, str) for key in ("depict", "predict")}
        record |= {"margin": line.number("margin"), "fooled": line.get("fooled", bool), "words": line.texts("words")}
        record |= {"by": line.optional("by", str), "description": line.optional("description", str)}
        file = line.optional("file", str)
        record["picture"] = images.picture(file_beside(file, path)) if file else NO_PICTURE
        if check := line.optional("check", dict):
            inner = Fields(f"{line.where}, `check`", check)
            record["check"] = {key: inner.get(key, bool) for key in ("depicted", "predicted")}
            record["check"]["by"] = inner.get("by", str)
        records.append(record)
    return records


EXPLAINED_PARTS = ("units", "other_units", "heads", "mlps", "rest")


def explained_records(path: Path, maps: Path | None, bundle: Bundle, images: PictureTable) -> list[dict[str, Any]]:
    """Return the records of clip-explain for the page: margins, their parts, and the units of largest share with their maps."""
    records = []
    for line in _lines(path, bundle, "clip-explain"):
        record: dict[str, Any] = {
            "image": images.image(line.get("image", str)),
            "a": line.get("a", str),
            "b": line.optional("b", str),
        }
        record["margin"] = line.number("margin")
        parts = Fields(f"{line.where}, `parts`", line.get("parts", dict))
        record["parts"] = [[name, parts.number(name)] for name in EXPLAINED_PARTS if name in parts.record]
        record["units"] = [_explaining(unit, maps, images) for unit in line.objects("units")]
        records.append(record)
    return records


def _explaining(unit: Fields, maps: Path | None, images: PictureTable) -> dict[str, Any]:
    """Return a unit's share of a margin, what it sees and writes, and the picture of where it acts."""
    overlay = unit.optional("map", str) if maps is not None else None
    return {
        "unit": _unit(unit),
        "share": unit.number("share"),
        "excess": unit.number("excess"),
        "sees": [word.get("word", str) for word in unit.objects("sees")],
        "writes": [word.get("word", str) for word in unit.objects("writes")],
        "picture": NO_PICTURE if overlay is None or maps is None else images.picture(str(_inside(maps, overlay))),
    }


def _neuron(neuron: Fields) -> dict[str, Any]:
    words = [[word.get("word", str), word.number("coefficient")] for word in neuron.objects("words")]
    return {"unit": _unit(neuron), "norm": neuron.number("norm"), "words": words}


def _unit(record: Fields) -> list[int]:
    """Return layer, neuron and head of a record, -1 for what it lacks."""
    return [int(record.number(key)) if key in record.record else -1 for key in ("layer", "neuron", "head")]


def _lines(path: Path, bundle: Bundle, command: str) -> Iterator[Fields]:
    """Yield the records in a file.

    Raises:
        StreamError: The file has no records, a line is not a record, or a record belongs to another model than the bundle's.
    """
    try:
        with open_file_or_stdin(path, str(path)) as stream:
            number = 0
            for number, record in read_records(stream, str(path)):
                line = Fields(f"{path}, line {number}", record)
                _check_model(line, bundle)
                yield line
    except OSError as error:
        raise CliptoolsError(f"{path}: {error.strerror}") from None
    if not number:
        raise StreamError(f"{path}: empty, expected lines of {command}")


def _check_model(record: Fields, bundle: Bundle) -> None:
    model = record.optional("model", dict) or {}
    if model.get("sha256") is not None and (difference := model_difference(model, bundle.header.model)):
        raise StreamError(f"{record.where}: made with another model ({model.get('name')}) than the bundle{reason_of(difference)}")


def _finished(folder: Path) -> Iterator[Path]:
    """Yield the files of records in an --out-dir, in sorted order; links to folders are not followed."""
    if not folder.is_dir():
        raise CliptoolsError(f"{folder}: no such folder")
    for place, inner, files in os.walk(folder):
        inner.sort()
        yield from (Path(place) / file for file in sorted(files) if file == SEGMENTS or file.endswith(f".{SEGMENTS}"))


def _inside(folder: Path, name: str) -> Path:
    """Return the path of a file in the folder.

    Raises:
        StreamError: The name leads out of the folder.
    """
    path = folder / name
    try:
        inside = path.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError):
        inside = False
    if not inside:
        raise StreamError(f"{folder}: a record names the file {name!r}, which is not in it")
    return path


def _has_type(value: Any, kind: type) -> bool:
    if kind is not float:
        return isinstance(value, kind)
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False
