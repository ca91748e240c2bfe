"""Checks of a bundle's tensors that every reader relies on: shapes, types, ranges of values, and indices into lists."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from cliptools.console import count_of
from cliptools.io.jsonl import parse

Tensors = Mapping[str, np.ndarray]
DTYPES = {
    "unit": "int32", "top_image": "int32", "word": "int32", "sign": "int8",
    "images": "uint8", "words": "uint8", "thumbnails": "uint8", "thumbnail_offsets": "int64",
    "uncertain": "int32",
}  # fmt: skip
"""Types of tensors; all others of RANKS and UNIT_ROWS are float32."""
UNIT_ROWS = (
    "unit", "direction", "component", "component_explained", "mean", "top_norm", "top_image", "threshold", "threshold_bound",
    "explained", "explained_all", "moment", "word", "coefficient", "residual", "prefix_residual",
    "sign", "mean_scalar", "token_mean",
)  # fmt: skip
"""Tensors with one row per unit; a selection of units selects their rows."""
RANKS = {
    "direction": 2, "component": 3, "component_explained": 2, "mean": 2, "top_norm": 2, "top_image": 2, "threshold": 1,
    "threshold_bound": 1, "explained": 1, "explained_all": 1, "sign": 1, "mean_scalar": 1, "rest_mean": 1,
    "token_mean": 2, "moment": 3, "images": 1,
    "thumbnails": 1, "thumbnail_offsets": 1, "word": 2, "coefficient": 2, "residual": 1, "prefix_residual": 2,
    "words": 1, "uncertain": 2,
}  # fmt: skip
SAME_SIZE: dict[str, tuple[int, tuple[str, ...]]] = {
    "joint dimensions": (-1, ("direction", "mean", "component", "rest_mean")),
    "top images": (-1, ("top_norm", "top_image")),
    "texts": (-1, ("word", "coefficient")),
    "components": (1, ("component", "component_explained")),
}
"""Axes that must have the same size in several tensors: title -> (axis, tensors)."""
JSON_LISTS = {"top_image": "images", "word": "words"}
"""Tensors of indices, and the JSON tensors whose lists they point into."""


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


def _shapes(tensors: Tensors) -> Iterator[str]:
    units = len(tensors["unit"])
    for key, rank in RANKS.items():
        if key in tensors and tensors[key].ndim != rank:
            yield f"tensor `{key}` has shape {list(tensors[key].shape)}, expected {count_of(rank, 'dimension')}"
        elif key == "uncertain" and key in tensors and tensors[key].shape[1] != 3:
            yield f"tensor `{key}` has shape {list(tensors[key].shape)}, expected 3 numbers per unit"
        elif key in tensors and 0 in tensors[key].shape[1:]:
            yield f"tensor `{key}` has shape {list(tensors[key].shape)}, which has no values per unit"
    for key in UNIT_ROWS:
        if key in tensors and (rows := len(tensors[key]) if tensors[key].ndim else -1) != units:
            count = count_of(rows, "row") if rows >= 0 else "no rows"
            yield f"tensor `{key}` has {count}, expected one row for each of {count_of(units, 'unit')}"
    for title, (axis, names) in SAME_SIZE.items():
        sizes = {key: tensors[key].shape[axis] for key in names if key in tensors and tensors[key].ndim == RANKS[key]}
        if len(set(sizes.values())) > 1:
            yield f"{title}: " + ", ".join(f"`{key}` has {size}" for key, size in sizes.items())


def _types(tensors: Tensors) -> Iterator[str]:
    for key, value in tensors.items():
        expected = DTYPES.get(key, "float32")
        if key in (*UNIT_ROWS, *DTYPES, *RANKS) and str(value.dtype) != expected:
            yield f"tensor `{key}` is {value.dtype}, expected {expected}"
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            yield f"tensor `{key[:40]}` holds NaN or infinity"


def _values(tensors: Tensors) -> Iterator[str]:
    unit = tensors["unit"]
    if len(unit) and (unit.min(0) < (0, -1, -1)).any():
        yield "tensor `unit` has a negative layer, or a neuron or head below -1"
    if "sign" in tensors and (np.abs(tensors["sign"].astype(np.int16)) > 1).any():
        yield "tensor `sign` holds values other than -1, 0 and 1"
    for index, texts in JSON_LISTS.items():
        if index in tensors or texts in tensors:
            yield from _index_faults(tensors, index, texts)
    if "thumbnails" in tensors or "thumbnail_offsets" in tensors:
        yield from _thumbnail_faults(tensors)


def _index_faults(tensors: Tensors, index: str, texts: str) -> Iterator[str]:
    """Yield the faults of a tensor of indices and of the list that it points into."""
    try:
        count = len(_text_list(tensors, texts))
    except (KeyError, ValueError, TypeError):
        expected = "JSON object with a list `texts`" if texts == "words" else "JSON list of names"
        yield f"tensor `{index}` needs a {expected} in tensor `{texts}`"
        return
    values = tensors.get(index, np.zeros(0, np.int32))
    if values.size and (values.min() < -1 or values.max() >= count):
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
