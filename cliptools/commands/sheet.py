"""clip-sheet: a picture of neurons: their names, words and top images."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cliptools.commands.base import command, open_input, output_options
from cliptools.commands.present import ORDERS, order_units, signed_words
from cliptools.ground.errors import UsageError
from cliptools.ground.output import binary_output

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from PIL import Image

    from cliptools.ground.bundle import Bundle
    from cliptools.ground.pictures import SheetRow

    Fetch = Callable[[int], Image.Image | None]


@command("clip-sheet")
@click.argument("bundle", required=False, type=click.Path(path_type=Path, allow_dash=True), metavar="[BUNDLE]")
@click.option("--units", help="These units in this order, as 9:391,9:4 (layer:neuron) [default: the first of --sort].")
@click.option("--sort", type=click.Choice(ORDERS), default="clear", show_default=True, help="Order of the units.")
@click.option("--head", type=click.IntRange(1), default=12, show_default=True, help="How many units of that order.")
@click.option("--images-per-unit", type=click.IntRange(1, 100), default=8, show_default=True, help="How many top images.")
@click.option(
    "--images-from", "images_from", multiple=True, metavar="PATH",
    help="Where the images are: a file, folder, quoted glob or tar; repeatable [default: the bundle's thumbnails].",
)  # fmt: skip
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
    if "-" in images_from and (bundle is None or str(bundle) == "-"):
        raise UsageError("--images-from - and the bundle cannot both come from standard input: name BUNDLE")
    stream, name = open_input(bundle, "a bundle", "BUNDLE")
    from cliptools.ground.bundle import read_bundle
    from cliptools.ground.pictures import contact_sheet, most_rows

    with stream:
        whole = read_bundle(stream, name)
    rows = _chosen(whole, units) if units else order_units(whole, sort)[:head]
    if len(rows) > most_rows(images_per_unit):
        raise UsageError(
            f"{len(rows)} units with {images_per_unit} images make too large a picture (at most {most_rows(images_per_unit)})"
        )
    fetch = _from_paths(whole, images_from, rows, images_per_unit) if images_from else _from_thumbnails(whole)
    drawn = [_row(whole, int(row), images_per_unit, fetch) for row in rows]
    sheet = contact_sheet(*_heading(whole, len(rows)), drawn)
    with binary_output(output) as stream:
        stream.write(_png(sheet, whole))


def _chosen(bundle: "Bundle", units: str) -> "np.ndarray":
    """Row numbers of the units named, in the order named."""
    import numpy as np

    from cliptools.methods.selection import by_units

    return np.concatenate([np.flatnonzero(by_units(bundle, part)) for part in units.split(",")])


def _row(bundle: "Bundle", row: int, count: int, fetch: "Fetch") -> "SheetRow":
    from cliptools.ground.pictures import SheetRow, words_in_row

    layer, neuron, head = (int(v) for v in bundle["unit"][row])
    title = f"layer {layer} neuron {neuron}" + (f" head {head}" if head >= 0 else "")
    facts = f"explained {bundle['explained'][row]:.2f}"
    words: list[tuple[str, float]] = []
    if "word" in bundle:
        facts += f" · residual {bundle['residual'][row]:.2f}"
        texts = bundle.text_list("words")["texts"]
        words = [(texts[j], c) for j, c in signed_words(bundle, row)[: words_in_row()]]
    top = [int(i) for i in bundle["top_image"][row][:count] if i >= 0]
    return SheetRow(title, facts, words, [fetch(i) for i in top])


def _heading(bundle: "Bundle", shown: int) -> tuple[str, str]:
    """The model, and what was measured."""
    header = bundle.header
    pretrained = header.model.get("pretrained")
    model = str(header.model.get("name")) + (f" ({pretrained})" if pretrained else "")
    words = "" if "word" in bundle else " · no words yet: clip-decompose finds them"
    return model, f"{shown} of {bundle.units} neurons · top images of {header.images.get('count')}{words}"


def _from_thumbnails(bundle: "Bundle") -> "Fetch":
    if "thumbnails" not in bundle:
        raise UsageError("this bundle has no thumbnails: make it with clip-effects --thumbnails 96, or say --images-from PATH")
    from cliptools.ground.thumbnails import thumbnail

    return lambda index: thumbnail(bundle["thumbnails"], bundle["thumbnail_offsets"], index)


def _from_paths(bundle: "Bundle", paths: tuple[str, ...], rows: "np.ndarray", count: int) -> "Fetch":
    """Images by their names in the bundle; without the archive's own name where only that differs.

    Raises:
        UsageError: none of the images wanted is there.
    """
    from cliptools.ground.errors import ImageError
    from cliptools.ground.images import open_images
    from cliptools.ground.progress import warn

    source = open_images(paths)
    listed: list[str] = bundle.text_list("images")
    known = {_inside(name): i for i, name in enumerate(source.names)} | {name: i for i, name in enumerate(source.names)}
    places = {i: known.get(listed[i], known.get(_inside(listed[i]))) for i in bundle["top_image"][rows, :count].flat if i >= 0}
    missing = [listed[i] for i, place in places.items() if place is None]
    if len(missing) == len(places):
        raise UsageError(f"--images-from: none of the bundle's top images is there (looked for {', '.join(missing[:3])} …)")
    if missing:
        warn(f"{len(missing)} of {len(places)} top images are not there, the first: {missing[0]}")

    def fetch(index: int) -> "Image.Image | None":
        place = places[index]
        try:
            return None if place is None else source.load(place)
        except ImageError as error:
            warn(f"{listed[index]}: {error}")
            return None

    return fetch


def _inside(name: str) -> str:
    """A member's name without its archive: a tar that came on standard input has none."""
    archive, dot, member = name.partition(".tar/")
    return member if dot else archive


def _png(sheet: "Image.Image", bundle: "Bundle") -> bytes:
    """The PNG, with the bundle's header in a text chunk so that a picture says where it comes from."""
    from io import BytesIO

    from PIL.PngImagePlugin import PngInfo

    from cliptools.ground.provenance import KEY

    said = PngInfo()
    said.add_itxt(KEY, bundle.header.to_json())
    buffer = BytesIO()
    sheet.save(buffer, "PNG", pnginfo=said)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
