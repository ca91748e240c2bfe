"""clip-gallery: makes a page of neurons to browse, from a bundle and from the records of other commands.

The page's script reads one object of columns: each property has a list with one entry per unit. Words and images are listed once,
and units refer to them by number. gallery_records.py reads the records of other commands.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from cliptools.cli.app import ORDERS, Reading, open_input
from cliptools.cli.run.gallery_records import (
    DIGITS,
    PictureTable,
    concept_records,
    explained_records,
    fooled_records,
    mask_records,
)
from cliptools.cli.run.sheet import heading
from cliptools.cli.surroundings import refuse_idle
from cliptools.console import note, progress
from cliptools.errors import StreamError, UsageError
from cliptools.front.unit_records import order_units, seen_words, signed_words, strength, weight_name
from cliptools.io.bundle import Bundle, read_bundle
from cliptools.io.files import binary_output, whole_folder
from cliptools.io.jsonl import rounded
from cliptools.render.gallery_page import inline_pictures, page, picture_files

TOOL = "clip-gallery"
LARGEST_PAGE = 200_000_000  # bytes; browsers are slow to open larger pages
CURVE_POINTS = 40
SHARES = ("explained", "explained_all", "residual", "agreement")


@dataclass(frozen=True, kw_only=True)
class GalleryOptions(Reading):
    """Parameters of clip-gallery."""

    bundle: Path | None
    sort: str
    head: int | None
    words: int
    images_per_unit: int
    images_from: tuple[str, ...]
    pixels: int
    concepts: Path | None
    masks: Path | None
    fooled: Path | None
    explained: Path | None
    maps: Path | None
    folder: Path | None
    output: Path | None


def run(options: GalleryOptions) -> None:
    """Write the page.

    Raises:
        StreamError: The input is not a bundle with top images, or records are damaged or belong to another model.
        UsageError: Both -o and --folder are given, --maps is given without --explained, an option has no effect, or --images-from
            contains no image of the bundle.
    """
    if options.folder is not None and options.output is not None:
        raise UsageError("-o writes one file and --folder many: give only one of them")
    if options.maps is not None and options.explained is None:
        raise UsageError("--maps needs --explained, whose records name the maps")
    if not (options.images_from or options.masks or options.fooled or options.maps):
        refuse_idle(("pixels",), "without --images-from, --masks, --fooled or --maps, whose pictures are files")
    stream, name = open_input(options.bundle, "a bundle", "BUNDLE")
    with stream:
        bundle = read_bundle(stream, name)
    images = PictureTable(bundle, options.images_from, options.pixels)
    check_units(bundle, name)
    data = _unit_data(bundle, images, options) | _record_data(bundle, images, options) | images.data()
    images.report_missing()
    _write(data, images.pictures, options.folder, options.output)


def check_units(bundle: Bundle, name: str) -> None:
    """Check that the bundle holds the tensors from which the page shows units.

    Raises:
        StreamError: A tensor is missing, or the shapes of two tensors differ.
    """
    for tensor in ("top_norm", "top_image", "images", "explained"):
        if tensor not in bundle:
            raise StreamError(f"{name}: a bundle without `{tensor}`; run clip-effects first")
    for first, second in (("top_norm", "top_image"), ("word", "coefficient")):
        if first in bundle and (second not in bundle or bundle[first].ndim != 2 or bundle[first].shape != bundle[second].shape):
            raise StreamError(f"{name}: `{first}` and `{second}` should be tables of the same shape")


def _unit_data(bundle: Bundle, images: PictureTable, options: GalleryOptions) -> dict[str, Any]:
    """Return the columns of units, in the bundle's order, and the orders that the page offers."""
    rows = np.sort(order_units(bundle, options.sort)[: options.head])
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
    data |= _words(bundle, rows, options.words) | _top_images(bundle, rows, images, options.images_per_unit)
    return data | _orders(bundle, rows, options.sort)


def _words(bundle: Bundle, rows: Int[np.ndarray, " row"], count: int) -> dict[str, Any]:
    """Return each unit's strongest words and their coefficients, and the texts that occur; nothing for a bundle without words."""
    if "word" not in bundle:
        return {}
    texts = bundle.text_list("words")["texts"]
    number: dict[int, int] = {}
    names = ("word", "coefficient", "seen", "correlation")[: 4 if "seen" in bundle else 2]
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for row in rows:
        lists = [("word", "coefficient", signed_words(bundle, row)), ("seen", "correlation", seen_words(bundle, row))]
        for name, value, words in lists if "seen" in bundle else lists[:1]:
            columns[name].append([number.setdefault(j, len(number)) for j, _ in words[:count]])
            columns[value].append([rounded(weight, DIGITS) for _, weight in words[:count]])
    return {"texts": [str(texts[j]) for j in number]} | columns


def _top_images(bundle: Bundle, rows: Int[np.ndarray, " row"], images: PictureTable, count: int) -> dict[str, Any]:
    """Return each unit's top images with their norms, and the norms along the whole list at CURVE_POINTS ranks."""
    names, length = bundle.text_list("images"), bundle["top_norm"].shape[1]
    points = np.unique(np.linspace(0, max(length - 1, 0), min(length, CURVE_POINTS)).round().astype(int))
    numbers, norms, curves = [], [], []
    for row in progress(rows, "units", len(rows)):
        tops = [(int(i), norm) for i, norm in zip(bundle["top_image"][row], bundle["top_norm"][row], strict=True) if i >= 0]
        numbers.append([images.image(str(names[i])) for i, _ in tops[:count]])
        norms.append([rounded(norm, DIGITS) for _, norm in tops[:count]])
        curves.append([rounded(tops[i][1], DIGITS) for i in points[points < len(tops)]])
    return {"image": numbers, "norm": norms, "curve": curves, "ranks": (points + 1).tolist()}


def _orders(bundle: Bundle, rows: Int[np.ndarray, " row"], sort: str) -> dict[str, Any]:
    """Return the units in each of clip-view's orders; the order of --sort is first."""
    place = {int(row): number for number, row in enumerate(rows)}
    names = [order for order in ORDERS if order != "residual" or "residual" in bundle]
    names.sort(key=lambda order: order != sort)
    return {"orders": {name: [place[row] for row in order_units(bundle, name).tolist() if row in place] for name in names}}


def _record_data(bundle: Bundle, images: PictureTable, options: GalleryOptions) -> dict[str, Any]:
    """Return the records of other commands that the options name."""
    data: dict[str, Any] = {}
    if options.concepts is not None:
        data["concepts"] = concept_records(options.concepts, bundle, images)
    if options.masks is not None:
        data["masks"] = mask_records(options.masks, bundle, images)
    if options.fooled is not None:
        data["fooled"] = fooled_records(options.fooled, bundle, images)
    if options.explained is not None:
        data["explained_margins"] = explained_records(options.explained, options.maps, bundle, images)
    return data


def _write(data: dict[str, Any], pictures: list[bytes], folder: Path | None, output: Path | None) -> None:
    """Write one file with all pictures in it, or a folder with the pictures as files."""
    if folder is None:
        content = page(data | inline_pictures(pictures), inline=True)
        if len(content) > LARGEST_PAGE:
            note(f"{TOOL}: the page has {len(content) / 1e6:.0f} MB; --folder, --head or --images-per-unit make it smaller")
        with binary_output(output) as stream:
            stream.write(content)
        return
    names, files = picture_files(pictures)
    with whole_folder(folder) as place:
        for file, jpeg in files.items():
            path = place / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg)
        (place / "index.html").write_bytes(page(data | names, inline=False))
