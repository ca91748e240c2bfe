"""The embedded models' architectures, as open_clip configurations."""

from typing import Any

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "emoji-vit": {
        "embed_dim": 192,
        "vision_cfg": {"image_size": 64, "patch_size": 8, "width": 192, "layers": 8, "head_width": 32, "mlp_ratio": 4.0},
        # open_clip's own vocabulary, so that its tokenizer serves; few words, so a narrow tower.
        "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 120, "heads": 4, "layers": 2},
    },
}
