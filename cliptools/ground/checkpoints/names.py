"""Names of tensors: wrappers' prefixes taken off, other libraries' names translated, constants left out."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from cliptools.ground.checkpoints import transformers_clip
from cliptools.ground.checkpoints.file_kinds import not_read
from cliptools.ground.counted import count_of
from cliptools.ground.legible import legible

OPENAI_KEYS = ("input_resolution", "context_length", "vocab_size")
"""What OpenAI's archives hold beside weights, and no other release does."""
WRAPPER = re.compile(r"((module|_orig_mod|model|clip|clip_model|net)\.)*")
"""Prefixes that data parallelism, torch.compile, Lightning and the like put before all names."""
WITHIN = re.compile(r"(?<=\.)(_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")
"""Wrappers of single parts of a model, which stand in the middle of names."""
TEXT_TOWER = re.compile(r"(text|transformer|token_embedding|ln_final)\.|(positional_embedding|text_projection)$")
AVERAGE = re.compile(r"(^|[._])ema([._]|$)")
ANCHORS = ("visual.conv1.weight", f"vision_model.{transformers_clip.ANCHOR}")
"""By which an image tower is known, as open_clip and transformers name it."""
TEXT_ANCHORS = ("text.token_embedding.weight", "text_model.embeddings.token_embedding.weight", "token_embedding.weight")
BARE_VIT, BARE_RESNET = ("class_embedding", "conv1.weight"), ("attnpool.positional_embedding", "conv1.weight")
CONSTANT = re.compile(rf"(.+\.)?(position_ids|attn_mask|n_averaged)|{'|'.join(OPENAI_KEYS)}")
"""Buffers and counters that the sizes of a model settle."""
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


class Named(NamedTuple):
    """Tensors under open_clip's names, and what is to be said of it."""

    tensors: dict[str, Tensor]
    notes: tuple[str, ...]


def open_clip_names(tensors: Mapping[str, Tensor], path: Path) -> Named:
    """Give tensors the names that open_clip's CLIP has for them; unknown ones are left as they are.

    Raises:
        ModelError: a LoRA adapter, or several models in one file.
    """
    if lora := next((key for key in tensors if LORA.search(key)), None):
        raise not_read(
            path,
            f"a LoRA adapter ({legible(lora)}), which only changes another model's weights: merge it into that model (peft's "
            "merge_and_unload), save the whole, and name that file",
        )
    tensors = {WITHIN.sub("", key): value for key, value in tensors.items()}
    prefix, notes = _prefix(tensors, path)
    named: dict[str, Tensor] = {}
    averages = 0
    for key, value in tensors.items():
        if prefix and not key.startswith(prefix) and AVERAGE.search(key.partition(".")[0] + "."):
            averages += 1
        else:
            named[key.removeprefix(prefix)] = value
    if averages:
        notes.append(f"{legible(path.name)}: a running average of {count_of(averages, 'tensor')} is left out")
    if any(key in named for key in (transformers_clip.ANCHOR, "pre_layrnorm.weight")):  # a vision model saved by itself
        named = {f"vision_model.{key}": value for key, value in named.items()}
    named = {key: value for key, value in named.items() if not CONSTANT.fullmatch(key)}
    if any(key.startswith(("vision_model.", "text_model.")) for key in named) and foreign_form(named) is None:
        named = transformers_clip.translate(named)
    if any(all(key in named for key in bare) for bare in (BARE_VIT, BARE_RESNET)):
        named = {f"visual.{key}": value for key, value in named.items()}
    return Named(named, tuple(notes))


def _prefix(keys: Iterable[str], path: Path) -> tuple[str, list[str]]:
    """What stands before all names of one model, and what is to be said of it.

    Raises:
        ModelError: there are several models.
    """
    keys = list(keys)
    prefixes: list[str] = []
    for anchors in (ANCHORS, (transformers_clip.ANCHOR,), ("class_embedding",), ("attnpool.positional_embedding",), TEXT_ANCHORS):
        prefixes = sorted({key.removesuffix(anchor) for anchor in anchors for key in keys if _ends(key, anchor)})
        if prefixes:
            break
    if len(prefixes) > 1:
        prefixes = [prefix for prefix in prefixes if not AVERAGE.search(prefix)] or prefixes
    if len(prefixes) > 1:
        prefixes = [prefix for prefix in prefixes if WRAPPER.fullmatch(prefix)] or prefixes
    if len(prefixes) > 1:
        shown = ", ".join(map(legible, prefixes[:3]))
        raise not_read(path, f"several models, under the names {shown}: save the one that is meant in a file of its own")
    if not prefixes or WRAPPER.fullmatch(prefixes[0]):
        return (prefixes or [""])[0], []
    return prefixes[0], [f"{legible(path.name)}: the tensors under {legible(prefixes[0])!r} are read"]


def _ends(key: str, anchor: str) -> bool:
    return key == anchor or key.endswith(f".{anchor}")


def foreign_form(keys: Iterable[str]) -> str | None:
    """The model that names like these are of, where it is one that is known and not read."""
    keys = list(keys)
    return next((title for pattern, title in FOREIGN.items() if any(re.search(pattern, key) for key in keys)), None)
