"""Masks: units of a ViT that hooks put at their means at every token, as files that clip-edit writes and other commands apply.

A mask is a safetensors file with a header of kind `mask` and these tensors:

    neuron [n, 2], neuron_mean [n, token]          layer and number of each neuron, and its mean activations
    head [h, 2], head_mean [h, token, e]           layer and number of each head, and its mean values
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save
from torch import Tensor

from cliptools.analysis.token_means import Mask
from cliptools.console import count_of, summarise
from cliptools.errors import CliptoolsError, StreamError, UsageError
from cliptools.front.edit_means import open_mean_images, record_of, token_means
from cliptools.front.edit_model import TOOL, editor_of
from cliptools.front.edit_request import EditRequest
from cliptools.front.edit_units import Line
from cliptools.io.bundle import Bundle, check_finite
from cliptools.io.files import whole_file
from cliptools.io.header import KEY, Header, digest, model_difference, reason_of, recorded_model
from cliptools.models.load import LoadedModel
from cliptools.towers.hooks import Hooks
from cliptools.towers.kinds import supported_tower

KIND = "mask"
EXPLANATION = "each unit is at its mean over images at every token, by hooks"
FORMS = {"neuron": ("i", 2), "head": ("i", 2), "neuron_mean": ("f", 2), "head_mean": ("f", 3)}
"""numpy's kind and the number of axes of each tensor."""
Tensors = dict[str, np.ndarray]


@dataclass(frozen=True)
class Masked:
    """A mask with its record; nothing is written before `save`."""

    record: dict[str, Any]
    header: Header
    tensors: Tensors

    def save(self, path: str | Path) -> dict[str, Any]:
        """Write the mask, and return the record with the file in it.

        Raises:
            CliptoolsError: the file cannot be written.
        """
        check_finite(self.tensors)
        with whole_file(Path(path)) as stream:
            stream.write(save(self.tensors, {KEY: self.header.to_json()}))
        return self.record | {"output": str(path)}


def masked_units(bundle: Bundle | None, lines: Sequence[Line] | None, request: EditRequest) -> Masked:
    """Return the mask of a bundle's units, or of those that lines name.

    Raises:
        UsageError: the units are a ResNet's, which weights put at their means exactly.
        ModelError: the model is not available, or not that of the units.
    """
    editor = editor_of(bundle, lines, request)
    if editor.pooled:
        raise UsageError("--mask: weights put units of a ResNet at their means exactly: write a checkpoint with -o FILE")
    images = open_mean_images(request.means, editor.model, editor.kind)
    numbers = editor.numbers
    means = token_means(editor.model, *((numbers, {}) if editor.kind == "neurons" else ({}, numbers)), images)
    name, by_layer = ("neuron", means.neuron_means) if editor.kind == "neurons" else ("head", means.head_means)
    unit = np.array([(layer, n) for layer, of_layer in numbers.items() for n in of_layer.tolist()], np.int32)  # (n, 2)
    mean = torch.cat([means.transpose(0, 1) for means in by_layer.values()])  # (n, token) or (n, token, e)
    tensors: Tensors = {name: unit, f"{name}_mean": mean.float().cpu().numpy()}
    model, units = editor.model.identity, editor.unit_records(None)
    settings = {"units": editor.kind, "count": len(units), "bundle": editor.chosen.digest}
    history = [] if editor.chosen.bundle is None else editor.chosen.bundle.header.history
    header = Header(KIND, model, record_of(images, means.count), settings, list(history)).after(TOOL, dict(request.arguments))
    figures = {"edit": EXPLANATION, "how": KIND, "exact": True, "count": len(units), "sees": list(request.sees)}
    record = {"units": units} | figures | {"writes": list(request.writes), "precision": "fp32", "images": header.images}
    record |= {"before": model["sha256"], "after": model["sha256"], "mask": mask_digest(tensors)}
    record |= {"model": recorded_model(model), "bundle": editor.chosen.digest, "history": header.history}
    summarise(f"{TOOL}: mask of {count_of(len(units), editor.kind[:-1])}, means over {count_of(means.count, 'image')}")
    return Masked(record, header, tensors)


def mask_digest(tensors: Tensors) -> str:
    """Return the digest by which records name a mask."""
    return digest(*(part for name in sorted(tensors) for part in (name, tensors[name].tobytes())))


def mask_hooks(model: LoadedModel, path: str | os.PathLike[str] | None) -> tuple[Hooks, dict[str, str]]:
    """Return the hooks of a mask's file for its model, and the field that records have of it; both empty without a file.

    Raises:
        StreamError: the file is not a mask, or is the mask of another model.
        ModelError: the image tower is not supported.
    """
    if path is None:
        return [], {}
    header, tensors = _read(Path(path))
    if difference := model_difference(model.identity, header.model):
        raise StreamError(f"--mask {path}: a mask of another model{reason_of(difference)}")
    tower = supported_tower(model.clip)
    blocks, tokens = tower.blocks, tower.tokens
    sizes = {"neuron": lambda layer: blocks[layer].output.in_features, "head": lambda layer: blocks[layer].attention.heads}
    shapes = {"neuron": (tokens,), "head": (tokens, blocks[0].attention.head_width)}
    parts: list[Any] = []
    for name in ("neuron", "head"):
        unit, mean = tensors.get(name, np.zeros((0, 2), np.int32)), tensors.get(f"{name}_mean", np.zeros((0, *shapes[name])))
        exists = [0 <= layer < len(blocks) and 0 <= number < sizes[name](layer) for layer, number in unit.tolist()]
        if mean.shape != (len(unit), *shapes[name]) or not all(exists):
            raise StreamError(f"--mask {path}: its units or means do not fit the model: write it again with clip-edit --mask")
        parts += _by_layer(torch.from_numpy(unit).long(), torch.from_numpy(mean))
    return Mask(*parts).hooks(tower), {"mask": mask_digest(tensors)}


def _by_layer(
    unit: Int[Tensor, "n 2"], mean: Float[Tensor, "n token *e"]
) -> tuple[dict[int, Int[Tensor, " _"]], dict[int, Float[Tensor, "token _ *e"]]]:
    """Return numbers and means of units by layer."""
    rows = {layer: (unit[:, 0] == layer).nonzero()[:, 0] for layer in unit[:, 0].unique().tolist()}
    return {layer: unit[row, 1] for layer, row in rows.items()}, {layer: mean[row].transpose(0, 1) for layer, row in rows.items()}


def _read(path: Path) -> tuple[Header, Tensors]:
    """Read a mask.

    Raises:
        CliptoolsError: the file cannot be opened.
        StreamError: the file is not a mask, or is damaged.
    """
    try:
        with path.open("rb"), safe_open(path, "np") as file:
            text = (file.metadata() or {}).get(KEY)
        tensors = load_file(path)
    except OSError as error:
        raise CliptoolsError(f"--mask {path}: {error.strerror or 'cannot be read'}") from None
    except (SafetensorError, ValueError, TypeError, KeyError):
        raise StreamError(f"--mask {path}: expected a mask of clip-edit --mask, found another or a damaged file") from None
    header = None if text is None else Header.from_json(text, str(path))
    if header is None or header.kind != KIND:
        found = "other tensors" if header is None else f"a file of kind {header.kind!r}"
        raise StreamError(f"--mask {path}: expected a mask of clip-edit --mask, found {found}")
    for name, (kind, dimensions) in FORMS.items():
        values = tensors.get(name)
        if values is not None and (values.dtype.kind != kind or values.ndim != dimensions or not np.isfinite(values).all()):
            raise StreamError(f"--mask {path}: tensor `{name}` has another type or shape, or NaN")
    return header, tensors
