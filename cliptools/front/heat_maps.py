"""Heat maps of texts: a `Segmenter` scores the texts of each image by a method of cliptools/segmentation/.

`heat_maps` brings the scores of patches to the image's size. `load_segmenter` makes the segmenter from a bundle and settings.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from cliptools.errors import CliptoolsError, StreamError, UsageError, out_of_memory
from cliptools.front.segment_setup import MapSettings, OpenedBundle, pair_method
from cliptools.images.loader import fitted_tensor
from cliptools.io.bundle import Bundle
from cliptools.io.header import digest
from cliptools.models.load import LoadedModel
from cliptools.models.templates import class_templates, templates_name, text_sentences
from cliptools.models.text_encoder import encode_named, encode_texts
from cliptools.models.unusable import unusable
from cliptools.segmentation import BY_NEURONS
from cliptools.segmentation.masks import at_size, min_max
from cliptools.segmentation.pooled_methods import pooled_effect_method
from cliptools.segmentation.resnet_methods import heat_of
from cliptools.segmentation.towers import native_size, on_grid, token_stride
from cliptools.segmentation.vit_methods import (
    Heat,
    Method,
    baseline,
    best_text,
    cosines,
    effect_method,
    neuron_method,
    sliding_heat,
    window_corners,
)
from cliptools.text.classes import distinct_classes
from cliptools.text.vocabularies import Pool
from cliptools.towers.kinds import tower_of
from cliptools.towers.tower import weight_of
from cliptools.unit_effects.select import unit_tower
from cliptools.unit_effects.vit_second_order import has_units, neurons_per_layer

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
        images = images.to(self.model.device, weight_of(visual).dtype)
        shape = (images.shape[-2], images.shape[-1])
        height, width = native_size(visual) if self.stride else shape
        down, across = token_stride(visual)
        window = height // down * down, width // across * across  # a tower of 384 pixels reads 378 by patches of 14
        corners = window_corners(*shape, window, self.stride or 1)
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


def load_segmenter(opened: OpenedBundle, options: MapSettings) -> Segmenter:
    """Build the segmenter of the settings' method, sizes, templates and classes.

    Raises:
        CliptoolsError: the bundle does not have the units that the method needs, or --size and --stride do not fit the model.
    """
    visual: Any = opened.model.clip.visual
    native = min(native_size(visual))
    size, stride = options.size or native, options.stride
    if stride and size < max(native_size(visual)):
        raise UsageError(f"--size {size}: windows (--stride) have the model's own size of {native} pixels, expected no less")
    method, method_settings = (_pair_method if opened.by_pairs else _vit_method)(opened, options)
    settings = opened.source | {"method": opened.method} | method_settings
    settings |= {"size": size, "stride": stride, "templates": templates_name(opened.model.name, options.templates)}
    templates = class_templates(opened.model.name, options.templates)
    if not options.classes:
        return Segmenter(opened.model, method, size, stride, templates, settings)
    classes = tuple(row.name for row in distinct_classes(options.class_names()))
    pool = Pool(str(options.classes_name), classes, digest(*classes))
    embeddings = dict(zip(classes, encode_named(opened.model, pool, templates), strict=True))
    settings["classes"] = {"name": pool.name, "count": len(classes), "digest": pool.digest}
    return Segmenter(opened.model, method, size, stride, templates, settings, classes, embeddings)


def _vit_method(opened: OpenedBundle, options: MapSettings) -> tuple[Method, dict[str, Any]]:
    """The method of a ViT, and its fields in records."""
    visual: Any = opened.model.clip.visual
    name = opened.method
    if name not in BY_NEURONS:
        return baseline(name, visual), {}
    bundle = opened.units
    _check_units(bundle)
    visual = unit_tower(opened.model.clip, bundle.header.settings)
    unit, r = (torch.from_numpy(bundle[key]).to(opened.model.device) for key in ("unit", "direction"))
    _check_layers(unit, visual)
    neurons = min(options.neurons or NEURONS, bundle.units)
    settings = {"neurons": neurons}
    if name == "effects" and bundle.header.settings.get("effect") == "pooled":
        return pooled_effect_method(visual, unit, r, neurons), settings
    if name == "effects":
        _check_later_layers(unit, visual)
        return effect_method(visual, unit, r, neurons), settings
    return neuron_method(visual, unit, r, neurons, signed=name == "signed"), settings


def _pair_method(opened: OpenedBundle, options: MapSettings) -> tuple[Method, dict[str, Any]]:
    """The method of a CLIP-ResNet or by pairs of a ViT, and its fields in records."""
    method, settings = pair_method(opened, options, min(native_size(opened.model.clip.visual)))
    heat = heat_of(method)
    if opened.resnet or opened.method != "effects":
        return heat, settings

    def positive(image: Float[Tensor, "b 3 y x"], t: Float[Tensor, "b text d"]) -> Heat:
        maps = heat(image, t)
        return maps._replace(scores=maps.scores.relu())

    return positive, settings


def _check_units(bundle: Bundle) -> None:
    """Reject a bundle whose units are not single neurons of a ViT."""
    if not bundle.units:
        raise StreamError("the bundle has no neurons to choose from (was an earlier selection of units too narrow?)")
    if (bundle["unit"][:, 1] < 0).any() or (bundle["unit"][:, 2] >= 0).any():
        raise StreamError("the bundle's units are not single neurons: this method uses the activations of neurons at patches")


def _check_layers(unit: Tensor, visual: Any) -> None:
    """Reject neurons that the model does not have."""
    tower = tower_of(visual)
    for layer in sorted(set(unit[:, 0].tolist())):
        if not has_units(tower, layer) or int(unit[unit[:, 0] == layer, 1].max()) >= neurons_per_layer(tower, layer):
            raise StreamError(f"the bundle has neurons of layer {layer} that the model does not have")


def _check_later_layers(unit: Tensor, visual: Any) -> None:
    """Reject neurons of the last layer, which no later attention reads."""
    last = tower_of(visual).depth - 1
    if bool((unit[:, 0] == last).any()):
        raise StreamError(
            f"--method effects: the bundle has neurons of the last layer ({last}), which have no second-order effects"
        )
