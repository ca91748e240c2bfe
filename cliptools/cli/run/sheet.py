"""clip-sheet: draws a contact sheet of neurons as PNG, SVG or PDF; clip-top uses its rows, heading and file as well."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import Int
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from cliptools.analysis.selection import rows_named
from cliptools.cli.app import Reading, open_input
from cliptools.cli.surroundings import refuse_idle
from cliptools.console import count_of
from cliptools.errors import UsageError
from cliptools.front.unit_records import order_units, positive_and_negative, seen_title, seen_words, signed_words
from cliptools.images.decode import thumbnail
from cliptools.io.bundle import Bundle, read_bundle
from cliptools.io.files import binary_output
from cliptools.io.header import KEY
from cliptools.render.contact_sheet import SheetRow, contact_sheet, most_rows, vector_sheet, words_in_row
from cliptools.render.figure_file import kind_of

OUTLINE_NOTE = "outlines: tokens whose part of the effect is at least half of the largest"
FACTS = 2  # beside a unit's name; more do not fit
KINDS = {"pairs": "pairs of a neuron and a head", "heads": "heads", "latents": "latents"}
SHARES = ("agreement", "explained", "residual")
"""Numbers of a unit, of which a row shows the first FACTS."""
VECTOR_ENDINGS = (".svg", ".pdf")
Fetch = Callable[[int], Image.Image | None]
"""A function that returns the picture of an image, given its index in the bundle; None if it has no picture."""


@dataclass(frozen=True, kw_only=True)
class SheetOptions(Reading):
    """Parameters of clip-sheet."""

    bundle: Path | None
    units: str | None
    sort: str
    head: int
    images_per_unit: int
    images_from: tuple[str, ...]
    outlines: bool
    strict: bool
    device: str
    output: Path | None


def run(options: SheetOptions) -> None:
    """Draw the sheet.

    Raises:
        StreamError: The input is not a bundle.
        UsageError: The picture would be too large, there are no pictures to draw, or the bundle's effects have no outlines.
        ModelError: Outlines are asked for, and the bundle's model is not available.
        ImageError: An image cannot be read, with --strict.
    """
    check_sheet(options.output, "-o")
    if options.units:
        refuse_idle(("sort", "head"), "with --units, which are all drawn in their own order")
    stream, name = open_input(options.bundle, "a bundle", "BUNDLE")
    with stream:
        bundle = read_bundle(stream, name)
    count = options.images_per_unit
    rows = rows_named(bundle, options.units) if options.units else order_units(bundle, options.sort)[: options.head]
    if len(rows) > most_rows(count):
        raise UsageError(
            f"{count_of(len(rows), 'unit')} with {count_of(count, 'image')} make too large a picture (at most {most_rows(count)})"
        )
    pictures = _outlined(bundle, rows, options) if options.outlines else _pictures(bundle, rows, options)
    sheet_rows = [unit_row(bundle, int(row), images) for row, images in zip(rows, pictures, strict=True)]
    with binary_output(options.output) as stream:
        note = OUTLINE_NOTE if options.outlines else ""
        stream.write(sheet_bytes(len(rows), sheet_rows, bundle, options.output, note))


def _pictures(bundle: Bundle, rows: Int[np.ndarray, " unit"], options: SheetOptions) -> list[list[Image.Image | None]]:
    """Return the top images of each unit, from --images-from or the thumbnails."""
    images, paths = bundle["top_image"][rows, : options.images_per_unit], options.images_from  # (unit, n)
    fetch = _from_paths(bundle, paths, images, options.strict) if paths else _from_thumbnails(bundle)
    return [[fetch(i) for i in row if i >= 0] for row in images.tolist()]


def _outlined(bundle: Bundle, rows: Int[np.ndarray, " unit"], options: SheetOptions) -> list[list[Image.Image | None]]:
    """Return the top images of each unit with outlines of where it acts."""
    # Inside, because it imports torch and open_clip, which sheets without outlines do not need.
    from cliptools.front.top_files import outlined_tops

    return outlined_tops(bundle, rows, options.images_per_unit, options.images_from, options.device, options.strict)


def _from_thumbnails(bundle: Bundle) -> Fetch:
    if "thumbnails" not in bundle:
        raise UsageError("this bundle has no thumbnails: make it with clip-effects --thumbnails 96, or give --images-from PATH")
    return lambda index: thumbnail(bundle["thumbnails"], bundle["thumbnail_offsets"], index)


def _from_paths(bundle: Bundle, paths: tuple[str, ...], images: Int[np.ndarray, "unit image"], strict: bool) -> Fetch:
    """Return a function that reads images by their names in the bundle.

    Args:
        images: Indices of the images to read; -1 after the last image of a unit.

    Raises:
        UsageError: The paths contain no such image.
    """
    picture_of = open_named(paths, bundle, (int(i) for i in images.flat if i >= 0), strict)
    listed: list[str] = bundle.text_list("images")
    return lambda index: picture_of(listed[index])


def open_named(
    paths: tuple[str, ...], bundle: Bundle | None = None, indices: Iterable[int] = (), strict: bool = False
) -> Callable[[str], Image.Image | None]:
    """Return a function from an image's name to its picture; None for missing and, with a warning, unreadable images.

    Args:
        paths: Those of --images-from.
        bundle: Bundle whose images are looked up first, with a warning if some of them are missing.
        indices: Indices of these images in the bundle.
        strict: An unreadable image is an error.

    Raises:
        UsageError: The paths contain no image of the bundle.
    """
    # Inside, because it imports torch, which pages and sheets of thumbnails do not need.
    from cliptools.images import loader, relocate

    source = loader.open_images(paths)
    if bundle is not None:
        relocate.locate_images(bundle, source, indices, "--images-from")
    return relocate.pictures_by_name(source, strict)


def unit_row(
    bundle: Bundle, row: int, pictures: Sequence[Image.Image | None], facts: Sequence[str] = (), inner: bool = False
) -> SheetRow:
    """Return the row of a unit: its name, facts, strongest words and pictures.

    Args:
        facts: Further facts about the unit; they precede the shares in the bundle.
        inner: Draw the row as a part of the row above.
    """
    layer, neuron, head = (int(v) for v in bundle["unit"][row])
    pair = neuron >= 0 and head >= 0
    title = (
        f"pair {layer}:{neuron}.{head}" if pair else f"layer {layer} " + (f"neuron {neuron}" if neuron >= 0 else f"head {head}")
    )
    shares = [(name, bundle[name][row]) for name in SHARES if name in bundle and name not in bundle.derived]
    fact_list = [*facts, *(f"{name} {value:.2f}" for name, value in shares)][:FACTS]
    words: list[tuple[str, float]] = []
    seen: list[tuple[str, float]] = []
    if "word" in bundle:
        texts = bundle.text_list("words")["texts"]
        seen = [(texts[j], c) for j, c in seen_words(bundle, row)]
        written = positive_and_negative(signed_words(bundle, row), words_in_row(bool(seen)))
        words = [(texts[j], c) for j, c in written]
    return SheetRow(title, " · ".join(fact_list), words, pictures, inner, seen, seen_title(bundle))


def heading(bundle: Bundle, count: int) -> tuple[str, str]:
    """Return the two lines above a sheet: the model, and the units and images that were measured.

    Args:
        count: Number of units on the sheet.
    """
    header = bundle.header
    pretrained = header.model.get("pretrained")
    model = str(header.model.get("name")) + (f" ({pretrained})" if pretrained else "")
    words = "" if "word" in bundle else " · no words yet: clip-decompose finds them"
    kind = KINDS.get(str(header.settings.get("units")), "neurons")
    return model, f"{count} of {bundle.units} {kind} · top images of {header.images.get('count')}{words}"


def check_sheet(path: Path | None, option: str) -> None:
    """Check, before any work, that a sheet with this name can be drawn: .png or no ending, or .svg or .pdf with matplotlib.

    Raises:
        UsageError: another ending.
        CliptoolsError: matplotlib is not installed.
    """
    if path is not None and path.suffix.lower() not in ("", ".png"):
        kind_of(path, option)


def sheet_bytes(count: int, rows: Sequence[SheetRow], bundle: Bundle, path: Path | None, note: str = "") -> bytes:
    """Return the sheet as the bytes of a file, with the bundle's header in it, which records the source of the picture.

    Args:
        count: Number of units of the bundle on the sheet.
        path: The file, whose ending is the format if it is .svg or .pdf.
        note: What the line of notes says besides.
    """
    model, notes = heading(bundle, count)
    notes += f" · {note}" if note else ""
    if path is not None and path.suffix.lower() in VECTOR_ENDINGS:
        return vector_sheet(model, notes, rows, kind_of(path, "-o"), bundle.header.to_json())
    chunks = PngInfo()
    chunks.add_itxt(KEY, bundle.header.to_json())
    buffer = BytesIO()
    contact_sheet(model, notes, rows).save(buffer, "PNG", pnginfo=chunks)
    return buffer.getvalue()
