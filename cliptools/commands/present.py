"""A bundle as a person or a program wants it: the bundle itself, a line of JSON a unit, or a table."""

from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cliptools.commands.consume import record_source
from cliptools.commands.tables import rendered
from cliptools.ground.counted import count_of
from cliptools.ground.errors import UsageError
from cliptools.ground.output import binary_output, text_output
from cliptools.ground.records import rounded, write_record
from cliptools.ground.unit_names import unit_name

if TYPE_CHECKING:
    import numpy as np

    from cliptools.ground.bundle import Bundle

FORMATS = ("safetensors", "jsonl", "table")
ORDERS = ("index", "clear", "norm", "explained", "residual")
TABLE_ROWS = 20
SHOWN_WORDS = 8
SHOWN_IMAGES = 10


def strength(bundle: "Bundle") -> "np.ndarray":
    """Mean of a unit's top norms: how much it does where it does most. [units]"""
    return bundle["top_norm"].mean(axis=1)


def order_units(bundle: "Bundle", sort: str) -> "np.ndarray":
    """Row numbers of the units in the order asked for.

    `clear` puts first, among the stronger half of the units, those whose words miss least (or, before words, those
    that one direction explains best).

    Raises:
        UsageError: an order by residual of a bundle that has no words yet.
    """
    import numpy as np

    if sort == "index":
        return np.arange(bundle.units)
    if sort == "norm":
        return np.argsort(-strength(bundle), kind="stable")
    if sort == "residual" and "residual" not in bundle:
        raise UsageError("--sort residual: this bundle has no words yet (run clip-decompose first)")
    by = bundle["residual"] if sort == "residual" or (sort == "clear" and "residual" in bundle) else -bundle["explained"]
    if sort == "clear":
        power = strength(bundle)
        by = np.where(power >= np.median(power), by, by + 1e6)
    return np.argsort(by, kind="stable")


def emit(bundle: "Bundle", output_format: str, output: Path | None) -> None:
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
            _write_table(bundle, stream, whole=output is not None)


def unit_records(bundle: "Bundle") -> Iterator[dict[str, Any]]:
    """One record a unit; each stands alone."""
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


def signed_words(bundle: "Bundle", row: int) -> list[tuple[int, float]]:
    """A unit's words (index into `words`) and coefficients, the largest in absolute value first."""
    import numpy as np

    words, coefficients = bundle["word"][row], bundle["coefficient"][row]
    return [(int(words[j]), float(coefficients[j])) for j in np.argsort(-np.abs(coefficients), kind="stable") if words[j] >= 0]


def weight_name(bundle: "Bundle") -> str:
    """What the numbers beside a unit's words are: coefficients of a sum, or with TextSpan shares of a variance."""
    return "share" if bundle.header.settings.get("words", {}).get("method") == "textspan" else "coefficient"


def shown_word(bundle: "Bundle", word: str, weight: float) -> str:
    """`+dog`, `−snow`; `dog` where weights are shares, which have no sign."""
    sign = "+" if weight > 0 else "−"
    return (sign if weight_name(bundle) == "coefficient" else "") + word


def unit_keys(layer: int, neuron: int, head: int) -> dict[str, int]:
    """A unit in a record, without what it has not."""
    return {"layer": layer} | ({"neuron": neuron} if neuron >= 0 else {}) | ({"head": head} if head >= 0 else {})


def _write_table(bundle: "Bundle", stream: BufferedIOBase, whole: bool) -> None:
    """The first units, or with `whole` all of them, as a table."""
    from rich.table import Table
    from rich.text import Text

    rows = bundle.units if whole else min(bundle.units, TABLE_ROWS)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("unit", "strength", "explained"):
        table.add_column(title, justify="right", no_wrap=True)
    words = "word" in bundle
    if words:
        table.add_column("residual", justify="right", no_wrap=True)
    table.add_column("words" if words else "top images", overflow="fold")
    texts = bundle.text_list("words")["texts"] if words else []
    images, power = bundle.text_list("images"), strength(bundle)
    for row in range(rows):
        layer, neuron, head = (int(v) for v in bundle["unit"][row])
        cells = [unit_name(layer, neuron, head), f"{power[row]:.3g}", f"{bundle['explained'][row]:.2f}"]
        if words:
            cells.append(f"{bundle['residual'][row]:.2f}")
            parts = [shown_word(bundle, texts[j], c) for j, c in signed_words(bundle, row)[:SHOWN_WORDS]]
            table.add_row(*cells, Text("  ".join(parts)))
        else:
            table.add_row(*cells, Text("  ".join(images[i] for i in bundle["top_image"][row][:4] if i >= 0)))
    more = f"… {count_of(bundle.units - rows, 'more unit')} (clip-view --sort clear --head 50, or -f jsonl for all)"
    stream.write(rendered(table, *([Text(more, style="dim")] if rows < bundle.units else [])))
