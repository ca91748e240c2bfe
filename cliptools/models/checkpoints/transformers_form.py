"""CLIP and SigLIP of the transformers library in open_clip's form: names of tensors, configurations, and models without weights.

SigLIP2 is a SigLIP with another vocabulary, except for its variant for pictures of any shape (NaFlex), which is refused.
open_clip makes SigLIP's image tower of timm's VisionTransformer without a class token: its blocks join the matrices of queries,
keys and values, and its pooling (timm's AttentionPoolLatent) keeps that of its query apart. transformers does the contrary:

    q_proj, k_proj, v_proj -> qkv        vision_model.head.attention.in_proj -> attn_pool.q, attn_pool.kv
"""

import importlib
import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cliptools.library_patches import import_open_clip

VOCABULARY = 49408  # size of CLIP's own vocabulary, which open_clip includes
LEGACY_END = 2  # an eos_token_id of early configs, for which transformers pools at the largest id
NAFLEX = "vision_model.embeddings.patch_embedding.weight"
"""Name of the tensor that is a convolution in all models but those of NaFlex, which have a matrix."""
JOINED = ("q", "k", "v")
LAYER = re.compile(r"(vision_model|text_model)\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
PART = re.compile(r"(.+)\.(weight|bias)")


class Scheme(NamedTuple):
    """Names that a kind of model has in open_clip, by those of transformers."""

    tensors: Mapping[str, str]
    """Whole names of tensors."""
    modules: Mapping[str, str]
    """Names of modules outside the layers."""
    layers: Mapping[str, str]
    """Beginnings of the names of layers, by tower."""
    parts: Mapping[str, Mapping[str, str]]
    """Names of modules within a layer, by tower."""
    joined: Mapping[str, str]
    """Names of joined queries, keys and values within a layer, by tower, before `weight` or `bias`."""


TEXT_PARTS = {
    "self_attn.out_proj": "attn.out_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}  # fmt: skip
TRUNK_PARTS = {
    "self_attn.out_proj": "attn.proj", "layer_norm1": "norm1", "layer_norm2": "norm2", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
}  # fmt: skip
CLIP = Scheme(
    {
        "vision_model.embeddings.class_embedding": "visual.class_embedding",
        "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
        "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
        "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
    },
    {
        "vision_model.pre_layrnorm": "visual.ln_pre",
        "vision_model.post_layernorm": "visual.ln_post",
        "text_model.final_layer_norm": "ln_final",
    },
    {"vision_model": "visual.transformer.resblocks", "text_model": "transformer.resblocks"},
    {"vision_model": TEXT_PARTS, "text_model": TEXT_PARTS},
    {"vision_model": "attn.in_proj_", "text_model": "attn.in_proj_"},
)
SIGLIP = Scheme(
    {
        "vision_model.embeddings.position_embedding.weight": "visual.trunk.pos_embed",
        "vision_model.head.probe": "visual.trunk.attn_pool.latent",
        "text_model.embeddings.position_embedding.weight": "text.positional_embedding",
    },
    {
        "vision_model.embeddings.patch_embedding": "visual.trunk.patch_embed.proj",
        "vision_model.post_layernorm": "visual.trunk.norm",
        "vision_model.head.attention.out_proj": "visual.trunk.attn_pool.proj",
        "vision_model.head.layernorm": "visual.trunk.attn_pool.norm",
        "vision_model.head.mlp.fc1": "visual.trunk.attn_pool.mlp.fc1",
        "vision_model.head.mlp.fc2": "visual.trunk.attn_pool.mlp.fc2",
        "text_model.embeddings.token_embedding": "text.token_embedding",
        "text_model.final_layer_norm": "text.ln_final",
        "text_model.head": "text.text_projection",
    },
    {"vision_model": "visual.trunk.blocks", "text_model": "text.transformer.resblocks"},
    {"vision_model": TRUNK_PARTS, "text_model": TEXT_PARTS},
    {"vision_model": "attn.qkv.", "text_model": "attn.in_proj_"},
)
MATRICES = {"visual_projection.weight": "visual.proj", "text_projection.weight": "text_projection"}
"""Linear layers of CLIP, whose weights open_clip stores transposed."""
SIGLIP_ONLY = ("vision_model.embeddings.patch_embedding.bias", "vision_model.head.probe", "text_model.head.weight")
"""Tensors of SigLIP's towers that CLIP's towers do not have."""
QUERY = "vision_model.head.attention.in_proj_"


def is_naflex(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether tensors of transformers are of a SigLIP2 for pictures of any shape."""
    return NAFLEX in tensors and tensors[NAFLEX].ndim == 2


def translate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a CLIP or SigLIP and give them open_clip's shapes; unknown names stay unchanged."""
    siglip = any(key in tensors for key in SIGLIP_ONLY)
    scheme = SIGLIP if siglip else CLIP
    translated: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        layer, part = LAYER.fullmatch(key), PART.fullmatch(key)
        if siglip and key.startswith(QUERY) and len(value) % len(JOINED) == 0:
            q, k, v = value.chunk(len(JOINED))  # (3 * width, ...) -> 3 times (width, ...)
            kind = key.removeprefix(QUERY)
            translated[f"visual.trunk.attn_pool.q.{kind}"], translated[f"visual.trunk.attn_pool.kv.{kind}"] = q, torch.cat([k, v])
        elif key in scheme.tensors:
            name = scheme.tensors[key]
            translated[name] = value[None] if name.endswith("pos_embed") else value  # (token, width) -> (1, token, width)
        elif not siglip and key in MATRICES and value.ndim == 2:
            translated[MATRICES[key]] = value.T  # (out, in) -> (in, out)
        elif part and part[1] in scheme.modules:
            translated[f"{scheme.modules[part[1]]}.{part[2]}"] = value
        elif layer and layer[3] in scheme.parts[layer[1]]:
            translated[f"{scheme.layers[layer[1]]}.{layer[2]}.{scheme.parts[layer[1]][layer[3]]}.{layer[4]}"] = value
        elif layer and layer[3] in [f"self_attn.{side}_proj" for side in JOINED]:
            joined = f"{scheme.layers[layer[1]]}.{layer[2]}.{scheme.joined[layer[1]]}{layer[4]}"
            parts.setdefault(joined, {})[layer[3][len("self_attn.")]] = value
        else:
            translated[key] = value
    for name, sides in parts.items():
        if len({value.shape[1:] for value in sides.values()}) == 1 and all(value.ndim for value in sides.values()):
            translated[name] = torch.cat([sides[side] for side in JOINED if side in sides])  # (3 * width, width) or (3 * width,)
    return translated


TANH = {"approximate": "tanh"}
ACTIVATIONS = {"quick_gelu": None, "gelu": {}, "gelu_pytorch_tanh": TANH, "gelu_new": TANH}
"""Settings of open_clip's GELU by transformers' hidden_act; None for QuickGELU."""
LAYERS = {"num_hidden_layers": 12, "num_attention_heads": 12}
WIDTHS = {"hidden_size": 768, "intermediate_size": 3072}
OF_CLIP = LAYERS | {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
OF_SIGLIP = LAYERS | WIDTHS | {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
TEXT_OF_CLIP = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "max_position_embeddings": 77}
DEFAULTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "clip": (
        OF_CLIP | WIDTHS | {"image_size": 224, "patch_size": 32},
        OF_CLIP | TEXT_OF_CLIP | {"vocab_size": VOCABULARY, "eos_token_id": VOCABULARY - 1},
    ),
    "siglip": (
        OF_SIGLIP | {"image_size": 224, "patch_size": 16, "vision_use_head": True},
        OF_SIGLIP | {"vocab_size": 32000, "max_position_embeddings": 64},
    ),
}
"""Settings that a configuration may leave out, of images and of texts, by model_type."""
SMALLEST = "test_vit"
"""timm's smallest model, whose trunk `build_model` replaces, because open_clip knows timm's models by their names alone."""


def config_fault(config: Mapping[str, Any]) -> str | None:
    """Return the reason why transformers' model of this configuration is not supported; None for a CLIP or SigLIP."""
    kind = config.get("model_type")
    if kind in ("clip_vision_model", "siglip_vision_model"):
        return "its config.json is of an image tower alone: --model NAME --pretrained FILE --text-from TAG or FILE reads it"
    if kind is None and "architecture" in config:
        return f"its config.json is timm's ({str(config['architecture'])[:40]}); a folder of open_clip's or transformers' is read"
    if kind == "siglip2":
        return "its config.json is of a SigLIP2 for pictures of any shape (NaFlex); for those of one size it has 'siglip'"
    if kind not in DEFAULTS:
        return f"its config.json is of transformers' model_type {str(kind)[:40]!r}; supported are its {' and '.join(DEFAULTS)}"
    if not all(isinstance(config.get(key), dict) for key in ("vision_config", "text_config")):
        return "its config.json has no vision_config and text_config with the sizes of the towers"
    image, text = _settings(config)
    known = [name for name, act in ACTIVATIONS.items() if act is not None or kind == "clip"]
    acts = [str(tower["hidden_act"]) for tower in (image, text)]
    if unknown := next((act for act in acts if act not in known), None):
        return f"its config.json has hidden_act {unknown[:40]!r}, expected one of {', '.join(known)}"
    if len({act == "quick_gelu" for act in acts}) > 1:
        return f"its config.json has hidden_act {acts[0]} for images and {acts[1]} for texts; open_clip has one for both"
    if kind == "siglip" and not image["vision_use_head"]:
        return "its config.json has vision_use_head false: an image tower without the pooling that makes its output"
    if kind == "siglip" and image["hidden_size"] != _joint_width(text):
        return (
            f"its config.json has outputs of {str(image['hidden_size'])[:20]} numbers for images and "
            f"{str(_joint_width(text))[:20]} for texts, expected as many"
        )
    return None


def _settings(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings of the image and of the text tower, with transformers' defaults."""
    image, text = DEFAULTS[config["model_type"]]
    return image | config["vision_config"], text | config["text_config"]


def _joint_width(text: Mapping[str, Any]) -> Any:
    """Return the width of SigLIP's output."""
    return text.get("projection_size") or text["hidden_size"]


def open_clip_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return open_clip's configuration of a CLIP or SigLIP of transformers that has no fault.

    For a SigLIP it names timm's smallest model; `build_model` makes the tower of the sizes that are beside that name.

    Raises:
        TypeError, ValueError, ZeroDivisionError: a size is invalid.
    """
    image, text = _settings(config)
    vision_cfg = {
        "image_size": _size(image["image_size"]),
        "patch_size": _size(image["patch_size"]),
        "head_width": image["hidden_size"] // image["num_attention_heads"],
        **_tower(image),
    }
    text_cfg = {
        "context_length": int(text["max_position_embeddings"]),
        "vocab_size": int(text["vocab_size"]),
        "heads": int(text["num_attention_heads"]),
        **_tower(text),
    }
    if config["model_type"] == "siglip":
        vision_cfg |= {"timm_model_name": SMALLEST, "timm_pool": "map", "timm_proj": "none"}
        text_cfg |= {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
        text_cfg["tokenizer_kwargs"] = {"clean": "canonicalize"}
        towers = {"vision_cfg": vision_cfg, "text_cfg": text_cfg}
        return {"embed_dim": int(_joint_width(text)), "init_logit_bias": 0, **towers}
    end = text["eos_token_id"]
    if isinstance(end, int) and end not in (LEGACY_END, text_cfg["vocab_size"] - 1):
        text_cfg |= {"pool_type": "eos", "eos_id": end}
    towers = {"vision_cfg": vision_cfg, "text_cfg": text_cfg}
    return {"embed_dim": int(config.get("projection_dim", 512)), "quick_gelu": image["hidden_act"] == "quick_gelu", **towers}


def _tower(config: Mapping[str, Any]) -> dict[str, Any]:
    width, hidden = int(config["hidden_size"]), int(config["intermediate_size"])
    ratio = (hidden + 0.5) / width  # int(width * ratio), as open_clip and timm compute it, is `hidden` in spite of rounding
    settings: dict[str, Any] = {"layers": int(config["num_hidden_layers"]), "width": width, "mlp_ratio": ratio}
    if (epsilon := config["layer_norm_eps"]) != 1e-5:
        settings["norm_kwargs"] = {"eps": float(epsilon)}
    if act := ACTIVATIONS[str(config["hidden_act"])]:
        settings["act_kwargs"] = act
    return settings


def _size(size: Any) -> int | list[int]:
    return [int(side) for side in size] if isinstance(size, list | tuple) else int(size)


def build_model(config: Mapping[str, Any]) -> nn.Module:
    """Return open_clip's model of a configuration of `open_clip_config`, before its weights are loaded."""
    open_clip = import_open_clip()
    siglip = "timm_model_name" in config["vision_cfg"]
    clip = (open_clip.model.CustomTextCLIP if siglip else open_clip.model.CLIP)(**deepcopy(dict(config)))
    if siglip:
        clip.visual.trunk = _siglip_trunk(open_clip.model.CLIPVisionCfg(**config["vision_cfg"]))
    settings = asdict(open_clip.transform.PreprocessCfg(size=clip.visual.image_size))
    open_clip.model.set_model_preprocess_cfg(clip, settings)
    return clip


def _siglip_trunk(image: Any) -> nn.Module:
    """Return timm's VisionTransformer of these sizes, without a class token and with attention pooling."""
    trunk: nn.Module = importlib.import_module("timm.models.vision_transformer").VisionTransformer(
        img_size=image.image_size,
        patch_size=image.patch_size,
        embed_dim=image.width,
        depth=image.layers,
        num_heads=image.width // image.head_width,
        mlp_ratio=image.mlp_ratio,
        norm_layer=partial(importlib.import_module("timm.layers").LayerNorm, **(image.norm_kwargs or {"eps": 1e-5})),
        act_layer="gelu_tanh" if image.act_kwargs else None,
        class_token=False,
        global_pool="map",
        num_classes=0,
    )
    return trunk
