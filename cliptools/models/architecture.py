"""Digests of a model: of its weights, and of all else that decides its outputs (activations, grid, norms, heads, pooling, …)."""

import hashlib
import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cliptools.io.header import canonical, digest

FACTS_FORMAT = 1  # increase it when the facts of the same model change
SILENT = {"Identity", "Dropout", "DropPath", "PatchDropout", "Flatten", "Upsample", "Sequential", "ModuleList"}
"""Modules without weights that do nothing in evaluation mode, or only reshape."""
POOLING = ("AvgPool2d", "MaxPool2d", "AdaptiveAvgPool2d")


class Architecture(NamedTuple):
    """The architecture as a bundle's header records it."""

    activation: dict[str, str]
    """Class of the activations of each tower (image, text)."""
    grid: list[int]
    """Rows and columns of image tokens; empty if they are unknown."""
    digest: str
    """sha256 of all facts."""

    @property
    def quick(self) -> bool:
        """True if a tower computes QuickGELU."""
        return any("QuickGELU" in activation for activation in self.activation.values())


UNDESCRIBED = Architecture({}, [], "")


def describe_architecture(clip: nn.Module, preprocessing: Mapping[str, Any]) -> Architecture:
    """Describe a model of open_clip; the digest covers named facts only, so weights and versions of torch do not change it."""
    facts = architecture_facts(clip, preprocessing)
    activation = {
        tower: " and ".join(dict.fromkeys(run[0] for run in facts[tower]["activation"]))
        for tower in ("image", "text")
        if facts[tower]["activation"]
    }
    return Architecture(activation, facts["image"]["grid"], digest(canonical(facts)))


def architecture_facts(clip: nn.Module, preprocessing: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything that decides a model's outputs besides its weights and tokenizer, as a JSON object."""
    model: Any = clip
    visual: Any = model.visual
    text: Any = getattr(clip, "text", None) or clip
    text_parts = [part for name, part in clip.named_children() if name != "visual"]
    pool = getattr(text, "text_pool_type", None) or getattr(text, "pool_type", None)
    end = getattr(text, "text_eos_id", None) or getattr(text, "eos_id", None)
    mask = getattr(text, "attn_mask", None)
    return {
        "format": FACTS_FORMAT,
        "image": _module_facts([visual])
        | {
            "tower": type(visual).__name__,
            "grid": token_grid(visual),
            "pool": getattr(visual, "pool_type", None),
            "attentional_pool": str(getattr(visual, "attn_pool_type", ""))
            if getattr(visual, "attn_pool", None) is not None
            else None,
            "norm_after_pool": bool(getattr(visual, "final_ln_after_pool", False)),
        }
        | _trunk_facts(getattr(visual, "trunk", None)),
        "text": _module_facts(text_parts)
        | {
            "length": _text_length(text),
            "causal": isinstance(mask, Tensor),
            "pool": pool,
            "end": end if pool == "eos" else None,
            "padding_masked": bool(getattr(text, "use_pad_mask", False)),
        },
        "preprocessing": dict(preprocessing) | {"size": _both_sides(preprocessing.get("size"))},
    }


def _trunk_facts(trunk: Any) -> dict[str, Any]:
    """Return what decides the output of a trunk of timm's besides its modules; empty for other towers."""
    if trunk is None:
        return {}
    names = ("global_pool", "num_prefix_tokens", "no_embed_class", "pool_include_prefix", "rope_mixed")
    facts = {name: getattr(trunk, name) for name in names if hasattr(trunk, name)}
    rope = getattr(trunk, "rope", None)
    kinds = [
        [key, len(list(run))] for key, run in itertools.groupby(type(block).__name__ for block in getattr(trunk, "blocks", ()))
    ]
    settings = {} if rope is None else {name: value for name, value in vars(rope).items() if _is_plain(name, value)}
    return {"trunk": facts | {"kind": type(trunk).__name__, "blocks": kinds, "rope": settings}}


def _is_plain(name: str, value: Any) -> bool:
    """Return whether an attribute of a module is a setting: a number, a name, or a size."""
    plain = int | float | str | None
    return not name.startswith("_") and (
        isinstance(value, plain) or (isinstance(value, list | tuple) and all(isinstance(side, plain) for side in value))
    )


def token_grid(visual: Any) -> list[int]:
    """Return rows and columns of an image tower's tokens; empty if it has no grid."""
    patches = getattr(getattr(visual, "trunk", None), "patch_embed", visual)
    grid = getattr(patches, "grid_size", None)
    if grid is not None:
        return [int(grid), int(grid)] if isinstance(grid, int) else [int(side) for side in grid]
    positions = getattr(getattr(visual, "attnpool", None), "positional_embedding", None)
    return [math.isqrt(len(positions) - 1)] * 2 if positions is not None else []


def _text_length(text: Any) -> int | None:
    positions = getattr(text, "positional_embedding", None)
    return len(positions) if isinstance(positions, Tensor) else getattr(text, "context_length", None)


def _module_facts(parts: Iterable[nn.Module]) -> dict[str, Any]:
    """Return classes and settings of all modules in order, with the length of every run of equal ones."""
    facts: dict[str, list[list[Any]]] = {"activation": [], "norm": [], "heads": [], "convolution": [], "pooling": []}
    for module in itertools.chain.from_iterable(part.modules() for part in parts):
        settings, kind = vars(module), type(module).__name__
        if isinstance(module, nn.Conv2d):
            facts["convolution"].append([list(module.stride), _as_list(module.padding), list(module.dilation), module.groups])
        elif kind in POOLING:
            facts["pooling"].append([kind, *(_as_list(settings.get(key)) for key in ("kernel_size", "stride", "padding"))])
        elif isinstance(settings.get("eps"), float):
            facts["norm"].append([kind, settings["eps"]])
        elif _is_activation(module):
            approximate = settings.get("approximate", "none")
            facts["activation"].append([kind if approximate == "none" else f"{kind}({approximate})"])
        if isinstance(heads := settings.get("num_heads"), int):
            facts["heads"].append([heads])
    return {name: [[*fact, len(list(run))] for fact, run in itertools.groupby(values)] for name, values in facts.items()}


def _is_activation(module: nn.Module) -> bool:
    """Return whether a module has neither submodules nor tensors and changes values."""
    contents = itertools.chain(module.children(), module.parameters(), module.buffers())
    return type(module).__name__ not in SILENT and next(contents, None) is None


def _both_sides(size: Any) -> Any:
    return [size, size] if isinstance(size, int) else _as_list(size)


def _as_list(value: Any) -> Any:
    return [int(side) for side in value] if isinstance(value, tuple | list) else value


def weights_sha256(model: nn.Module) -> str:
    """Return the sha256 over names, types, shapes and bytes of all tensors in order, which moving or re-saving a file keeps."""
    return tensors_sha256(model.state_dict())


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 of a model with these tensors; see `weights_sha256`."""
    sha = hashlib.sha256()
    for key, value in sorted(tensors.items()):
        sha.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        raw: Any = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        sha.update(raw)
    return sha.hexdigest()
