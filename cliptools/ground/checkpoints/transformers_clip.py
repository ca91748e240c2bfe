"""CLIP as the transformers library has it: its tensors under open_clip's names, and its config as open_clip's."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

ANCHOR = "embeddings.patch_embedding.weight"
VOCABULARY = 49408  # of CLIP's own tokenizer, which open_clip brings
LEGACY_END = 2  # an eos_token_id of early configs, for which transformers pools at the largest id
EMBEDDINGS = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
}
MATRICES = {"visual_projection.weight": "visual.proj", "text_projection.weight": "text_projection"}
"""Linear layers, whose weights open_clip keeps the other way round."""
NORMS = {"pre_layrnorm": "ln_pre", "post_layernorm": "ln_post", "final_layer_norm": "ln_final"}
PARTS = {
    "self_attn.out_proj": "attn.out_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}  # fmt: skip
TOWERS = {"vision_model": "visual.", "text_model": ""}
LAYER = re.compile(r"(vision_model|text_model)\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
NORM = re.compile(rf"(vision_model|text_model)\.({'|'.join(NORMS)})\.(weight|bias)")
JOINED = ("q", "k", "v")
ACTIVATIONS = {"quick_gelu": None, "gelu": {}, "gelu_pytorch_tanh": {"approximate": "tanh"}, "gelu_new": {"approximate": "tanh"}}


def translate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename tensors, turn projections round and join queries, keys and values; unknown names stay as they are."""
    whole: dict[str, Tensor] = {}
    split: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        layer, norm = LAYER.fullmatch(key), NORM.fullmatch(key)
        if key in EMBEDDINGS:
            whole[EMBEDDINGS[key]] = value
        elif key in MATRICES and value.ndim == 2:
            whole[MATRICES[key]] = value.T
        elif norm:
            whole[f"{TOWERS[norm[1]]}{NORMS[norm[2]]}.{norm[3]}"] = value
        elif layer and layer[3] in PARTS:
            whole[f"{TOWERS[layer[1]]}transformer.resblocks.{layer[2]}.{PARTS[layer[3]]}.{layer[4]}"] = value
        elif layer and layer[3] in [f"self_attn.{side}_proj" for side in JOINED]:
            joined = f"{TOWERS[layer[1]]}transformer.resblocks.{layer[2]}.attn.in_proj_{layer[4]}"
            split.setdefault(joined, {})[layer[3][len("self_attn.")]] = value
        else:
            whole[key] = value
    for name, sides in split.items():
        if len({value.shape[1:] for value in sides.values()}) == 1 and all(value.ndim for value in sides.values()):
            whole[name] = torch.cat([sides[side] for side in JOINED if side in sides])  # (3 * width, width) or (3 * width,)
    return whole


def config_fault(config: Mapping[str, Any]) -> str | None:
    """The reason why transformers' model of this config is not read; None for a CLIP."""
    kind = config.get("model_type")
    if kind == "clip_vision_model":
        return "its config.json is of an image tower alone: --model NAME --pretrained FILE --text-from TAG or FILE reads it"
    if kind is None and "architecture" in config:
        return f"its config.json is timm's ({str(config['architecture'])[:40]}); a folder of open_clip's or transformers' is read"
    if kind != "clip":
        return f"its config.json is of transformers' model_type {str(kind)[:40]!r}; of that library's models 'clip' alone is read"
    towers = [config.get(key) for key in ("vision_config", "text_config")]
    if not all(isinstance(tower, dict) for tower in towers):
        return "its config.json has no vision_config and text_config with the sizes of the towers"
    acts = [str(tower.get("hidden_act", "quick_gelu")) for tower in towers if tower]
    if unknown := next((act for act in acts if act not in ACTIVATIONS), None):
        return f"its config.json has hidden_act {unknown[:40]!r}, expected one of {', '.join(ACTIVATIONS)}"
    if len({act == "quick_gelu" for act in acts}) > 1:
        return f"its config.json has hidden_act {acts[0]} for images and {acts[1]} for texts; open_clip has one for both"
    return None


def open_clip_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """open_clip's config of transformers' CLIP; what the config does not say is as transformers' CLIPConfig has it.

    Raises:
        TypeError, ValueError, ZeroDivisionError: sizes that are none.
    """
    image, text = config["vision_config"], config["text_config"]
    towers = {
        "vision_cfg": {
            "image_size": _size(image.get("image_size", 224)),
            "patch_size": _size(image.get("patch_size", 32)),
            "head_width": image.get("hidden_size", 768) // image.get("num_attention_heads", 12),
            **_tower(image, 768, 3072),
        },
        "text_cfg": {
            "context_length": int(text.get("max_position_embeddings", 77)),
            "vocab_size": int(text.get("vocab_size", VOCABULARY)),
            "heads": int(text.get("num_attention_heads", 8)),
            **_tower(text, 512, 2048),
        },
    }
    end = text.get("eos_token_id", VOCABULARY - 1)
    if isinstance(end, int) and end not in (LEGACY_END, towers["text_cfg"]["vocab_size"] - 1):
        towers["text_cfg"] |= {"pool_type": "eos", "eos_id": end}
    quick = image.get("hidden_act", "quick_gelu") == "quick_gelu"
    return {"embed_dim": int(config.get("projection_dim", 512)), "quick_gelu": quick, **towers}


def _tower(config: Mapping[str, Any], width: int, hidden: int) -> dict[str, Any]:
    width, hidden = int(config.get("hidden_size", width)), int(config.get("intermediate_size", hidden))
    settings: dict[str, Any] = {"layers": int(config.get("num_hidden_layers", 12)), "width": width, "mlp_ratio": hidden / width}
    if (epsilon := config.get("layer_norm_eps", 1e-5)) != 1e-5:
        settings["norm_kwargs"] = {"eps": float(epsilon)}
    if act := ACTIVATIONS[str(config.get("hidden_act", "quick_gelu"))]:
        settings["act_kwargs"] = act
    return settings


def _size(size: Any) -> int | list[int]:
    return [int(side) for side in size] if isinstance(size, list | tuple) else int(size)
