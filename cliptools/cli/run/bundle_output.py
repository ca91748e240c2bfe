"""Input and output of bundles, and tables, for all commands.

`read_neurons` reads a bundle and checks that it has the tensors that a command needs. `emit` writes a bundle as safetensors, as
JSON lines (one record per unit) or as a table. `rendered` and `write_table` make bytes of rich's tables: for a terminal with its
width and colours, else with 120 columns and without colours.
"""

import io
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from cliptools.cli.app import open_input
from cliptools.console import count_of, harmless
from cliptools.errors import StreamError, UsageError
from cliptools.io.bundle import Bundle, read_bundle
from cliptools.io.files import binary_output, stdout_is_terminal, text_output
from cliptools.io.header import recorded_model
from cliptools.io.jsonl import rounded, unit_name, write_record


def read_neurons(path: Path | None, *required: str, option: str = "BUNDLE", device: str = "auto") -> Bundle:
    """Read the bundle at `path` or on standard input; a bundle of pairs gets the directions that its model's weights give.

    Args:
        required: Tensors that it must hold in addition to `direction`, such as `word`, which clip-decompose adds.
        option: The option that names a file, for the message when standard input is a terminal.
        device: Device for the model, if it is loaded here.

    Raises:
        StreamError: The input is no bundle, or lacks a tensor (the message names the command that adds it); or `coefficient` is
            required, and the bundle has TextSpan's shares.
        ModelError: The model of a bundle of pairs is not available.
    """
    stream, name = open_input(path, "a bundle of clip-decompose" if "word" in required else "a bundle of clip-effects", option)
    with stream:
        bundle = read_bundle(stream, name)
    if "sign" in bundle:
        bundle = with_directions(bundle, "mean" in required, device)
    for tensor in ("direction", *required):
        if tensor not in bundle:
            source = "clip-decompose" if tensor in ("word", "coefficient", "words") else "clip-effects"
            raise StreamError(f"{name}: a bundle without `{tensor}`; run {source} first")
    if "coefficient" in required and bundle.header.settings.get("words", {}).get("method") == "textspan":
        raise StreamError(
            f"{name}: its words are TextSpan's, with shares of the variance; expected a sum of texts (--method pursuit)"
        )
    return bundle


def with_directions(bundle: Bundle, means: bool = False, device: str = "auto") -> Bundle:
    """Add `direction`, and with `means` also `mean`, to a bundle of pairs, from the weights of its model.

    The next call of load_recorded_model returns the same model.

    Raises:
        StreamError: The bundle has units that the model lacks.
        ModelError: The model is not available, or has no pairs.
    """
    # Inside, because they import torch and open_clip, which commands can do without for bundles of other units.
    import torch

    from cliptools.effects.resnet_pooling import pair_means, supported_resnet, unit_directions
    from cliptools.models.load import hand_over, load_recorded_model

    model = load_recorded_model(bundle.header.model, device)
    hand_over(model)
    visual = supported_resnet(model.clip)
    unit, sign = torch.from_numpy(bundle["unit"]).long(), torch.from_numpy(bundle["sign"])
    tensors = {"direction": unit_directions(visual, unit, sign).numpy()}  # (unit, d)
    if means:
        tensors["mean"] = pair_means(visual, unit, torch.from_numpy(bundle["mean_scalar"])).numpy()  # (unit, d)
    return bundle.with_derived(**tensors)


def record_source(bundle: Bundle) -> dict[str, Any]:
    """Return the fields of every record that name its source: the model and the bundle's digest."""
    return {"model": recorded_model(bundle.header.model), "bundle": bundle.digest}


def rendered(*parts: RenderableType, terminal: bool | None = None) -> bytes:
    """Render parts to UTF-8 bytes, for standard output or a file.

    Args:
        terminal: Render for a terminal, with its width and colours [default: if standard output is one].
    """
    on_terminal = stdout_is_terminal() if terminal is None else terminal
    buffer = io.StringIO()
    size = shutil.get_terminal_size() if on_terminal else os.terminal_size((120, 25))  # rich would assume 80 for a dumb terminal
    console = Console(file=buffer, force_terminal=on_terminal, width=size.columns, height=size.lines, highlight=False)
    for part in parts:
        console.print(_HarmlessPart(part))
    return buffer.getvalue().encode("utf-8")


@dataclass
class _HarmlessPart:
    """A part without the control characters of its texts, so that the terminal gets only letters and rich's colours."""

    part: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self.part, options):
            yield segment if segment.control else Segment(harmless(segment.text), segment.style)


TABLE_ROWS = 20
SHOWN_WORDS = 8
SHOWN_IMAGES = 10


def strength(bundle: Bundle) -> Float[np.ndarray, " unit"]:
    """Return the mean of each unit's top norms: the size of its effect in the images where it is largest."""
    return bundle["top_norm"].mean(axis=1)


def order_units(bundle: Bundle, sort: str) -> Int[np.ndarray, " unit"]:
    """Return the row numbers of all units in one of ORDERS.

    `clear` puts the stronger half of the units first, those with the smallest residual before others (in a bundle without
    words, those that one direction explains best).

    Raises:
        UsageError: The order is by residual, and the bundle has no words.
    """
    if sort == "index":
        return np.arange(bundle.units)
    if sort == "norm":
        return np.argsort(-strength(bundle), kind="stable")
    if sort == "residual" and "residual" not in bundle:
        raise UsageError("--sort residual: this bundle has no words yet (run clip-decompose first)")
    key = bundle["residual"] if sort == "residual" or (sort == "clear" and "residual" in bundle) else -bundle["explained"]
    if sort == "clear":
        norm = strength(bundle)
        key = np.where(norm >= np.median(norm), key, key + 1e6)
    return np.argsort(key, kind="stable")


def emit(bundle: Bundle, output_format: str, output: Path | None) -> None:
    """Write the bundle in one of FORMATS."""
    if output_format == "safetensors":
        with binary_output(output) as stream:
            stream.write(bundle.to_bytes())
        return
    with text_output(output) as stream:
        if output_format == "jsonl":
            for record in unit_records(bundle):
                write_record(stream, record)
        else:
            _write_table(bundle, stream, all_rows=output is not None)


def unit_records(bundle: Bundle) -> Iterator[dict[str, Any]]:
    """Yield a record for each unit; every record can be read alone."""
    source = record_source(bundle)
    texts = bundle.text_list("words")["texts"] if "words" in bundle else []
    images, weight = bundle.text_list("images"), weight_name(bundle)
    for row in range(bundle.units):
        layer, neuron, head = (int(v) for v in bundle["unit"][row])
        record: dict[str, Any] = unit_keys(layer, neuron, head)
        if "word" in bundle:
            record["words"] = [{"word": texts[j], weight: rounded(c)} for j, c in signed_words(bundle, row)]
            record["residual"] = rounded(bundle["residual"][row])
        for name in ("explained", "explained_all", "threshold"):
            record[name] = rounded(bundle[name][row])
        if "threshold_bound" in bundle and bundle["threshold_bound"][row] > 0:
            record["threshold_bound"] = rounded(bundle["threshold_bound"][row])
        tops = zip(bundle["top_image"][row].tolist(), bundle["top_norm"][row].tolist(), strict=True)
        record["top_images"] = [{"image": images[i], "norm": rounded(v)} for i, v in tops if i >= 0][:SHOWN_IMAGES]
        yield record | source


def signed_words(bundle: Bundle, row: int) -> list[tuple[int, float]]:
    """Return a unit's words (indices into `words`) and coefficients, the largest in absolute value first."""
    words, coefficients = bundle["word"][row], bundle["coefficient"][row]
    return [(int(words[j]), float(coefficients[j])) for j in np.argsort(-np.abs(coefficients), kind="stable") if words[j] >= 0]


def weight_name(bundle: Bundle) -> str:
    """Return the name of the numbers of a unit's words: coefficients of a sum, or TextSpan's shares of the variance."""
    return "share" if bundle.header.settings.get("words", {}).get("method") == "textspan" else "coefficient"


def shown_word(bundle: Bundle, word: str, weight: float) -> str:
    """Return a word with the sign of its coefficient, as `+dog` or `−snow`; without one if weights are shares."""
    sign = "+" if weight > 0 else "−"
    return (sign if weight_name(bundle) == "coefficient" else "") + word


def unit_keys(layer: int, neuron: int, head: int) -> dict[str, int]:
    """Return the keys that identify a unit in a record, without neuron or head where they are -1."""
    return {"layer": layer} | ({"neuron": neuron} if neuron >= 0 else {}) | ({"head": head} if head >= 0 else {})


def _write_table(bundle: Bundle, stream: BufferedIOBase, all_rows: bool) -> None:
    """Write a table of the first units, or with `all_rows` of all units."""
    rows = bundle.units if all_rows else min(bundle.units, TABLE_ROWS)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("unit", "strength", "explained"):
        table.add_column(title, justify="right", no_wrap=True)
    words = "word" in bundle
    if words:
        table.add_column("residual", justify="right", no_wrap=True)
    table.add_column("words" if words else "top images", overflow="fold")
    texts = bundle.text_list("words")["texts"] if words else []
    images, norm = bundle.text_list("images"), strength(bundle)
    for row in range(rows):
        layer, neuron, head = (int(v) for v in bundle["unit"][row])
        cells = [unit_name(layer, neuron, head), f"{norm[row]:.3g}", f"{bundle['explained'][row]:.2f}"]
        if words:
            cells.append(f"{bundle['residual'][row]:.2f}")
            parts = [shown_word(bundle, texts[j], c) for j, c in signed_words(bundle, row)[:SHOWN_WORDS]]
            table.add_row(*cells, Text("  ".join(parts)))
        else:
            table.add_row(*cells, Text("  ".join(images[i] for i in bundle["top_image"][row][:4] if i >= 0)))
    remainder = f"… {count_of(bundle.units - rows, 'more unit')} (clip-view --sort clear --head 50, or -f jsonl for all)"
    stream.write(rendered(table, *([Text(remainder, style="dim")] if rows < bundle.units else [])))


def write_table(stream: BufferedIOBase, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a table of texts; all columns but the first two are right-aligned."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, title in enumerate(columns):
        table.add_column(title, justify="left" if number < 2 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    stream.write(rendered(table))
