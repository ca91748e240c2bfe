"""clip-explain: the margin of an image between two texts, by units, and checked by deletion."""

from pathlib import Path
from typing import Any

import click

from cliptools.cli.app import batching_options, command, device_option, output_options, template_option
from cliptools.cli.segment import figure_options

BUNDLE_HELP = "Bundle of clip-effects or clip-decompose with the units [default: standard input]."
TEXT_HELP = "Text A, and given again text B; a single text is compared with --classes, else with the mean of --pool."
CLASSES_HELP = (
    "Classes: imagenet, imagenet-r, emoji, cifar10, or a file. Without --text, A is each image's best class and B its second; "
    "with one --text, B is the best other class."
)
POOL_HELP = (
    "Vocabulary whose mean is B for a single --text, and that gives words to units of a bundle without words [default: that of "
    "the bundle's words, else scenes for the embedded models and words30k for others]."
)
LAYERS_HELP = "Explain by units of these layers, as 8-10,11 [default: all layers of the bundle]."
HEAD_HELP = "Number of units listed and drawn for each image."
BY_HELP = "Order of the units: excess, the share less its mean over the bundle's images, or share."
DELETE_HELP = "Share of the units that deletion replaces by their means, one after the other."
DRAWS_HELP = "Number of random orders with which deletion is compared."
MAPS_HELP = "Folder for the maps of each image's units, as PNG [default: no maps]."
SEED_HELP = "Random seed for --sample and the random orders."


@command("clip-explain")
@click.argument("paths", nargs=-1, metavar="IMAGE...")
@click.option("--bundle", type=click.Path(path_type=Path, allow_dash=True), metavar="FILE", help=BUNDLE_HELP)
@click.option("--text", "texts", multiple=True, metavar="TEXT", help=TEXT_HELP)
@click.option("--classes", metavar="NAME|FILE", help=CLASSES_HELP)
@click.option("--pool", metavar="NAME|FILE", help=POOL_HELP)
@template_option("text", "imagenet, or emoji for the embedded models; with the mean of a vocabulary, those of the bundle's words")
@click.option("--layers", help=LAYERS_HELP)
@click.option("--head", default=10, show_default=True, type=click.IntRange(1), help=HEAD_HELP)
@click.option("--by", type=click.Choice(["excess", "share"]), default="excess", show_default=True, help=BY_HELP)
@click.option("--delete", default="5%", show_default=True, metavar="PERCENT", help=DELETE_HELP)
@click.option("--draws", default=5, show_default=True, type=click.IntRange(1), help=DRAWS_HELP)
@figure_options
@click.option("--maps", type=click.Path(path_type=Path, file_okay=False), metavar="FOLDER", help=MAPS_HELP)
@click.option("--limit", type=click.IntRange(1), help="Use only the first N images.")
@click.option("--sample", type=click.IntRange(1), help="Use only N images, drawn at random from the whole list.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help=SEED_HELP)
@batching_options
@click.option("--no-cache", is_flag=True, help="Compute text embeddings without the cache [default: read and write the cache].")
@device_option
@output_options("jsonl", "safetensors", "table")
def main(**options: Any) -> None:
    """Explain why the model prefers one text to another on an image, by single units.

    Reads images (files, folders, globs, tar archives; - for a tar on standard input) and a bundle of clip-effects or
    clip-decompose, on standard input or by --bundle. The margin of an image between texts A and B is the difference of
    CLIP's logits, 100 (cos(M, A) - cos(M, B)). It is a sum over the parts of the model, so each unit has a signed share of
    it. Writes one line per image: the margin; its parts, which add up to it; the shares by layer and head; the units of
    largest excess with what they see, what they write and where in the picture they act; and the check by deletion.

    \b
    Parts of the margin of a ViT (a ResNet has units, other_units and rest)
      units         effects of the units                    other_units  the same of all other units
      heads         direct effects of heads, of all else    mlps         direct effects of neurons
      pooling_mlp   the MLP behind an attention pooling     rest         embeddings, biases and means of LayerNorms
    Deletion: the margin while units are replaced by their means over the bundle's images, as clip-ablate replaces them, in
    the order of the explanation, by activity, and at random. Everything else stays as it is. The area is the mean of the
    margin along the curve: the lower (the higher where the margin is negative), the better the order.

    With -f safetensors: NAME/share [unit] of all units, NAME/maps [unit, row, column] of the listed ones, by image.

    \b
    Examples:
      clip-explain holiday.jpg --text wolf --text husky --bundle neurons.safetensors --figures why/
      clip-explain photos/ --classes imagenet < neurons.safetensors | jq -c '[.image, .a, .b, .margin]'
      clip-scenes --count 3 | clip-explain - --text cat --bundle neurons.safetensors -f table
      clip-explain holiday.jpg --text cat --classes emoji --figures why/ --figure-format pdf < neurons.safetensors
    """
    from cliptools.cli.run.explain import ExplainOptions, run

    run(ExplainOptions(**options))


if __name__ == "__main__":
    main()
