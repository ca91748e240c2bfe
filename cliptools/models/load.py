"""Loading of CLIP models: open_clip's names, weights files, folders and hubs, and the embedded models."""

import functools
import json
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn

from cliptools.arguments import checked
from cliptools.console import IN_COMMAND, note, warn, working
from cliptools.embedded_models import EMBEDDED
from cliptools.errors import ModelError, UsageError, first_line
from cliptools.io.header import UNCHECKED, canonical, model_difference, recorded_differences
from cliptools.library_patches import complete_open_clip, ensure_torchvision, import_open_clip, without_transformers
from cliptools.models.activation import activation_advice, model_sources, named_tag, trained_activation
from cliptools.models.architecture import UNDESCRIBED, Architecture, describe_architecture, weights_sha256
from cliptools.models.checkpoints.checkpoint import WithoutInitialisation, load_weights
from cliptools.models.checkpoints.edited import parent_of
from cliptools.models.checkpoints.pickles import UNSAFE, pickle_fault
from cliptools.models.checkpoints.transformers_form import build_model
from cliptools.models.hub import no_foreign_code, quiet_hub, reason
from cliptools.models.names import other_libraries, tower_fault
from cliptools.models.origin import Origin, fetch_weights, find_origin, loading_advice, missing_weights, refuse_tower
from cliptools.models.preprocessing import Choice, choose_preprocessing, parse_preprocess, recorded_preprocessing, size_of_trunk
from cliptools.models.weights_file import Fit, check_fit

Precision = Literal["fp32", "bf16", "fp16"]
DTYPE: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


_handed_over: ContextVar["LoadedModel | None"] = ContextVar("_handed_over", default=None)
"""A model on its way to the next load_recorded_model; a command runs in a context of its own, so nothing is left after it."""
_creation_lock = threading.Lock()
"""Held while a model is created, because torch's random state and the filters of warnings belong to the whole process."""


@dataclass(frozen=True)
class LoadedModel:
    """A CLIP in evaluation mode, with everything that identifies it."""

    name: str
    """Name of the architecture or of an embedded model."""
    pretrained: str | None
    """Weights: a tag of open_clip, a file, a folder, or `random`."""
    sha256: str
    """Digest of the weights."""
    precision: Precision
    """fp32, bf16 or fp16."""
    clip: nn.Module
    """open_clip's model."""
    transform: Callable[[Image.Image], Tensor]
    """open_clip's preprocessing: an image to float32 [3, y, x]."""
    preprocessing: dict[str, Any]
    """Settings of `transform`: size, mean, std, interpolation, resize_mode."""
    device: torch.device
    """Device of the weights."""
    computes: Architecture = UNDESCRIBED
    """Architecture, described while the model was complete."""
    sources: dict[str, str] = field(default_factory=dict)
    """Sources of activation, grid and preprocessing."""
    text_from: str | None = None
    """Source of the text tower, if it comes from elsewhere."""
    parent: dict[str, Any] | None = None
    """The model from which clip-edit made this one: name, pretrained, sha256."""

    @property
    def identity(self) -> dict[str, Any]:
        """The model as a bundle's header records it."""
        fields = {"name": self.name, "pretrained": self.pretrained, "sha256": self.sha256}
        fields |= {key: value for key in ("text_from", "parent") if (value := getattr(self, key))}
        settings = {"precision": self.precision, "preprocessing": self.preprocessing}
        activation, grid, architecture = self.computes
        return fields | settings | {"activation": activation, "grid": grid, "architecture": architecture, "sources": self.sources}


@checked
def load_model(
    name: str = "emoji-vit2",
    pretrained: str | None = None,
    device: str = "auto",
    precision: Precision = "fp32",
    preprocess: str | None = None,
    recorded: Mapping[str, Any] | None = None,
    text_from: str | None = None,
    any_tower: bool = False,
) -> LoadedModel:
    """Load a model by open_clip's name and tag, a local weights file, `local-dir:`, `hf-hub:`, or an embedded name.

    Files and folders may have the forms of open_clip, transformers, OpenAI and training programs. An unsupported image tower is
    refused by its configuration, before its weights are fetched or read.

    A warning reports weights that do not fit the name (positions of another size, another activation); a note reports a file
    whose activation or preprocessing is unknown.

    Args:
        name: Name of the architecture or of an embedded model (emoji-vit2, emoji-rn2), `local-dir:FOLDER` or `hf-hub:NAME`.
        pretrained: Weights: a tag of open_clip, a file, a folder, or `random`; None for a name that includes its weights.
        device: auto, cpu, cuda, cuda:1 or mps.
        precision: fp32, bf16 or fp16.
        preprocess: Preprocessing, if it is not the model's own: a tag, or settings such as `mean=0.5,std=0.5`.
        recorded: `model` of a header or a record, whose preprocessing is used; its warnings are not repeated.
        text_from: Weights of the text tower, if the others are of an image tower alone.
        any_tower: Accept any image tower, for a model that only compares images with texts.

    Raises:
        UsageError: --pretrained is missing, or the preprocessing is invalid.
        ModelError: the name is unknown, the image tower not supported, or the weights cannot be read, do not fit or hold NaN.
    """
    ensure_torchvision()
    torch_device = pick_device(device)
    if preprocess is not None:
        parse_preprocess(preprocess, name)  # refused before anything is loaded
    with quiet_hub():
        origin = find_origin(name, pretrained, text_from)
        if not any_tower:
            refuse_tower(origin)
        origin = fetch_weights(origin)
    if libraries := other_libraries(origin.config):
        complete_open_clip(libraries)
    with without_transformers(), nullcontext() if name in EMBEDDED else no_foreign_code():
        return _build_model(origin, torch_device, precision, preprocess, recorded)


def _build_model(
    origin: Origin, device: torch.device, precision: Precision, preprocess: str | None, recorded: Mapping[str, Any] | None
) -> LoadedModel:
    open_clip = import_open_clip()
    fit = _fit(origin)
    clip, messages, notes = _create_clip(origin, fit)
    _return_embeddings_alone(clip)
    size_of_trunk(clip)
    sha256 = weights_sha256(clip)
    if damaged := next((key for key, value in clip.state_dict().items() if not _is_finite(value)), None):
        raise ModelError(f"model {origin.name!r}: the weights hold NaN or infinity, first in {damaged}")
    preprocessing = _preprocessing(open_clip.get_model_preprocess_cfg(clip), origin, preprocess, recorded)
    settings = json.loads(canonical(preprocessing.settings))
    computes = describe_architecture(clip, settings)
    if recorded and "architecture" in recorded:
        sources = recorded.get("sources") or {}
    else:
        trained = trained_activation(origin)
        sources = model_sources(origin, trained, fit) | {"preprocessing": preprocessing.source}
        _report(messages, fit, notes, activation_advice(origin, computes.quick, trained), preprocessing, first=not recorded)
    transform = open_clip.transform.image_transform_v2(
        open_clip.transform.PreprocessCfg(**preprocessing.settings), is_train=False
    )
    clip = clip.to(device=device, dtype=DTYPE[precision]).eval().requires_grad_(False)
    parent = parent_of(origin.file.edit, sha256) if origin.file else None
    names, made_from = (origin.name, origin.pretrained), (origin.text_from, parent)
    return LoadedModel(*names, sha256, precision, clip, transform, settings, device, computes, sources, *made_from)


def _is_finite(tensor: Tensor) -> bool:
    """Return False if a tensor holds NaN or infinity; a finite sum proves the contrary in less time."""
    return not tensor.is_floating_point() or bool(tensor.sum().isfinite() or tensor.isfinite().all())


def _fit(origin: Origin) -> Fit:
    if origin.weights is None or tower_fault(origin.config):
        return Fit()
    return check_fit(origin.file, origin.config, origin.name) if origin.file else Fit()


def _preprocessing(base: dict[str, Any], origin: Origin, option: str | None, recorded: Mapping[str, Any] | None) -> Choice:
    """Return the recorded preprocessing if there is one, else the requested one or the model's own."""
    if recorded and recorded.get("preprocessing"):
        source = str((recorded.get("sources") or {}).get("preprocessing", "recorded"))
        return Choice(recorded_preprocessing(base, recorded["preprocessing"], "the recorded model"), source)
    return choose_preprocessing(base, origin, option, named_tag(origin))


def _create_clip(origin: Origin, fit: Fit) -> tuple[nn.Module, list[str], list[str]]:
    """Return the model on the CPU in single precision, open_clip's warnings, and notes on the form of the file.

    Raises:
        ModelError: the model cannot be loaded.
    """
    from_file = origin.weights is not None and not tower_fault(origin.config)
    try:
        with (
            working(f"loading {origin.name}"),
            _creation_lock,
            quiet_hub(),
            warnings.catch_warnings(record=True) as caught,
        ):
            warnings.simplefilter("always")
            overwritten = origin.kind != "random" and not other_libraries(origin.config)
            with torch.random.fork_rng(devices=[]), WithoutInitialisation() if overwritten else nullcontext():
                torch.default_generator.manual_seed(0)  # only random initialisation draws from it, on the CPU
                clip = _clip_without_weights(origin) if from_file else _clip_by_open_clip(origin)
    except Exception as error:
        cause = pickle_fault() if UNSAFE in str(error) else reason(error, loading_advice(origin))
        raise ModelError(f"cannot load model {origin.name!r} ({origin.pretrained or 'its own weights'}): {cause}") from None
    messages = [str(message.message) for message in caught]
    notes = load_weights(clip, origin.file, origin.name, origin.text, fit.alternatives) if from_file and origin.file else []
    return clip, messages, notes


def _clip_without_weights(origin: Origin) -> nn.Module:
    """Return a model of the architecture of a file, folder or hub, before its weights are copied into it."""
    open_clip = import_open_clip()

    if not origin.translated:
        options = {"load_weights": False, "pretrained_text": False, "device": "cpu"}
        return open_clip.create_model(origin.source, **options, **origin.local_text)
    return build_model(origin.config)


def _clip_by_open_clip(origin: Origin) -> nn.Module:
    """Return a model whose weights open_clip finds itself, always strictly and with weights_only, so that no pickle is run."""
    open_clip = import_open_clip()

    tag = None if origin.kind == "random" else str(origin.weights) if origin.kind == "file" else origin.pretrained
    return open_clip.create_model(origin.source, pretrained=tag, device="cpu", require_pretrained=origin.kind != "random")


def _return_embeddings_alone(clip: nn.Module) -> None:
    """Switch off `output_tokens`, which makes a tower return its tokens too; CoCa's code expects those of its text tower."""
    towers: tuple[Any, Any] = (clip.visual, None if hasattr(clip, "text_decoder") else getattr(clip, "text", None))
    for tower in towers:
        if getattr(tower, "output_tokens", False) is True:
            tower.output_tokens = False


def _report(
    messages: Sequence[str],
    fit: Fit,
    notes: Sequence[str],
    advice: tuple[str | None, str | None],
    preprocessing: Choice,
    first: bool,
) -> None:
    """Write warnings about a model that no header describes in full, and notes if it is loaded first in a pipeline."""
    for message in messages:
        if "QuickGELU" in message:
            warn(f"{message} — OpenAI's weights want the -quickgelu name, most others the plain one")
    for warning in (*fit.warnings, advice[0], preprocessing.warning):
        if warning:
            warn(warning)
    for line in (*notes, advice[1], preprocessing.note):
        if line and first:
            note(line)


def load_recorded_model(
    recorded: dict[str, Any],
    device: str = "auto",
    precision: Precision | None = None,
    name: str | None = None,
    source: str = "the bundle",
) -> LoadedModel:
    """Load the model that a bundle names, with the bundle's preprocessing, and check that it is the same model.

    Weights are compared by their digest, all else by `architecture`, which bundles of earlier versions lack.

    Args:
        recorded: `model` of a bundle's header or of a record.
        name: Value of --model, which must be the bundle's model.
        source: Source of `recorded`, for messages.

    Raises:
        UsageError: `name` is not the bundle's model.
        ModelError: the model cannot be loaded, or its weights or architecture differ from the bundle's.
    """
    _check_name(name, recorded)
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


class RecordedModel:
    """The model that a bundle or a record names; its weights are loaded when they are first needed, if ever.

    A command whose texts are in the cache and whose bundle holds all else it needs computes without the model. Then open_clip is
    not imported either, which takes seconds. The parameters are those of load_recorded_model.

    Raises:
        UsageError: The named model is not the bundle's, or the device cannot be used.
    """

    def __init__(
        self,
        recorded: dict[str, Any],
        device: str = "auto",
        precision: Precision | None = None,
        name: str | None = None,
        source: str = "the bundle",
    ) -> None:
        _check_name(name, recorded)
        self.recorded, self.source = recorded, source
        self.name: str = recorded["name"]
        self.device, self.precision = pick_device(device), precision or recorded["precision"]

    @property
    def identity(self) -> dict[str, Any]:
        """The header's description of the model, as LoadedModel.identity; headers of earlier versions lack `architecture`."""
        return dict(self.recorded) | {"precision": self.precision}

    @functools.cached_property
    def loaded(self) -> LoadedModel:
        """The model with its weights.

        Raises:
            ModelError: It is not available here, or its weights or its architecture differ from the recorded ones.
        """
        return load_recorded_model(self.recorded, str(self.device), self.precision, source=self.source)


def _check_name(name: str | None, recorded: Mapping[str, Any]) -> None:
    """Check that the model named by the user, if any, is the recorded one.

    Raises:
        UsageError: It is another one.
    """
    if name is not None and name != recorded["name"]:
        raise UsageError(
            f"--model {name}: the bundle was made with {recorded['name']}; leave --model out or make the bundle anew"
        )


def _check_there(recorded: Mapping[str, Any], source: str) -> None:
    """Check that a recorded weights file or folder exists.

    Raises:
        ModelError: it does not.
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


def _received(recorded: dict[str, Any], torch_device: torch.device, precision: Precision) -> LoadedModel | None:
    """Return the model handed over if it is the recorded one, else None."""
    recorded_key = recorded["name"], recorded["pretrained"], recorded["sha256"], precision, torch_device
    model = _handed_over.get()
    if model is None or (model.name, model.pretrained, model.sha256, model.precision, model.device) != recorded_key:
        return None
    if model_difference(model.identity, recorded) is not None:
        return None
    _handed_over.set(None)
    return model


def drop_text_tower(model: LoadedModel) -> None:
    """Free the memory of the text tower; the model can no longer encode texts."""
    for name, _ in list(model.clip.named_children()):
        if name != "visual":
            setattr(model.clip, name, None)


def pick_device(device: str) -> torch.device:
    """Return the device of this name; `auto` is the first GPU, else the CPU.

    Raises:
        UsageError: torch does not know the device or cannot use it.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")
    try:
        torch_device = torch.device(device)
        torch.empty(1, device=torch_device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {device}: not usable here ({first_line(error)})") from None
    return torch_device
