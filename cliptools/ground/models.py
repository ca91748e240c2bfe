"""Loading CLIP: open_clip's names and files, and the embedded models."""

import copy
import hashlib
import json
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn

from cliptools.ground.activation import activation_advice, model_sources, named_tag, trained_activation
from cliptools.ground.architecture import UNDESCRIBED, Architecture, describe_architecture
from cliptools.ground.checkpoints.fitting import load_weights
from cliptools.ground.checkpoints.pickled import UNSAFE, objects_in_it
from cliptools.ground.errors import ModelError, UsageError, first_line
from cliptools.ground.foreign_code import no_foreign_code
from cliptools.ground.hub import hub_in_a_line, reason
from cliptools.ground.model_identity import UNCHECKED, model_difference, recorded_differences
from cliptools.ground.preprocessing import Choice, choose_preprocessing, parse_preprocess, recorded_preprocessing
from cliptools.ground.progress import IN_COMMAND, note, warn, working
from cliptools.ground.provenance import canonical
from cliptools.ground.torchvision_remedy import ensure_torchvision
from cliptools.ground.towers import tower_fault
from cliptools.ground.weights_file import Fit, check_fit
from cliptools.ground.weights_origin import Origin, fetch_weights, find_origin, missing_weights, refuse_tower

EMBEDDED = ("emoji-vit", "emoji-rn")
Precision = Literal["fp32", "bf16", "fp16"]
DTYPE: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


_handed_over: ContextVar["LoadedModel | None"] = ContextVar("_handed_over", default=None)
"""A model on its way to the next load_recorded_model; a command runs in a context of its own, so nothing is left after it."""
_one_at_a_time = threading.Lock()
"""Held while a model is made: torch's random state and the filters of warnings are the whole process's."""


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
    computes: Architecture = UNDESCRIBED
    """What computes apart from the weights, described when the model was whole."""
    sources: dict[str, str] = field(default_factory=dict)
    """Where activation, grid and preprocessing come from."""
    text_from: str | None = None
    """Where the text tower comes from, if from elsewhere."""

    @property
    def identity(self) -> dict[str, Any]:
        """What a bundle's header says of its model."""
        named = {"name": self.name, "pretrained": self.pretrained, "sha256": self.sha256}
        named |= {"text_from": self.text_from} if self.text_from else {}
        settings = {"precision": self.precision, "preprocessing": self.preprocessing}
        activation, grid, architecture = self.computes
        return named | settings | {"activation": activation, "grid": grid, "architecture": architecture, "sources": self.sources}


def load_model(
    name: str = "emoji-vit",
    pretrained: str | None = None,
    device: str = "auto",
    precision: Precision = "fp32",
    preprocess: str | None = None,
    recorded: Mapping[str, Any] | None = None,
    text_from: str | None = None,
    any_tower: bool = False,
) -> LoadedModel:
    """Load a model by open_clip's name and tag, a local weights file, `local-dir:`, `hf-hub:`, or an embedded name.

    Files and folders may have the forms that open_clip, transformers, OpenAI and trainers write. An image tower whose effects
    are not known here is refused by its configuration, before its weights are fetched or read.

    Where the weights do not fit the name (positions of another size, another activation), a warning says so; where nothing
    tells the activation or the preprocessing of a file, a note does.

    Args:
        preprocess: The value of --preprocess.
        recorded: A header's or a record's `model`, whose preprocessing is taken; what it says of its weights is not repeated.
        text_from: The value of --text-from: where the text tower comes from.
        any_tower: Load a model with an image tower of any kind, to compare pictures with texts and no more.

    Raises:
        UsageError: no weights named for an architecture that has none of its own, or a preprocessing that cannot be.
        ModelError: unknown name, an image tower that is not supported, weights that cannot be read or do not fit, NaN among them.
    """
    ensure_torchvision()
    where = pick_device(device)
    if preprocess is not None:
        parse_preprocess(preprocess, name)  # refused before anything is loaded
    with hub_in_a_line():
        origin = find_origin(name, pretrained, text_from)
        if not any_tower:
            refuse_tower(origin)
        origin = fetch_weights(origin)
    with nullcontext() if name in EMBEDDED else no_foreign_code():
        return _loaded(origin, where, precision, preprocess, recorded, text_from)


def _loaded(
    origin: Origin,
    where: torch.device,
    precision: Precision,
    preprocess: str | None,
    recorded: Mapping[str, Any] | None,
    text_from: str | None,
) -> LoadedModel:
    import open_clip

    fit = _fit(origin)
    clip, messages, notes = _created(origin, fit)
    _return_embeddings_alone(clip)
    sha256 = weights_sha256(clip)
    if bad := next(
        (key for key, value in clip.state_dict().items() if value.is_floating_point() and not value.isfinite().all()), None
    ):
        raise ModelError(f"model {origin.name!r}: the weights hold NaN or infinity, first in {bad}")
    chosen = _preprocessing(open_clip.get_model_preprocess_cfg(clip), origin, preprocess, recorded)
    kept = json.loads(canonical(chosen.settings))
    computes = describe_architecture(clip, kept)
    if recorded and "architecture" in recorded:
        sources = recorded.get("sources") or {}
    else:
        trained = trained_activation(origin)
        sources = model_sources(origin, trained, fit) | {"preprocessing": chosen.source}
        _tell(messages, fit, notes, activation_advice(origin, computes.quick, trained), chosen, first=not recorded)
    transform = open_clip.transform.image_transform_v2(open_clip.transform.PreprocessCfg(**chosen.settings), is_train=False)
    clip = clip.to(device=where, dtype=DTYPE[precision]).eval().requires_grad_(False)
    named = origin.name, origin.pretrained
    return LoadedModel(*named, sha256, precision, clip, transform, kept, where, computes, sources, text_from)


def _fit(origin: Origin) -> Fit:
    if origin.weights is None or tower_fault(origin.config):
        return Fit()
    return check_fit(origin.file, origin.config, origin.name) if origin.file else Fit()


def _preprocessing(base: dict[str, Any], origin: Origin, option: str | None, recorded: Mapping[str, Any] | None) -> Choice:
    """The recorded preprocessing where there is one, else the one asked for or the model's own."""
    if recorded and recorded.get("preprocessing"):
        source = str((recorded.get("sources") or {}).get("preprocessing", "recorded"))
        return Choice(recorded_preprocessing(base, recorded["preprocessing"], "the recorded model"), source)
    return choose_preprocessing(base, origin, option, named_tag(origin))


def _created(origin: Origin, fit: Fit) -> tuple[nn.Module, list[str], list[str]]:
    """The model on the CPU in single precision, what open_clip warned of, and what is to be said of the file's form.

    Raises:
        ModelError: it cannot be loaded.
    """
    own = origin.weights is not None and not tower_fault(origin.config)
    try:
        with (
            working(f"loading {origin.name}"),
            _one_at_a_time,
            hub_in_a_line(),
            warnings.catch_warnings(record=True) as caught,
        ):
            warnings.simplefilter("always")
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(0)  # only random initialisation draws from it, on the CPU
                clip = _empty(origin) if own else _whole(origin)
    except Exception as error:
        instead = "a folder: --model local-dir:FOLDER" if origin.kind == "hub" else "a file: --pretrained FILE"
        elsewhere = f"load it once where there is a network, or name {instead}"
        why = objects_in_it() if UNSAFE in str(error) else reason(error, elsewhere)
        raise ModelError(f"cannot load model {origin.name!r} ({origin.pretrained or 'its own weights'}): {why}") from None
    messages = [str(message.message) for message in caught]
    notes = load_weights(clip, origin.file, origin.name, origin.text, fit.instead) if own and origin.file else []
    return clip, messages, notes


def _empty(origin: Origin) -> nn.Module:
    """A model of a file's, folder's or hub's architecture, before its weights are copied into it."""
    import open_clip

    if not origin.translated:
        return open_clip.create_model(origin.source, load_weights=False, pretrained_text=False, device="cpu")
    clip = open_clip.model.CLIP(**copy.deepcopy(origin.config))
    settings = asdict(open_clip.transform.PreprocessCfg(size=clip.visual.image_size))
    open_clip.model.set_model_preprocess_cfg(clip, settings)
    return clip


def _whole(origin: Origin) -> nn.Module:
    """A model with weights that open_clip finds itself: always strict, always weights_only, so that no pickle is run."""
    import open_clip

    tag = None if origin.kind == "random" else str(origin.weights) if origin.kind == "file" else origin.pretrained
    return open_clip.create_model(origin.source, pretrained=tag, device="cpu", require_pretrained=origin.kind != "random")


def _return_embeddings_alone(clip: nn.Module) -> None:
    """Switch off `output_tokens`, by which a tower returns its tokens beside the embedding; the embedding is the same."""
    towers: tuple[Any, Any] = (clip.visual, getattr(clip, "text", None))
    for tower in towers:
        if getattr(tower, "output_tokens", False) is True:
            tower.output_tokens = False


def _tell(
    messages: Sequence[str],
    fit: Fit,
    notes: Sequence[str],
    advice: tuple[str | None, str | None],
    chosen: Choice,
    first: bool,
) -> None:
    """Warnings on a model that no header describes in full, and notes where it is loaded for the first time in a pipeline."""
    for message in messages:
        if "QuickGELU" in message:
            warn(f"{message} — OpenAI's weights want the -quickgelu name, most others the plain one")
    for warning in (*fit.warnings, advice[0], chosen.warning):
        if warning:
            warn(warning)
    for line in (*notes, advice[1], chosen.note):
        if line and first:
            note(line)


def load_recorded_model(
    recorded: dict[str, Any],
    device: str = "auto",
    precision: Precision | None = None,
    name: str | None = None,
    source: str = "the bundle",
) -> LoadedModel:
    """Load the model a bundle names, with the bundle's preprocessing, and check that it is the same one.

    The weights are compared by their hash, and what computes by `architecture`, which bundles of earlier versions lack.

    Args:
        recorded: A bundle header's `model`, or a record's.
        name: A model the user named beside the bundle; one that is not the bundle's is an error.
        source: What `recorded` comes from, for messages.

    Raises:
        UsageError: another model is named than the bundle's.
        ModelError: the model is not to be had here, or its weights or its architecture differ from the bundle's.
    """
    if name is not None and name != recorded["name"]:
        raise UsageError(
            f"--model {name}: the bundle was made with {recorded['name']}; leave --model out or make the bundle anew"
        )
    precision = precision or recorded["precision"]
    if (received := _received(recorded, pick_device(device), precision)) is not None:
        return received
    _check_there(recorded, source)
    text_from = recorded.get("text_from")
    model = load_model(recorded["name"], recorded["pretrained"], device, precision, recorded=recorded, text_from=text_from)
    if model.sha256 != recorded["sha256"]:
        differences = recorded_differences(model.identity, recorded)
        raise ModelError(
            f"model {model.name!r} here has weights {model.sha256[:12]}…, {source} was made with {recorded['sha256'][:12]}…: "
            f"same name, another model{f' ({differences})' if differences else ''}"
        )
    if difference := model_difference(model.identity, recorded):
        raise ModelError(f"model {model.name!r} here is not the one that {source} was made with: {difference}")
    if "architecture" not in recorded and not (source != "the bundle" and model.name in EMBEDDED):
        note(f"{source} {UNCHECKED}")
    return model


def _check_there(recorded: Mapping[str, Any], source: str) -> None:
    """A recorded weights file or folder is where it was.

    Raises:
        ModelError: it is not.
    """
    ensure_torchvision()
    if (path := missing_weights(recorded["name"], recorded["pretrained"])) is None:
        return
    start = "" if path.is_absolute() else " (a path from the folder in which clip-effects ran)"
    raise ModelError(f"{source} was made with the weights at {path}{start}, not found here: run there, or put a link here")


def hand_over(model: LoadedModel) -> None:
    """Let the next load_recorded_model of this model return it: weights are loaded once a command, whoever needs them first.

    Outside of commands nothing is kept: whoever calls functions has the model.
    """
    if IN_COMMAND.get():
        _handed_over.set(model)


def _received(recorded: dict[str, Any], where: torch.device, precision: Precision) -> LoadedModel | None:
    """The model handed over, if it is the one wanted."""
    wanted = recorded["name"], recorded["pretrained"], recorded["sha256"], precision, where
    model = _handed_over.get()
    if model is None or (model.name, model.pretrained, model.sha256, model.precision, model.device) != wanted:
        return None
    if model_difference(model.identity, recorded) is not None:
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
