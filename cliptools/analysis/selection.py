"""Selection of a bundle's units, as masks [units] or rows: by layer, name, comparison of a tensor with a number, or word."""

import operator
import re
from collections.abc import Sequence

import numpy as np

from cliptools.errors import UsageError
from cliptools.io.bundle import Bundle

COMPARISONS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}


def by_layers(bundle: Bundle, layers: Sequence[int]) -> np.ndarray:
    """Mark the units [units] that lie in one of these layers.

    Raises:
        UsageError: a layer that the bundle does not have.
    """
    present = sorted(set(bundle["unit"][:, 0].tolist()))
    if missing := [layer for layer in layers if layer not in present]:
        raise UsageError(f"--layers: the bundle has no layer {missing[0]}, it has {', '.join(map(str, present))}")
    return np.isin(bundle["unit"][:, 0], layers)


def by_units(bundle: Bundle, units: str) -> np.ndarray:
    """Mark the units [units] that are among `9:391,9:4` (layer:neuron, layer:neuron.head, or layer:.head for a whole head).

    Raises:
        UsageError: the text has another form, or names a unit that the bundle does not have.
    """
    mask = np.zeros(bundle.units, dtype=bool)
    for part in units.split(","):
        match = re.fullmatch(r"\s*(\d+):(?=[\d.])(\d*)(?:\.(\d+))?\s*", part)
        if match is None:
            raise UsageError(f"--units {units}: expected layer:neuron like 9:391,9:4, found {part!r}")
        layer, neuron, head = (int(group) if group else -1 for group in match.groups())
        rows = (bundle["unit"][:, :2] == (layer, neuron)).all(1) & ((head == -1) | (bundle["unit"][:, 2] == head))
        if not rows.any():
            raise UsageError(f"--units: the bundle has no unit {part.strip()}")
        mask |= rows
    return mask


def rows_named(bundle: Bundle, units: str, order: np.ndarray | None = None, head: int | None = None) -> np.ndarray:
    """Row numbers of these units, in the order of `units`; a unit that is named twice counts once, at its first place.

    Args:
        order: All rows, in the order that units of the same name get (4:624 names the neuron's pairs with all heads)
            [default: the order of the bundle].
        head: Number of units of each name, the first ones [default: all].
    """
    order = np.arange(bundle.units) if order is None else order
    rows = np.concatenate([order[by_units(bundle, part)[order]][:head] for part in units.split(",")])
    return np.array(list(dict.fromkeys(rows.tolist())), np.int64)


def by_comparison(values: np.ndarray, condition: str, option: str) -> np.ndarray:
    """Mark the values [units] that satisfy `>0.5`, `<=0.9`, …

    Raises:
        UsageError: the condition is not a comparison with a number.
    """
    match = re.fullmatch(r"\s*(>=|<=|>|<)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)\s*", condition)
    if match is None:
        raise UsageError(
            f'{option} {condition}: expected a comparison like ">0.5" (quoted, or the shell redirects), one of > >= < <='
        )
    return COMPARISONS[match[1]](values, float(match[2]))


def by_word(bundle: Bundle, word: str, strongest: int) -> np.ndarray:
    """Mark the units [units] that have this text among their `strongest` largest positive coefficients; case does not count.

    Raises:
        UsageError: the bundle has no words.
    """
    if "word" not in bundle:
        raise UsageError("--word: this bundle has no words yet (run clip-decompose first)")
    texts = bundle.text_list("words")["texts"]
    matches = [i for i, text in enumerate(texts) if text.casefold() == word.casefold()]
    coefficient = np.where(bundle["word"] >= 0, bundle["coefficient"], -np.inf)  # (units, m)
    largest = np.argsort(-coefficient, axis=1, kind="stable")[:, :strongest]  # (units, strongest)
    positive = np.take_along_axis(coefficient, largest, 1) > 0
    chosen: np.ndarray = np.isin(np.take_along_axis(bundle["word"], largest, 1), matches) & positive
    return np.asarray(chosen.any(1))  # (units, strongest) -> (units)
