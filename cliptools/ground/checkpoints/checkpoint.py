"""A checkpoint: the tensors of a weights file, whatever its form, under open_clip's names."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from cliptools.ground.checkpoints.file_kinds import SHARD, Kind, file_kind, not_read
from cliptools.ground.checkpoints.names import OPENAI_KEYS, TEXT_TOWER, open_clip_names
from cliptools.ground.checkpoints.pickled import read_torch
from cliptools.ground.checkpoints.torchscript import read_torchscript
from cliptools.ground.errors import first_line
from cliptools.ground.legible import legible

ADAPTER = "adapter_config.json"  # of the peft library


@dataclass(frozen=True)
class Checkpoint:
    """A weights file; its tensors are mapped into memory where its form allows that."""

    path: Path
    tensors: Mapping[str, Tensor]
    openai: bool
    """Whether it holds what only OpenAI's own archives hold."""
    notes: tuple[str, ...] = ()
    """What is to be said of what was taken."""

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """By name."""
        return {key: tuple(value.shape) for key, value in self.tensors.items()}

    @property
    def mixed_precision(self) -> bool:
        """Whether matrices are half precision and norms are single: how OpenAI's code keeps weights on a GPU."""
        matrix, norm = (
            {value.dtype for key, value in self.tensors.items() if re.search(pattern, key)}
            for pattern in (r"(^|\.)resblocks\.\d+\.mlp\.c_fc\.weight$", r"(^|\.)resblocks\.\d+\.ln_1\.weight$")
        )
        return matrix == {torch.float16} and norm == {torch.float32}

    @property
    def image_tower_alone(self) -> bool:
        """Whether it holds an image tower and no text tower; a head or a temperature may stand beside it."""
        return any(key.startswith("visual.") for key in self.tensors) and not self.has_text_tower

    @property
    def has_text_tower(self) -> bool:
        """Whether any tensor is of a text tower."""
        return any(TEXT_TOWER.match(key) for key in self.tensors)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a weights file of any known form. No code of the file is run.

    Raises:
        ModelError: it is none, with what it is; or it cannot be read.
    """
    if (path.parent / ADAPTER).is_file() and path.name.startswith("adapter"):
        raise not_read(
            path,
            f"a LoRA adapter ({ADAPTER} beside it), which only changes another model's weights: merge it into that model (peft's "
            "merge_and_unload), save the whole, and name that file",
        )
    if SHARD.search(path.name) and (index := _index_of(path)) is not None:
        path = index
    kind = file_kind(path)
    tensors, notes = _tensors(path, kind)
    named = open_clip_names(tensors, path)
    return Checkpoint(path, named.tensors, set(OPENAI_KEYS) <= set(tensors), (*notes, *named.notes))


def _tensors(path: Path, kind: Kind) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """
    Raises:
        ModelError: it cannot be read.
    """
    if kind == "safetensors":
        return _of_safetensors(path), ()
    if kind == "torchscript":
        return read_torchscript(path), ()
    if kind == "index":
        return _of_index(path), ()
    unpacked = read_torch(path, mapped=kind == "torch")
    return unpacked.tensors, unpacked.notes


def _of_safetensors(path: Path) -> dict[str, Tensor]:
    """
    Raises:
        ModelError: it cannot be read.
    """
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:
        raise not_read(
            path, f"a safetensors file that is damaged or cut short ({legible(first_line(error))}): fetch it again"
        ) from None


def _index_of(shard: Path) -> Path | None:
    """The list of shards that one of them belongs to, if it lies beside it."""
    path = shard.with_name(f"{SHARD.sub('', shard.name)}{shard.suffix}.index.json")
    return path if path.is_file() else None


def _of_index(path: Path) -> dict[str, Tensor]:
    """Tensors of all shards that a list names, which lie beside it.

    Raises:
        ModelError: no such list, or a shard is missing or cannot be read.
    """
    try:
        shards = dict.fromkeys(map(str, json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise not_read(path, "not a list of shards (JSON with a weight_map)") from None
    tensors: dict[str, Tensor] = {}
    for name in shards:
        shard = path.with_name(Path(name).name)
        if name != shard.name or not shard.is_file():
            raise not_read(path, f"its shard {legible(name)} is not beside it: all {len(shards)} are needed")
        tensors |= _tensors(shard, file_kind(shard))[0]
    return tensors
