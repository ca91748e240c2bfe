"""The activation that a model's weights were trained with, from the weights file, its name and the settings beside it."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cliptools.library_patches import import_open_clip
from cliptools.models.checkpoints.transformers_form import ACTIVATIONS
from cliptools.models.origin import HF_CONFIG, OWN_CONFIG, Origin
from cliptools.models.weights_file import Fit, stored_sizes

QUICK = {True: "QuickGELU", False: "GELU"}
LEAST_DIGEST = 7  # fewest hexadecimal digits of a sha256 that identify a file


class Trained(NamedTuple):
    """The activation that weights were trained with."""

    quick: bool
    reason: str

    def __str__(self) -> str:
        return f"{QUICK[self.quick]}, {self.reason}"


def trained_activation(origin: Origin) -> Trained | None:
    """Return the activation by the file's form, else by settings beside it, its names, digest or types; None if unknown."""
    return next(_evidence(origin), None)


def named_tag(origin: Origin) -> str | None:
    """Return the longest of open_clip's tags that the name of a weights file or of its folder contains; None without one."""
    tags = _tags(origin.name)
    for _, name in _names(origin):
        if matches := [tag for tag in tags if f"_{tag}_" in name]:
            return max(matches, key=len)
    return None


def _evidence(origin: Origin) -> Iterator[Trained]:
    """Yield all evidence of the activation, the most reliable first."""
    file = origin.file
    if file is None or origin.weights is None:
        return
    if file.edit is not None and isinstance(activation := file.edit.model.get("activation"), dict):
        yield Trained(any("QuickGELU" in str(name) for name in activation.values()), "its metadata, of clip-edit, say so")
    if file.openai:  # before settings beside it, which may belong to another file
        yield Trained(True, "it has the form of OpenAI's own releases")
    yield from _evidence_of_settings(origin)
    yield from _evidence_of_names(origin)
    if origin.weights.suffix != ".safetensors" and (by_digest := _evidence_of_digest(origin.weights)):
        yield by_digest
    if file.mixed_precision:
        yield Trained(True, "its matrices are of half precision and its norms of single, as OpenAI's code keeps them")


def _evidence_of_settings(origin: Origin) -> Iterator[Trained]:
    """Yield evidence from settings in the folder: open_clip's, unless they define the model itself, and transformers'."""
    model_config = origin.settings_beside(OWN_CONFIG).get("model_cfg") if origin.kind == "file" else None
    if isinstance(model_config, dict):
        yield Trained(bool(model_config.get("quick_gelu", False)), f"{OWN_CONFIG} beside it says so")
    config = origin.settings_beside(HF_CONFIG)
    if _of_other_weights(config, origin):
        return
    for part in (config.get("vision_config"), config.get("text_config")):
        if isinstance(part, dict) and isinstance(act := part.get("hidden_act"), str) and act in ACTIVATIONS:
            yield Trained(act == "quick_gelu", f"{HF_CONFIG} beside it has hidden_act {act}")


def _of_other_weights(config: Mapping[str, Any], origin: Origin) -> bool:
    """Return whether transformers' settings describe an image tower of other sizes than the file's."""
    image = config.get("vision_config")
    if origin.file is None or not isinstance(image, dict):
        return False
    file_sizes = stored_sizes(origin.file.shapes)
    sizes = {
        "hidden_size": file_sizes.width,
        "num_hidden_layers": file_sizes.layers,
        "patch_size": file_sizes.patch and file_sizes.patch[0],
    }
    return any(None not in (size, image.get(key)) and image[key] != size for key, size in sizes.items())


def _evidence_of_names(origin: Origin) -> Iterator[Trained]:
    """Yield evidence from the names of the file and of its folder."""
    tags = _tags(origin.name)
    for title, name in _names(origin):
        if "quickgelu" in name.replace("_", ""):
            yield Trained(True, f"{title} contains quickgelu")
        if matches := [tag for tag in tags if f"_{tag}_" in name]:
            tag = max(matches, key=len)
            yield Trained(tags[tag], f"{title} contains {tag}")
        families: dict[str, set[bool]] = {}
        for tag, quick in tags.items():
            families.setdefault(tag.partition("_")[0], set()).add(quick)
        for family, values in families.items():
            if f"_{family}_" in name and len(values) == 1:
                yield Trained(values.pop(), f"{title} contains {family}")
        if "openai" in name:
            yield Trained(True, f"{title} contains openai")


def _names(origin: Origin) -> Iterator[tuple[str, str]]:
    """Yield the names of the file and of its folder, in lower case, with underscores for everything but letters and digits.

    In a hub's cache the model's name is two folders further up.
    """
    if (path := origin.weights) is None:
        return
    folder = path.absolute().parent
    if folder.parent.name == "snapshots":
        folder = folder.parent.parent
    for title, name in (("its name", path.stem), ("its folder's name", folder.name)):
        yield title, f"_{re.sub('[^a-z0-9]+', '_', name.lower()).strip('_')}_"


def _tags(name: str) -> dict[str, bool]:
    """Return open_clip's tags of an architecture, each with True if its weights need QuickGELU."""
    released = import_open_clip().pretrained

    base_name = name.removesuffix("-quickgelu")
    tags = dict.fromkeys((*released.list_pretrained_tags_by_model(base_name), *released.list_pretrained_tags_by_model(name)))
    settings = {tag: released.get_pretrained_cfg(base_name, tag) or released.get_pretrained_cfg(name, tag) for tag in tags}
    return {tag: bool(config.get("quick_gelu", False)) for tag, config in settings.items()}


def _evidence_of_digest(path: Path) -> Trained | None:
    """Return the activation of a file whose sha256 open_clip knows; None for other files."""
    releases = _known_digests()
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    for start, (title, quick) in releases.items():
        if digest.startswith(start):
            return Trained(quick, f"its sha256 is that of {title}")
    return None


def _known_digests() -> dict[str, tuple[str, bool]]:
    """Return model, tag and activation of released files by the first digits of their sha256, which their addresses contain."""
    released = import_open_clip().pretrained

    releases: dict[str, tuple[str, bool]] = {}
    for name, tag in released.list_pretrained():
        config: Mapping[str, Any] = released.get_pretrained_cfg(name, tag)
        address = str(config.get("url", ""))
        start = address.split("/")[-2] if "openaipublic" in address else Path(address).stem.rpartition("-")[2]
        if len(start) >= LEAST_DIGEST and re.fullmatch("[0-9a-f]+", start):
            releases.setdefault(start, (f"{name} {tag}", bool(config.get("quick_gelu", False))))
    return releases


def activation_advice(origin: Origin, quick: bool, trained: Trained | None) -> tuple[str | None, str | None]:
    """Return a warning if the weights were trained with another activation, and a note if that is unknown for a file."""
    if origin.weights is None or origin.file is None:
        return None, None
    title = origin.weights.name
    if trained is None:
        note = f"nothing in {title} says which activation it was trained with; {origin.name} computes {QUICK[quick]}"
        return None, note if origin.kind == "file" else None
    if trained.quick == quick:
        return None, None
    return (
        f"{origin.name} computes {QUICK[quick]}, but {title} was trained with {QUICK[trained.quick]} ({trained.reason}): "
        f"all numbers will be off{_activation_hint(origin, trained.quick)}"
    ), None


def model_sources(origin: Origin, trained: Trained | None, fit: Fit) -> dict[str, str]:
    """Return the sources of a model's activation, grid and text positions, as headers record them."""
    config = HF_CONFIG if origin.translated else OWN_CONFIG
    source = {"folder": config, "hub": config, "embedded": "the embedded model"}.get(origin.kind, f"name {origin.name}")
    title = origin.weights.name if origin.weights else ""
    sources = {"activation": source, "grid": source}
    if origin.kind == "tag":
        tags = _tags(origin.name)
        sources["activation"] += f"; tag {origin.pretrained} has {QUICK[tags.get(str(origin.pretrained), False)]}"
    elif origin.file is not None:
        sources["activation"] += f"; {title} has {trained}" if trained else f"; nothing known of {title}"
    for key, size in fit.resized.items():
        sources[key] = f"{source}, positions resized from {size} in {title}"
    return sources


def _activation_hint(origin: Origin, quick: bool) -> str:
    """Return advice for another activation, as the end of a message; empty if there is none."""
    if origin.kind != "file":
        return f"; set quick_gelu to {str(quick).lower()} in its {OWN_CONFIG}"
    base_name = origin.name.removesuffix("-quickgelu")
    alternative = f"{base_name}-quickgelu" if quick else base_name
    return f"; use --model {alternative}" if alternative in import_open_clip().list_models() else ""
