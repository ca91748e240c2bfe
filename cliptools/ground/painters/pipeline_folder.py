"""A pipeline's folder as save_pretrained writes it, or as people keep it: which weights, and which parts are not there."""

import json
import re
from pathlib import Path
from typing import Any

SPARED = ("safety_checker", "feature_extractor", "image_encoder", "watermarker")
"""Parts without which a pipeline paints: they look at pictures, or at what none is given of."""
VARIANT = re.compile(r"\.(\w+?)(?:-\d{5}-of-\d{5})?\.safetensors|-\d{5}-of-\d{5}\.(\w+)\.safetensors")
PREFERRED = ("bf16", "fp16")


def loading_options(folder: Path) -> dict[str, Any]:
    """What from_pretrained is to be told of a folder: the variant of its weights, and that spared parts are not there.

    Raises:
        ValueError: a part that is needed is not there, or model_index.json is damaged.
    """
    parts = _parts(folder)
    missing = [name for name in parts if not (folder / name).is_dir()]
    if needed := [name for name in missing if name not in SPARED]:
        raise ValueError(f"model_index.json names {', '.join(needed)}, of which the folder has no part")
    options: dict[str, Any] = dict.fromkeys(missing)
    if "safety_checker" in missing:
        options["requires_safety_checker"] = False
    variants = [names for name in parts if (folder / name).is_dir() and (names := _only_variants(folder / name))]
    if variants:
        shared = set.intersection(*variants)
        if not shared:
            raise ValueError(f"its weights are of different variants ({', '.join(sorted(set.union(*variants)))})")
        options["variant"] = next((name for name in PREFERRED if name in shared), min(shared))
    return options


def _parts(folder: Path) -> list[str]:
    """Names of the parts that model_index.json says the pipeline has."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    if not isinstance(index, dict):
        raise ValueError("model_index.json holds no JSON object")
    return [name for name, of in index.items() if isinstance(of, list) and len(of) == 2 and of[1] is not None]


def _only_variants(part: Path) -> set[str]:
    """The variants of a part's weights, where it has no plain ones."""
    names = [path.name for path in part.glob("*.safetensors")]
    matches = [VARIANT.search(name) for name in names]
    if not matches or None in matches:
        return set()
    return {match[1] or match[2] for match in matches if match is not None}
