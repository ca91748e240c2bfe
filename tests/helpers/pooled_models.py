"""Folders in open_clip's form with random weights of models that pool by attention, as SigLIP, Perception Encoder and CoCa do."""

import json
from pathlib import Path
from typing import Any

import torch

from helpers.weights_files import TEXT, VIT, save

CLIP_WORDS = TEXT | {"vocab_size": 49408}
POOLED_MODELS: dict[str, dict[str, Any]] = {
    "siglip": {
        "embed_dim": 64,
        "init_logit_bias": -10,
        "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none"},
        "text_cfg": TEXT
        | {"width": 64, "no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}}
        | {"hf_tokenizer_name": "", "tokenizer_kwargs": {"clean": "canonicalize"}},
    },
    "pe": {
        "embed_dim": 20,
        "vision_cfg": {
            "image_size": 384, "timm_model_name": "vit_pe_core_tiny_patch16_384", "timm_pool": "map", "timm_proj": None,
        },
        "text_cfg": CLIP_WORDS,
    },
    "coca": {
        "embed_dim": 12,
        "vision_cfg": VIT
        | {"layers": 3, "attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 5, "output_tokens": True},
        "text_cfg": CLIP_WORDS | {"embed_cls": True, "output_tokens": True, "width": 12},
        "multimodal_cfg": CLIP_WORDS | {"width": 12, "attn_pooler_heads": 2},
    },
}  # fmt: skip
WORDS = ["a", "photo", "of", "cat", "dog", "panda", "red", "car", "boat", "pizza", "rocket"]


def pooled_model(folder: Path, kind: str) -> Path:
    """Write a model's folder, with a tokenizer of transformers where its kind has one."""
    import open_clip

    settings = json.loads(json.dumps(POOLED_MODELS[kind])) | {"custom_text": True}
    folder.mkdir()
    if kind == "siglip":
        settings["text_cfg"]["hf_tokenizer_name"] = str(folder)
        _write_tokenizer(folder)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": settings}))
    torch.manual_seed(0)
    clip = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    state = {name: 0.2 * torch.randn_like(value) + (value.ndim == 1) for name, value in clip.state_dict().items()}
    save(state, folder / "open_clip_model.safetensors")
    return folder


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate(("[PAD]", "[UNK]", *WORDS))}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
