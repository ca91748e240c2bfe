"""A checkpoint: the tensors of a weights file, whatever its form, under open_clip's names.

A checkpoint's tensors in a model: every name and shape compared first, and what does not fit told by name.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn, strided

from cliptools.console import agreeing, count_of, escape
from cliptools.errors import first_line
from cliptools.models.checkpoints.file_kinds import SHARD, Kind, file_kind, not_read
from cliptools.models.checkpoints.names import OPENAI_KEYS, TEXT_TOWER, foreign_form, open_clip_names
from cliptools.models.checkpoints.pickles import read_torch, read_torchscript

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
            path, f"a safetensors file that is damaged or cut short ({escape(first_line(error))}): fetch it again"
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
            raise not_read(path, f"its shard {escape(name)} is not beside it: all {len(shards)} are needed")
        tensors |= _tensors(shard, file_kind(shard))[0]
    return tensors


FIRST = 3  # names that a message shows
COUNTER = "num_batches_tracked"  # of batch norms: some releases lack it, and evaluation does not read it
TEXT_FROM = "--text-from"


def load_weights(clip: nn.Module, checkpoint: Checkpoint, name: str, text: Checkpoint | None, instead: str = "") -> list[str]:
    """Copy a checkpoint's tensors into a model, positions resized as open_clip does it; return what is to be said of it.

    Args:
        name: The architecture, for messages.
        text: Where the text tower comes from, if not from the checkpoint.
        instead: What fits the checkpoint, at the end of a message.

    Raises:
        ModelError: tensors are missing, not known, or of another shape.
    """
    from open_clip.factory import convert_state_dict
    from open_clip.model import resize_pos_embed, resize_text_pos_embed

    title = escape(checkpoint.path.name)
    notes = [*checkpoint.notes, *(text.notes if text else ())]
    if text is None and checkpoint.image_tower_alone and foreign_form(checkpoint.tensors) is None:
        raise not_read(
            checkpoint.path, f"an image tower alone; name the text tower that it was trained with: {TEXT_FROM} TAG or FILE"
        )
    if text is None and checkpoint.has_text_tower and not any(key.startswith("visual.") for key in checkpoint.tensors):
        raise not_read(
            checkpoint.path, f"a text tower alone, whose place is {TEXT_FROM} FILE; --pretrained takes the image tower"
        )
    tensors = dict(checkpoint.tensors)
    if text is not None:
        if checkpoint.has_text_tower:
            notes.append(f"{title}: its own text tower is left out, the one of {TEXT_FROM} takes its place")
        tensors = {key: value for key, value in tensors.items() if key.startswith("visual.")}
        tensors |= {key: value for key, value in text.tensors.items() if not key.startswith("visual.")}
        if "logit_scale" not in tensors and "logit_scale" in checkpoint.tensors:
            tensors["logit_scale"] = checkpoint.tensors["logit_scale"]
    tensors = convert_state_dict(clip, _text_names(clip, tensors))
    wanted = clip.state_dict()
    if "logit_bias" in tensors and "logit_bias" not in wanted:
        del tensors["logit_bias"]
        notes.append(f"{title}: logit_bias is left out, for {name} has none (it moves no direction and no order of texts)")
    if "logit_bias" in wanted and "logit_scale" in tensors:
        tensors.setdefault("logit_bias", wanted["logit_bias"].new_zeros(()))
    for key in ("logit_scale", "logit_bias"):
        if key in tensors and key in wanted and tensors[key].numel() == 1:
            tensors[key] = tensors[key].reshape(wanted[key].shape)
    for resize, key in ((resize_pos_embed, "visual.positional_embedding"), (resize_text_pos_embed, "positional_embedding")):
        if tensors.get(key, tensors.get(f"text.{key}", wanted.get(key))) is not None:
            resize(tensors, clip)
    if foreign_form(checkpoint.tensors) is None and all(key in tensors or key.endswith(COUNTER) for key in wanted):
        notes += _leave_out(tensors, wanted, title)
    _check(tensors, wanted, checkpoint, name, instead)
    clip.load_state_dict(tensors, strict=True)
    return notes


def _text_names(clip: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The text tower's names as this model has them: open_clip has two ways."""
    from open_clip.model import convert_to_custom_text_state_dict

    apart = hasattr(clip, "text")
    if apart and "positional_embedding" in tensors:
        converted: dict[str, Tensor] = convert_to_custom_text_state_dict(dict(tensors))
        return converted
    if not apart and "text.positional_embedding" in tensors:
        return {key.removeprefix("text."): value for key, value in tensors.items()}
    return dict(tensors)


def _leave_out(tensors: dict[str, Tensor], wanted: Mapping[str, Tensor], title: str) -> list[str]:
    """Take away what stands beside a whole model (a loss, a queue, a head, a teacher), and say so; within a tower it counts."""
    beside = [key for key in tensors if key not in wanted and not key.startswith("visual.") and not TEXT_TOWER.match(key)]
    for key in beside:
        del tensors[key]
    return [f"{title}: {len(beside)} tensors beside the model are left out ({_listed(beside)})"] if beside else []


def _check(tensors: dict[str, Tensor], wanted: Mapping[str, Tensor], checkpoint: Checkpoint, name: str, instead: str) -> None:
    """
    Raises:
        ModelError: names, shapes or types that do not fit.
    """
    missing = [key for key in wanted if key not in tensors and not key.endswith(COUNTER)]
    extra = [key for key in tensors if key not in wanted]
    other = [
        f"{escape(key)} {_shown(tensors[key])}, expected {_shown(value)}"
        for key, value in wanted.items()
        if key in tensors and (tensors[key].shape != value.shape or not _plain(tensors[key], value))
    ]
    if not (missing or extra or other):
        for key in wanted:
            if key not in tensors:
                tensors[key] = wanted[key]
        return
    counted = (
        (missing, f"{len(missing)} of {count_of(len(wanted), 'tensor')} {agreeing(len(missing), 'is', 'are')} missing"),
        (extra, f"{len(extra)} {agreeing(len(extra), 'is', 'are')} not known to it"),
        (other, f"{len(other)} {agreeing(len(other), 'has', 'have')} another shape or type"),
    )
    parts = [f"{said} ({_listed(names)})" for names, said in counted if names]
    form = foreign_form(checkpoint.tensors)
    reason = f"does not fit {name}{f', it looks like {form}' if form else ''}: {', '.join(parts)}{instead}"
    raise not_read(checkpoint.path, reason)


def _plain(tensor: Tensor, wanted: Tensor) -> bool:
    """Whether the numbers lie there one by one, and are of the wanted type or a finer one."""
    return tensor.layout == strided and not tensor.is_meta and tensor.is_floating_point() >= wanted.is_floating_point()


def _listed(names: Sequence[str]) -> str:
    """The first names, and that there are more."""
    return "; ".join(_escaped(names[:FIRST])) + ("; …" if len(names) > FIRST else "")


def _escaped(names: Iterable[str]) -> list[str]:
    return [escape(name[:200]) for name in names]


def _shown(tensor: Any) -> str:
    if tensor.layout != strided or tensor.is_meta:
        kind = " without its numbers" if tensor.is_meta else " sparse"
        return (" x ".join(map(str, tensor.shape)) or "a number") + kind
    kind = "" if tensor.is_floating_point() else f" {str(tensor.dtype).removeprefix('torch.')}"
    return (" x ".join(map(str, tensor.shape)) or "a number") + kind
