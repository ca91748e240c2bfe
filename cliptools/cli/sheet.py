"""clip-sheet: a picture of neurons: their names, words and top images."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cliptools.cli.app import ORDERS, command, open_input, output_options, reading_options
from cliptools.cli.run.bundle_output import order_units
from cliptools.cli.run.sheet_rows import heading, png_bytes, unit_row
from cliptools.console import count_of
from cliptools.errors import UsageError
from cliptools.io.files import binary_output

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from PIL import Image

    from cliptools.io.bundle import Bundle

    Fetch = Callable[[int], Image.Image | None]


@command("clip-sheet")
@click.argument("bundle", required=False, type=click.Path(path_type=Path, allow_dash=True), metavar="[BUNDLE]")
@click.option("--units", help="These units in this order, as 9:391,4:624.21 (layer:neuron.head) [default: the first of --sort].")
@click.option("--sort", type=click.Choice(ORDERS), default="clear", show_default=True, help="Order of the units.")
@click.option("--head", type=click.IntRange(1), default=12, show_default=True, help="How many units of that order.")
@click.option("--images-per-unit", type=click.IntRange(1, 100), default=8, show_default=True, help="How many top images.")
@click.option(
    "--images-from", "images_from", multiple=True, metavar="PATH",
    help="Where the images are: a file, folder, quoted glob or tar; repeatable [default: the bundle's thumbnails].",
)  # fmt: skip
@reading_options
@output_options()
def main(
    *,
    bundle: Path | None,
    units: str | None,
    sort: str,
    head: int,
    images_per_unit: int,
    images_from: tuple[str, ...],
    output: Path | None,
) -> None:
    """Draw a contact sheet of neurons, as PNG.

    Reads the bundle named or standard input. Each neuron gets a row: its name, how much of its effect one direction
    explains, its strongest words (green adds, red takes away; clip-decompose finds them) and its top images, from
    the thumbnails that clip-effects --thumbnails keeps, or from where the images lie.

    \b
    Examples:
      clip-effects --thumbnails 96 | clip-decompose | clip-sheet > neurons.png
      clip-sheet --units 6:391,6:4 --images-per-unit 16 -o two.png neurons.safetensors
      clip-sheet --images-from photos/ < neurons.safetensors > neurons.png
    """
    stream, name = open_input(bundle, "a bundle", "BUNDLE")
    from cliptools.analysis.selection import rows_named
    from cliptools.io.bundle import read_bundle
    from cliptools.render.contact_sheet import contact_sheet, most_rows

    with stream:
        whole = read_bundle(stream, name)
    rows = rows_named(whole, units) if units else order_units(whole, sort)[:head]
    if len(rows) > most_rows(images_per_unit):
        raise UsageError(
            f"{count_of(len(rows), 'unit')} with {count_of(images_per_unit, 'image')} make too large a picture "
            f"(at most {most_rows(images_per_unit)})"
        )
    fetch = _from_paths(whole, images_from, rows, images_per_unit) if images_from else _from_thumbnails(whole)
    drawn = [unit_row(whole, int(row), _pictures(whole, int(row), images_per_unit, fetch)) for row in rows]
    sheet = contact_sheet(*heading(whole, len(rows)), drawn)
    with binary_output(output) as stream:
        stream.write(png_bytes(sheet, whole))


def _pictures(bundle: "Bundle", row: int, count: int, fetch: "Fetch") -> "list[Image.Image | None]":
    return [fetch(int(i)) for i in bundle["top_image"][row][:count] if i >= 0]


def _from_thumbnails(bundle: "Bundle") -> "Fetch":
    if "thumbnails" not in bundle:
        raise UsageError("this bundle has no thumbnails: make it with clip-effects --thumbnails 96, or say --images-from PATH")
    from cliptools.images.relocate import thumbnail

    return lambda index: thumbnail(bundle["thumbnails"], bundle["thumbnail_offsets"], index)


def _from_paths(bundle: "Bundle", paths: tuple[str, ...], rows: "np.ndarray", count: int) -> "Fetch":
    """Images by their names in the bundle.

    Raises:
        UsageError: none of the images wanted is there.
    """
    from cliptools.images.loader import open_images
    from cliptools.images.relocate import found_again, from_source

    source = open_images(paths)
    wanted = (int(i) for i in bundle["top_image"][rows, :count].flat if i >= 0)
    return from_source(bundle, source, found_again(bundle, source, wanted, "--images-from"))


if __name__ == "__main__":
    main()
