"""Checkpoints: the tensors of a weights file of any form under open_clip's names, and their copying into a model.

All names and shapes are compared with the model's first; a message names the tensors that do not fit. `WithoutInitialisation`
saves the time for random weights that are overwritten at once.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn, strided
from torch.overrides import TorchFunctionMode

from cliptools.console import count_of, escape, verb_form
from cliptools.errors import first_line
from cliptools.io.header import Header
from cliptools.library_patches import import_open_clip
from cliptools.models.checkpoints.edited import edit_header
from cliptools.models.checkpoints.file_kinds import SHARD, Kind, file_kind, unreadable
from cliptools.models.checkpoints.names import OPENAI_KEYS, TEXT_TOWER, foreign_form, open_clip_names
from cliptools.models.checkpoints.pickles import read_torch, read_torchscript

ADAPTER = "adapter_config.json"  # of the peft library


@dataclass(frozen=True)
class Checkpoint:
    """A weights file; its tensors are mapped into memory where its form allows that."""

    path: Path
    tensors: Mapping[str, Tensor]
    openai: bool
    """True if it has the keys that only OpenAI's archives have."""
    notes: tuple[str, ...] = ()
    """Notes for the user on how the file was read."""
    edit: Header | None = None
    """Header of a checkpoint that clip-edit wrote."""

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors by name."""
        return {key: tuple(value.shape) for key, value in self.tensors.items()}

    @property
    def mixed_precision(self) -> bool:
        """True if matrices have half and norms single precision, as OpenAI's code keeps weights on a GPU."""
        matrix, norm = (
            {value.dtype for key, value in self.tensors.items() if re.search(pattern, key)}
            for pattern in (r"(^|\.)resblocks\.\d+\.mlp\.c_fc\.weight$", r"(^|\.)resblocks\.\d+\.ln_1\.weight$")
        )
        return matrix == {torch.float16} and norm == {torch.float32}

    @property
    def image_tower_alone(self) -> bool:
        """True for an image tower without a text tower; a head or a temperature may be there too."""
        return any(key.startswith("visual.") for key in self.tensors) and not self.has_text_tower

    @property
    def has_text_tower(self) -> bool:
        """True if any tensor belongs to a text tower."""
        return any(TEXT_TOWER.match(key) for key in self.tensors)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a weights file of any known form. No code of the file is run.

    Raises:
        ModelError: it is not a weights file, or it cannot be read.
    """
    if (path.parent / ADAPTER).is_file() and path.name.startswith("adapter"):
        raise unreadable(
            path,
            f"a LoRA adapter ({ADAPTER} beside it), which only changes another model's weights: merge it into that model (peft's "
            "merge_and_unload), save the whole, and name that file",
        )
    if SHARD.search(path.name) and (index := _index_beside(path)) is not None:
        path = index
    kind = file_kind(path)
    tensors, notes = _tensors(path, kind)
    translated = open_clip_names(tensors, path)
    openai = set(OPENAI_KEYS) <= set(tensors)
    edit = edit_header(path) if kind == "safetensors" else None
    return Checkpoint(path, translated.tensors, openai, (*notes, *translated.notes), edit)


def _tensors(path: Path, kind: Kind) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Read the tensors of a file of a known kind, with notes.

    Raises:
        ModelError: it cannot be read.
    """
    if kind == "safetensors":
        return read_safetensors(path), ()
    if kind == "torchscript":
        return read_torchscript(path), ()
    if kind == "index":
        return _read_shards(path), ()
    unpacked = read_torch(path, mapped=kind == "torch")
    return unpacked.tensors, unpacked.notes


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file.

    Raises:
        ModelError: it cannot be read.
    """
    try:
        return load_file(path)
    except Exception as error:
        raise unreadable(
            path, f"a safetensors file that is damaged or cut short ({escape(first_line(error))}): fetch it again"
        ) from None


def _index_beside(shard: Path) -> Path | None:
    """Return the index file beside a shard; None if there is none."""
    path = shard.with_name(f"{SHARD.sub('', shard.name)}{shard.suffix}.index.json")
    return path if path.is_file() else None


def _read_shards(path: Path) -> dict[str, Tensor]:
    """Read the tensors of all shards that an index file beside them lists.

    Raises:
        ModelError: the index is invalid, or a shard is missing or cannot be read.
    """
    try:
        shards = dict.fromkeys(map(str, json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise unreadable(path, "not a list of shards (JSON with a weight_map)") from None
    tensors: dict[str, Tensor] = {}
    for name in shards:
        shard = path.with_name(Path(name).name)
        if name != shard.name or not shard.is_file():
            raise unreadable(path, f"its shard {escape(name)} is not beside it: all {len(shards)} are needed")
        tensors |= _tensors(shard, file_kind(shard))[0]
    return tensors


FIRST = 3  # names that a message shows
COUNTER = "num_batches_tracked"  # of batch norms: some releases lack it, and evaluation does not use it
TEXT_FROM = "--text-from"


RANDOM_FILLS = ("normal_", "uniform_", "kaiming_uniform_", "kaiming_normal_")
"""Functions of torch.nn.init and methods of Tensor that fill a tensor with random numbers; torch's layers call these."""


class WithoutInitialisation(TorchFunctionMode):
    """Context in which modules are created with NaN in place of random weights, for models whose weights are all loaded then.

    A weight that is not overwritten stays NaN, which load_model reports. It applies to the thread that enters it.
    """

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """Fill the tensor of a random fill with NaN, and call any other function."""
        arguments = dict(kwargs or {})
        tensor = args[0] if args else arguments.get("tensor")
        if getattr(func, "__name__", "") in RANDOM_FILLS and isinstance(tensor, Tensor) and tensor.is_floating_point():
            with torch.no_grad():
                return tensor.fill_(torch.nan)
        return func(*args, **arguments)


def load_weights(clip: nn.Module, checkpoint: Checkpoint, name: str, text: Checkpoint | None, fitting: str = "") -> list[str]:
    """Copy a checkpoint's tensors into a model, with positions resized as open_clip does it; return notes for the user.

    Args:
        name: Name of the architecture, for messages.
        text: Checkpoint of the text tower, if it comes from elsewhere.
        fitting: Architectures that fit the checkpoint, as the end of a message.

    Raises:
        ModelError: tensors are missing, unknown or of another shape.
    """
    open_clip = import_open_clip()
    title = escape(checkpoint.path.name)
    notes = [*checkpoint.notes, *(text.notes if text else ())]
    foreign = None if hasattr(clip.visual, "trunk") else foreign_form(checkpoint.tensors)
    if text is None and checkpoint.image_tower_alone and foreign is None:
        raise unreadable(
            checkpoint.path, f"an image tower alone; name the text tower that it was trained with: {TEXT_FROM} TAG or FILE"
        )
    if text is None and checkpoint.has_text_tower and not any(key.startswith("visual.") for key in checkpoint.tensors):
        raise unreadable(checkpoint.path, f"a text tower alone: name it by {TEXT_FROM} FILE, and the image tower by --pretrained")
    tensors = dict(checkpoint.tensors)
    if text is not None:
        if checkpoint.has_text_tower:
            notes.append(f"{title}: its own text tower is left out, the one of {TEXT_FROM} takes its place")
        tensors = {key: value for key, value in tensors.items() if key.startswith("visual.")}
        tensors |= {key: value for key, value in text.tensors.items() if not key.startswith("visual.")}
        if "logit_scale" not in tensors and "logit_scale" in checkpoint.tensors:
            tensors["logit_scale"] = checkpoint.tensors["logit_scale"]
    tensors = open_clip.factory.convert_state_dict(clip, _text_names(clip, tensors))
    model_tensors = clip.state_dict()
    if "logit_bias" in tensors and "logit_bias" not in model_tensors:
        del tensors["logit_bias"]
        notes.append(f"{title}: logit_bias is left out, because {name} has none (it changes no direction and no order of texts)")
    if "logit_bias" in model_tensors and "logit_scale" in tensors:
        tensors.setdefault("logit_bias", model_tensors["logit_bias"].new_zeros(()))
    for key in ("logit_scale", "logit_bias"):
        if key in tensors and key in model_tensors and tensors[key].numel() == 1:
            tensors[key] = tensors[key].reshape(model_tensors[key].shape)
    resizes = open_clip.model.resize_pos_embed, open_clip.model.resize_text_pos_embed
    for resize, key in zip(resizes, ("visual.positional_embedding", "positional_embedding"), strict=True):
        if tensors.get(key, tensors.get(f"text.{key}", model_tensors.get(key))) is not None:
            resize(tensors, clip)
    if foreign is None and all(key in tensors or key.endswith(COUNTER) for key in model_tensors):
        notes += _drop_extra_tensors(tensors, model_tensors, title)
    _check_tensors(tensors, model_tensors, checkpoint, name, fitting)
    clip.load_state_dict(tensors, strict=True)
    return notes


def _text_names(clip: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the text tower's tensors for this model; open_clip has two schemes."""
    apart = hasattr(clip, "text")
    if apart and "positional_embedding" in tensors:
        converted: dict[str, Tensor] = import_open_clip().model.convert_to_custom_text_state_dict(dict(tensors))
        return converted
    if not apart and "text.positional_embedding" in tensors:
        return {key.removeprefix("text."): value for key, value in tensors.items()}
    return dict(tensors)


def _drop_extra_tensors(tensors: dict[str, Tensor], model_tensors: Mapping[str, Tensor], title: str) -> list[str]:
    """Remove tensors outside the towers (a loss, a queue, a head, a teacher), and return a note about them."""
    extra = [key for key in tensors if key not in model_tensors and not key.startswith("visual.") and not TEXT_TOWER.match(key)]
    for key in extra:
        del tensors[key]
    return [f"{title}: {len(extra)} tensors beside the model are left out ({_first_names(extra)})"] if extra else []


def _check_tensors(
    tensors: dict[str, Tensor], expected: Mapping[str, Tensor], checkpoint: Checkpoint, name: str, fitting: str
) -> None:
    """Compare names, shapes and types with those of the model.

    Raises:
        ModelError: they do not fit.
    """
    missing = [key for key in expected if key not in tensors and not key.endswith(COUNTER)]
    unknown = [key for key in tensors if key not in expected]
    differences = [
        f"{escape(key)} {_shape_text(tensors[key])}, expected {_shape_text(value)}"
        for key, value in expected.items()
        if key in tensors and (tensors[key].shape != value.shape or not _is_compatible(tensors[key], value))
    ]
    if not (missing or unknown or differences):
        for key in expected:
            if key not in tensors:
                tensors[key] = expected[key]
        return
    faults = (
        (missing, f"{len(missing)} of {count_of(len(expected), 'tensor')} {verb_form(len(missing), 'is', 'are')} missing"),
        (unknown, f"{len(unknown)} {verb_form(len(unknown), 'is', 'are')} not known to it"),
        (differences, f"{len(differences)} {verb_form(len(differences), 'has', 'have')} another shape or type"),
    )
    parts = [f"{fault} ({_first_names(names)})" for names, fault in faults if names]
    form = foreign_form(checkpoint.tensors)
    form = None if form == foreign_form(expected) else form
    reason = f"does not fit {name}{f', it looks like {form}' if form else ''}: {', '.join(parts)}{fitting}"
    raise unreadable(checkpoint.path, reason)


def _is_compatible(tensor: Tensor, model_tensor: Tensor) -> bool:
    """Return whether a tensor is dense, has its numbers, and is floating-point if the model's tensor is."""
    return tensor.layout == strided and not tensor.is_meta and tensor.is_floating_point() >= model_tensor.is_floating_point()


def _first_names(names: Sequence[str]) -> str:
    """Return the first names, with an ellipsis if there are more."""
    return "; ".join(_escaped(names[:FIRST])) + ("; …" if len(names) > FIRST else "")


def _escaped(names: Iterable[str]) -> list[str]:
    return [escape(name[:200]) for name in names]


def _shape_text(tensor: Any) -> str:
    if tensor.layout != strided or tensor.is_meta:
        kind = " without its numbers" if tensor.is_meta else " sparse"
        return (" x ".join(map(str, tensor.shape)) or "a number") + kind
    kind = "" if tensor.is_floating_point() else f" {str(tensor.dtype).removeprefix('torch.')}"
    return (" x ".join(map(str, tensor.shape)) or "a number") + kind
