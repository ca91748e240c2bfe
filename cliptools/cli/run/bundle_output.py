"""Input and output of bundles for all commands.

`read_neurons` reads a bundle and checks that it has the tensors that a command needs. `emit` writes a bundle as safetensors, as
JSON lines (one record per unit) or as a table.
"""

from pathlib import Path

from rich.text import Text

from cliptools.cli.app import open_input
from cliptools.console import count_of
from cliptools.front.bundles import TABLE_ROWS, require_neurons
from cliptools.front.tables import rendered
from cliptools.front.unit_records import unit_records, units_table
from cliptools.io.bundle import Bundle, read_bundle
from cliptools.io.files import binary_output, text_output
from cliptools.io.jsonl import write_record


def read_neurons(path: Path | None, *required: str, option: str = "BUNDLE", device: str = "auto") -> Bundle:
    """Read the bundle at `path` or on standard input, and check it by `require_neurons`.

    Args:
        required: Tensors that it must hold in addition to `direction`, such as `word`, which clip-decompose adds.
        option: The option that names a file, for the message when standard input is a terminal.
        device: Device for the model, if it is loaded here.

    Raises:
        StreamError: The input is not a bundle, or lacks a tensor.
        ModelError: The model of a bundle of pairs is not available.
    """
    stream, name = open_input(path, "a bundle of clip-decompose" if "word" in required else "a bundle of clip-effects", option)
    with stream:
        bundle = read_bundle(stream, name)
    return require_neurons(bundle, *required, name=name, device=device)


def emit(bundle: Bundle, output_format: str, output: Path | None) -> None:
    """Write the bundle in one of FORMATS; a table on standard output shows the first units only."""
    if output_format == "safetensors":
        with binary_output(output) as stream:
            stream.write(bundle.to_bytes())
        return
    with text_output(output) as stream:
        if output_format == "jsonl":
            for record in unit_records(bundle):
                write_record(stream, record)
            return
        rows = bundle.units if output is not None else min(bundle.units, TABLE_ROWS)
        remainder = f"… {count_of(bundle.units - rows, 'more unit')} (clip-view --sort clear --head 50, or -f jsonl for all)"
        parts = [Text(remainder, style="dim")] if rows < bundle.units else []
        stream.write(rendered(units_table(bundle, rows), *parts))
