"""Checks of a bundle's tensors, made from its schema (bundle_schema.py).

`faults` are the rules on which every command relies: shapes, types, finite numbers, ranges of whole numbers, and indices into
lists. `doubtful_values` are the further rules of `clip-view --check`: lengths, shares, norms and their order, duplicates.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool

from cliptools.console import count_of
from cliptools.io.bundle_schema import AXES, TENSORS, TensorField
from cliptools.io.jsonl import parse, unit_name

Tensors = Mapping[str, np.ndarray]
ROUNDING = 1e-3  # largest error of a length or a share, after long sums in float32
LISTS = [(field.index_of, field.name) for field in TENSORS.values() if field.index_of]
"""JSON tensors with a list, each with a tensor of indices into it."""


def faults(tensors: Tensors) -> Iterator[str]:
    """Yield every fault as one line; values are checked only if all shapes and types are right."""
    unit = tensors.get("unit")
    if unit is None or unit.ndim != 2 or unit.shape[1] != 3:
        yield "a bundle needs a tensor `unit` of shape [units, 3]"
        return
    shape_faults = [*_shapes(tensors), *_types(tensors)]
    yield from shape_faults
    if not shape_faults:
        yield from _values(tensors)


def _present(tensors: Tensors) -> Iterator[tuple[TensorField, np.ndarray]]:
    """Yield the tensors that the schema knows, in its order."""
    return ((field, tensors[name]) for name, field in TENSORS.items() if name in tensors)


def _shapes(tensors: Tensors) -> Iterator[str]:
    units = len(tensors["unit"])
    sizes: dict[str, list[tuple[str, int]]] = {axis: [] for axis in AXES}
    for field, value in _present(tensors):
        axes, shape, tensor = field.axes.split(), value.shape, f"tensor `{field.name}`"
        if len(shape) != len(axes) or any(a.isdecimal() and int(a) != size for a, size in zip(axes, shape, strict=True)):
            yield f"{tensor} has shape {list(shape)}, expected {count_of(len(axes), 'dimension')} [{', '.join(axes)}]"
            continue
        if 0 in shape[1:]:
            yield f"{tensor} has shape {list(shape)}, which has no values per unit"
        if field.has_unit_rows and len(value) != units:
            yield f"{tensor} has {count_of(len(value), 'row')}, expected one row for each of {count_of(units, 'unit')}"
        for axis, size in zip(axes, shape, strict=True):
            sizes.get(axis, []).append((field.name, size))
    for axis, entries in sizes.items():
        if axis != "U" and len({size for _, size in entries}) > 1:
            yield f"{AXES[axis]}: " + ", ".join(f"`{name}` has {size}" for name, size in entries)


def _types(tensors: Tensors) -> Iterator[str]:
    for name, value in tensors.items():
        if name in TENSORS and str(value.dtype) != TENSORS[name].dtype:
            yield f"tensor `{name}` is {value.dtype}, expected {TENSORS[name].dtype}"
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            yield f"tensor `{name[:40]}` holds NaN or infinity"


def _values(tensors: Tensors) -> Iterator[str]:
    unit = tensors["unit"]
    if len(unit) and (unit.min(0) < (0, -1, -1)).any():
        yield "tensor `unit` has a negative layer, or a neuron or head below -1"
    for field, value in _present(tensors):
        if value.dtype.kind == "i" and _outside(value, field.low, field.high).any():
            yield f"tensor `{field.name}` holds values outside the range from {field.low:g} to {field.high:g}"
    list_faults = (
        fault for texts, index in LISTS if index in tensors or texts in tensors for fault in _index_faults(tensors, index, texts)
    )
    yield from dict.fromkeys(list_faults)
    if "thumbnails" in tensors or "thumbnail_offsets" in tensors:
        yield from _thumbnail_faults(tensors)


def _outside(value: np.ndarray, low: float | None, high: float | None) -> Bool[np.ndarray, "..."]:
    """Return where values are outside a range; None for no limit."""
    below = False if low is None else value < low
    return np.broadcast_to(below | (False if high is None else value > high), value.shape)


def _index_faults(tensors: Tensors, index: str, texts: str) -> Iterator[str]:
    """Yield the faults of a tensor of indices and of the list that it points into."""
    try:
        count = len(_text_list(tensors, texts))
    except (KeyError, ValueError, TypeError):
        expected = "JSON object with a list `texts`" if texts == "words" else "JSON list of names"
        yield f"tensor `{index}` needs a {expected} in tensor `{texts}`"
        return
    if _outside(tensors.get(index, np.zeros(0, np.int32)), -1.0, float(count - 1)).any():
        yield f"tensor `{index}` has an index outside the {count_of(count, 'entry')} of `{texts}`"


def _text_list(tensors: Tensors, name: str) -> list[str]:
    """Return the texts that a JSON tensor lists.

    Raises:
        KeyError, ValueError, TypeError: it holds no list of texts.
    """
    value: Any = parse(tensors[name].tobytes())
    texts = value["texts"] if name == "words" else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise TypeError
    if name == "words" and not all(isinstance(value.get(key, ""), str) for key in ("pool", "digest")):
        raise TypeError
    return texts


def _thumbnail_faults(tensors: Tensors) -> Iterator[str]:
    if not {"thumbnails", "thumbnail_offsets", "images"} <= tensors.keys():
        yield "`thumbnails`, `thumbnail_offsets` and `images` are only valid together"
        return
    offsets, size = tensors["thumbnail_offsets"], len(tensors["thumbnails"])
    if len(offsets) < 1 or offsets[0] != 0 or (offsets[1:] < offsets[:-1]).any() or offsets[-1] != size:
        yield f"`thumbnail_offsets` does not divide the {count_of(size, 'byte')} of `thumbnails`"


def doubtful_values(tensors: Tensors) -> Iterator[str]:
    """Yield a line for each rule that statistics do not follow, of tensors without `faults`; with the first unit concerned."""
    unit = tensors["unit"]
    distinct, count = np.unique(unit, axis=0, return_counts=True)
    if (count > 1).any():
        yield f"{count_of(int((count > 1).sum()), 'duplicate unit')}, as {unit_name(*distinct[count > 1][0].tolist())}"
    for rule in RULES:
        for field, value in _present(tensors):
            for faulty, fault in rule(field, value, tensors):
                rows = np.flatnonzero(faulty.any(tuple(range(1, faulty.ndim))))  # (unit, ...) -> (faulty units)
                if len(rows):
                    first = unit_name(*unit[rows[0]].tolist())
                    yield f"`{field.name}` {fault}: {len(rows)} of {count_of(len(unit), 'unit')}, as {first}"


Faulty = Iterator[tuple[Bool[np.ndarray, "unit ..."], str]]
"""Where values do not follow a rule, and what is wrong there."""
Rule = Callable[[TensorField, np.ndarray, Tensors], Faulty]


def _length_rule(field: TensorField, value: np.ndarray, _: Tensors) -> Faulty:
    if field.unit_length:
        length = np.linalg.norm(value.astype(np.float64), axis=-1)  # (unit, ..., d) -> (unit, ...)
        yield (np.abs(length - 1) > ROUNDING) & (length > 0), "has neither length 1 nor 0"


def _range_rule(field: TensorField, value: np.ndarray, _: Tensors) -> Faulty:
    if field.low is not None and field.high is not None:
        yield _outside(value, field.low - ROUNDING, field.high + ROUNDING), f"is not between {field.low:g} and {field.high:g}"


def _sign_rule(field: TensorField, value: np.ndarray, tensors: Tensors) -> Faulty:
    if field.low is not None and field.high is None:
        ended = _ended(field, tensors)
        yield (value < field.low) & (True if ended is None else ~ended), "is negative"


def _order_rule(field: TensorField, value: np.ndarray, _: Tensors) -> Faulty:
    if field.descending:
        yield np.diff(value, axis=1) > 0, "does not descend"


def _list_rule(field: TensorField, value: np.ndarray, tensors: Tensors) -> Faulty:
    if field.index_of:
        rows = np.sort(value, axis=1)
        item = {"images": "an image", "words": "a text"}[field.index_of]
        yield (np.diff(rows, axis=1) == 0) & (rows[:, 1:] >= 0), f"has {item} twice"
        yield (value[:, :-1] < 0) & (value[:, 1:] >= 0), "has an entry after -1, which ends the list"
    if field.zero_after_end and (ended := _ended(field, tensors)) is not None:
        yield ended & (value != 0), "is not 0 where there is no text"


def _ended(field: TensorField, tensors: Tensors) -> Bool[np.ndarray, "unit entry"] | None:
    """Return where the row of indices to which a tensor's entries belong has ended; None if there are no such indices."""
    return tensors[field.along] < 0 if field.along and field.along in tensors else None


RULES: tuple[Rule, ...] = (_length_rule, _range_rule, _sign_rule, _order_rule, _list_rule)
