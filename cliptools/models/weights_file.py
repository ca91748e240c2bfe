"""Sizes of the model in a weights file, from the shapes of its tensors, and the architectures that they fit."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from cliptools.console import escape
from cliptools.errors import ModelError
from cliptools.library_patches import import_open_clip
from cliptools.models.checkpoints.checkpoint import Checkpoint

STRIDE = 32  # pixels per token of a ResNet's attention pooling
EXACT = ("kind", "width", "layers", "patch", "joint_width", "text_width", "text_layers", "vocabulary")
"""Sizes that must be equal for weights to be loaded."""


class Sizes(NamedTuple):
    """Sizes of a CLIP, from its configuration or its weights; None if unknown."""

    kind: str | None = None
    """ViT or ResNet."""
    width: int | None = None
    layers: int | tuple[int, ...] | None = None
    patch: tuple[int, int] | None = None
    tokens: int | None = None
    """Image tokens with a position, without the class token or the mean."""
    joint_width: int | None = None
    text_width: int | None = None
    text_layers: int | None = None
    context: int | None = None
    """Positions of a text."""
    vocabulary: int | None = None


def stored_sizes(shapes: Mapping[str, tuple[int, ...]]) -> Sizes:
    """Return the sizes of the model whose weights have these shapes under open_clip's names."""

    def size(side: int, *keys: str) -> int | None:
        return next((shapes[key][side] for key in keys if key in shapes and len(shapes[key]) > max(side, 0)), None)

    sizes = Sizes(
        joint_width=size(-1, "text_projection", "text.text_projection"),
        text_width=size(-1, "positional_embedding", "text.positional_embedding"),
        text_layers=_count(shapes, r"^(text\.)?transformer\.resblocks\.(\d+)\."),
        context=size(0, "positional_embedding", "text.positional_embedding"),
        vocabulary=size(0, "token_embedding.weight", "text.token_embedding.weight"),
    )
    convolution = shapes.get("visual.conv1.weight", ())
    if len(convolution) != 4:
        return sizes
    if "visual.attnpool.positional_embedding" in shapes:
        positions = shapes["visual.attnpool.positional_embedding"][0]
        layers = tuple(_count(shapes, rf"^visual\.(layer{i})\.(\d+)\.") or 0 for i in (1, 2, 3, 4))
        return sizes._replace(kind="ResNet", width=2 * convolution[0], layers=layers, tokens=positions - 1)
    if "visual.positional_embedding" in shapes:
        positions = shapes["visual.positional_embedding"][0]
        layers_count = _count(shapes, r"^visual\.(transformer)\.resblocks\.(\d+)\.")
        patch = (convolution[2], convolution[3])
        return sizes._replace(kind="ViT", width=convolution[0], layers=layers_count, patch=patch, tokens=positions - 1)
    return sizes


def _count(shapes: Mapping[str, Any], pattern: str) -> int | None:
    """Return one more than the largest number in the pattern's second group; None without a match."""
    numbers = [int(match.group(2)) for key in shapes if (match := re.match(pattern, key))]
    return max(numbers) + 1 if numbers else None


def config_sizes(config: Any) -> Sizes:
    """Return the sizes of open_clip's model of a configuration; those of towers of other libraries are unknown."""
    try:
        return _config_sizes(config)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, ZeroDivisionError):  # not a config
        return Sizes()


def _config_sizes(config: Mapping[str, Any]) -> Sizes:
    model = import_open_clip().model
    image, text = model.CLIPVisionCfg(**config["vision_cfg"]), model.CLIPTextCfg(**config["text_cfg"])
    if "multimodal_cfg" in config:
        return Sizes()
    sizes = Sizes(joint_width=config["embed_dim"])
    if not text.hf_model_name:
        context = text.context_length + bool(text.embed_cls)
        sizes = sizes._replace(text_width=text.width, text_layers=text.layers, context=context, vocabulary=text.vocab_size)
    if image.timm_model_name:
        return sizes
    height, width = _pair(image.image_size)
    if not isinstance(image.layers, int):
        tokens = (height // STRIDE) ** 2
        return sizes._replace(kind="ResNet", width=image.width, layers=tuple(image.layers), tokens=tokens)
    patch = _pair(image.patch_size)
    tokens = (height // patch[0]) * (width // patch[1])
    return sizes._replace(kind="ViT", width=image.width, layers=image.layers, patch=patch, tokens=tokens)


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def fit_differences(file_sizes: Sizes, model_sizes: Sizes, keys: Iterable[str]) -> list[str]:
    """Return the keys whose sizes are known for both and differ."""
    pairs = ((key, getattr(file_sizes, key), getattr(model_sizes, key)) for key in keys)
    return [key for key, size, expected in pairs if None not in (size, expected) and size != expected]


def fitting_names(file_sizes: Sizes, like: str) -> list[str]:
    """Return open_clip's architectures of exactly these sizes, only those with the activation of `like` if there are any."""
    if file_sizes == Sizes():
        return []
    open_clip = import_open_clip()
    sizes_by_name = {name: config_sizes(open_clip.get_model_config(name)) for name in open_clip.list_models()}
    names = [name for name, sizes in sizes_by_name.items() if sizes.kind and sizes == file_sizes]
    quick = like.endswith("-quickgelu")
    return [name for name in names if name.endswith("-quickgelu") == quick] or names


@dataclass(frozen=True)
class Fit:
    """Result of a comparison of a weights file with an architecture."""

    warnings: tuple[str, ...] = ()
    resized: Mapping[str, str] = field(default_factory=dict)
    """Original sizes of resized positions, by `grid` and `context`, for a header."""
    alternatives: str = ""
    """Architectures that fit the file, as the end of a message."""


def check_fit(file: Checkpoint, config: Mapping[str, Any], name: str) -> Fit:
    """Compare a file's shapes with those of an architecture, and list the positions that open_clip resizes.

    Raises:
        ModelError: the weights have other sizes, or positions cannot be resized.
    """
    file_sizes, model_sizes, title = stored_sizes(file.shapes), config_sizes(config), escape(file.path.name)
    names = fitting_names(file_sizes, name)
    fitting = f"; it fits --model {' or '.join(names[:3])}" if names and name not in names else ""
    if differing := fit_differences(file_sizes, model_sizes, EXACT):
        parts = ", ".join(f"{_title(key)} {_size_text(getattr(file_sizes, key))}" for key in differing)
        expected = ", ".join(_size_text(getattr(model_sizes, key)) for key in differing)
        raise ModelError(f"{title}: weights of another architecture than {name}: {parts}, expected {expected}{fitting}")
    warnings, resized = [], {}
    if fit_differences(file_sizes, model_sizes, ("tokens",)):
        grids = [_grid(sizes) for sizes in (file_sizes, model_sizes)]
        if file_sizes.kind == "ResNet":
            raise ModelError(
                f"{title}: its attention pooling has positions for {grids[0]}, {name} for {grids[1]}, and these cannot be "
                f"resized{fitting}"
            )
        if math.isqrt(file_sizes.tokens or 0) ** 2 != file_sizes.tokens:
            raise ModelError(
                f"{title}: positions of {file_sizes.tokens} image tokens, which are not a square and cannot be resized to the "
                f"{grids[1]} of {name}{fitting}"
            )
        warnings.append(
            f"{title}: positions for {grids[0]} are resized to the {grids[1]} of {name}: not the model that was trained{fitting}"
        )
        resized["grid"] = grids[0].partition(" tokens")[0]
    if fit_differences(file_sizes, model_sizes, ("context",)):
        warnings.append(
            f"{title}: positions for texts of {file_sizes.context} tokens are resized to the {model_sizes.context} of {name}: "
            f"not the model that was trained{fitting}"
        )
        resized["context"] = str(file_sizes.context)
    return Fit(tuple(warnings), resized, fitting)


def _grid(sizes: Sizes) -> str:
    """Return a grid as `24 x 24 tokens (336 x 336 pixels)`; only the number of tokens if they are not a square."""
    side = math.isqrt(sizes.tokens or 0)
    if side**2 != sizes.tokens:
        return f"{sizes.tokens} tokens"
    down, across = sizes.patch or (STRIDE, STRIDE)
    return f"{side} x {side} tokens ({side * down} x {side * across} pixels)"


def _title(key: str) -> str:
    return {"kind": "image tower", "joint_width": "joint width"}.get(key, key.replace("_", " "))


def _size_text(value: Any) -> str:
    return " x ".join(map(str, value)) if isinstance(value, tuple) else str(value)
