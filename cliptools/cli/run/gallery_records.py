"""What a gallery shows of other commands' records: concepts of images, masks, and pictures that fool the model.

What a gallery says of units: columns of numbers and words, as its page's script reads them.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cliptools.cli.app import ORDERS
from cliptools.cli.run.bundle_output import order_units, signed_words, strength, weight_name
from cliptools.cli.run.gallery_images import NONE, Shelf
from cliptools.cli.run.sheet_rows import heading
from cliptools.console import progress
from cliptools.errors import CliptoolsError, StreamError
from cliptools.generate.records import read_records
from cliptools.io.bundle import Bundle
from cliptools.io.header import model_difference, reason_of
from cliptools.io.jsonl import parse, rounded
from cliptools.io.text_file import file_beside, open_given

SEGMENTS = "segments.json"  # of clip-segment --out-dir, in each image's folder
DIGITS = 3
TYPES = {str: "a text", bool: "true or false", dict: "an object", list: "a list", float: "a number"}


@dataclass(frozen=True)
class Fields:
    """A record of which each field is asked for with the type it should have."""

    where: str
    record: dict[str, Any]

    def get(self, key: str, kind: type) -> Any:
        """A field.

        Raises:
            StreamError: it is not there, or of another type.
        """
        value = self.record.get(key)
        if not _is(value, kind):
            found = f"{value!r}"[:40] if key in self.record else "nothing"
            raise StreamError(f"{self.where}: `{key}` should be {TYPES[kind]}, found {found}")
        return value

    def may(self, key: str, kind: type) -> Any:
        """A field, or None where it is not there or null."""
        return self.get(key, kind) if self.record.get(key) is not None else None

    def number(self, key: str) -> float:
        """A number with the digits that are shown."""
        return rounded(self.get(key, float), DIGITS)

    def texts(self, key: str) -> list[str]:
        """A list of texts, empty where it is not there."""
        return [str(text) for text in self.may(key, list) or ()]

    def inner(self, key: str) -> "list[Fields]":
        """A list of objects, empty where it is not there."""
        found = self.may(key, list) or []
        if not all(isinstance(one, dict) for one in found):
            raise StreamError(f"{self.where}: `{key}` should be a list of objects")
        return [Fields(f"{self.where}, `{key}`", one) for one in found]


def concept_records(path: Path, bundle: Bundle, shelf: Shelf) -> list[dict[str, Any]]:
    """What images show, of the lines of clip-concepts."""
    said = []
    for one in _lines(path, bundle, "clip-concepts"):
        record: dict[str, Any] = {"image": shelf.image(one.get("image", str))}
        if not isinstance(one.record.get("concepts"), list):
            raise StreamError(f"{one.where}: no record of clip-concepts (it has no list `concepts`)")
        record["concepts"] = [[each.get("word", str), each.number("score")] for each in one.inner("concepts")]
        record["neurons"] = [_neuron(each) for each in one.inner("neurons")]
        if one.may("active", float) is not None:
            record["active"] = one.number("active")
        for key in ("truth", "found"):
            if key in one.record:
                record[key] = one.texts(key)
        said.append(record)
    return said


def mask_records(folder: Path, bundle: Bundle, shelf: Shelf) -> list[dict[str, Any]]:
    """Where a text is in images, or how they are labelled, of all that clip-segment has finished in its --out-dir."""

    said = []
    for path in _finished(folder):
        try:
            listed = parse(path.read_bytes())
        except (OSError, ValueError):
            raise StreamError(f"{path}: damaged, expected records of clip-segment") from None
        for one in Fields(str(path), {"records": listed}).inner("records"):
            _check_model(one, bundle)
            record: dict[str, Any] = {"image": shelf.image(one.get("image", str)), "method": one.may("method", str)}
            record["picture"] = shelf.picture(str(_inside(folder, one.get("overlay", str))))
            if one.may("text", str) is not None:
                record |= {"text": one.get("text", str), "score": one.number("score"), "share": one.number("share")}
            else:
                record["found"] = [[each.get("class", str), each.number("share")] for each in one.inner("found")]
            said.append(record)
    if not said:
        raise CliptoolsError(f"{folder}: nothing that clip-segment --out-dir has finished (no {SEGMENTS} in it)")
    return said


def fooled_records(path: Path, bundle: Bundle, shelf: Shelf) -> list[dict[str, Any]]:
    """Pictures and whether they fool the model, of the lines of clip-advgen."""
    said = []
    for one in _lines(path, bundle, "clip-advgen"):
        record: dict[str, Any] = {key: one.get(key, str) for key in ("depict", "predict")}
        record |= {"margin": one.number("margin"), "fooled": one.get("fooled", bool), "words": one.texts("words")}
        record |= {"by": one.may("by", str), "description": one.may("description", str)}
        file = one.may("file", str)
        record["picture"] = shelf.picture(file_beside(file, path)) if file else NONE
        if check := one.may("check", dict):
            inner = Fields(f"{one.where}, `check`", check)
            record["check"] = {key: inner.get(key, bool) for key in ("depicted", "predicted")}
            record["check"]["by"] = inner.get("by", str)
        said.append(record)
    return said


def _neuron(one: Fields) -> dict[str, Any]:
    unit = [int(one.number(key)) if key in one.record else -1 for key in ("layer", "neuron", "head")]
    words = [[each.get("word", str), each.number("coefficient")] for each in one.inner("words")]
    return {"unit": unit, "norm": one.number("norm"), "words": words}


def _lines(path: Path, bundle: Bundle, command: str) -> Iterator[Fields]:
    """The records of a file, of the bundle's own model.

    Raises:
        StreamError: none there, a line that is no record, or one of another model.
    """

    try:
        with open_given(path, str(path)) as stream:
            number = 0
            for number, record in read_records(stream, str(path)):
                one = Fields(f"{path}, line {number}", record)
                _check_model(one, bundle)
                yield one
    except OSError as error:
        raise CliptoolsError(f"{path}: {error.strerror}") from None
    if not number:
        raise StreamError(f"{path}: empty, expected lines of {command}")


def _check_model(one: Fields, bundle: Bundle) -> None:
    model = one.may("model", dict) or {}
    if model.get("sha256") is not None and (difference := model_difference(model, bundle.header.model)):
        raise StreamError(f"{one.where}: of another model ({model.get('name')}) than the bundle's{reason_of(difference)}")


def _finished(folder: Path) -> Iterator[Path]:
    """Records in an --out-dir, in a fixed order; links to folders are not followed."""
    if not folder.is_dir():
        raise CliptoolsError(f"{folder}: no such folder")
    for place, inner, files in os.walk(folder):
        inner.sort()
        if SEGMENTS in files:
            yield Path(place) / SEGMENTS


def _inside(folder: Path, name: str) -> Path:
    """A file of the folder.

    Raises:
        StreamError: the name leads out of it.
    """
    path = folder / name
    try:
        inside = path.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError):
        inside = False
    if not inside:
        raise StreamError(f"{folder}: a record speaks of {name!r}, which is not in it")
    return path


def _is(value: Any, kind: type) -> bool:
    if kind is not float:
        return isinstance(value, kind)
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


CURVE_POINTS = 40
SHARES = ("explained", "explained_all", "residual")


def check_units(bundle: Bundle, name: str) -> None:
    """Whether the bundle holds what is shown.

    Raises:
        StreamError: a tensor is missing, or its shape does not go with another's.
    """
    for tensor in ("top_norm", "top_image", "images", "explained"):
        if tensor not in bundle:
            raise StreamError(f"{name}: a bundle without `{tensor}`; run clip-effects first")
    for one, other in (("top_norm", "top_image"), ("word", "coefficient")):
        if one in bundle and (other not in bundle or bundle[one].ndim != 2 or bundle[one].shape != bundle[other].shape):
            raise StreamError(f"{name}: `{one}` and `{other}` should be tables of one shape")


def said_of_units(bundle: Bundle, shelf: Shelf, options: dict[str, Any]) -> dict[str, Any]:
    """Units in rows, in the order of the bundle, and the orders in which they can be shown; words and images by number."""

    rows = np.sort(order_units(bundle, options["sort"])[: options["head"]])
    title, notes = heading(bundle, len(rows))
    data: dict[str, Any] = {"title": title, "notes": notes, "kind": str(bundle.header.settings.get("units", "neurons"))}
    data |= {"weight": weight_name(bundle), "unit": bundle["unit"][rows].tolist()}
    for share in SHARES:
        if share in bundle and share not in bundle.derived:
            data[share] = [rounded(value, DIGITS) for value in bundle[share][rows]]
    data["strength"] = [rounded(value, DIGITS) for value in strength(bundle)[rows]]
    if "threshold" in bundle:
        data["threshold"] = [rounded(value, DIGITS) for value in bundle["threshold"][rows]]
    if "threshold_bound" in bundle and bundle["threshold_bound"][rows].any():
        data["threshold_bound"] = [rounded(value, DIGITS) for value in bundle["threshold_bound"][rows]]
    return data | _words(bundle, rows, options["words"]) | _tops(bundle, rows, shelf, options) | _orders(bundle, rows, options)


def _orders(bundle: Bundle, rows: "np.ndarray", options: dict[str, Any]) -> dict[str, Any]:
    """The orders of clip-view among the rows, the one asked for first."""
    place = {int(row): number for number, row in enumerate(rows)}
    known = [order for order in ORDERS if order != "residual" or "residual" in bundle]
    known.sort(key=lambda order: order != options["sort"])
    return {"orders": {name: [place[row] for row in order_units(bundle, name).tolist() if row in place] for name in known}}


def _words(bundle: Bundle, rows: "np.ndarray", most: int) -> dict[str, Any]:
    """The largest words of each row, and the texts that appear."""
    if "word" not in bundle:
        return {}
    texts = bundle.text_list("words")["texts"]
    number: dict[int, int] = {}
    words, weights = [], []
    for row in rows:
        said = signed_words(bundle, row)[:most]
        words.append([number.setdefault(j, len(number)) for j, _ in said])
        weights.append([rounded(weight, DIGITS) for _, weight in said])
    return {"texts": [str(texts[j]) for j in number], "word": words, "coefficient": weights}


def _tops(bundle: Bundle, rows: "np.ndarray", shelf: Shelf, options: dict[str, Any]) -> dict[str, Any]:
    """The top images of each row with their norms, and how the norms of all that the bundle lists fall."""

    listed, count = bundle.text_list("images"), options["images_per_unit"]
    across = bundle["top_norm"].shape[1]
    points = np.unique(np.linspace(0, max(across - 1, 0), min(across, CURVE_POINTS)).round().astype(int))
    images, norms, curves = [], [], []
    for row in progress(rows, "units", len(rows)):
        shown = [(int(i), norm) for i, norm in zip(bundle["top_image"][row], bundle["top_norm"][row], strict=True) if i >= 0]
        images.append([shelf.image(str(listed[i])) for i, _ in shown[:count]])
        norms.append([rounded(norm, DIGITS) for _, norm in shown[:count]])
        there = points[points < len(shown)]
        curves.append([rounded(shown[i][1], DIGITS) for i in there])
    return {"image": images, "norm": norms, "curve": curves, "ranks": (points + 1).tolist()}
