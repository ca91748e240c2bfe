"""Units of a bundle as records and tables: their order, words and top images."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from rich.table import Table
from rich.text import Text

from cliptools.errors import UsageError
from cliptools.io.bundle import Bundle
from cliptools.io.header import recorded_model
from cliptools.io.jsonl import rounded, unit_name

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


def record_source(bundle: Bundle) -> dict[str, Any]:
    """Return the fields of every record that name its source: the model and the bundle's digest."""
    return {"model": recorded_model(bundle.header.model), "bundle": bundle.digest}


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


def units_table(bundle: Bundle, rows: int) -> Table:
    """Return a table of the first units."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("unit", "strength", "explained"):
        table.add_column(title, justify="right", no_wrap=True)
    words = "word" in bundle
    if words:
        table.add_column("residual", justify="right", no_wrap=True)
    table.add_column("words" if words else "top images", overflow="fold")
    texts = bundle.text_list("words")["texts"] if words else []
    images, norm = bundle.text_list("images"), strength(bundle)
    for row in range(min(rows, bundle.units)):
        layer, neuron, head = (int(v) for v in bundle["unit"][row])
        cells = [unit_name(layer, neuron, head), f"{norm[row]:.3g}", f"{bundle['explained'][row]:.2f}"]
        if words:
            cells.append(f"{bundle['residual'][row]:.2f}")
            parts = [shown_word(bundle, texts[j], c) for j, c in signed_words(bundle, row)[:SHOWN_WORDS]]
            table.add_row(*cells, Text("  ".join(parts)))
        else:
            table.add_row(*cells, Text("  ".join(images[i] for i in bundle["top_image"][row][:4] if i >= 0)))
    return table
