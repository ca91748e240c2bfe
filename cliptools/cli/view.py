"""clip-view: a part of a bundle, as bundle, JSON lines or table; or what its header says."""

from io import BufferedIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cliptools.cli.app import FORMATS, ORDERS, choose_format, command, history_arguments, open_input, output_options, parse_layers
from cliptools.cli.run.bundle_output import emit, order_units
from cliptools.console import count_of

if TYPE_CHECKING:
    import numpy as np

    from cliptools.io.bundle import Bundle

TOOL = "clip-view"


@command(TOOL)
@click.argument("bundle", required=False, type=click.Path(path_type=Path, allow_dash=True), metavar="[BUNDLE]")
@click.option(
    "--header",
    is_flag=True,
    help="Only what the header says: model, images, settings, history, tensors; of any safetensors file.",
)
@click.option("--check", is_flag=True, help="Say what is wrong with the bundle, line by line, if anything (exit 1).")
@click.option("--layers", help="Units of these layers, as 8-10,11.")
@click.option("--units", help="These units, as 9:391,4:624.21,7:.2 (layer:neuron.head).")
@click.option("--explained", metavar="COMPARISON", help='Units whose explained share compares so, as ">0.5".')
@click.option("--residual", metavar="COMPARISON", help='Units whose residual after the words compares so, as "<0.6".')
@click.option("--word", help="Units that have this text among their strongest positive words.")
@click.option("--strongest", default=8, show_default=True, type=click.IntRange(1), help="How many words --word looks at.")
@click.option("--sort", type=click.Choice(ORDERS), default="index", show_default=True, help="Order of the units.")
@click.option("--head", type=click.IntRange(1), help="Only the first N units of that order.")
@output_options(*FORMATS)
@click.pass_context
def main(
    context: click.Context,
    /,
    bundle: Path | None,
    header: bool,
    check: bool,
    output_format: str | None,
    output: Path | None,
    **options: Any,
) -> None:
    """Look at a bundle, or take a part of it.

    Reads the bundle named or standard input. What is written as a bundle can go on through the pipe.

    \b
    Examples:
      clip-view --header neurons.safetensors
      clip-view --check neurons.safetensors
      clip-view --word dog --explained ">0.5" neurons.safetensors
      clip-effects | clip-decompose | clip-view --sort clear --head 12 -f jsonl | jq .words[0]
    """
    stream, name = open_input(bundle, "a bundle", "BUNDLE")
    with stream:
        if header:
            _print_header(stream, name, output)
            return
        if check:
            _check(stream, name, output)
            return
        from cliptools.io.bundle import read_bundle

        whole = read_bundle(stream, name)
    part = whole.select(_rows(whole, options))
    if any(context.get_parameter_source(key) != click.core.ParameterSource.DEFAULT for key in options):
        given = {key: value for key, value in history_arguments(context).items() if key not in ("header", "check")}
        part = part.with_tensors(part.header.after(TOOL, given))
    emit(part, choose_format(output_format, output, "safetensors"), output)


def _rows(bundle: "Bundle", options: dict[str, Any]) -> "np.ndarray":
    """Row numbers of the units asked for, in the order asked for."""
    import numpy as np

    from cliptools.analysis.selection import by_comparison, by_layers, by_units, by_word
    from cliptools.errors import UsageError

    mask = np.ones(bundle.units, dtype=bool)
    if options["layers"]:
        mask &= by_layers(bundle, parse_layers(options["layers"]))
    if options["units"]:
        mask &= by_units(bundle, options["units"])
    for key in ("explained", "residual"):
        if options[key]:
            if key not in bundle:
                raise UsageError(f"--{key}: this bundle has no words yet (run clip-decompose first)")
            mask &= by_comparison(bundle[key], options[key], f"--{key}")
    if options["word"]:
        mask &= by_word(bundle, options["word"], options["strongest"])
    order = order_units(bundle, options["sort"])
    return order[mask[order]][: options["head"]]


def _print_header(stream: BufferedIOBase, name: str, output: Path | None) -> None:
    """Model, images, settings, history and tensors as one JSON document, from the header alone."""
    import json

    from cliptools.console import harmless_json
    from cliptools.io.bundle import cliptools_header, is_bundle, read_header, tensor_table
    from cliptools.io.files import text_output

    raw = read_header(stream, name)
    said = dict(cliptools_header(raw, name).__dict__) if is_bundle(raw) else {"metadata": raw.get("__metadata__", {})}
    said["tensors"] = tensor_table(raw, name)
    with text_output(output) as out:
        out.write(harmless_json(json.dumps(said, indent=2, ensure_ascii=False)).encode("utf-8") + b"\n")


def _check(stream: BufferedIOBase, name: str, output: Path | None) -> None:
    """All that is wrong, or that nothing is."""
    from cliptools.cli.run.view_check import flaws
    from cliptools.console import escape
    from cliptools.errors import StreamError
    from cliptools.io.bundle import read_unchecked
    from cliptools.io.files import text_output

    bundle = read_unchecked(stream, name)
    found = flaws(bundle)
    with text_output(output) as out:
        lines = found or [f"sound: {count_of(bundle.units, 'unit')}, {count_of(len(bundle.tensors), 'tensor')}"]
        out.write("".join(f"{escape(line)}\n" for line in lines).encode("utf-8"))
    if found:
        raise StreamError(f"{name}: not sound, {len(found)} thing{'s are' if len(found) > 1 else ' is'} wrong")


if __name__ == "__main__":
    main()
