"""clip-sheet: a contact sheet of neurons, with their names, words and top images."""

from pathlib import Path
from typing import Any

import click

from cliptools.cli.app import CLEAR_HELP, ORDERS, command, device_option, output_options, reading_options

SORT_HELP = f"Order of the units; {CLEAR_HELP}."
OUTLINES_HELP = (
    "Draw the images as the model sees them, with an outline of where the unit acts: where the tokens' parts of its effect along "
    "its direction reach half of the largest one. Reads the images of --images-from, or renders those of clip-effects again; "
    "for second-order and pooled effects."
)
STRICT_HELP = "An unreadable or unusable image is an error, not a warning."


@command("clip-sheet")
@click.argument("bundle", required=False, type=click.Path(path_type=Path, allow_dash=True), metavar="[BUNDLE]")
@click.option(
    "--units", help="Units to draw, in this order, as 9:391,4:624.21 (layer:neuron.head) [default: the first of --sort]."
)
@click.option("--sort", type=click.Choice(ORDERS), default="clear", show_default=True, help=SORT_HELP)
@click.option(
    "--head", type=click.IntRange(1), default=12, show_default=True, help="Number of units, the first in the order of --sort."
)
@click.option(
    "--images-per-unit", type=click.IntRange(1, 100), default=8, show_default=True, help="Number of top images per unit."
)
@click.option(
    "--images-from", "images_from", multiple=True, metavar="PATH",
    help="File, folder, quoted glob or tar to read images from; repeatable [default: the bundle's thumbnails].",
)  # fmt: skip
@click.option("--outlines", is_flag=True, help=OUTLINES_HELP)
@click.option("--strict", is_flag=True, help=STRICT_HELP)
@reading_options
@device_option
@output_options()
def main(**options: Any) -> None:
    """Draw a contact sheet of neurons, as PNG, or as SVG or PDF by the ending of -o.

    Reads the named bundle or standard input. Each neuron gets a row: its name, the share of its effect that one direction
    explains, its strongest words (green: added, red: subtracted; clip-decompose finds them) and its top images, from the
    thumbnails that clip-effects --thumbnails keeps in the bundle, or from --images-from. No model is loaded, except for
    --outlines.

    \b
    Examples:
      clip-effects --thumbnails 96 | clip-decompose | clip-sheet > neurons.png
      clip-sheet --units 6:391,6:4 --images-per-unit 16 -o two.png neurons.safetensors
      clip-sheet --head 6 -o neurons.pdf neurons.safetensors
      clip-sheet --images-from photos/ < neurons.safetensors > neurons.png
      clip-sheet --images-from photos/ --outlines --head 6 -o where.pdf neurons.safetensors
    """
    from cliptools.cli.run.sheet import SheetOptions, run

    run(SheetOptions(**options))


if __name__ == "__main__":
    main()
