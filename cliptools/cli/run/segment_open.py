"""The base of clip-segment and clip-segment-eval: their common options, the bundle with its model, and the attention sink."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from cliptools.cli.app import Output, Reading
from cliptools.cli.run.bundle_output import read_neurons
from cliptools.emoji.render import SceneSource
from cliptools.errors import StreamError, UsageError
from cliptools.images.loader import fitted_tensor
from cliptools.io.bundle import Bundle
from cliptools.io.cache import cached
from cliptools.io.header import canonical, digest
from cliptools.io.jsonl import rounded
from cliptools.models.load import LoadedModel, load_recorded_model
from cliptools.models.text_encoder import check_template_options
from cliptools.models.unusable import Screen, unusable
from cliptools.segmentation import BY_PAIRS
from cliptools.segmentation.resnet_methods import CenterClasses, PairUnits, check_top_pairs
from cliptools.segmentation.resnet_tokens import Corner, PoolTokens, corner_of, pool_tokens
from cliptools.segmentation.towers import is_resnet, method_of, on_grid, token_stride

SINK_SCENES = 16  # the same scenes for all images, so that the map of an image does not depend on other images


@dataclass(frozen=True, kw_only=True)
class Segmenting(Output, Reading):
    """Options of both commands: the images, the classes, the method and its settings, the bundle and the device."""

    paths: tuple[str, ...]
    classes: str | None
    method: str | None
    neurons: int | None
    top_pairs: int | None
    sink: Literal["auto", "on", "off"] | None
    center: CenterClasses | None
    size: int | None
    crop: int | None
    stride: int | None
    templates: tuple[str, ...]
    bundle: Path | None
    strict: bool
    batch_size: int
    device: str


class Opened(NamedTuple):
    """A bundle, its model, and the segmentation method."""

    bundle: Bundle
    model: LoadedModel
    resnet: bool
    """Neuron-head pairs of a CLIP-ResNet (arXiv 2509.19943); otherwise neurons of a ViT (arXiv 2406.04341)."""
    method: str


def check_inputs(options: Segmenting) -> None:
    """Reject invalid images, texts and templates before any input is read.

    Raises:
        UsageError: no images, two inputs on standard input, or invalid templates.
    """
    if not options.paths:
        raise UsageError("no images named: give files, folders, tar archives, or - for a tar on standard input")
    if "-" in options.paths and (options.bundle is None or str(options.bundle) == "-"):
        raise UsageError("images (-) and the bundle cannot both come from standard input: name the bundle by --bundle FILE")
    check_template_options(options.templates)


def check_texts(texts: tuple[str, ...], classes: str | None) -> None:
    """Reject invalid values of --text.

    Raises:
        UsageError: an empty text, or --text together with --classes.
    """
    if any(not text.strip() for text in texts):
        raise UsageError("--text: the text is empty, expected what to look for")
    if texts and classes:
        raise UsageError("--text and --classes both name what to look for: give one of them")


def check_applicable(
    options: Segmenting,
    *,
    resnet: bool,
    label_maps: bool,
    heat_map_only: Mapping[str, object],
    label_map_only: Mapping[str, object],
) -> None:
    """Reject options that the bundle's model, or the kind of map, does not use.

    Args:
        resnet: The model is a CLIP-ResNet.
        label_maps: The command makes label maps; otherwise it makes heat maps.
        heat_map_only: The command's own options for heat maps, by name.
        label_map_only: Its own options for label maps.

    Raises:
        UsageError: an option is given that is not used.
    """
    label_map_only = {"--crop": options.crop, "--center": options.center, **label_map_only}
    for used, values, reason in (
        (label_maps, label_map_only, "is for label maps: --classes, and a bundle of a CLIP-ResNet"),
        (not label_maps, heat_map_only, "is for heat maps (--text); label maps have --background"),
        (not resnet, {"--neurons": options.neurons}, "is for ViTs; a ResNet has --top-pairs"),
        (resnet, {"--top-pairs": options.top_pairs, "--sink": options.sink}, "is for CLIP-ResNets; this bundle's model is a ViT"),
    ):
        given = [name for name, value in values.items() if value not in (None, ())]
        if given and not used:
            raise UsageError(f"{given[0]} {reason}")


def open_bundle(options: Segmenting) -> Opened:
    """Read the bundle of --bundle or standard input, and load its model.

    Raises:
        CliptoolsError: the bundle cannot be read, its model is not available, or the model does not have the method.
    """
    bundle = read_neurons(options.bundle, option="--bundle", device=options.device)
    model = load_recorded_model(bundle.header.model, options.device)
    resnet = is_resnet(model.clip)
    visual: Any = model.clip.visual
    if (width := bundle["direction"].shape[1]) != visual.output_dim:
        raise StreamError(f"the bundle's directions have width {width}, expected the model's output width {visual.output_dim}")
    return Opened(bundle, model, resnet, method_of(options.method, resnet))


def pair_units(opened: Opened, top_pairs: int | None) -> PairUnits | None:
    """The bundle's neuron-head pairs, for the methods that need them; None for the other methods.

    Raises:
        StreamError: the bundle has no pairs.
        UsageError: --top-pairs is larger than the number of pairs.
    """
    if opened.method not in BY_PAIRS:
        return None
    unit = opened.bundle["unit"]  # (pair, 3): layer, neuron, head
    if not len(unit) or (unit[:, 1:] < 0).any():
        raise StreamError(f"--method {opened.method} needs neuron-head pairs, this bundle has none (clip-effects --units pairs)")
    k = check_top_pairs(top_pairs, len(unit))
    r = torch.from_numpy(opened.bundle["direction"]).to(opened.model.device)
    return PairUnits(r, torch.from_numpy(unit), k)


def choose_sink_repair(asked: str, model: LoadedModel, side: int) -> tuple[bool, dict[str, Any]]:
    """Decide whether the bottom-right token is repaired.

    Args:
        asked: The value of --sink.
        side: Side of the pictures that the model sees, in pixels.

    Returns:
        The decision, and the fields for records: the decision, its reason and, for `auto`, the measurement.
    """
    if asked != "auto":
        return asked == "on", {"repaired": asked == "on", "by": "option"}
    parts = [model.precision, side, SINK_SCENES, model.preprocessing]
    key = digest("sink", model.sha256, model.computes.digest, canonical(parts))
    measured = cached("sinks", key, (4,), lambda: np.array(_measure_corner(model, side), dtype=np.float32))
    corner = Corner(*measured.tolist())
    values = {name: rounded(value, 4) for name, value in corner._asdict().items()}
    return corner.is_sink, {"repaired": corner.is_sink, "by": "measure", "scenes": SINK_SCENES} | values


def _measure_corner(model: LoadedModel, side: int) -> tuple[float, ...]:
    """The four values of Corner, over rendered scenes."""
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
    norm = torch.cat(norms)  # (image, patch, 1): corner_of reads no more of Z than its norms
    return tuple(corner_of(PoolTokens(norm, norm, torch.cat(attentions), norm[:, 0], tokens.grid)))
