"""What heat maps and label maps share: their settings, the bundle with its model, the pairs, and the repair of the sink token."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cliptools.arguments import require_number, require_one_of
from cliptools.emoji.render import SceneSource
from cliptools.errors import StreamError, UsageError
from cliptools.front.unit_records import record_source
from cliptools.images.loader import fitted_tensor
from cliptools.io.bundle import Bundle
from cliptools.io.cache import cached
from cliptools.io.header import canonical, digest, recorded_model
from cliptools.io.jsonl import rounded
from cliptools.models.load import LoadedModel
from cliptools.models.unusable import Screen, unusable
from cliptools.segmentation import ALL, BY_NEURONS, BY_PAIRS
from cliptools.segmentation.masks import Threshold
from cliptools.segmentation.pooled_methods import maps_of, pooled_method
from cliptools.segmentation.resnet_methods import CenterClasses, Look, PairUnits, check_top_pairs, resnet_method
from cliptools.segmentation.towers import (
    Corner,
    PoolTokens,
    choose_method,
    corner_of,
    is_resnet,
    on_grid,
    pool_tokens,
    token_stride,
)
from cliptools.text.classes import ClassName, load_classes, parse_class
from cliptools.towers.kinds import output_width

SINK_SCENES = 16  # the same scenes for all images, so that the map of an image does not depend on other images
LISTED = "a list of names"
"""Name in records for classes that are given as a list."""


@dataclass(frozen=True, kw_only=True)
class MapSettings:
    """Arguments of `segment` that set how maps are made; `segment` describes them."""

    classes: str | tuple[str, ...] | None = None
    method: str | None = None
    neurons: int | None = None
    top_pairs: int | None = None
    sink: Literal["auto", "on", "off"] | None = None
    center: CenterClasses | None = None
    size: int | None = None
    crop: int | None = None
    stride: int | None = None
    templates: tuple[str, ...] = ()
    batch_size: int = 16
    device: str = "auto"
    strict: bool = False

    def check(self) -> None:
        """Reject values that the commands' options would reject.

        Raises:
            UsageError: an argument is invalid.
        """
        require_one_of("method", self.method, ALL)
        require_one_of("sink", self.sink, ("auto", "on", "off"))
        require_one_of("center", self.center, ("classes", "none"))
        for name in ("neurons", "top_pairs", "stride", "batch_size"):
            require_number(name, getattr(self, name), 1)
        require_number("size", self.size, 16, 8192)
        require_number("crop", self.crop, 32, 8192)

    @property
    def classes_name(self) -> str | None:
        """The name of the classes in records: that of their list or file, or LISTED; None without classes."""
        return self.classes if self.classes is None or isinstance(self.classes, str) else LISTED

    def class_names(self, known: bool = True) -> tuple[ClassName, ...]:
        """The classes with their synonyms; `known` as for load_classes.

        Raises:
            TextError: the list is unknown, unreadable or empty, or a class has no name.
        """
        if self.classes is None or isinstance(self.classes, str):
            return load_classes(str(self.classes), known)
        return tuple(parse_class(line, known) for line in self.classes)


class OpenedBundle(NamedTuple):
    """A bundle, its model, and the segmentation method."""

    bundle: Bundle | None
    """None for a method that needs no units."""
    model: LoadedModel
    resnet: bool
    """Neuron-head pairs of a CLIP-ResNet (arXiv 2509.19943); otherwise neurons of a ViT (arXiv 2406.04341)."""
    method: str
    by_pairs: bool
    """Methods by neuron-head pairs, of a CLIP-ResNet or of a bundle of pairs of a ViT, which also give label maps."""

    @property
    def units(self) -> Bundle:
        """The bundle, for a method that needs its units.

        Raises:
            UsageError: there is none.
        """
        if self.bundle is None:
            raise UsageError(f"bundle=None: the method {self.method} needs a bundle of units, as `effects` returns it")
        return self.bundle

    @property
    def source(self) -> dict[str, Any]:
        """The fields of records that name the model and, if there is one, the bundle."""
        return {"model": recorded_model(self.model.identity)} if self.bundle is None else record_source(self.bundle)


def opened_bundle(bundle: Bundle | None, model: LoadedModel, method: str | None) -> OpenedBundle:
    """Choose the method for a bundle and its model.

    Raises:
        CliptoolsError: the bundle's directions do not fit the model, or the model does not have the method.
    """
    visual: Any = model.clip.visual
    resnet = is_resnet(model.clip)
    if bundle is not None and (width := bundle["direction"].shape[1]) != output_width(visual):
        raise StreamError(f"the bundle's directions have width {width}, expected the model's output width {output_width(visual)}")
    pairs = not resnet and bundle is not None and "sign" in bundle
    return OpenedBundle(bundle, model, resnet, choose_method(method, model.clip, pairs), resnet or pairs)


def check_texts(texts: Sequence[str], classes: object) -> None:
    """Reject invalid texts.

    Raises:
        UsageError: an empty text, or texts together with classes.
    """
    if any(not text.strip() for text in texts):
        raise UsageError("--text: the text is empty, expected what to look for")
    if texts and classes:
        raise UsageError("--text and --classes both name what to look for: give one of them")


def check_applicable(
    settings: MapSettings,
    *,
    resnet: bool,
    by_pairs: bool,
    method: str,
    label_maps: bool,
    heat_map_only: Mapping[str, object],
    label_map_only: Mapping[str, object],
) -> None:
    """Reject settings that the bundle's model, or the kind of map, does not use.

    Args:
        resnet: The model is a CLIP-ResNet.
        by_pairs: The methods are those of neuron-head pairs.
        method: The method, by the user's choice or by default.
        label_maps: Label maps are made; otherwise heat maps.
        heat_map_only: Further settings for heat maps, by their options.
        label_map_only: Further settings for label maps.

    Raises:
        UsageError: a setting is given that is not used.
    """
    label_map_only = {"--crop": settings.crop, "--center": settings.center, **label_map_only}
    for used, values, reason in (
        (label_maps, label_map_only, "is for label maps: --classes, and a bundle of a CLIP-ResNet or of pairs"),
        (not label_maps, heat_map_only, "is for heat maps (--text); label maps have --background"),
        (not by_pairs, {"--neurons": settings.neurons}, "is for ViTs and bundles of neurons; pairs have --top-pairs"),
        (
            by_pairs,
            {"--top-pairs": settings.top_pairs},
            "is for CLIP-ResNets and for pairs; this bundle has other units of a ViT",
        ),
        (resnet, {"--sink": settings.sink}, "is for CLIP-ResNets; this bundle's model is a ViT"),
        (
            by_pairs or method in BY_NEURONS,
            {"--neurons": settings.neurons},
            f"is for the methods {', '.join(BY_NEURONS)}, not for {method}",
        ),
        (
            not resnet or method in BY_PAIRS,
            {"--top-pairs": settings.top_pairs, "--sink": settings.sink},
            f"is for the methods {', '.join(BY_PAIRS)}, not for {method}",
        ),
    ):
        names = [name for name, value in values.items() if value not in (None, ())]
        if names and not used:
            raise UsageError(f"{names[0]} {reason}")


def parse_threshold(text: str | float) -> Threshold:
    """Read a threshold: a number above 0 and up to 1, or `mean`.

    Raises:
        UsageError: the value is neither.
    """
    if text == "mean":
        return "mean"
    with contextlib.suppress(ValueError):
        if 0 < float(text) <= 1:
            return float(text)
    raise UsageError(f"--threshold {text}: expected a number above 0 and up to 1, or 'mean'")


def pair_units(opened: OpenedBundle, top_pairs: int | None) -> PairUnits | None:
    """The bundle's neuron-head pairs, for the methods that need them; None for the other methods.

    Raises:
        StreamError: the bundle has no pairs.
        UsageError: --top-pairs is larger than the number of pairs.
    """
    if opened.resnet and opened.method not in BY_PAIRS:
        return None
    unit = opened.units["unit"]  # (pair, 3): layer, neuron, head
    if not len(unit) or (unit[:, 1:] < 0).any():
        raise StreamError(f"--method {opened.method} needs neuron-head pairs, this bundle has none (clip-effects --units pairs)")
    k = check_top_pairs(top_pairs, len(unit))
    r = torch.from_numpy(opened.units["direction"]).to(opened.model.device)
    return PairUnits(r, torch.from_numpy(unit), k)


def pair_method(
    opened: OpenedBundle, settings: MapSettings, side: int
) -> tuple[Callable[[Float[Tensor, "text d"]], Look], dict[str, Any]]:
    """The method of a CLIP-ResNet or by pairs of a ViT, from a fixed set of texts, and its fields in records.

    Args:
        side: Side of the pictures that the model sees, in pixels.

    Raises:
        CliptoolsError: the bundle has no pairs, or too few.
    """
    visual: Any = opened.model.clip.visual
    pairs = pair_units(opened, settings.top_pairs)
    if pairs is None:
        return lambda t: resnet_method(opened.method, visual, t), {}
    fields = {"top_pairs": pairs.k, "pairs": len(pairs.r)}
    if not opened.resnet:
        maps = maps_of(visual, pairs.unit)
        return lambda t: pooled_method(opened.method, maps, t, pairs), fields
    repaired, sink = choose_sink_repair(settings.sink or "auto", opened.model, side)
    return lambda t: resnet_method(opened.method, visual, t, pairs, repaired), fields | {"sink": sink}


def choose_sink_repair(mode: str, model: LoadedModel, side: int) -> tuple[bool, dict[str, Any]]:
    """Decide whether the bottom-right token is repaired.

    Args:
        mode: The value of --sink: on, off or auto.
        side: Side of the pictures that the model sees, in pixels.

    Returns:
        The decision, and the fields for records: the decision, its reason and, for `auto`, the measurement.
    """
    if mode != "auto":
        return mode == "on", {"repaired": mode == "on", "by": "option"}
    parts = [model.precision, side, SINK_SCENES, model.preprocessing]
    key = digest("sink", model.sha256, model.computes.digest, canonical(parts))
    measured = cached("sinks", key, (4,), lambda: np.array(_measure_corner(model, side), dtype=np.float32))
    corner = Corner(*measured.tolist())
    values = {name: rounded(value, 4) for name, value in corner._asdict().items()}
    return corner.is_sink, {"repaired": corner.is_sink, "by": "measure", "scenes": SINK_SCENES} | values


def _measure_corner(model: LoadedModel, side: int) -> tuple[float, ...]:
    """The four values of Corner, measured over SINK_SCENES rendered scenes."""
    visual: Any = model.clip.visual
    source = SceneSource(SINK_SCENES, seed=0, size=side)
    down, across = token_stride(visual)
    norms, attentions = [], []
    screen = Screen[int]("rendered scene {}".format, strict=False)
    with torch.inference_mode(), on_grid(visual, side // down, side // across):
        for index in range(SINK_SCENES):
            image = fitted_tensor(source.load(index), side, (1, 1), model.preprocessing)
            tokens = pool_tokens(visual, image[None].to(model.device, visual.conv1.weight.dtype))
            if not screen.places([index], unusable(tokens.embedding, tokens.Z, tokens.a)):
                continue
            norms.append(tokens.Z.norm(dim=-1, keepdim=True))  # (1, patch, 1)
            attentions.append(tokens.a)
    screen.require(len(norms))
    norm = torch.cat(norms)  # (image, patch, 1), in place of Z, of which corner_of uses only the norms
    return tuple(corner_of(PoolTokens(norm, norm, torch.cat(attentions), norm[:, 0], tokens.grid)))
