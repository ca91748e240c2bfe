"""The models that come with the package, by name: read from their folders alone, without torch."""

import json
from pathlib import Path
from typing import Any

EMBEDDED_DIR = Path(__file__).parent / "data" / "models"


def embedded_names() -> tuple[str, ...]:
    """The models that come with the package."""
    return tuple(sorted(path.parent.name for path in EMBEDDED_DIR.glob("*/open_clip_config.json")))


def embedded_preprocessing(name: str) -> dict[str, Any]:
    """The image preprocessing that an embedded model brings."""
    settings: dict[str, Any] = json.loads((EMBEDDED_DIR / name / "open_clip_config.json").read_text(encoding="utf-8"))
    return dict(settings["preprocess_cfg"])
