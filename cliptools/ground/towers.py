"""Image towers whose effects are not known here, told by their configuration alone: before weights are fetched or read."""

from collections.abc import Mapping
from typing import Any

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
