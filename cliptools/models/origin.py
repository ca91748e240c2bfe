"""The origin of a model: an open_clip name and tag, a weights file, a folder or a hub, and the settings beside the weights."""

import functools
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from cliptools.console import escape
from cliptools.embedded_models import EMBEDDED_DIR, embedded_names, embedded_source, refuse_earlier
from cliptools.errors import ModelError, UsageError
from cliptools.library_patches import import_open_clip
from cliptools.models.checkpoints.checkpoint import Checkpoint, read_checkpoint
from cliptools.models.checkpoints.edited import edit_header
from cliptools.models.checkpoints.transformers_form import config_fault, open_clip_config
from cliptools.models.hub import hub_file, reason
from cliptools.models.names import SUPPORTED, tower_fault
from cliptools.models.weights_file import config_sizes, fit_differences, stored_sizes

RANDOM = "random"  # --pretrained random: open_clip's own initialisation from a fixed seed; never the default
OWN_CONFIG, HF_CONFIG = "open_clip_config.json", "config.json"
HF_PREPROCESSOR, HF_PROCESSOR = "preprocessor_config.json", "processor_config.json"
LOCAL_DIR, HUB = "local-dir:", "hf-hub:"  # open_clip's prefixes of a model's name
MOST_CONFIG = 1 << 22  # bytes
Kind = Literal["embedded", "tag", "file", "folder", "hub", "random"]


INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
"""Index files of weights that transformers saves in several files."""
HUB_WEIGHTS = (
    "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin", "model.safetensors",
    INDICES[0], "pytorch_model.bin", INDICES[1],
)  # fmt: skip


@dataclass(frozen=True)
class Origin:
    """A model as the command line names it."""

    kind: Kind
    name: str
    pretrained: str | None
    weights: Path | None = None
    """The file, if it is known before the model is loaded."""
    folder: Path | None = None
    """Folder of the configuration, for a folder or a hub's cache."""
    text_from: str | None = None
    """Tag, file or folder of the text tower, if it comes from elsewhere."""

    @property
    def source(self) -> str:
        """The model's name as open_clip expects it."""
        if self.kind == "embedded":
            return embedded_source(self.name)
        return f"local-dir:{self.folder}" if self.folder else self.name

    @functools.cached_property
    def translated(self) -> bool:
        """True if the folder has a configuration of transformers and none of open_clip."""
        return self.folder is not None and not (self.folder / OWN_CONFIG).is_file() and (self.folder / HF_CONFIG).is_file()

    @property
    def siglip(self) -> bool:
        """True for a SigLIP of transformers."""
        return self.translated and "timm_model_name" in self.config["vision_cfg"]

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """open_clip's configuration of the architecture; empty if there is none.

        Raises:
            ModelError: a configuration of transformers describes another model than CLIP or SigLIP.
        """
        if self.translated:
            return self._translated(self.settings_beside(HF_CONFIG))
        if self.kind in ("folder", "hub", "embedded"):
            config = self.settings_beside(OWN_CONFIG).get("model_cfg", {})
            return config if isinstance(config, dict) else {}
        return import_open_clip().get_model_config(self.name.replace("/", "-")) or {}

    def _translated(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return open_clip's form of a configuration of transformers.

        Raises:
            ModelError: it describes another model than CLIP or SigLIP.
        """
        if fault := config_fault(config):
            raise ModelError(f"model {self.name!r}: {fault}")
        try:
            return open_clip_config(config)
        except (TypeError, ValueError, ZeroDivisionError):
            raise ModelError(f"model {self.name!r}: its {HF_CONFIG} has sizes that are not whole numbers above 0") from None

    @property
    def foreign_text(self) -> str | None:
        """Name of the text tower that transformers builds; None for one of open_clip's."""
        text = self.config.get("text_cfg")
        return str(text["hf_model_name"]) if isinstance(text, Mapping) and text.get("hf_model_name") else None

    @property
    def local_text(self) -> dict[str, Any]:
        """Settings with which open_clip builds a text tower of transformers by the folder's config.json; empty without one."""
        if self.folder is None or self.foreign_text is None or Path(self.foreign_text).is_dir():
            return {}
        config = self.settings_beside(HF_CONFIG)
        if "model_type" not in config or "vision_config" in config:
            return {}
        return {"text_cfg": dict(self.config["text_cfg"]) | {"hf_model_name": str(self.folder), "hf_model_pretrained": False}}

    @functools.cached_property
    def file(self) -> Checkpoint | None:
        """The weights; None if their file is not known before the model is loaded.

        Raises:
            ModelError: the file cannot be read.
        """
        return read_checkpoint(self.weights) if self.weights is not None else None

    @functools.cached_property
    def text(self) -> Checkpoint | None:
        """The weights that the text tower comes from; None for the model's own.

        Raises:
            ModelError: they cannot be read or have no text tower.
        """
        if self.text_from is None:
            return None
        path = _file_of(self.text_from) or _fetch_tag(self.name, self.text_from)
        checkpoint = read_checkpoint(path)
        if checkpoint.image_tower_alone:
            raise ModelError(f"--text-from {escape(self.text_from)}: no text tower in it")
        return checkpoint

    def settings_beside(self, name: str) -> dict[str, Any]:
        """Return a JSON object from the folder of the weights; empty if there is none, or if it describes other weights."""
        folder = EMBEDDED_DIR / self.name if self.kind == "embedded" else self.folder
        folder = folder or (self.weights.parent if self.weights else None)
        settings = _json_object(folder / name) if folder else {}
        if name == OWN_CONFIG and self.kind == "file" and self.file is not None:
            file_sizes = stored_sizes(self.file.shapes)
            if fit_differences(file_sizes, config_sizes(settings.get("model_cfg", {})), file_sizes._fields):
                return {}
        return settings


def find_origin(name: str, pretrained: str | None, text_from: str | None = None) -> Origin:
    """Find a model's configuration and weights; for a hub's model, fetch the configuration but not the weights.

    Raises:
        UsageError: --pretrained is missing or must not be given, or a name is missing after local-dir: or hf-hub:.
        ModelError: the name is unknown, or the hub's model cannot be fetched.
    """
    origin = _origin_of(name, pretrained)
    if text_from is None:
        return origin
    if origin.kind not in ("file", "folder", "hub"):
        raise UsageError(f"--text-from {escape(text_from)}: {name} ({pretrained or 'embedded'}) has a text tower; leave it out")
    if _file_of(text_from) is None and _tag_settings(name, text_from) is None:
        raise UsageError(f"--text-from {escape(text_from)}: neither a file, nor a folder with weights, nor a tag of {name}")
    return replace(origin, text_from=text_from)


def _origin_of(name: str, pretrained: str | None) -> Origin:
    """Find a model without regard to --text-from; see `find_origin`."""
    if name in (LOCAL_DIR, HUB):
        raise UsageError(f"model {name!r}: expected {'a folder' if name == LOCAL_DIR else 'owner/name'} after the colon")
    edited = _edited_weights(pretrained)
    if name in embedded_names():
        if pretrained and edited is None:
            raise _own_weights_error(name, pretrained)
        return Origin("embedded", name, pretrained, edited)
    schema, place = import_open_clip().factory.parse_model_name(name)
    if schema is None:
        return _open_clip_origin(name, pretrained)
    if pretrained and edited is None:
        raise _own_weights_error(name, pretrained)
    if schema == "local-dir":
        folder = _snapshot(Path(place))
        return Origin("folder", name, pretrained, edited or weights_in(folder), folder if folder.is_dir() else None)
    try:
        config = hub_file(place, (OWN_CONFIG, HF_CONFIG))
    except Exception as error:
        raise _unreachable_error(name, error) from None
    return Origin("hub", name, pretrained, edited, config.parent)


def _edited_weights(pretrained: str | None) -> Path | None:
    """Return the checkpoint of clip-edit that --pretrained names: it may replace a model's own weights; None for others."""
    path = None if pretrained is None else _file_of(pretrained)
    return path if path is not None and edit_header(path) is not None else None


def _own_weights_error(name: str, pretrained: str) -> UsageError:
    path = Path(pretrained)
    if (path.suffix or len(path.parts) > 1) and not path.exists():
        return UsageError(f"--pretrained {pretrained}: no such file or folder")
    return UsageError(
        f"--pretrained {pretrained}: {name} brings its own weights, which only a checkpoint of clip-edit can replace; "
        "leave --pretrained out"
    )


def _unreachable_error(name: str, error: Exception) -> ModelError:
    cause = reason(error, "load it once where there is a network, or name a folder: --model local-dir:FOLDER")
    return ModelError(f"cannot load model {name!r} (its own weights): {cause}")


def loading_advice(origin: Origin) -> str:
    """Return what helps if a model needs files of a hub that cannot be reached."""
    alternative = "a folder: --model local-dir:FOLDER" if origin.kind == "hub" else "a file: --pretrained FILE"
    if origin.kind == "folder" and origin.foreign_text is not None:
        return f"put the {HF_CONFIG} of its text tower {escape(origin.foreign_text[:80])} into the folder"
    return f"load it once where there is a network, or name {alternative}"


def refuse_tower(origin: Origin) -> None:
    """Refuse an unsupported image tower by its configuration.

    Raises:
        ModelError: the image tower is not supported.
    """
    if fault := tower_fault(origin.config):
        raise ModelError(f"model {origin.name!r}: {fault}; supported are {SUPPORTED}")


def fetch_weights(origin: Origin) -> Origin:
    """Download the weights of a hub's model unless they are in the cache; return other origins unchanged.

    Raises:
        ModelError: the weights cannot be fetched.
    """
    if origin.translated and origin.kind == "folder" and origin.weights is None:
        raise ModelError(f"model {origin.name!r}: no weights in this folder, expected one of {', '.join(HUB_WEIGHTS[3:])}")
    if origin.kind != "hub" or origin.weights is not None:
        return origin
    hub_id = origin.name.partition(":")[2]
    try:
        path = hub_file(hub_id, HUB_WEIGHTS)
        if path.name in INDICES:
            shards = _json_object(path).get("weight_map", {})
            for shard in dict.fromkeys(map(str, shards.values()) if isinstance(shards, dict) else ()):
                hub_file(hub_id, (shard,))
        if origin.translated:
            with suppress(Exception):  # without it, the preprocessing is a default, which a note reports
                hub_file(hub_id, (HF_PREPROCESSOR, HF_PROCESSOR))
    except Exception as error:
        raise _unreachable_error(origin.name, error) from None
    return replace(origin, weights=path)


def _open_clip_origin(name: str, pretrained: str | None) -> Origin:
    open_clip = import_open_clip()
    refuse_earlier(name)
    if name not in open_clip.list_models():
        near = get_close_matches(name, [*embedded_names(), *open_clip.list_models()], n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        if "/" in name:
            hint = f"; a folder is named local-dir:{name}" if Path(name).is_dir() else f"; a hub's model is named hf-hub:{name}"
        raise ModelError(f"unknown model {name!r}: open_clip has no such architecture{hint}")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained is None:
        raise UsageError(
            f"--model {name} needs --pretrained: one of {', '.join(tags) or '(no tags known)'}, a weights file, or {RANDOM!r}"
        )
    if pretrained == RANDOM:
        return Origin("random", name, pretrained)
    if pretrained in tags:
        return Origin("tag", name, pretrained)
    if (path := _file_of(pretrained)) is None:
        tag_list = f"its tags: {', '.join(tags)}" if tags else "open_clip knows no tags of it"
        raise UsageError(f"--pretrained {pretrained}: neither a file nor a tag of {name} ({tag_list})")
    return Origin("file", name, pretrained, path)


def missing_weights(name: str, pretrained: str | None) -> Path | None:
    """Return the local file or folder that a model's record names if it does not exist; else None."""
    if name.startswith(LOCAL_DIR) and not (folder := Path(name.removeprefix(LOCAL_DIR))).is_dir():
        return folder
    if pretrained in (None, RANDOM):
        return None
    of_open_clip = name not in embedded_names() and not name.startswith((LOCAL_DIR, HUB))
    if of_open_clip and pretrained in import_open_clip().list_pretrained_tags_by_model(name):
        return None
    return None if _file_of(pretrained) else Path(pretrained)


def _file_of(place: str) -> Path | None:
    """Return a weights file, or the one in a folder; None if there is none."""
    path = Path(place)
    return weights_in(_snapshot(path)) if path.is_dir() else path if path.is_file() else None


def _tag_settings(name: str, tag: str) -> dict[str, Any] | None:
    """Return open_clip's settings of an architecture's tag; None for an unknown one."""
    get_settings = import_open_clip().pretrained.get_pretrained_cfg
    return get_settings(name, tag) or get_settings(name.removesuffix("-quickgelu"), tag) or None


def _fetch_tag(name: str, tag: str) -> Path:
    """Download the weights of an architecture's tag and return their path.

    Raises:
        ModelError: they cannot be fetched.
    """
    try:
        return Path(import_open_clip().pretrained.download_pretrained(_tag_settings(name, tag)))
    except Exception as error:
        cause = reason(error, "load it once where there is a network, or name a file")
        raise ModelError(f"--text-from {escape(tag)}: {cause}") from None


def _snapshot(folder: Path) -> Path:
    """Return the folder, or for a model's folder in a hub's cache its snapshot of `main` or its only one."""
    snapshots = folder / "snapshots"
    if (folder / OWN_CONFIG).is_file() or not snapshots.is_dir():
        return folder
    try:
        main = snapshots / (folder / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        main = snapshots
    folders = [path for path in sorted(snapshots.iterdir()) if path.is_dir()]
    return main if main != snapshots and main.is_dir() else folders[0] if len(folders) == 1 else folder


def weights_in(folder: Path) -> Path | None:
    """Return the weights file of a folder by open_clip's choice, or the index of weights in several files; None without one."""
    if not folder.is_dir():
        return None
    weights_name = next((name for name in HUB_WEIGHTS if (folder / name).is_file()), None)
    if weights_name in INDICES:
        return folder / weights_name
    if (path := import_open_clip().factory._find_checkpoint_in_dir(folder)) is not None:
        return Path(path)
    return next((path for path in sorted(folder.glob("*.pt")) if path.is_file()), None)


def _json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; empty if there is none."""
    try:
        if path.stat().st_size > MOST_CONFIG:
            return {}
        settings: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return dict(settings) if isinstance(settings, dict) else {}


def repository_of(name: str, pretrained: str | None) -> str | None:
    """Return the repository of the hub with a model's weights, as laion/clip-vit-b-32-…; None if it is unknown."""
    if name.startswith(HUB):
        return name.removeprefix(HUB).strip("/").casefold()
    settings = import_open_clip().pretrained.get_pretrained_cfg(name, pretrained or "")
    return str(settings.get("hf_hub", "")).strip("/").casefold() or None
