"""Choosing units of a bundle by what is said of them."""

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
        UsageError: a layer that the bundle does not hold.
    """
    held = sorted(set(bundle["unit"][:, 0].tolist()))
    if missing := [layer for layer in layers if layer not in held]:
        raise UsageError(f"--layers: the bundle has no layer {missing[0]}, it holds {', '.join(map(str, held))}")
    return np.isin(bundle["unit"][:, 0], layers)


def by_units(bundle: Bundle, units: str) -> np.ndarray:
    """Mark the units [units] that are among `9:391,9:4` (layer:neuron, layer:neuron.head, or layer:.head for a whole head).

    Raises:
        UsageError: not so written, or a unit that the bundle does not hold.
    """
    mask = np.zeros(bundle.units, dtype=bool)
    for part in units.split(","):
        match = re.fullmatch(r"\s*(\d+):(?=[\d.])(\d*)(?:\.(\d+))?\s*", part)
        if match is None:
            raise UsageError(f"--units {units}: expected layer:neuron like 9:391,9:4, found {part!r}")
        layer, neuron, head = (int(group) if group else -1 for group in match.groups())
        here = (bundle["unit"][:, :2] == (layer, neuron)).all(1) & ((head == -1) | (bundle["unit"][:, 2] == head))
        if not here.any():
            raise UsageError(f"--units: the bundle has no unit {part.strip()}")
        mask |= here
    return mask


def rows_named(bundle: Bundle, units: str, order: np.ndarray | None = None) -> np.ndarray:
    """Row numbers of the units named, in the order named.

    Args:
        order: All rows, in the order for units that one name means (4:624 means the neuron's pairs with every head);
            in the bundle's own order without it.
    """
    order = np.arange(bundle.units) if order is None else order
    return np.concatenate([order[by_units(bundle, part)[order]] for part in units.split(",")])


def by_comparison(values: np.ndarray, condition: str, option: str) -> np.ndarray:
    """Mark the values [units] that satisfy `>0.5`, `<=0.9`, …

    Raises:
        UsageError: not a comparison with a number.
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
        UsageError: a bundle without words.
    """
    if "word" not in bundle:
        raise UsageError("--word: this bundle has no words yet (run clip-decompose first)")
    texts = bundle.text_list("words")["texts"]
    wanted = [i for i, text in enumerate(texts) if text.casefold() == word.casefold()]
    coefficient = np.where(bundle["word"] >= 0, bundle["coefficient"], -np.inf)  # (units, m)
    best = np.argsort(-coefficient, axis=1, kind="stable")[:, :strongest]
    positive = np.take_along_axis(coefficient, best, 1) > 0
    chosen: np.ndarray = np.isin(np.take_along_axis(bundle["word"], best, 1), wanted) & positive
    return np.asarray(chosen.any(1))
