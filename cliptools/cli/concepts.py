"""clip-concepts: words for images, from the neurons that are active on them."""

from pathlib import Path
from typing import Any

import click

from cliptools.cli.app import batching_options, command, device_option, output_options

BY_HELP = (
    "Source of the words. words: the neurons' own texts (App. A.5). directions: the same sum of the neurons' directions, "
    "compared with the whole vocabulary. text: the cosine of the image with the whole vocabulary, without neurons."
)
SCORE_HELP = "Weight of a neuron's words: norm, ||phi - b||, or signed, <phi - b, r>."
NEURONS_HELP = (
    "Neurons that count. active: those whose ||phi - b|| is above the bundle's threshold. random: as many, drawn at random."
)
TRUTH_HELP = (
    "Ground truth: JSON lines with key and names, as clip-scenes writes them. Records then list which of the names were found."
)
RESUME_HELP = "Continue an earlier run from FILE.part or FILE, where FILE is the file of -o."


@command("clip-concepts")
@click.argument("paths", nargs=-1, metavar="PATH...")
@click.option(
    "--bundle",
    type=click.Path(path_type=Path, allow_dash=True),
    metavar="FILE",
    help="Bundle of clip-decompose [default: standard input].",
)
@click.option("--words", default=10, show_default=True, type=click.IntRange(1), help="Largest number of words per image.")
@click.option("--by", type=click.Choice(["words", "directions", "text"]), default="words", show_default=True, help=BY_HELP)
@click.option("--score", type=click.Choice(["norm", "signed"]), default="norm", show_default=True, help=SCORE_HELP)
@click.option("--neurons", type=click.Choice(["active", "all", "random"]), default="active", show_default=True, help=NEURONS_HELP)
@click.option("--layers", help="Use only neurons of these layers, as 8-10,11 [default: all layers of the bundle].")
@click.option("--truth", type=click.Path(path_type=Path), metavar="FILE", help=TRUTH_HELP)
@click.option(
    "--evaluate", is_flag=True, help="With --truth: write a single record, the recall over all images with its interval."
)
@click.option("--limit", type=click.IntRange(1), help="Use only the first N images.")
@click.option("--sample", type=click.IntRange(1), help="Use only N images, drawn at random from the whole list.")
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0), help="Random seed for --sample and --neurons random."
)
@click.option("--resume", is_flag=True, help=RESUME_HELP)
@batching_options
@click.option("--no-cache", is_flag=True, help="Compute text embeddings without the cache [default: read and write the cache].")
@device_option
@output_options("jsonl", "table")
def main(**options: Any) -> None:
    """Describe images by the words of the neurons that are active on them.

    Reads images (files, folders, globs, tar archives; - for a tar on standard input) and a bundle of clip-decompose, on
    standard input or by --bundle. Each image gets the words of the neurons that are active on it, weighted by their
    activity. Writes one line per image: its concepts with their scores, the number of active neurons, and the neurons that
    contribute most.

    With -o FILE, records are in FILE.part until all images are done; --resume continues an interrupted run from there.

    \b
    Examples:
      clip-concepts holiday.jpg < neurons.safetensors
      clip-scenes --count 20 | clip-concepts - --bundle neurons.safetensors -f jsonl | jq -c '[.image, .concepts[0].word]'
      clip-concepts photos/ --bundle neurons.safetensors --score signed --neurons all -o concepts.jsonl --resume
      clip-concepts scenes/images --truth scenes/scenes.jsonl --evaluate -f jsonl < neurons.safetensors | jq .recall
    """
    from cliptools.cli.run.concepts import ConceptsOptions, run

    run(ConceptsOptions(**options))


if __name__ == "__main__":
    main()
