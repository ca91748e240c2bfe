"""The embedded models' architectures, as open_clip configurations."""

from typing import Any

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "emoji-vit2": {
        "embed_dim": 120,
        "vision_cfg": {"image_size": 64, "patch_size": 8, "width": 192, "layers": 8, "head_width": 32, "mlp_ratio": 4.0},
        # The text tower is as wide as the joint space, so that its outputs can span it; its vocabulary is open_clip's.
        "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 120, "heads": 4, "layers": 2},
    },
    "emoji-rn2": {
        "embed_dim": 120,
        "vision_cfg": {"image_size": 128, "layers": [2, 2, 2, 2], "width": 16, "head_width": 32},
        "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 120, "heads": 4, "layers": 2},
    },
}
RESNET_STRIDE = 32


def token_side(architecture: dict[str, Any]) -> int:
    """Return the side in pixels of the square that a token of the image tower covers."""
    return int(architecture["vision_cfg"].get("patch_size", RESNET_STRIDE))
