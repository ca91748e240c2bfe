"""Units of a bundle as records and tables: their order, words and top images."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from rich.table import Table
from rich.text import Text

from cliptools.console import count_of
from cliptools.errors import UsageError
from cliptools.io.bundle import Bundle
from cliptools.io.header import recorded_model
from cliptools.io.jsonl import rounded, unit_name

SHOWN_WORDS = 5
SHOWN_IMAGES = 10
NEGATIVE_WORDS = 2
SHOWN_CLOSEST = 3
CLOSEST = (
    ("overlap", "overlap_cosine", "cosine"),
    ("seen", "seen_correlation", "correlation"),
    ("verified", "verified_correlation", "correlation"),
)
"""Tensors of words beside those of the pursuit, those of their numbers, and the names of these in records."""
ENOUGH_IMAGES = 300
"""With fewer images the words that units see are rough, although their correlations are larger."""


def strength(bundle: Bundle) -> Float[np.ndarray, " unit"]:
    """Return the mean of each unit's top norms: the size of its effect in the images where it is largest."""
    return bundle["top_norm"].mean(axis=1)


def order_units(bundle: Bundle, sort: str, word: str | None = None) -> Int[np.ndarray, " unit"]:
    """Return the row numbers of all units in one of ORDERS.

    `clear` puts the units first whose activity correlates most with the similarity of images to their first written word
    (`agreement`); in a bundle without it, those that one direction explains best.

    Args:
        word: Put the units first in which this text has the largest coefficient.

    Raises:
        UsageError: The order is by residual, and the bundle has no words.
    """
    if word is not None:
        return np.argsort(-signed_weights(bundle, word), kind="stable")
    if sort == "index":
        return np.arange(bundle.units)
    if sort == "norm":
        return np.argsort(-strength(bundle), kind="stable")
    if sort == "residual" and "residual" not in bundle:
        raise UsageError("--sort residual: this bundle has no words yet (run clip-decompose first)")
    if sort == "residual":
        return np.argsort(bundle["residual"], kind="stable")
    return np.argsort(-bundle["agreement" if sort == "clear" and "agreement" in bundle else "explained"], kind="stable")


def record_source(bundle: Bundle) -> dict[str, Any]:
    """Return the fields of every record that name its source: the model, the bundle's digest, and the dictionary of latents."""
    dictionary = bundle.header.settings.get("dictionary")
    source = {"model": recorded_model(bundle.header.model), "bundle": bundle.digest}
    return source if dictionary is None else source | {"dictionary": dictionary}


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
            record |= _closest_words(bundle, texts, row)
        for name in ("explained", "explained_all", "threshold"):
            record[name] = rounded(bundle[name][row])
        if "threshold_bound" in bundle and bundle["threshold_bound"][row] > 0:
            record["threshold_bound"] = rounded(bundle["threshold_bound"][row])
        tops = zip(bundle["top_image"][row].tolist(), bundle["top_norm"][row].tolist(), strict=True)
        record["top_images"] = [{"image": images[i], "norm": rounded(v)} for i, v in tops if i >= 0][:SHOWN_IMAGES]
        yield record | source


def word_records(texts: Sequence[str], places: Sequence[int], values: Sequence[float], key: str) -> list[dict[str, Any]]:
    """Return words with their values as records; a place of -1 is none."""
    return [{"word": texts[j], key: rounded(value)} for j, value in zip(places, values, strict=True) if j >= 0]


def _closest_words(bundle: Bundle, texts: Sequence[str], row: int) -> dict[str, Any]:
    """Return the fields of a unit's record with the words of largest overlap, the words that it sees, and its agreement."""
    fields: dict[str, Any] = {}
    for name, value, key in CLOSEST:
        if name in bundle:
            fields[name] = word_records(texts, bundle[name][row].tolist(), bundle[value][row].tolist(), key)
    if "seen" in bundle and seen_title(bundle) != "sees":
        fields["seen_uncertain"] = True
    return fields | ({"agreement": rounded(bundle["agreement"][row])} if "agreement" in bundle else {})


def signed_words(bundle: Bundle, row: int) -> list[tuple[int, float]]:
    """Return a unit's words (indices into `words`) and coefficients: positive ones, largest first, then negative ones."""
    words, coefficients = bundle["word"][row], bundle["coefficient"][row]
    order = np.lexsort((-np.abs(coefficients), coefficients <= 0))
    return [(int(words[j]), float(coefficients[j])) for j in order if words[j] >= 0]


def signed_weights(bundle: Bundle, word: str) -> Float[np.ndarray, " unit"]:
    """Return the coefficient of a text in each unit's words; 0 where it is not among them; case does not count."""
    texts = bundle.text_list("words")["texts"]
    matches = [i for i, text in enumerate(texts) if text.casefold() == word.casefold()]
    of_word = np.where(np.isin(bundle["word"], matches), bundle["coefficient"], 0)  # (unit, m)
    return np.asarray(of_word.sum(1))


def seen_words(bundle: Bundle, row: int) -> list[tuple[int, float]]:
    """Return the words that a unit sees (indices into `words`) and their correlations, the largest first."""
    if "seen" not in bundle:
        return []
    pairs = zip(bundle["seen"][row].tolist(), bundle["seen_correlation"][row].tolist(), strict=True)
    return [(word, correlation) for word, correlation in pairs if word >= 0]


def seen_title(bundle: Bundle) -> str:
    """Return `sees`, or `sees (uncertain, 120 images)` if few images chose these words, the bundle's or those of clip-judge."""
    count = bundle.header.settings.get("judged_images", bundle.header.images.get("count", ENOUGH_IMAGES))
    return "sees" if count >= ENOUGH_IMAGES else f"sees (uncertain, {count_of(count, 'image')})"


def positive_and_negative(words: Sequence[tuple[int, float]], count: int) -> list[tuple[int, float]]:
    """Return the first `count` words, the positive ones first; at most a third of them, and NEGATIVE_WORDS, are negative."""
    negative = [word for word in words if word[1] < 0][: min(NEGATIVE_WORDS, count // 3)]
    positive = [word for word in words if word[1] >= 0][: max(count - len(negative), 0)]
    return positive + negative[: count - len(positive)]


def weight_name(bundle: Bundle) -> str:
    """Return the name of the numbers of a unit's words: coefficients of a sum, or TextSpan's shares of the variance."""
    return "share" if bundle.header.settings.get("words", {}).get("method") == "textspan" else "coefficient"


def shown_word(bundle: Bundle, word: str, weight: float) -> str:
    """Return a word with its signed coefficient, as `+dog 0.41` or `−snow 0.20`; the word alone if weights are shares."""
    if weight_name(bundle) != "coefficient":
        return word
    return f"{'+' if weight > 0 else '−'}{word} {abs(weight):.2f}"


def unit_keys(layer: int, neuron: int, head: int) -> dict[str, int]:
    """Return the keys that identify a unit in a record, without neuron or head where they are -1."""
    return {"layer": layer} | ({"neuron": neuron} if neuron >= 0 else {}) | ({"head": head} if head >= 0 else {})


def units_table(bundle: Bundle, rows: int) -> Table:
    """Return a table of the first units."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("unit", "strength", "explained"):
        table.add_column(title, justify="right", no_wrap=True)
    words, quality = "word" in bundle, "agreement" if "agreement" in bundle else "residual"
    if words:
        table.add_column(quality, justify="right", no_wrap=True)
    table.add_column("writes" if words else "top images", overflow="fold")
    lists_shown = [name for name, _, _ in CLOSEST if name in bundle][-2:]  # the most telling two
    titles = {"overlap": "overlaps", "seen": seen_title(bundle), "verified": "verified"}
    for name, title in titles.items():
        if name in lists_shown:
            table.add_column(title, overflow="fold")
    texts = bundle.text_list("words")["texts"] if words else []
    images, norm = bundle.text_list("images"), strength(bundle)
    for row in range(min(rows, bundle.units)):
        layer, neuron, head = (int(v) for v in bundle["unit"][row])
        cells = [unit_name(layer, neuron, head), f"{norm[row]:.3g}", f"{bundle['explained'][row]:.2f}"]
        if words:
            cells.append(f"{bundle[quality][row]:.2f}")
            written = positive_and_negative(signed_words(bundle, row), SHOWN_WORDS)
            parts = [shown_word(bundle, texts[j], c) for j, c in written]
            closest = [bundle[name][row] for name in lists_shown]
            lists = [Text("  ".join(texts[j] for j in text[:SHOWN_CLOSEST] if j >= 0)) for text in closest]
            table.add_row(*cells, Text("  ".join(parts)), *lists)
        else:
            table.add_row(*cells, Text("  ".join(images[i] for i in bundle["top_image"][row][:4] if i >= 0)))
    return table
