"""Two ideas: what clip-segment and clip-segment-eval share (options, bundle, model, sink repair), and heat maps of texts.

A `Segmenter` scores the texts of each image by a method of cliptools/segmentation/; `heat_maps` brings them to the image's size.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from cliptools.cli.app import Output, Reading
from cliptools.cli.run.bundle_output import read_neurons
from cliptools.emoji.render import SceneSource
from cliptools.errors import CliptoolsError, StreamError, UsageError, out_of_memory
from cliptools.front.unit_records import record_source
from cliptools.images.loader import fitted_tensor
from cliptools.io.bundle import Bundle
from cliptools.io.cache import cached
from cliptools.io.header import canonical, digest
from cliptools.io.jsonl import rounded
from cliptools.models.load import LoadedModel, load_recorded_model
from cliptools.models.text_encoder import (
    check_template_options,
    class_templates,
    encode_named,
    encode_texts,
    templates_name,
    text_sentences,
)
from cliptools.models.unusable import Screen, unusable
from cliptools.segmentation import BY_NEURONS, BY_PAIRS
from cliptools.segmentation.masks import Threshold, at_size, min_max
from cliptools.segmentation.resnet_methods import CenterClasses, PairUnits, check_top_pairs, resnet_heat
from cliptools.segmentation.towers import (
    Corner,
    PoolTokens,
    choose_method,
    corner_of,
    is_resnet,
    native_size,
    on_grid,
    pool_tokens,
    token_stride,
)
from cliptools.segmentation.vit_methods import (
    Method,
    baseline,
    best_text,
    cosines,
    effect_method,
    neuron_method,
    sliding_heat,
    window_corners,
)
from cliptools.text.classes import distinct_classes, load_classes
from cliptools.text.vocabularies import Pool
from cliptools.unit_effects.vit_second_order import neurons_per_layer

SINK_SCENES = 16  # the same scenes for all images, so that the map of an image does not depend on other images


@dataclass(frozen=True, kw_only=True)
class CommonOptions(Output, Reading):
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


class OpenedBundle(NamedTuple):
    """A bundle, its model, and the segmentation method."""

    bundle: Bundle
    model: LoadedModel
    resnet: bool
    """Neuron-head pairs of a CLIP-ResNet (arXiv 2509.19943); otherwise neurons of a ViT (arXiv 2406.04341)."""
    method: str


def check_inputs(options: CommonOptions) -> None:
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
    options: CommonOptions,
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
        names = [name for name, value in values.items() if value not in (None, ())]
        if names and not used:
            raise UsageError(f"{names[0]} {reason}")


def open_bundle(options: CommonOptions) -> OpenedBundle:
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
    return OpenedBundle(bundle, model, resnet, choose_method(options.method, resnet))


def pair_units(opened: OpenedBundle, top_pairs: int | None) -> PairUnits | None:
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


NEURONS = 200  # neurons per text, by default


class TextScores(NamedTuple):
    """Scores of one text over one image."""

    text: str
    cosine: float
    """Between M(I) and the text."""
    scores: Float[Tensor, "row column"]
    """Score of every patch; with --stride, of every pixel of the resized image."""


@dataclass(frozen=True)
class Segmenter:
    """Scores texts over images; if it has classes, it scores each image's best class instead."""

    model: LoadedModel
    method: Method
    size: int
    stride: int | None
    templates: tuple[str, ...]
    settings: dict[str, Any]
    """Fields of every record: the model, the bundle, the method and all other settings of the heat maps."""
    classes: tuple[str, ...] = ()
    embeddings: dict[str, Tensor] = field(default_factory=dict)
    """Embeddings of texts by text; each text is encoded once, with the first batch that has the text."""

    @property
    def visual(self) -> Any:
        """The image tower; typed as Any, since torch's types do not have its attributes."""
        return self.model.clip.visual

    def tensor(self, picture: Image.Image) -> Float[Tensor, "3 y x"]:
        """The picture resized to whole patches and normalised."""
        return fitted_tensor(picture, self.size, token_stride(self.visual), self.model.preprocessing)

    def score(self, images: Float[Tensor, "b 3 y x"], texts: Sequence[Sequence[str]]) -> list[list[TextScores] | str]:
        """Score the texts of each image; where the segmenter has classes, the image's best class instead.

        Returns:
            For each image the scores, or the reason why the image is not usable.

        Raises:
            RuntimeError: the device has too little memory for several images; the caller retries with fewer.
            CliptoolsError: the device has too little memory for a single image.
        """
        try:
            return self._score(images, texts)
        except (RuntimeError, MemoryError) as error:
            if len(images) > 1 or not out_of_memory(error):
                raise
            raise CliptoolsError("out of memory with a single image: lower --size, or use --stride") from None

    def _score(self, images: Float[Tensor, "b 3 y x"], texts: Sequence[Sequence[str]]) -> list[list[TextScores] | str]:
        visual = self.visual
        images = images.to(self.model.device, visual.conv1.weight.dtype)
        shape = (images.shape[-2], images.shape[-1])
        window = native_size(visual) if self.stride else shape
        corners = window_corners(*shape, window, self.stride or 1)
        down, across = token_stride(visual)
        with on_grid(visual, window[0] // down, window[1] // across):
            if self.classes:
                texts = [[name] for name in self._best_classes(images, corners, window)]
            longest = max(map(len, texts))
            self._encode([text for row in texts for text in row])
            padded = [[*row, *[row[0]] * (longest - len(row))] for row in texts]  # every image with the same number of texts
            t = torch.stack([torch.stack([self.embeddings[text] for text in row]) for row in padded])  # (b, text, d)
            heat = sliding_heat(self.method, images, t, corners, window) if self.stride else self.method(images, t)
        cosine = cosines(heat.embedding, t).tolist()  # (b, text)
        reasons = unusable(heat.embedding, heat.scores)  # scores: (b, text, row, column)
        return [
            reasons.get(b) or [TextScores(text, cosine[b][i], heat.scores[b, i].float().cpu()) for i, text in enumerate(row)]
            for b, row in enumerate(texts)
        ]

    def _best_classes(
        self, images: Float[Tensor, "b 3 y x"], corners: list[tuple[int, int]], window: tuple[int, int]
    ) -> list[str]:
        """The name of the class closest to each image's M(I), which is averaged over the windows."""
        with torch.inference_mode():
            embeddings = [self.visual(images[..., y : y + window[0], x : x + window[1]]) for y, x in corners]  # (b, d) each
            t = torch.stack([self.embeddings[name] for name in self.classes])  # (class, d)
            best = best_text(torch.stack(embeddings).mean(0), t)  # (window, b, d) -> (b,)
        return [self.classes[i] for i in best.tolist()]

    def _encode(self, texts: Sequence[str]) -> None:
        if new := [text for text in dict.fromkeys(texts) if text not in self.embeddings]:
            self.embeddings.update(zip(new, encode_texts(self.model, *text_sentences(new, self.templates)), strict=True))


def heat_maps(scores: Sequence[TextScores], width: int, height: int) -> Float[np.ndarray, "text y x"]:
    """Heat maps in [0, 1] at the image's own size."""
    return min_max(at_size(torch.stack([text.scores for text in scores]), height, width)).numpy()


def load_segmenter(opened: OpenedBundle, options: CommonOptions) -> Segmenter:
    """Build the segmenter of the options' method, sizes, templates and classes.

    Raises:
        CliptoolsError: the bundle does not have the units that the method needs, or --size and --stride do not fit the model.
    """
    visual: Any = opened.model.clip.visual
    native = min(native_size(visual))
    size, stride = options.size or native, options.stride
    if stride and size < max(native_size(visual)):
        raise UsageError(f"--size {size}: windows (--stride) have the model's own size of {native} pixels, expected no less")
    method, method_settings = (_resnet_method if opened.resnet else _vit_method)(opened, options)
    settings = record_source(opened.bundle) | {"method": opened.method} | method_settings
    settings |= {"size": size, "stride": stride, "templates": templates_name(opened.model.name, options.templates)}
    templates = class_templates(opened.model.name, options.templates)
    if not options.classes:
        return Segmenter(opened.model, method, size, stride, templates, settings)
    classes = tuple(row.name for row in distinct_classes(load_classes(options.classes)))
    pool = Pool(options.classes, classes, digest(*classes))
    embeddings = dict(zip(classes, encode_named(opened.model, pool, templates), strict=True))
    settings["classes"] = {"name": options.classes, "count": len(classes), "digest": pool.digest}
    return Segmenter(opened.model, method, size, stride, templates, settings, classes, embeddings)


def _vit_method(opened: OpenedBundle, options: CommonOptions) -> tuple[Method, dict[str, Any]]:
    """The method of a ViT, and its fields in records."""
    bundle, visual, name = opened.bundle, opened.model.clip.visual, opened.method
    if name not in BY_NEURONS:
        return baseline(name, visual), {}
    _check_units(bundle)
    unit, r = (torch.from_numpy(bundle[key]).to(opened.model.device) for key in ("unit", "direction"))
    _check_layers(unit, visual)
    neurons = min(options.neurons or NEURONS, bundle.units)
    settings = {"neurons": neurons}
    if name == "effects":
        return effect_method(visual, unit, r, neurons), settings
    return neuron_method(visual, unit, r, neurons, signed=name == "signed"), settings


def _resnet_method(opened: OpenedBundle, options: CommonOptions) -> tuple[Method, dict[str, Any]]:
    """The method of a CLIP-ResNet, and its fields in records."""
    visual: Any = opened.model.clip.visual
    pairs = pair_units(opened, options.top_pairs)
    if pairs is None:
        return resnet_heat(opened.method, visual), {}
    repaired, sink = choose_sink_repair(options.sink or "auto", opened.model, min(native_size(visual)))
    return resnet_heat(opened.method, visual, pairs, repaired), {"top_pairs": pairs.k, "pairs": len(pairs.r), "sink": sink}


def parse_threshold(text: str) -> Threshold:
    """Read a value of --threshold: a number above 0 and up to 1, or `mean`.

    Raises:
        UsageError: the value is neither.
    """
    if text == "mean":
        return "mean"
    with contextlib.suppress(ValueError):
        if 0 < float(text) <= 1:
            return float(text)
    raise UsageError(f"--threshold {text}: expected a number above 0 and up to 1, or 'mean'")


def _check_units(bundle: Bundle) -> None:
    """Reject a bundle whose units are not single neurons of a ViT."""
    if not bundle.units:
        raise StreamError("the bundle has no neurons to choose from (was an earlier selection of units too narrow?)")
    if (bundle["unit"][:, 1] < 0).any() or (bundle["unit"][:, 2] >= 0).any():
        raise StreamError("the bundle's units are not single neurons: this method uses the activations of neurons at patches")


def _check_layers(unit: Tensor, visual: Any) -> None:
    """Reject neurons that the model does not have."""
    depth = len(visual.transformer.resblocks)
    for layer in sorted(set(unit[:, 0].tolist())):
        if not 0 <= layer < depth or int(unit[unit[:, 0] == layer, 1].max()) >= neurons_per_layer(visual, layer):
            raise StreamError(f"the bundle has neurons of layer {layer} that the model does not have")
