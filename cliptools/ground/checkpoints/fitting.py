"""A checkpoint's tensors in a model: every name and shape compared first, and what does not fit told by name."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn, strided

from cliptools.ground.checkpoints.checkpoint import Checkpoint
from cliptools.ground.checkpoints.file_kinds import not_read
from cliptools.ground.checkpoints.names import TEXT_TOWER, foreign_form
from cliptools.ground.counted import agreeing, count_of
from cliptools.ground.legible import legible

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

    title = legible(checkpoint.path.name)
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
        f"{legible(key)} {_shown(tensors[key])}, expected {_shown(value)}"
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
    return "; ".join(_legible(names[:FIRST])) + ("; …" if len(names) > FIRST else "")


def _legible(names: Iterable[str]) -> list[str]:
    return [legible(name[:200]) for name in names]


def _shown(tensor: Any) -> str:
    if tensor.layout != strided or tensor.is_meta:
        kind = " without its numbers" if tensor.is_meta else " sparse"
        return (" x ".join(map(str, tensor.shape)) or "a number") + kind
    kind = "" if tensor.is_floating_point() else f" {str(tensor.dtype).removeprefix('torch.')}"
    return (" x ".join(map(str, tensor.shape)) or "a number") + kind
