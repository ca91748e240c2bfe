"""The models that come with the package: their names, folders and settings, read without torch."""

import json
from pathlib import Path
from typing import Any

from cliptools.errors import ModelError, UsageError

EMBEDDED = ("emoji-vit2", "emoji-rn2")
"""Names of the embedded models, the default first."""
SUCCESSORS = {"emoji-vit": "emoji-vit2", "emoji-rn": "emoji-rn2"}
"""Successors of the embedded models of earlier versions."""
EMBEDDED_DIR = Path(__file__).parent / "data" / "models"
CONFIG = "open_clip_config.json"


def embedded_names() -> tuple[str, ...]:
    """Return the names of the embedded models whose folders are installed, sorted."""
    return tuple(sorted(path.parent.name for path in EMBEDDED_DIR.glob(f"*/{CONFIG}")))


def refuse_earlier(name: str) -> None:
    """Refuse a model that was embedded in an earlier version, and name its successor.

    Raises:
        ModelError: the name is of such a model.
    """
    if name in SUCCESSORS:
        raise ModelError(
            f"model {name!r}: it was part of cliptools 0.1.0, and {SUCCESSORS[name]} has replaced it; make a new bundle with "
            f"clip-effects --model {SUCCESSORS[name]}"
        )


def require_scenes(name: str) -> None:
    """Check that scenes are rendered for a model, because no images are named.

    Raises:
        UsageError: the model is not embedded.
        ModelError: it was in an earlier version.
    """
    refuse_earlier(name)
    if name not in EMBEDDED:
        raise UsageError(f"no images named: {name} needs a PATH (scenes are rendered for {', '.join(EMBEDDED)} only)")


def embedded_source(name: str) -> str:
    """Return the name under which open_clip loads an embedded model or its tokenizer."""
    return f"local-dir:{EMBEDDED_DIR / name}"


def embedded_preprocessing(name: str) -> dict[str, Any]:
    """Return the image preprocessing of an embedded model."""
    settings: dict[str, Any] = json.loads((EMBEDDED_DIR / name / CONFIG).read_text(encoding="utf-8"))
    return dict(settings["preprocess_cfg"])
