"""clip-gallery: neurons as a page to look through in a browser."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cliptools.cli.app import ORDERS, command, open_input, output_options, reading_options
from cliptools.errors import UsageError

if TYPE_CHECKING:
    from cliptools.cli.run.gallery_images import Shelf
    from cliptools.io.bundle import Bundle

TOOL = "clip-gallery"
PAGE_MOST = 200_000_000  # bytes of a page beyond which browsers take long
SORT_HELP = "Order of the units when the page opens; the page can change it."
FROM_HELP = "Where the images are: a file, folder, quoted glob or tar; repeatable [default: the bundle's thumbnails]."
CONCEPTS_HELP = "Lines of clip-concepts: what images show, in words."
MASKS_HELP = "The --out-dir of clip-segment: where in images a text is, or what they are labelled."
FOOLED_HELP = "Lines of clip-advgen: pictures that fool the model, or do not."
FOLDER_HELP = "Make a folder instead of one file: index.html, and pictures that are read when they come into view."


@command(TOOL)
@click.argument("bundle", required=False, type=click.Path(path_type=Path, allow_dash=True), metavar="[BUNDLE]")
@click.option("--sort", type=click.Choice(ORDERS), default="clear", show_default=True, help=SORT_HELP)
@click.option("--head", type=click.IntRange(1), help="Only the first N units of that order [default: all].")
@click.option("--words", default=12, show_default=True, type=click.IntRange(1), help="Words of a unit, at most.")
@click.option("--images-per-unit", type=click.IntRange(1, 100), default=12, show_default=True, help="How many top images.")
@click.option("--images-from", "images_from", multiple=True, metavar="PATH", help=FROM_HELP)
@click.option(
    "--pixels", default=160, show_default=True, type=click.IntRange(16, 2048), help="Longer side of pictures not the bundle's."
)
@click.option("--concepts", type=click.Path(path_type=Path), metavar="FILE", help=CONCEPTS_HELP)
@click.option("--masks", type=click.Path(path_type=Path, file_okay=False), metavar="FOLDER", help=MASKS_HELP)
@click.option("--fooled", type=click.Path(path_type=Path), metavar="FILE", help=FOOLED_HELP)
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False), metavar="FOLDER", help=FOLDER_HELP)
@reading_options
@output_options()
def main(*, bundle: Path | None, folder: Path | None, output: Path | None, **options: Any) -> None:
    """Make a page of neurons to look through in a browser: one file that needs no network.

    Reads the bundle named or standard input and writes HTML. The page shows each neuron with its words and their signed
    coefficients, its top images and how fast their norms fall, and how much of its effect one direction explains. It is
    searched by words, or by 9:391 for neuron 391 of layer 9; shown are chosen layers, and neurons of which at least so much is
    explained, in any order. Each has an address of its own: #layer-9-neuron-391. Keys: / searches, arrows move, Enter opens,
    Escape closes.

    Images, if given, are shown beside them: what they show (--concepts), where (--masks), and pictures that fool the model
    (--fooled).

    \b
    Examples:
      clip-effects --thumbnails 96 | clip-decompose | clip-gallery -o gallery.html
      clip-gallery --images-from photos/ --pixels 256 --folder gallery neurons.safetensors
      clip-view --layers 9 neurons.safetensors | clip-gallery --head 500 > layer-9.html
      clip-gallery --concepts concepts.jsonl --masks masks/ --fooled fooled.jsonl -o all.html neurons.safetensors
    """
    if folder is not None and output is not None:
        raise UsageError("-o is for one file and --folder for many: give one of them")
    stream, name = open_input(bundle, "a bundle", "BUNDLE")
    from cliptools.cli.run.gallery_images import Shelf
    from cliptools.io.bundle import read_bundle

    with stream:
        whole = read_bundle(stream, name)
    shelf = Shelf(whole, options["images_from"], options["pixels"])
    data = _said(whole, name, shelf, options)
    shelf.report()
    _write(data, shelf, folder, output)


def _said(bundle: "Bundle", name: str, shelf: "Shelf", options: dict[str, Any]) -> dict[str, Any]:
    """All that the page shows, but for the pictures."""
    from cliptools.cli.run.gallery_records import check_units, concept_records, fooled_records, mask_records, said_of_units

    check_units(bundle, name)
    data = said_of_units(bundle, shelf, options)
    for key, read in (("concepts", concept_records), ("masks", mask_records), ("fooled", fooled_records)):
        if options[key] is not None:
            data[key] = read(options[key], bundle, shelf)
    return data | shelf.said()


def _write(data: dict[str, Any], shelf: "Shelf", folder: Path | None, output: Path | None) -> None:
    from cliptools.console import note
    from cliptools.io.files import binary_output, whole_folder
    from cliptools.render.gallery_page import inline_pictures, page, picture_files

    if folder is None:
        made = page(data | inline_pictures(shelf.pictures), inline=True)
        if len(made) > PAGE_MOST:
            note(f"{TOOL}: a page of {len(made) / 1e6:.0f} MB; --folder, --head or --images-per-unit make it smaller")
        with binary_output(output) as stream:
            stream.write(made)
        return
    named, files = picture_files(shelf.pictures)
    with whole_folder(folder) as place:
        for file, jpeg in files.items():
            path = place / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg)
        (place / "index.html").write_bytes(page(data | named, inline=False))


if __name__ == "__main__":
    main()
