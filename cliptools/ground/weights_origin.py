"""Where a model's weights are: a name and a tag, a weights file, a folder, a hub; and the settings that lie beside them."""

import functools
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cliptools.ground.errors import ModelError, UsageError
from cliptools.ground.model_names import EMBEDDED_DIR, embedded_names
from cliptools.ground.weights_file import WeightsFile, config_sizes, fit_differences, read_weights_file, stored_sizes

RANDOM = "random"  # --pretrained random: open_clip's own initialisation from a fixed seed, said aloud rather than by omission
OWN_CONFIG, HF_CONFIG, HF_PREPROCESSOR = "open_clip_config.json", "config.json", "preprocessor_config.json"
LOCAL_DIR, HUB = "local-dir:", "hf-hub:"  # open_clip's prefixes of a model's name
MOST_CONFIG = 1 << 22  # bytes
Kind = Literal["embedded", "tag", "file", "folder", "hub", "random"]


@dataclass(frozen=True)
class Origin:
    """A model as the command line names it."""

    kind: Kind
    name: str
    pretrained: str | None
    weights: Path | None = None
    """The file, where it is known before the model is loaded."""

    @property
    def source(self) -> str:
        """The model's name as open_clip takes it."""
        return f"local-dir:{EMBEDDED_DIR / self.name}" if self.kind == "embedded" else self.name

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """open_clip's config of the architecture; empty where it cannot be had."""
        if self.kind in ("folder", "hub", "embedded"):
            return self.beside(OWN_CONFIG).get("model_cfg", {})
        import open_clip

        return open_clip.get_model_config(self.name.replace("/", "-")) or {}

    @functools.cached_property
    def file(self) -> WeightsFile | None:
        """Names, shapes and types of the weights; None where there is no file, or none that can be read."""
        return read_weights_file(self.weights) if self.weights is not None else None

    def beside(self, name: str) -> dict[str, Any]:
        """A JSON object in the folder of the weights; empty if there is none, or it describes weights of another shape."""
        folder = EMBEDDED_DIR / self.name if self.kind == "embedded" else self.weights.parent if self.weights else None
        settings = _json_object(folder / name) if folder else {}
        if name == OWN_CONFIG and self.kind == "file" and self.file is not None:
            own = stored_sizes(self.file.shapes)
            if fit_differences(own, config_sizes(settings.get("model_cfg", {})), own._fields):
                return {}
        return settings


def find_origin(name: str, pretrained: str | None) -> Origin:
    """Find where the weights are.

    Raises:
        UsageError: no weights named for an architecture that has none of its own, or some for a model that has; nothing after
            local-dir: or hf-hub:.
        ModelError: an unknown name.
    """
    import open_clip

    if name in (LOCAL_DIR, HUB):
        raise UsageError(f"model {name!r}: expected {'a folder' if name == LOCAL_DIR else 'owner/name'} after the colon")
    if name in embedded_names():
        kind: Kind = "embedded"
        weights: Path | None = None
    else:
        schema, place = open_clip.factory.parse_model_name(name)
        if schema is None:
            return _named(name, pretrained)
        kind = "folder" if schema == "local-dir" else "hub"
        weights = _in_folder(Path(place)) if kind == "folder" else _in_cache(place)
    if pretrained:
        raise UsageError(f"--pretrained {pretrained}: {name} brings its own weights, leave --pretrained out")
    return Origin(kind, name, pretrained, weights)


def _named(name: str, pretrained: str | None) -> Origin:
    import open_clip

    if name not in open_clip.list_models():
        from difflib import get_close_matches

        near = get_close_matches(name, [*embedded_names(), *open_clip.list_models()], n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
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
    if not Path(pretrained).is_file():
        known = f"its tags: {', '.join(tags)}" if tags else "open_clip knows no tags of it"
        raise UsageError(f"--pretrained {pretrained}: neither a file nor a tag of {name} ({known})")
    return Origin("file", name, pretrained, Path(pretrained))


def missing_weights(name: str, pretrained: str | None) -> Path | None:
    """The local file or folder that a model's record names, where it is not to be found; None for all other models."""
    import open_clip

    if name in embedded_names():
        return None
    if name.startswith(LOCAL_DIR):
        folder = Path(name.removeprefix(LOCAL_DIR))
        return None if folder.is_dir() else folder
    if name.startswith(HUB) or pretrained in (None, RANDOM) or pretrained in open_clip.list_pretrained_tags_by_model(name):
        return None
    return None if Path(pretrained).is_file() else Path(pretrained)


def _in_folder(folder: Path) -> Path | None:
    """The file that open_clip takes from a folder."""
    import open_clip

    if not folder.is_dir():
        return None
    path = open_clip.factory._find_checkpoint_in_dir(folder)
    return Path(path) if path else None


def _in_cache(hub_id: str) -> Path | None:
    """The file that open_clip takes of a hub's model, if it has been loaded before."""
    from huggingface_hub import try_to_load_from_cache
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

    for name in (HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME):
        if isinstance(path := try_to_load_from_cache(hub_id, name), str | os.PathLike):
            return Path(path)
    return None


def _json_object(path: Path) -> dict[str, Any]:
    """Settings in a file; empty where there are none."""
    try:
        if path.stat().st_size > MOST_CONFIG:
            return {}
        settings: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return dict(settings) if isinstance(settings, dict) else {}
