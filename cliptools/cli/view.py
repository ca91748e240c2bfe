"""clip-view: selects a part of a bundle, prints its header, or checks its tensors."""

from pathlib import Path
from typing import Any

import click

from cliptools.cli.app import CLEAR_HELP, FORMATS, ORDERS, command, output_options

SORT_HELP = f"Order of the units; {CLEAR_HELP} [default: index; with --word, its coefficient]."


@command("clip-view")
@click.argument("bundle", required=False, type=click.Path(path_type=Path, allow_dash=True), metavar="[BUNDLE]")
@click.option(
    "--header",
    is_flag=True,
    help="Print the header (model, images, settings, history) and the tensors' shapes; works for any safetensors file.",
)
@click.option("--check", is_flag=True, help="Check the bundle, and print each fault on a line; exit with 1 if there are any.")
@click.option("--layers", help="Select units of these layers, as 8-10,11 [default: all layers].")
@click.option("--units", help="Select these units, as 9:391,4:624.21,7:.2 (layer:neuron.head) [default: all].")
@click.option("--explained", metavar="COMPARISON", help='Select units by their explained share, as ">0.5".')
@click.option("--residual", metavar="COMPARISON", help='Select units by the residual that their words leave, as "<0.6".')
@click.option("--word", help="Select units that have this text among their strongest positive words.")
@click.option(
    "--strongest", type=click.IntRange(1), help="Number of strongest words of a unit that --word searches [default: 8]."
)
@click.option("--sort", type=click.Choice(ORDERS), help=SORT_HELP)
@click.option("--head", type=click.IntRange(1), help="Select only the first N units in the order of --sort [default: all].")
@output_options(*FORMATS)
def main(**options: Any) -> None:
    """Look at a bundle, or select a part of it.

    Reads the named bundle or standard input. A part that is written as a bundle can be piped into other commands.

    \b
    Examples:
      clip-view --header neurons.safetensors
      clip-view --check neurons.safetensors
      clip-view --word dog --explained ">0.5" neurons.safetensors
      clip-effects | clip-decompose | clip-view --sort clear --head 12 -f jsonl | jq .words[0]
    """
    from cliptools.cli.run.view import ViewOptions, run

    run(ViewOptions(**options))


if __name__ == "__main__":
    main()
