"""Write the table of image towers in docs/methods.md, from open_clip's models and weights: python -m tools.towers_table."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cliptools.library_patches import import_open_clip
from cliptools.models.names import tower_fault

PAGE = Path(__file__).resolve().parents[1] / "docs" / "methods.md"
PART = re.compile(r"(?s)(<!-- towers -->\n).*?(<!-- end -->)")


class Family(NamedTuple):
    """A kind of image tower, as the table has it if the commands support it."""

    read: str
    """The tokens that the output is read from, or how."""
    effects: str
    paths: str
    """K of the effects."""
    frozen: str
    """All that effects take as it is in the forward pass, besides attention and the deviations of LayerNorms."""


LATER, HEADS = "later MLPs", "heads of later layers"
OWN = "later MLPs, that of the pooling too"
PAIRS = "1 for a pair; second: heads of the pooling times those of later layers"
ALL = "second, first, indirect"
FAMILIES = {
    "CLIP ViT": Family("class token", ALL, HEADS, LATER),
    "EVA": Family("class token", ALL, HEADS, LATER),
    "MobileCLIP ViT": Family("class token", ALL, HEADS, LATER),
    "CLIPA": Family("mean of patches", ALL, HEADS, LATER),
    "ViTamin": Family("mean of patches", f"{ALL}, of the last stage", HEADS, LATER),
    "CoCa": Family("attention with queries", "pooled, second, indirect", PAIRS, LATER),
    "SigLIP": Family("attention with a query", "pooled, second, indirect", PAIRS, OWN),
    "Perception Encoder": Family("attention with a query", "pooled, second, indirect", PAIRS, OWN),
    "CLIP ResNet": Family("attention of the mean", "pooled", "1 for a pair", "nothing else: the pooling reads the neurons"),
}
OTHER = {"convnext": "ConvNeXt", "fastvit": "MobileCLIP FastViT"}
TIMM = {
    "eva": "EVA",
    "vitamin": "ViTamin",
    "vit_pe_": "Perception Encoder",
    "vit_(base|so400m|large|giantopt).*_siglip": "SigLIP",
}
TIMM |= {"vit_(base|large)_(mci|patch14)": "MobileCLIP ViT"} | OTHER
"""Families by the beginning of timm's name."""


def family_of(config: Mapping[str, Any]) -> str:
    """Return the family of an architecture.

    Args:
        config: open_clip's `model_cfg`.
    """
    image = config["vision_cfg"]
    if "multimodal_cfg" in config:
        return "CoCa"
    if name := image.get("timm_model_name"):
        return next((family for start, family in TIMM.items() if re.match(start, name)), name)
    if isinstance(image["layers"], list):
        return "CLIP ResNet"
    return "CLIPA" if image.get("pool_type", "tok") == "avg" else "CLIP ViT"


def towers_table() -> str:
    """Return the sentence and the table, of architectures that have weights."""
    open_clip = import_open_clip()
    architectures: dict[str, list[str]] = {}
    tags: dict[str, int] = {}
    refused: dict[str, bool] = {}
    for name, _ in open_clip.list_pretrained():
        config = open_clip.get_model_config(name)
        family = family_of(config)
        names = architectures.setdefault(family, [])
        names += [] if name in names else [name]
        tags[family] = tags.get(family, 0) + 1
        refused[family] = tower_fault(config) is not None
    lines = [
        f"{sum(tags[family] for family in tags if not refused[family])} of the {sum(tags.values())} weights of open_clip "
        f"{open_clip.__version__} have image towers that the commands support.",
        "",
        "| image tower | architectures | weights | output read from | effects | paths K | frozen, besides attention and σ |",
        "|---|---|---|---|---|---|---|",
    ]
    for family in sorted(tags, key=lambda family: (refused[family], -tags[family])):
        known = Family("", "none", "", "") if refused[family] else FAMILIES[family]
        shown = ", ".join(architectures[family][:2]) + (" …" if len(architectures[family]) > 2 else "")
        cells = (family, f"{len(architectures[family])}: {shown}", str(tags[family]), *known)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def filled(page: str) -> str:
    """Return a page with the table in its place."""
    return PART.sub(lambda part: f"{part[1]}{towers_table()}{part[2]}", page)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
