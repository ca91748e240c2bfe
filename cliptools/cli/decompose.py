"""clip-decompose: directions of units as signed sums of texts."""

from pathlib import Path
from typing import Any

import click

from cliptools.cli.app import FORMATS, batch_option, command, device_option, output_options, same_names_option, template_option

METHOD_HELP = (
    "Method that finds the texts. pursuit: a sum of texts for each direction. textspan: the texts that explain most of the "
    "variance of a head's outputs, for bundles of heads."
)
POOL_HELP = (
    "Vocabulary: emoji, scenes, imagenet, words10k, words30k, or a file with one text per line "
    "[default: scenes for embedded models, else words30k]."
)
CENTER_HELP = "Vector to subtract from the texts: the mean of the vocabulary, or none."
RESUME_HELP = "Continue an interrupted run from FILE.part, where a run with -o FILE keeps the texts that it has found."
NORMALIZE_HELP = "Scale each text, or each dimension (as the paper's code does), to unit norm."
PREFIX_HELP = "Numbers of texts for which the residuals are stored as well, as 4,8,16 [default: none]."
VERIFY_HELP = (
    "Rank the words by images that the bundle was not made from: a file, folder, quoted glob or tar; repeatable. For the "
    "embedded models, scenes renders some. A bundle of clip-judge --bundle-out has what its images say [default: no]."
)
MODEL_HELP = "Name that the bundle's model must have, as a check: any other is an error [default: no check]."


@command("clip-decompose")
@click.argument("bundle", required=False, type=click.Path(path_type=Path, allow_dash=True))
@click.option("--method", type=click.Choice(["pursuit", "textspan"]), default="pursuit", show_default=True, help=METHOD_HELP)
@click.option(
    "--m", "m", type=click.IntRange(1, 100_000), default=32, show_default=True, help="Largest number of texts per unit."
)
@click.option("--pool", metavar="NAME|FILE", help=POOL_HELP)
@template_option("text", "none")
@click.option("--center", type=click.Choice(["pool", "none"]), default="pool", show_default=True, help=CENTER_HELP)
@click.option("--normalize", type=click.Choice(["texts", "dimensions"]), default="texts", show_default=True, help=NORMALIZE_HELP)
@click.option("--prefix", metavar="M,M,...", help=PREFIX_HELP)
@click.option("--model", metavar="NAME", help=MODEL_HELP)
@click.option("--resume", is_flag=True, help=RESUME_HELP)
@click.option("--no-cache", is_flag=True, help="Compute text embeddings without the cache [default: read and write the cache].")
@click.option("--verify", multiple=True, metavar="PATH|BUNDLE", help=VERIFY_HELP)
@same_names_option
@batch_option
@device_option
@output_options(*FORMATS)
def main(**options: Any) -> None:
    """Write each unit's direction as a signed sum of few texts.

    Reads a BUNDLE of clip-effects (a file, or standard input) and adds to each unit the texts that orthogonal matching
    pursuit finds, with their coefficients, in the order of their choice. Words that the bundle had before are replaced.

    The output of an attention head has more than one direction. --method textspan (Gandelsman et al. 2024) reads a bundle of
    clip-effects --units heads. For each head it finds the text along which the head's outputs vary most over the images, then
    the text along which the remainder varies most, and so on, with the share of the variance that each text explains.

    \b
    Examples:
      clip-effects | clip-decompose          # the embedded model, in a table
      clip-decompose --m 128 < effects.safetensors > neurons.safetensors
      clip-decompose effects.safetensors --pool birds.txt --template 'a photo of a {}' -f jsonl
      clip-decompose effects.safetensors --prefix 4,8,16 -o neurons.safetensors
      clip-decompose pairs.safetensors --m 64 --resume -o named.safetensors
      clip-effects | clip-decompose --verify scenes -f jsonl | jq '.verified[0]'
      clip-decompose effects.safetensors --pool birds.txt --verify judged.safetensors -o neurons.safetensors
      clip-effects --units heads | clip-decompose --method textspan --m 8 -f jsonl
    """
    from cliptools.cli.run.decompose import DecomposeOptions, run

    run(DecomposeOptions(**options))


if __name__ == "__main__":
    main()
