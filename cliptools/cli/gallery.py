"""clip-gallery: a page of neurons to browse."""

from pathlib import Path
from typing import Any

import click

from cliptools.cli.app import CLEAR_HELP, ORDERS, command, output_options, reading_options

SORT_HELP = f"Order of the units when the page opens, which the reader can change; {CLEAR_HELP}."
FROM_HELP = "File, folder, quoted glob or tar to read images from; repeatable [default: the bundle's thumbnails]."
CONCEPTS_HELP = "Output of clip-concepts, to show images with the words that describe them."
MASKS_HELP = "The --out-dir of clip-segment, to show its masks or label maps of images."
FOOLED_HELP = "Output of clip-advgen, to show adversarial pictures and whether they fool the model."
EXPLAINED_HELP = "Output of clip-explain, to show the margins of images and the units that make them."
MAPS_HELP = "The --maps of clip-explain, to show where in the pictures of --explained the units act."
FOLDER_HELP = "Folder to write instead of one file: index.html, and pictures that are loaded when they come into view."


@command("clip-gallery")
@click.argument("bundle", required=False, type=click.Path(path_type=Path, allow_dash=True), metavar="[BUNDLE]")
@click.option("--sort", type=click.Choice(ORDERS), default="clear", show_default=True, help=SORT_HELP)
@click.option("--head", type=click.IntRange(1), help="Show only the first N units in the order of --sort [default: all].")
@click.option("--words", default=12, show_default=True, type=click.IntRange(1), help="Largest number of words per unit.")
@click.option(
    "--images-per-unit", type=click.IntRange(1, 100), default=12, show_default=True, help="Number of top images per unit."
)
@click.option("--images-from", "images_from", multiple=True, metavar="PATH", help=FROM_HELP)
@click.option(
    "--pixels",
    default=160,
    show_default=True,
    type=click.IntRange(16, 2048),
    help="Longer side of pictures read from files, in pixels.",
)
@click.option("--concepts", type=click.Path(path_type=Path), metavar="FILE", help=CONCEPTS_HELP)
@click.option("--masks", type=click.Path(path_type=Path, file_okay=False), metavar="FOLDER", help=MASKS_HELP)
@click.option("--fooled", type=click.Path(path_type=Path), metavar="FILE", help=FOOLED_HELP)
@click.option("--explained", type=click.Path(path_type=Path), metavar="FILE", help=EXPLAINED_HELP)
@click.option("--maps", type=click.Path(path_type=Path, file_okay=False), metavar="FOLDER", help=MAPS_HELP)
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False), metavar="FOLDER", help=FOLDER_HELP)
@reading_options
@output_options()
def main(**options: Any) -> None:
    """Make a page of neurons to browse: one HTML file that needs no network.

    Reads the named bundle or standard input, and writes HTML. The page shows each neuron with its words and their signed
    coefficients, its top images and how fast their norms fall, and the share of its effect that one direction explains. The
    page can search for words, or for 9:391 (neuron 391 of layer 9), select layers and a least explained share, and sort in any
    order. Each neuron has its own address: #layer-9-neuron-391. Keys: / searches, arrows move, Enter opens, Escape closes.

    Further parts of the page show images: with the words that describe them (--concepts), with masks (--masks), adversarial
    pictures (--fooled), and with the units that make their margins (--explained).

    \b
    Examples:
      clip-effects --thumbnails 96 | clip-decompose | clip-gallery -o gallery.html
      clip-gallery --images-from photos/ --pixels 256 --folder gallery neurons.safetensors
      clip-view --layers 9 neurons.safetensors | clip-gallery --head 500 > layer-9.html
      clip-gallery --concepts concepts.jsonl --masks masks/ --fooled fooled.jsonl -o all.html neurons.safetensors
    """
    from cliptools.cli.run.gallery import GalleryOptions, run

    run(GalleryOptions(**options))


if __name__ == "__main__":
    main()
