"""Names of models and their configurations, read from files, because importing open_clip takes seconds.

`tower_fault` refuses an unsupported image tower by its configuration, before its weights are fetched or read.
"""

import ast
import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cliptools.embedded_models import CONFIG, EMBEDDED_DIR
from cliptools.library_patches import installed_file

TIMM = re.compile(r"(test_)?(vit\d?|vitamin|eva|eva02|deit|deit3)(_|$)")
"""Names of timm's models that may be a VisionTransformer or Eva; the tower is checked once it is made."""
OTHER_TIMM = re.compile(r"_(relpos|srelpos|dpwee|dwee|pwee)(_|$)|_rpn_|_hybrid_")
"""Names of timm's that begin in the same way and have other blocks."""
MAP_TIMM = re.compile(r"_(siglip|pe)(?!_gap)(_|$)")
"""Names of timm's that have no class token, or none that was trained to be the output: SigLIP and Perception Encoder."""
SUPPORTED = (
    "open_clip's ViTs and timm's ViT, EVA and ViTamin that pool by their class token, a mean of tokens or attention, and "
    "open_clip's ResNets that pool by attention"
)


def tower_fault(config: Mapping[str, Any]) -> str | None:
    """Return the reason why an image tower is not supported; None if it is, or if this is not a configuration of open_clip.

    Args:
        config: open_clip's `model_cfg`.
    """
    image = config.get("vision_cfg")
    if not isinstance(image, Mapping):
        return None
    if name := image.get("timm_model_name"):
        return _timm_fault(str(name)[:60], str(image.get("timm_pool", "avg")), image.get("timm_proj", "linear"))
    if isinstance(image.get("layers"), list | tuple):
        return None
    if isinstance(kind := image.get("attentional_pool"), str) and kind:
        return f"its image tower pools by attention of the kind {kind[:40]!r} (attentional_pool), which open_clip calls untested"
    if (pool := image.get("pool_type", "tok")) not in ("tok", "avg"):
        return f"its image tower pools by pool_type={str(pool)[:40]!r}, not by its class token ('tok') or a mean ('avg')"
    if image.get("scaled_cosine_attn") and image.get("block_type") in (None, "custom"):
        return "its image tower has custom attention blocks (scaled_cosine_attn), which open_clip's own code does not run"
    return None


def _timm_fault(name: str, pool: str, projection: Any) -> str | None:
    """Return the reason why a tower of timm's is not supported; None if it may be."""
    if TIMM.match(name) is None or OTHER_TIMM.search(name):
        return f"its image tower is timm's {name}"
    if pool not in (("map", "avg") if MAP_TIMM.search(name) else ("token", "avg", "", "map")):
        return (
            f"its image tower is timm's {name}, which pools by timm_pool={pool[:20]!r}, not by its class token ('token'), a mean "
            "('avg') or attention ('map')"
        )
    if projection == "mlp":
        return f"its image tower is timm's {name} with a nonlinear projection (timm_proj='mlp')"
    return None


def other_libraries(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the libraries besides open_clip's own code that build the towers of this `model_cfg`; both if that is unknown."""
    image, text = config.get("vision_cfg"), config.get("text_cfg")
    if not isinstance(image, Mapping) or not isinstance(text, Mapping):
        return "timm", "transformers"
    needed = {"timm": image.get("timm_model_name"), "transformers": text.get("hf_model_name")}
    return tuple(library for library, name in needed.items() if name)


def architecture_names() -> tuple[str, ...]:
    """Return open_clip's names of architectures with supported image towers; empty if open_clip is not installed."""
    folder = installed_file("open_clip", "model_configs")
    configs = {path.stem: _config(path) for path in sorted(folder.glob("*.json"))} if folder else {}
    return tuple(name for name, config in configs.items() if _is_supported(config))


def layer_count(name: str) -> int:
    """Return the number of layers of a ViT, embedded or of open_clip; 0 for a ResNet or an unknown name."""
    embedded = EMBEDDED_DIR / name / CONFIG
    folder = installed_file("open_clip", "model_configs")
    path = embedded if embedded.is_file() or folder is None else folder / f"{name}.json"
    layers = _config(path).get("vision_cfg", {}).get("layers", 0)
    return layers if isinstance(layers, int) else 0


def pretrained_tags(name: str) -> tuple[str, ...]:
    """Return open_clip's tags of an architecture's weights, read from its source without running it."""
    tables = _weights_tables()
    models = dict(_entries(tables.get("_PRETRAINED")))
    base_name = name.removesuffix("-quickgelu")
    if name in models or base_name == name:
        return tuple(tag for tag, _ in _tags(models.get(name), tables))
    return tuple(tag for tag, weights in _tags(models.get(base_name), tables) if "quick_gelu=True" in ast.unparse(weights))


@functools.cache
def _weights_tables() -> dict[str, ast.expr]:
    """Return the expressions assigned to names in open_clip/pretrained.py, by name."""
    source = installed_file("open_clip", "pretrained.py")
    body = ast.parse(source.read_text(encoding="utf-8")).body if source else []
    assigned = ((node.targets[0], node.value) for node in body if isinstance(node, ast.Assign))
    return {target.id: value for target, value in assigned if isinstance(target, ast.Name)}


def _tags(table: ast.expr | None, tables: dict[str, ast.expr]) -> list[tuple[str, ast.expr]]:
    return _entries(tables.get(table.id) if isinstance(table, ast.Name) else table)


def _entries(table: ast.expr | None) -> list[tuple[str, ast.expr]]:
    """Return keys and values of `{...}` or `dict(...)`."""
    if isinstance(table, ast.Dict):
        pairs = zip(table.keys, table.values, strict=True)
        return [(str(key.value), value) for key, value in pairs if isinstance(key, ast.Constant)]
    if isinstance(table, ast.Call):
        return [(keyword.arg, keyword.value) for keyword in table.keywords if keyword.arg]
    return []


def _is_supported(config: dict[str, Any]) -> bool:
    """Return whether a configuration has an image tower that commands support."""
    return bool(config.get("vision_cfg")) and tower_fault(config) is None


def _config(path: Path) -> dict[str, Any]:
    """Return an architecture's settings; empty if they cannot be read."""
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    config = settings.get("model_cfg", settings) if isinstance(settings, dict) else {}
    return config if isinstance(config, dict) else {}
