"""Image towers whose effects are not known here, told by their configuration alone: before weights are fetched or read.

Which models there are, by name, from files alone: importing open_clip takes seconds.
"""

import ast
import functools
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cliptools.embedded_models import EMBEDDED_DIR

CUSTOM = ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc")
"""Settings by which open_clip builds blocks of another kind."""
KNOWN = "open_clip's ViTs that pool by their class token, and its ResNets that pool by attention"


def tower_fault(config: Mapping[str, Any]) -> str | None:
    """The reason why an image tower is not supported; None where it is, or where this is no configuration of open_clip's.

    Args:
        config: open_clip's `model_cfg`.
    """
    image = config.get("vision_cfg")
    if not isinstance(image, Mapping):
        return None
    if name := image.get("timm_model_name"):
        pooled = ", which pools by attention (SigLIP's kind)" if image.get("timm_pool") == "map" else ""
        return f"its image tower is timm's {str(name)[:60]}{pooled}"
    if "multimodal_cfg" in config:
        return "it is a CoCa, whose image tower pools by attention (attn_pool)"
    if isinstance(image.get("layers"), list | tuple):
        return None
    if image.get("attentional_pool"):
        return "its image tower pools by attention (attn_pool), not by its class token"
    if (pool := image.get("pool_type", "tok")) != "tok":
        return f"its image tower pools by pool_type={str(pool)[:40]!r}, not by its class token ('tok')"
    custom = [key for key in CUSTOM if image.get(key)]
    if image.get("block_type") not in (None, "default") or (image.get("block_type") is None and custom):
        kind = ", ".join(custom) or str(image["block_type"])[:40]
        return f"its image tower has custom attention blocks ({kind}), whose heads cannot be read"
    return None


def architecture_names() -> tuple[str, ...]:
    """open_clip's names of architectures whose image towers may be looked into; none where open_clip is not installed."""
    folder = _open_clip("model_configs")
    named = {path.stem: _config(path) for path in sorted(folder.glob("*.json"))} if folder else {}
    return tuple(name for name, config in named.items() if _may_be_looked_into(config))


def layer_count(name: str) -> int:
    """Layers of a ViT, embedded or of open_clip; 0 of a ResNet, whose layers are not to be chosen, or of what is not known."""
    embedded = EMBEDDED_DIR / name / "open_clip_config.json"
    folder = _open_clip("model_configs")
    path = embedded if embedded.is_file() or folder is None else folder / f"{name}.json"
    layers = _config(path).get("vision_cfg", {}).get("layers", 0)
    return layers if isinstance(layers, int) else 0


def pretrained_tags(name: str) -> tuple[str, ...]:
    """open_clip's tags of this architecture's weights, read off its table without running it."""
    tables = _weights_tables()
    models = dict(_entries(tables.get("_PRETRAINED")))
    plain = name.removesuffix("-quickgelu")
    if name in models or plain == name:
        return tuple(tag for tag, _ in _tags(models.get(name), tables))
    return tuple(tag for tag, weights in _tags(models.get(plain), tables) if "quick_gelu=True" in ast.unparse(weights))


@functools.cache
def _weights_tables() -> dict[str, ast.expr]:
    """What open_clip/pretrained.py gives names to, by name."""
    source = _open_clip("pretrained.py")
    body = ast.parse(source.read_text(encoding="utf-8")).body if source else []
    named = ((node.targets[0], node.value) for node in body if isinstance(node, ast.Assign))
    return {target.id: value for target, value in named if isinstance(target, ast.Name)}


def _tags(table: ast.expr | None, tables: dict[str, ast.expr]) -> list[tuple[str, ast.expr]]:
    return _entries(tables.get(table.id) if isinstance(table, ast.Name) else table)


def _entries(table: ast.expr | None) -> list[tuple[str, ast.expr]]:
    """Keys and values of `{...}` or `dict(...)`."""
    if isinstance(table, ast.Dict):
        pairs = zip(table.keys, table.values, strict=True)
        return [(str(key.value), value) for key, value in pairs if isinstance(key, ast.Constant)]
    if isinstance(table, ast.Call):
        return [(keyword.arg, keyword.value) for keyword in table.keywords if keyword.arg]
    return []


def _may_be_looked_into(config: dict[str, Any]) -> bool:
    """Whether it has an image tower, and none of those that all commands refuse."""
    return bool(config.get("vision_cfg")) and tower_fault(config) is None


def _config(path: Path) -> dict[str, Any]:
    """An architecture's settings; empty if they cannot be read."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    config = said.get("model_cfg", said) if isinstance(said, dict) else {}
    return config if isinstance(config, dict) else {}


def _open_clip(name: str) -> Path | None:
    """A file or folder of the installed open_clip, which is found and not imported."""
    found = importlib.util.find_spec("open_clip")
    path = Path(found.origin).parent / name if found and found.origin else None
    return path if path and path.exists() else None
