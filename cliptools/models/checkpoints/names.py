"""Names of tensors in open_clip's form: prefixes of wrappers are removed, constants left out, and other libraries' translated."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from cliptools.console import count_of, escape
from cliptools.models.checkpoints.file_kinds import unreadable
from cliptools.models.checkpoints.transformers_form import is_naflex, translate

ANCHOR = "embeddings.patch_embedding.weight"
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
    r"(^|\.)vision_model\.head\.probe$": "a SigLIP2 for pictures of any shape (NaFlex), which is not supported",
    r"(^|\.)visual\.trunk\.attn_pool\.": "an image tower of timm's that pools by attention, as SigLIP's",
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
    if any(key.startswith(("vision_model.", "text_model.")) for key in renamed) and not is_naflex(renamed):
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
