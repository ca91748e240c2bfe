"""Loading CLIP: open_clip's names and files, and the embedded models."""

import hashlib
import json
import warnings
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn

from cliptools.ground.errors import ModelError, UsageError, first_line
from cliptools.ground.foreign_code import refuse_foreign_code
from cliptools.ground.hub import hub_in_a_line, reason
from cliptools.ground.progress import warn, working
from cliptools.ground.provenance import canonical
from cliptools.ground.torchvision_remedy import ensure_torchvision

EMBEDDED_DIR = Path(__file__).parents[1] / "data" / "models"
EMBEDDED = ("emoji-vit", "emoji-rn")
RANDOM = "random"  # --pretrained random: open_clip's own initialisation from a fixed seed, said aloud rather than by omission
Precision = Literal["fp32", "bf16", "fp16"]
DTYPE: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


_handed_over: ContextVar["LoadedModel | None"] = ContextVar("_handed_over", default=None)
"""A model on its way to the next load_recorded_model; a command runs in a context of its own, so nothing is left after it."""


@dataclass(frozen=True)
class LoadedModel:
    """A CLIP in evaluation mode, with all that names it."""

    name: str
    pretrained: str | None
    sha256: str
    precision: Precision
    clip: nn.Module
    transform: Callable[[Image.Image], Tensor]
    """open_clip's preprocessing: a picture to float32 [3, y, x]."""
    preprocessing: dict[str, Any]
    device: torch.device

    @property
    def identity(self) -> dict[str, Any]:
        """What a bundle's header says of its model."""
        named = {"name": self.name, "pretrained": self.pretrained, "sha256": self.sha256}
        return named | {"precision": self.precision, "preprocessing": self.preprocessing}


def load_model(
    name: str = "emoji-vit", pretrained: str | None = None, device: str = "auto", precision: Precision = "fp32"
) -> LoadedModel:
    """Load a model by open_clip's name and tag, a local weights file, `local-dir:`, `hf-hub:`, or an embedded name.

    Raises:
        UsageError: no weights named for an architecture that has none of its own.
        ModelError: unknown name, weights that cannot be read or do not fit, NaN among them.
    """
    ensure_torchvision()
    import open_clip

    if name not in EMBEDDED:
        refuse_foreign_code()
    where = pick_device(device)
    source = f"local-dir:{EMBEDDED_DIR / name}" if name in EMBEDDED else name
    schema, _ = open_clip.factory.parse_model_name(source)
    if schema is None:
        _check_name(name, pretrained)
    elif pretrained:
        raise UsageError(f"--pretrained {pretrained}: {name} brings its own weights, leave --pretrained out")
    torch.manual_seed(0)  # only random initialisation draws from it
    tag = None if pretrained == RANDOM else pretrained
    try:
        with working(f"loading {name}"), hub_in_a_line(), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            # Always strict, always weights_only: no pickle is run.
            clip = open_clip.create_model(source, pretrained=tag, device="cpu", require_pretrained=pretrained != RANDOM)
    except Exception as error:
        instead = "a folder: --model local-dir:FOLDER" if schema else "a file: --pretrained FILE"
        why = reason(error, f"load it once where there is a network, or name {instead}")
        raise ModelError(f"cannot load model {name!r} ({pretrained or 'its own weights'}): {why}") from None
    for message in caught:
        if "QuickGELU" in str(message.message):
            warn(f"{message.message} — OpenAI's weights want the -quickgelu name, most others the plain one")
    if pretrained and Path(pretrained).is_file():
        _warn_of_activation(name, pretrained)
    sha256 = weights_sha256(clip)
    if bad := next(
        (key for key, value in clip.state_dict().items() if value.is_floating_point() and not value.isfinite().all()), None
    ):
        raise ModelError(f"model {name!r}: the weights hold NaN or infinity, first in {bad}")
    preprocessing = open_clip.get_model_preprocess_cfg(clip)
    transform = open_clip.transform.image_transform_v2(open_clip.transform.PreprocessCfg(**preprocessing), is_train=False)
    clip = clip.to(device=where, dtype=DTYPE[precision]).eval().requires_grad_(False)
    kept = json.loads(canonical(preprocessing))
    return LoadedModel(name, pretrained, sha256, precision, clip, transform, kept, where)


def load_recorded_model(
    recorded: dict[str, Any], device: str = "auto", precision: Precision | None = None, name: str | None = None
) -> LoadedModel:
    """Load the model a bundle names and check that it is the same one, by the hash of its weights.

    Args:
        recorded: A bundle header's `model`.
        name: A model the user named beside the bundle; one that is not the bundle's is an error.

    Raises:
        UsageError: another model is named than the bundle's.
        ModelError: the model is not to be had here, or its weights differ from those the bundle was made with.
    """
    if name is not None and name != recorded["name"]:
        raise UsageError(
            f"--model {name}: the bundle was made with {recorded['name']}; leave --model out or make the bundle anew"
        )
    precision = precision or recorded["precision"]
    if (received := _received(recorded, pick_device(device), precision)) is not None:
        return received
    model = load_model(recorded["name"], recorded["pretrained"], device, precision)
    if model.sha256 != recorded["sha256"]:
        raise ModelError(
            f"model {model.name!r} here has weights {model.sha256[:12]}…, the bundle was made with {recorded['sha256'][:12]}…: "
            "same name, another model"
        )
    return model


def hand_over(model: LoadedModel) -> None:
    """Let the next load_recorded_model of this model return it: weights are loaded once a command, whoever needs them first."""
    _handed_over.set(model)


def _received(recorded: dict[str, Any], where: torch.device, precision: Precision) -> LoadedModel | None:
    """The model handed over, if it is the one wanted."""
    wanted = recorded["name"], recorded["pretrained"], recorded["sha256"], precision, where
    model = _handed_over.get()
    if model is None or (model.name, model.pretrained, model.sha256, model.precision, model.device) != wanted:
        return None
    _handed_over.set(None)
    return model


def drop_text_tower(model: LoadedModel) -> None:
    """Give back the memory of what only texts need; the model can no longer encode any."""
    for name, _ in list(model.clip.named_children()):
        if name != "visual":
            setattr(model.clip, name, None)


def weights_sha256(model: nn.Module) -> str:
    """sha256 over names, types, shapes and bytes of all tensors in order: the same for a moved or re-saved file."""
    sha = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        sha.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        sha.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return sha.hexdigest()


def pick_device(device: str) -> torch.device:
    """`auto` is the first GPU, else the CPU.

    Raises:
        UsageError: a device that torch does not know or cannot use here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")
    try:
        where = torch.device(device)
        torch.empty(1, device=where)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {device}: not usable here ({first_line(error)})") from None
    return where


def _check_name(name: str, pretrained: str | None) -> None:
    import open_clip

    if name not in open_clip.list_models():
        from difflib import get_close_matches

        near = get_close_matches(name, [*EMBEDDED, *open_clip.list_models()], n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise ModelError(f"unknown model {name!r}: open_clip has no such architecture{hint}")
    if pretrained is None:
        tags = open_clip.list_pretrained_tags_by_model(name)
        raise UsageError(
            f"--model {name} needs --pretrained: one of {', '.join(tags) or '(no tags known)'}, a weights file, or {RANDOM!r}"
        )
    if (
        pretrained != RANDOM
        and pretrained not in open_clip.list_pretrained_tags_by_model(name)
        and not Path(pretrained).is_file()
    ):
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name))
        raise UsageError(f"--pretrained {pretrained}: neither a file nor a tag of {name} (its tags: {tags})")


def _warn_of_activation(name: str, pretrained: str) -> None:
    """A local file says nothing of its activation, and a wrong one is silent: OpenAI's weights want QuickGELU."""
    quick = "quickgelu" in name
    openai = "openai" in Path(pretrained).name.lower()
    if openai != quick:
        kind, other = ("QuickGELU", "GELU") if quick else ("GELU", "QuickGELU")
        warn(f"{name} computes {kind}; if {Path(pretrained).name} was trained with {other}, its outputs will be silently wrong")
