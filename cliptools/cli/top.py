"""clip-top: the images on which units act most, and how similar these are to the model."""

from pathlib import Path
from typing import Any

import click

from cliptools.cli.app import CLEAR_HELP, ORDERS, batching_options, command, device_option, output_options
from cliptools.cli.completion import Completed, words

BUNDLE_HELP = "Bundle of clip-effects or clip-decompose with the units [default: standard input]."
BESIDE_HELP = "Bundle of whole neurons of the same model: each neuron is then listed before its pairs."
LAYERS_HELP = "Select units of these layers, as 8-10,11 [default: all layers]."
UNITS_HELP = (
    "Select these units, in this order, as 6:391,4:624.21 (layer:neuron.head); 4:624 is every pair of the neuron [default: all]."
)
WORD_HELP = "Select units that have this text among their strongest positive words."
STRONGEST_HELP = "Number of strongest words of a unit that --word searches."
SORT_HELP = f"Order of the units; {CLEAR_HELP} [default: clear; with --word, its coefficient, largest first]."
HEAD_HELP = (
    "Number of units, the first in the order of --sort; with --units, number for each name [default: 12; with --units, all]."
)
IMAGES_HELP = "Number of top images per unit."
INERTIA_HELP = "Number of top images from which the inertia is computed."
RAW_HELP = "Rank images by ||phi|| instead of ||phi - b||; all images are read for this."
SHEET_HELP = "File for a contact sheet, .png, .svg or .pdf [default: no sheet]."
OUTLINES_HELP = (
    "Draw the pictures of --sheet as the model sees them, with an outline of where the unit acts: where the tokens' parts of its "
    "effect along its direction reach half of the largest one."
)
FILES_HELP = "Write only the names of the top images, each once: paths below PATH, without a PATH names as in the bundle."
NULL_HELP = "With --files, end names with a zero byte instead of a new line, for xargs -0."
ABOVE_HELP = (
    "With --files, the listed images on which a unit exceeds this norm, or its own threshold of the bundle [default: the first "
    "--images-per-unit]."
)


@command("clip-top")
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@click.option("--bundle", type=click.Path(path_type=Path, allow_dash=True), metavar="FILE", help=BUNDLE_HELP)
@click.option("--beside", type=click.Path(path_type=Path, allow_dash=True), metavar="FILE", help=BESIDE_HELP)
@click.option("--layers", help=LAYERS_HELP)
@click.option("--units", help=UNITS_HELP)
@click.option("--word", help=WORD_HELP)
@click.option("--strongest", default=8, show_default=True, type=click.IntRange(1), help=STRONGEST_HELP)
@click.option("--sort", type=click.Choice([*ORDERS, "inertia"]), help=SORT_HELP)
@click.option("--head", type=click.IntRange(1), help=HEAD_HELP)
@click.option("--images-per-unit", type=click.IntRange(1, 100), default=10, show_default=True, help=IMAGES_HELP)
@click.option("--inertia-images", type=click.IntRange(2), default=10, show_default=True, help=INERTIA_HELP)
@click.option("--raw", is_flag=True, help=RAW_HELP)
@click.option("--sheet", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help=SHEET_HELP)
@click.option("--outlines", is_flag=True, help=OUTLINES_HELP)
@click.option("--files", is_flag=True, help=FILES_HELP)
@click.option("-0", "--null", is_flag=True, help=NULL_HELP)
@click.option("--above", type=Completed(words("threshold")), metavar="threshold|NORM", help=ABOVE_HELP)
@batching_options
@device_option
@output_options("jsonl", "table")
def main(**options: Any) -> None:
    """List the images on which units act most, and how similar these are to the model.

    Reads a bundle, from standard input or --bundle, and its images again. The images are looked up by the names in the bundle
    among the PATHs (files, folders, globs, tar archives, or - for a tar on standard input); without a PATH, they are the
    scenes that clip-effects rendered. Writes a line for each top image of a unit: unit, words, rank, image, norm, and the
    inertia of the unit.

    Inertia is the mean squared distance of the top images' embeddings M(I), at unit norm, from their mean: 0 if the model
    sees the same in all of them, near 1 if it sees nothing in common. A unit of low inertia stands for one thing. Of few
    images it is lower by chance: where a unit acts on fewer than other units do, the table has their number beside it.

    With --files, writes only names of images, for cleaning a data set: those on which the selected units act most, from the
    lists in the bundle. No model is loaded and no image is read.

    \b
    Examples:
      clip-effects | clip-decompose | clip-top --sheet top.png -f table
      clip-top photos/ --units 9:391,9:4 --bundle neurons.safetensors -f jsonl | jq -c '[.neuron, .image, .norm]'
      clip-top photos/ --units 9:391,9:4 --sheet where.pdf --outlines --bundle neurons.safetensors > top.jsonl
      clip-top --beside neurons.safetensors --units 4:624 --sheet heads.png --bundle pairs.safetensors
      clip-top photos/ --units 9:391 --files --above threshold -0 --bundle neurons.safetensors | xargs -0 mv -t aside/
      clip-top --head 100000 --images-per-unit 1 --sort index < neurons.safetensors | jq .inertia
    """
    from cliptools.cli.run.top import TopOptions, run

    run(TopOptions(**options))


if __name__ == "__main__":
    main()
