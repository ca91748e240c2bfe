"""Translation of tensor names and configurations to open_clip's.

`open_clip_names` removes prefixes of wrappers, leaves out constants, and translates names of the transformers library;
`open_clip_config` translates configurations of that library.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cliptools.console import count_of, escape
from cliptools.models.checkpoints.file_kinds import unreadable

ANCHOR = "embeddings.patch_embedding.weight"
VOCABULARY = 49408  # size of CLIP's own vocabulary, which open_clip includes
LEGACY_END = 2  # an eos_token_id of early configs, for which transformers pools at the largest id
EMBEDDINGS = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
}
MATRICES = {"visual_projection.weight": "visual.proj", "text_projection.weight": "text_projection"}
"""Linear layers, whose weights open_clip stores transposed."""
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
    """Rename tensors, transpose projections, and join queries, keys and values; unknown names stay unchanged."""
    translated: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        layer, norm = LAYER.fullmatch(key), NORM.fullmatch(key)
        if key in EMBEDDINGS:
            translated[EMBEDDINGS[key]] = value
        elif key in MATRICES and value.ndim == 2:
            translated[MATRICES[key]] = value.T  # (out, in) -> (in, out)
        elif norm:
            translated[f"{TOWERS[norm[1]]}{NORMS[norm[2]]}.{norm[3]}"] = value
        elif layer and layer[3] in PARTS:
            translated[f"{TOWERS[layer[1]]}transformer.resblocks.{layer[2]}.{PARTS[layer[3]]}.{layer[4]}"] = value
        elif layer and layer[3] in [f"self_attn.{side}_proj" for side in JOINED]:
            joined = f"{TOWERS[layer[1]]}transformer.resblocks.{layer[2]}.attn.in_proj_{layer[4]}"
            parts.setdefault(joined, {})[layer[3][len("self_attn.")]] = value
        else:
            translated[key] = value
    for name, sides in parts.items():
        if len({value.shape[1:] for value in sides.values()}) == 1 and all(value.ndim for value in sides.values()):
            translated[name] = torch.cat([sides[side] for side in JOINED if side in sides])  # (3 * width, width) or (3 * width,)
    return translated


def config_fault(config: Mapping[str, Any]) -> str | None:
    """Return the reason why transformers' model of this configuration is not supported; None for a CLIP."""
    kind = config.get("model_type")
    if kind == "clip_vision_model":
        return "its config.json is of an image tower alone: --model NAME --pretrained FILE --text-from TAG or FILE reads it"
    if kind is None and "architecture" in config:
        return f"its config.json is timm's ({str(config['architecture'])[:40]}); a folder of open_clip's or transformers' is read"
    if kind != "clip":
        return f"its config.json is of transformers' model_type {str(kind)[:40]!r}; only that library's 'clip' is supported"
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
    """Return open_clip's configuration of transformers' CLIP; missing settings have the defaults of transformers' CLIPConfig.

    Raises:
        TypeError, ValueError, ZeroDivisionError: a size is invalid.
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


OPENAI_KEYS = ("input_resolution", "context_length", "vocab_size")
"""Keys that only OpenAI's archives have beside weights."""
WRAPPER = re.compile(r"((module|_orig_mod|model|clip|clip_model|net)\.)*")
"""Prefixes that data parallelism, torch.compile, Lightning and similar tools add to all names."""
WITHIN = re.compile(r"(?<=\.)(_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")
"""Wrappers of single modules, which appear in the middle of names."""
TEXT_TOWER = re.compile(r"(text|transformer|token_embedding|ln_final)\.|(positional_embedding|text_projection)$")
AVERAGE = re.compile(r"(^|[._])ema([._]|$)")
ANCHORS = ("visual.conv1.weight", f"vision_model.{ANCHOR}")
"""Tensors that identify an image tower of open_clip and of transformers."""
TEXT_ANCHORS = ("text.token_embedding.weight", "text_model.embeddings.token_embedding.weight", "token_embedding.weight")
BARE_VIT, BARE_RESNET = ("class_embedding", "conv1.weight"), ("attnpool.positional_embedding", "conv1.weight")
CONSTANT = re.compile(rf"(.+\.)?(position_ids|attn_mask|n_averaged)|{'|'.join(OPENAI_KEYS)}")
"""Buffers and counters that the sizes of a model determine."""
FOREIGN = {
    r"(^|\.)vision_model\.head\.|vision_model\.embeddings\.patch_embedding\.bias": "transformers' SigLIP",
    r"(^|\.)visual\.trunk\.": "an image tower of timm's (visual.trunk)",
    r"(^|\.)visual\.attn_pool\.": "an image tower with attentional pooling (CoCa)",
    r"(^|\.)image_encoder\.model\.patch_emb": "MobileCLIP",
    r"(^|\.)blocks\.0\.attn\.qkv\.weight": "a ViT as timm or DINO names it",
    r"(^|\.)(model\.diffusion_model|cond_stage_model)\.": "a diffusion model",
    r"(^|\.)(language_model|lm_head)\.": "a language model",
    r"(^|\.)fc\.weight$": "a classifier (torchvision's ResNet has such names)",
}
LORA = re.compile(r"(^|\.)(lora_[A-Za-z]+|lora|hada_w\d\w*|oft_\w+)(\.|_|$)")


class NamedTensors(NamedTuple):
    """Tensors under open_clip's names, with notes for the user."""

    tensors: dict[str, Tensor]
    notes: tuple[str, ...]


def open_clip_names(tensors: Mapping[str, Tensor], path: Path) -> NamedTensors:
    """Give tensors the names of open_clip's CLIP; unknown names stay unchanged.

    Raises:
        ModelError: the file is a LoRA adapter, or holds several models.
    """
    if lora := next((key for key in tensors if LORA.search(key)), None):
        raise unreadable(
            path,
            f"a LoRA adapter ({escape(lora)}), which only changes another model's weights: merge it into that model (peft's "
            "merge_and_unload), save the whole, and name that file",
        )
    tensors = {WITHIN.sub("", key): value for key, value in tensors.items()}
    prefix, notes = _prefix(tensors, path)
    renamed: dict[str, Tensor] = {}
    averages = 0
    for key, value in tensors.items():
        if prefix and not key.startswith(prefix) and AVERAGE.search(key.partition(".")[0] + "."):
            averages += 1
        else:
            renamed[key.removeprefix(prefix)] = value
    if averages:
        notes.append(f"{escape(path.name)}: a running average of {count_of(averages, 'tensor')} is left out")
    if any(key in renamed for key in (ANCHOR, "pre_layrnorm.weight")):  # a vision model saved by itself
        renamed = {f"vision_model.{key}": value for key, value in renamed.items()}
    renamed = {key: value for key, value in renamed.items() if not CONSTANT.fullmatch(key)}
    if any(key.startswith(("vision_model.", "text_model.")) for key in renamed) and foreign_form(renamed) is None:
        renamed = translate(renamed)
    if any(all(key in renamed for key in bare) for bare in (BARE_VIT, BARE_RESNET)):
        renamed = {f"visual.{key}": value for key, value in renamed.items()}
    return NamedTensors(renamed, tuple(notes))


def _prefix(keys: Iterable[str], path: Path) -> tuple[str, list[str]]:
    """Return the common prefix of a model's names, with notes.

    Raises:
        ModelError: the file holds several models.
    """
    keys = list(keys)
    prefixes: list[str] = []
    for anchors in (ANCHORS, (ANCHOR,), ("class_embedding",), ("attnpool.positional_embedding",), TEXT_ANCHORS):
        prefixes = sorted({key.removesuffix(anchor) for anchor in anchors for key in keys if _ends_in(key, anchor)})
        if prefixes:
            break
    if len(prefixes) > 1:
        prefixes = [prefix for prefix in prefixes if not AVERAGE.search(prefix)] or prefixes
    if len(prefixes) > 1:
        prefixes = [prefix for prefix in prefixes if WRAPPER.fullmatch(prefix)] or prefixes
    if len(prefixes) > 1:
        names = ", ".join(map(escape, prefixes[:3]))
        raise unreadable(path, f"several models, under the names {names}: save the one that is meant in a file of its own")
    if not prefixes or WRAPPER.fullmatch(prefixes[0]):
        return (prefixes or [""])[0], []
    return prefixes[0], [f"{escape(path.name)}: the tensors under {escape(prefixes[0])!r} are read"]


def _ends_in(key: str, anchor: str) -> bool:
    return key == anchor or key.endswith(f".{anchor}")


def foreign_form(keys: Iterable[str]) -> str | None:
    """Return the kind of an unsupported model that has such names; None for any other."""
    keys = list(keys)
    return next((title for pattern, title in FOREIGN.items() if any(re.search(pattern, key) for key in keys)), None)
