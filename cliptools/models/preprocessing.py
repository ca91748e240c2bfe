"""A model's image preprocessing: from the command line, a bundle, a tag, or settings beside the weights."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from cliptools.errors import ModelError, UsageError
from cliptools.io.header import FROM_OPTION, SETTINGS
from cliptools.library_patches import import_open_clip
from cliptools.models.checkpoints.edited import edit_header
from cliptools.models.origin import HF_PREPROCESSOR, HF_PROCESSOR, OWN_CONFIG, Origin

INTERPOLATIONS, RESIZES = ("bicubic", "bilinear"), ("shortest", "longest", "squash")
COLOURS = ("mean", "std")
LEAST_STD = 1e-6  # pixels divided by less would not fit into the model's numbers
SPELLED = {"mean": "mean", "std": "std", "interpolation": "interpolation", "resize": "resize_mode"}
PIL_FILTERS = {2: "bilinear", 3: "bicubic"}  # codes in transformers' preprocessor_config.json
DEFAULT, SIGLIP_DEFAULT = "default (OpenAI's)", "default (SigLIP's)"
SIGLIP = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"}
"""Preprocessing of all SigLIPs."""
FORM = "TAG, MODEL:TAG, or mean=0.5,std=0.5,interpolation=bicubic,resize=squash"


class Choice(NamedTuple):
    """A preprocessing with its source, and a warning or note about it."""

    settings: dict[str, Any]
    """open_clip's PreprocessCfg in full."""
    source: str
    warning: str | None = None
    note: str | None = None


def named_colours() -> dict[str, dict[str, tuple[float, ...]]]:
    """Return means and standard deviations by name."""
    constants = import_open_clip().constants
    return {
        "openai": {"mean": constants.OPENAI_DATASET_MEAN, "std": constants.OPENAI_DATASET_STD},
        "imagenet": {"mean": constants.IMAGENET_MEAN, "std": constants.IMAGENET_STD},
        "inception": {"mean": constants.INCEPTION_MEAN, "std": constants.INCEPTION_STD},
    }


def parse_preprocess(text: str, model: str) -> dict[str, Any]:
    """Parse --preprocess: a tag, single settings, or a tag followed by single settings.

    >>> parse_preprocess("mean=0.5,resize=squash", "ViT-L-14")
    {'mean': [0.5, 0.5, 0.5], 'resize_mode': 'squash'}

    Args:
        text: Value of the option.
        model: Model whose tags need no prefix.

    Raises:
        UsageError: a tag or setting is unknown, or a value is invalid.
    """
    parts = text.split(",")
    settings = {} if "=" in parts[0] else _tag_settings(parts.pop(0).strip(), model, text)
    names: set[str] = set()
    for part in parts:
        name, equals, value = (side.strip() for side in part.partition("="))
        if not equals or name not in SPELLED:
            slashes = "; three numbers are written 0.48/0.46/0.41" if _is_number(part) else ""
            raise UsageError(f"{FROM_OPTION} {text}: expected {FORM}; found {part.strip()!r}{slashes}")
        if name in names:
            raise UsageError(f"{FROM_OPTION} {text}: {name} is given twice, expected each setting once")
        names.add(name)
        settings[SPELLED[name]] = _parse_value(name, value, text)
    return settings


def _tag_settings(tag: str, model: str, text: str) -> dict[str, Any]:
    released = import_open_clip().pretrained
    name, colon, tag_part = tag.rpartition(":")
    name = name if colon else model
    tag = tag_part if colon else tag
    base_name = name.removesuffix("-quickgelu")
    if settings := released.get_pretrained_cfg(name, tag) or released.get_pretrained_cfg(base_name, tag):
        return {key: _as_list(settings[key]) for key in SETTINGS}
    tags = dict.fromkeys((*released.list_pretrained_tags_by_model(name), *released.list_pretrained_tags_by_model(base_name)))
    tag_list = f"its tags: {', '.join(tags)}" if tags else "open_clip knows no tags of it; name another model's by MODEL:TAG"
    raise UsageError(f"{FROM_OPTION} {text}: expected {FORM}; {tag!r} is not a tag of {name} ({tag_list})")


def _parse_value(name: str, value: str, text: str) -> Any:
    words = {"interpolation": INTERPOLATIONS, "resize": RESIZES}.get(name)
    if words:
        if value not in words:
            raise UsageError(f"{FROM_OPTION} {text}: {name} is one of {', '.join(words)}, found {value!r}")
        return value
    if value in (colours := named_colours()):
        return list(colours[value][name])
    try:
        numbers = [float(number) for number in value.split("/")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 3):
        raise UsageError(
            f"{FROM_OPTION} {text}: {name} is a number, three as 0.48/0.46/0.41, or one of {', '.join(colours)}, found {value!r}"
        )
    if fault := _colour_fault(name, numbers):
        raise UsageError(f"{FROM_OPTION} {text}: {fault}")
    return numbers * 3 if len(numbers) == 1 else numbers


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _colour_fault(name: str, numbers: Iterable[int | float], largest: float = 1) -> str | None:
    """Return why numbers are not a mean or standard deviation of pixels from 0 to 1; None if they are."""
    for number in numbers:
        if not math.isfinite(number) or not 0 <= number <= largest or (name == "std" and number <= LEAST_STD):
            scale = "; divide values for pixels from 0 to 255 by 255" if 1 < number <= 255 else ""
            least = f"above {LEAST_STD:g}" if name == "std" else "from 0"
            return f"{name} of pixels from 0 to 1 is {least} and at most 1, found {number:g}{scale}"
    return None


def recorded_preprocessing(base: Mapping[str, Any], recorded: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return the preprocessing that a bundle, a record or a configuration names, in the model's size.

    Args:
        base: The model's own preprocessing, for settings that the record lacks.
        source: Source of the record, for messages.

    Raises:
        ModelError: a setting is invalid.
    """
    settings = {key: _complete(key, recorded[key]) for key in SETTINGS if recorded.get(key) is not None}
    for key, value in settings.items():
        words = {"interpolation": INTERPOLATIONS, "resize_mode": RESIZES}.get(key)
        numbers = value if isinstance(value, list) else []
        valid = len(numbers) == 3 and all(type(number) in (int, float) for number in numbers)
        if not (value in words if words else valid and _colour_fault(key, numbers, math.inf) is None):
            expected = f"one of {', '.join(words)}" if words else "three numbers"
            raise ModelError(f"{source}: preprocessing `{key}` {str(value)[:40]!r}, expected {expected}")
    if type(fill := recorded.get("fill_color")) is int:
        settings["fill_color"] = fill
    return dict(base) | settings


def _complete(key: str, value: Any) -> Any:
    """Return a setting in full: three numbers for a single one, and bicubic for `random`, as open_clip does."""
    if key in COLOURS and type(value) in (int, float):
        return [value] * 3
    return "bicubic" if value == "random" else _as_list(value)


def choose_preprocessing(base: Mapping[str, Any], origin: Origin, option: str | None, likely_tag: str | None) -> Choice:
    """Choose the preprocessing of a model that no bundle describes.

    Args:
        base: open_clip's preprocessing of the model.
        origin: Origin of its weights.
        option: Value of --preprocess.
        likely_tag: Tag that the file's name contains.
    """
    default = _default_choice(base, origin)
    if option is None:
        return default._replace(note=_default_note(default, origin, likely_tag)) if default.source == DEFAULT else default
    settings = default.settings | parse_preprocess(option, origin.name)
    changes = [
        f"{word} {_value_text(settings[key])} instead of {_value_text(default.settings[key])}"
        for word, key in SPELLED.items()
        if _as_list(settings[key]) != _as_list(default.settings[key])
    ]
    overrides = changes and default.source != DEFAULT
    warning = (
        f"{FROM_OPTION} {option} overrides the preprocessing of {default.source}: {', '.join(changes)}" if overrides else None
    )
    return Choice(settings, f"{FROM_OPTION} {option}", warning)


def _default_choice(base: Mapping[str, Any], origin: Origin) -> Choice:
    """Return the preprocessing without --preprocess: of the tag, of settings beside the weights, or open_clip's default."""
    settings = dict(base)
    if origin.weights is not None and (edit := edit_header(origin.weights)) and edit.model.get("preprocessing"):
        source = f"the metadata of {origin.weights.name}"
        return Choice(recorded_preprocessing(settings, edit.model["preprocessing"], source), source)
    if origin.kind == "embedded":
        return Choice(settings, "the embedded model")
    if origin.kind == "tag":
        return Choice(settings, f"tag {origin.pretrained}")
    folder = str(origin.weights.parent) if origin.weights else origin.name
    config = origin.settings_beside(OWN_CONFIG).get("preprocess_cfg")
    if isinstance(config, dict) and any(config.get(key) is not None for key in SETTINGS):
        return Choice(recorded_preprocessing(settings, config, f"{folder}/{OWN_CONFIG}"), OWN_CONFIG)
    for name, config in _settings_of_transformers(origin).items():
        if hf_settings := _of_transformers(config):
            choice = Choice(recorded_preprocessing(settings, hf_settings, f"{folder}/{name}"), name)
            return choice._replace(warning=_crop_warning(name, config))
    return Choice(settings | SIGLIP, SIGLIP_DEFAULT) if origin.siglip else Choice(settings, DEFAULT)


def _settings_of_transformers(origin: Origin) -> dict[str, dict[str, Any]]:
    """Return transformers' settings of images beside the weights, by their file: one of its own, or one of images and texts."""
    both = origin.settings_beside(HF_PROCESSOR).get("image_processor")
    return {HF_PREPROCESSOR: origin.settings_beside(HF_PREPROCESSOR), HF_PROCESSOR: both if isinstance(both, dict) else {}}


def _default_note(choice: Choice, origin: Origin, likely_tag: str | None) -> str | None:
    """Return a note for weights whose preprocessing is unknown; None if there is no file."""
    if origin.weights is None:
        return None
    title = origin.weights.name
    note = f"no preprocessing is recorded beside {title}: OpenAI's mean and deviation are used"
    if likely_tag is None:
        return f"{note}; {FROM_OPTION} sets another"
    likely = _tag_settings(likely_tag, origin.name, likely_tag)
    if all(likely[key] == _as_list(choice.settings[key]) for key in SETTINGS):
        return f"{note}, as of tag {likely_tag}"
    differences = ", ".join(
        f"{word} {_value_text(likely[key])}" for word, key in SPELLED.items() if likely[key] != _as_list(choice.settings[key])
    )
    return f"{note}, but tag {likely_tag} has {differences}: {FROM_OPTION} {likely_tag} takes these"


def _of_transformers(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return open_clip's form of transformers' settings of images; empty if there are none, or steps of another kind."""
    size = config.get("size")
    if config.get("do_resize") is False or config.get("do_rescale") is False or not isinstance(size, int | dict):
        return {}
    settings: dict[str, Any] = {"mean": [0.0] * 3, "std": [1.0] * 3}
    if config.get("do_normalize", True):
        settings = {"mean": config.get("image_mean"), "std": config.get("image_std")}
    kind = str(config.get("image_processor_type", config.get("feature_extractor_type", "CLIP")))
    square = "shortest_edge" not in size if isinstance(size, dict) else not kind.startswith("CLIP")
    settings["interpolation"] = PIL_FILTERS.get(config.get("resample", 3))
    settings["resize_mode"] = "squash" if square else "shortest"
    return settings if None not in settings.values() else {}


def _crop_warning(name: str, config: Mapping[str, Any]) -> str | None:
    """Return a warning if transformers crops less than it resizes to, for which open_clip has no setting; else None."""
    size, crop = (_short_side(config.get(key)) for key in ("size", "crop_size"))
    if not config.get("do_center_crop") or None in (size, crop) or size == crop:
        return None
    return (
        f"{name} resizes to {size} pixels and crops {crop}; here pictures are resized to the size that is cropped, so "
        "the model sees more of them"
    )


def _short_side(size: Any) -> int | None:
    """Return the shorter side of a size in transformers' form."""
    if isinstance(size, dict):
        size = size.get("shortest_edge", size.get("height"))
    return size if isinstance(size, int) else None


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _value_text(value: Any) -> str:
    """Return a setting in the form of --preprocess."""
    if not isinstance(value, list | tuple):
        return str(value)
    return f"{value[0]:g}" if len(set(value)) == 1 else "/".join(f"{number:g}" for number in value)


def size_of_trunk(clip: nn.Module) -> None:
    """Give a tower of timm's the size of pictures that its positions have; open_clip states 256 pixels for ViTamin-XL-384."""
    visual: Any = clip.visual
    size = getattr(getattr(getattr(visual, "trunk", None), "patch_embed", None), "img_size", None)
    if size is None or getattr(visual.trunk, "dynamic_img_size", False) or tuple(size) == tuple(visual.image_size):
        return
    visual.image_size = tuple(size)
    visual.preprocess_cfg = dict(getattr(visual, "preprocess_cfg", {})) | {"size": tuple(size)}


def seen_picture(pixels: Float[Tensor, "3 y x"], preprocessing: Mapping[str, Any]) -> Image.Image:
    """Return the picture that the model sees, from its normalised pixels."""
    mean, deviation = (np.array(preprocessing[key], dtype=np.float32)[:, None, None] for key in ("mean", "std"))
    values = pixels.float().cpu().numpy() * deviation + mean  # (3, y, x), 0 to 1
    return Image.fromarray((255 * values).clip(0, 255).round().astype(np.uint8).transpose(1, 2, 0))
