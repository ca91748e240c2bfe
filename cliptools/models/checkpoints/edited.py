"""Checkpoints that clip-edit writes: safetensors files whose metadata describe the model and the model it was made from.

The metadata hold one key with a `Header` of kind `edit`. Its `model` is the edited model: sha256 of the weights as they are
loaded, activation, grid, preprocessing, architecture, and `parent`, the model before the edit. Other programs ignore the
metadata and load the tensors, which have open_clip's names.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from cliptools.errors import StreamError
from cliptools.io.header import KEY, Header

KIND = "edit"
CONFIG, WEIGHTS, RECORD = "open_clip_config.json", "open_clip_model.safetensors", "edit.json"
"""Files of a folder with an edited model: open_clip's two, and the record of the edit."""
TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt", "vocab.txt",
    "spiece.model", "sentencepiece.bpe.model", "added_tokens.json",
)  # fmt: skip
"""Files of a tokenizer, which an edited model takes over from its parent's folder."""


def edit_header(path: Path) -> Header | None:
    """Return the header of a checkpoint that clip-edit wrote; None for any other file."""
    if path.suffix != ".safetensors":
        return None
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(KEY)
        header = None if text is None else Header.from_json(text, str(path))
    except (OSError, SafetensorError, StreamError):
        return None
    return header if header is not None and header.kind == KIND else None


def parent_of(edit: Header | None, sha256: str) -> dict[str, Any] | None:
    """Return the model from which these weights were made; None if their digest is not the one in the header."""
    if edit is None or edit.model.get("sha256") != sha256:
        return None
    parent = edit.model.get("parent")
    return parent if isinstance(parent, dict) else None


def checkpoint_bytes(tensors: Mapping[str, Tensor], header: Header) -> bytes:
    """Return the safetensors file; equal edits give equal bytes."""
    return save({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, {KEY: header.to_json()})


def stored(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the tensors as they are stored: floating-point numbers in this type, others unchanged."""
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in tensors.items()}


def open_clip_settings(config: Mapping[str, Any], quick: bool, preprocessing: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration that open_clip reads from a folder.

    Args:
        config: open_clip's configuration of the architecture.
        quick: True if the model computes QuickGELU, which a tag may decide instead of the configuration.
        preprocessing: Image preprocessing in open_clip's terms.
    """
    model = {key: value for key, value in config.items() if key != "quick_gelu"} | ({"quick_gelu": True} if quick else {})
    return {"model_cfg": model, "preprocess_cfg": dict(preprocessing)}
