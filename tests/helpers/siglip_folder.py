"""Folders of a SigLIP with random weights in the format of the transformers library, with tokenizer and settings of images."""

import json
from pathlib import Path
from typing import Any

import torch

from cliptools.library_patches import ensure_torchvision

VIEW = {
    "hidden_size": 36, "intermediate_size": 50, "num_hidden_layers": 4, "num_attention_heads": 3, "image_size": 31,
    "patch_size": 7,
}  # fmt: skip
"""An image tower of odd sizes, whose patches leave out the last three pixels, as those of SO400M at 384 pixels do."""
TEXT = {
    "hidden_size": 20, "intermediate_size": 34, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 9,
    "vocab_size": 50, "projection_size": 36, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
WORDS = ("a", "photo", "of", "cat", "dog", "panda", "red", "car", "boat", "pizza", "rocket")
PREPROCESSOR = {
    "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
    "image_processor_type": "SiglipImageProcessor", "resample": 2, "size": {"height": 31, "width": 31},
}  # fmt: skip


def random_siglip(view: dict[str, Any] | None = None, text: dict[str, Any] | None = None) -> Any:
    """Return transformers' own model, in which every tensor is random, including biases and gains."""
    ensure_torchvision()
    from transformers import SiglipConfig, SiglipModel

    torch.manual_seed(0)
    model = SiglipModel(SiglipConfig(vision_config=VIEW | (view or {}), text_config=TEXT | (text or {}))).eval()
    for value in model.parameters():
        value.data = 0.2 * torch.randn_like(value) + (value.ndim == 1)
    model.logit_scale.data, model.logit_bias.data = torch.tensor([2.5]), torch.tensor([-7.0])
    return model


def save_siglip(model: Any, folder: Path) -> Path:
    """Write the model's folder, as the hub has it."""
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    _write_tokenizer(folder)
    return folder


def _write_tokenizer(folder: Path) -> None:
    """Write a tokenizer that ends texts by `</s>` and pads with it, as SigLIP's does."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate(("<pad>", "</s>", "<unk>", *WORDS))}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="</s>", unk_token="<unk>", eos_token="</s>")
    fast.save_pretrained(folder)
