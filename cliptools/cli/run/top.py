"""clip-top: writes the top images of units, with the units' inertia, as records, a table and a contact sheet.

front/top.py chooses the units, front/top_images.py finds their images and reads them again.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.text import Text

from cliptools.cli.app import Batching, Output, choose_format, open_input, parse_layers
from cliptools.cli.run.sheet import OUTLINE_NOTE, check_sheet, sheet_bytes, unit_row
from cliptools.cli.surroundings import refuse_idle
from cliptools.console import count_of
from cliptools.errors import UsageError
from cliptools.front.images import Reading
from cliptools.front.tables import rendered
from cliptools.front.top import check_beside, find_tops, require_top_images, top_records, top_table
from cliptools.front.top_files import (
    THRESHOLD,
    PlacedUnit,
    acting_images,
    check_outlines,
    file_names,
    lines_of,
    outlined_pictures,
)
from cliptools.front.top_images import Top, TopImages, TopRequest
from cliptools.io.bundle import Bundle, read_bundle
from cliptools.io.files import binary_output, text_output
from cliptools.io.jsonl import write_record
from cliptools.render.contact_sheet import most_rows

TABLE_ROWS = 20


@dataclass(frozen=True, kw_only=True)
class TopOptions(Batching, Output):
    """Options of clip-top."""

    paths: tuple[str, ...]
    bundle: Path | None
    beside: Path | None
    layers: str | None
    units: str | None
    word: str | None
    strongest: int
    sort: str | None
    head: int | None
    images_per_unit: int
    inertia_images: int
    raw: bool
    sheet: Path | None
    outlines: bool
    files: bool
    null: bool
    above: str | None
    device: str


def run(options: TopOptions) -> None:
    """Run clip-top."""
    _check_effects(options)
    if options.files or options.null or options.above:
        _write_files(options)
        return
    output_format = choose_format(options.output_format, options.output, "jsonl")
    check_sheet(options.sheet, "--sheet")
    if options.outlines and not options.sheet:
        raise UsageError("--outlines needs --sheet FILE, whose pictures have them")
    bundle = _read(options.bundle, "--bundle FILE")
    if options.outlines:
        check_outlines(bundle)
    neurons = None
    if options.beside:
        neurons = _read(options.beside, "--beside FILE")
        check_beside(neurons, bundle, f"--beside {options.beside}")
    search, tops = find_tops(bundle, options.paths or None, neurons, _request(options))
    if options.sheet:
        _write_sheet(options.sheet, tops, search, options.images_per_unit, options.outlines)
    with text_output(options.output) as stream:
        if output_format == "table":
            stream.write(_table(tops, all_rows=options.output is not None))
            return
        for record in top_records(tops, options.raw):
            write_record(stream, record)


def _check_effects(options: TopOptions) -> None:
    """Reject options that have no effect beside or without another one.

    Raises:
        UsageError: there is one.
    """
    if not options.word:
        refuse_idle(("strongest",), "without --word")
    if options.above is not None:
        refuse_idle(("images_per_unit",), "with --above, which takes all listed images above a norm")
    if options.files:
        refuse_idle(("inertia_images",), "with --files, which reads no image")


def _write_files(options: TopOptions) -> None:
    """Write the names of the images on which units act.

    Raises:
        UsageError: --files is missing, or another option does not go with it.
    """
    if not options.files:
        raise UsageError(f"{'--null' if options.null else '--above'} needs --files")
    for name in ("beside", "sheet", "outlines", "raw", "output_format"):
        if getattr(options, name):
            raise UsageError(f"--files: --{'format' if name == 'output_format' else name} does not go with it; leave it out")
    bundle = _read(options.bundle, "--bundle FILE")
    images = acting_images(bundle, _request(options), _above(options.above))
    with text_output(options.output) as stream:
        for line in lines_of(file_names(bundle, images, options.paths), options.null):
            stream.write(line)


def _above(text: str | None) -> float | str | None:
    """Return the value of --above.

    Raises:
        UsageError: it is neither a number of at least 0 nor `threshold`.
    """
    if text is None or text == THRESHOLD:
        return text
    try:
        above = float(text)
    except ValueError:
        above = math.nan
    if not 0 <= above < math.inf:
        raise UsageError(f"--above {text}: expected {THRESHOLD} or a number of at least 0")
    return above


def _request(options: TopOptions) -> TopRequest:
    """Return the arguments of the front."""
    return TopRequest(
        layers=parse_layers(options.layers) if options.layers else None,
        units=options.units,
        word=options.word,
        strongest=options.strongest,
        sort=options.sort,
        head=options.head,
        images_per_unit=options.images_per_unit,
        inertia_images=options.inertia_images,
        raw=options.raw,
        device=options.device,
        reading=Reading(batch_size=options.batch_size, workers=options.workers, strict=options.strict),
    )


def _read(path: Path | None, option: str) -> Bundle:
    """Read a bundle with top images.

    Raises:
        StreamError: the input is not a bundle, or has no top images.
    """
    stream, name = open_input(path, "a bundle", option)
    with stream:
        return require_top_images(read_bundle(stream, name), name)


def _write_sheet(path: Path, tops: Sequence[Top], images: TopImages, columns: int, outlines: bool) -> None:
    """Write the contact sheet, with `outlines` of where the units act.

    Raises:
        UsageError: the picture would be too large.
    """
    if len(tops) > most_rows(columns):
        raise UsageError(
            f"--sheet: {count_of(len(tops), 'unit')} with {count_of(columns, 'image')} each make the picture too large "
            f"(at most {count_of(most_rows(columns), 'unit')})"
        )
    rows = []
    if outlines:
        pictures = outlined_pictures([PlacedUnit(top.bundle, top.row, top.places) for top in tops], images)
    else:
        pictures = [[images.picture(place) for place in top.places] for top in tops]
    for top, row in zip(tops, pictures, strict=True):
        facts = [] if math.isnan(top.inertia) else [f"inertia {top.inertia:.2f}"]
        rows.append(unit_row(top.bundle, top.row, row, facts, top.inner))
    units = tops[-1].bundle
    with binary_output(path) as stream:
        stream.write(sheet_bytes(sum(top.bundle is units for top in tops), rows, units, path, OUTLINE_NOTE if outlines else ""))


def _table(tops: Sequence[Top], all_rows: bool) -> bytes:
    """Return a table of the first units, or with `all_rows` of all units."""
    rows = len(tops) if all_rows else min(len(tops), TABLE_ROWS)
    remainder = Text(f"… {count_of(len(tops) - rows, 'more unit')} (-f jsonl for all)", style="dim")
    return rendered(top_table(tops, rows), *([remainder] if rows < len(tops) else []))
