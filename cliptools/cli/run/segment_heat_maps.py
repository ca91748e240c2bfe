"""A model, a method and texts, put together as the options say."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cliptools.cli.run.bundle_output import record_source
from cliptools.cli.run.segment_open import Opened, pair_units, repair_sink
from cliptools.effects.vit_second_order import neurons_per_layer
from cliptools.errors import CliptoolsError, StreamError, UsageError, out_of_memory
from cliptools.images.loader import fitted_tensor
from cliptools.io.bundle import Bundle
from cliptools.io.header import digest
from cliptools.models.load import LoadedModel
from cliptools.models.text_encoder import class_templates, encode_named, encode_texts, templates_name, text_sentences
from cliptools.models.unusable import unusable
from cliptools.segmentation import BY_NEURONS
from cliptools.segmentation.masks import at_size, min_max
from cliptools.segmentation.resnet_methods import resnet_heat
from cliptools.segmentation.towers import native_size, on_grid, token_stride
from cliptools.segmentation.vit_methods import (
    Method,
    baseline,
    best_text,
    cosines,
    effect_method,
    heat_of,
    neuron_method,
    window_corners,
)
from cliptools.text.classes import distinct_classes, load_classes
from cliptools.text.vocabularies import Pool

NEURONS = 200  # of a ViT's neurons, how many speak for a text


class Found(NamedTuple):
    """One text in one image."""

    text: str
    cosine: float
    """Of M(I) and the text."""
    scores: Tensor
    """Of every patch, or with windows of every pixel as resized. [row, column]"""


@dataclass
class Segmenter:
    """Says where texts are in images; with classes, where each image's own best class is."""

    bundle: Bundle
    model: LoadedModel
    method: Method
    size: int
    stride: int | None
    thresholds: tuple[Any, ...]
    templates: tuple[str, ...]
    settings: dict[str, Any]
    """What every record says: model, bundle, method and all that the heat maps depend on."""
    classes: tuple[str, ...] = ()
    vectors: dict[str, Tensor] = field(default_factory=dict)
    """Texts encoded so far."""

    @property
    def visual(self) -> Any:
        """The image tower, whose attributes torch's own types do not know."""
        return self.model.clip.visual

    def tensor(self, picture: Image.Image) -> Tensor:
        """The picture as the tower takes it. [3, y, x]"""

        return fitted_tensor(picture, self.size, token_stride(self.visual), self.model.preprocessing)

    def find(self, images: Tensor, texts: Sequence[Sequence[str]]) -> list[list[Found] | str]:
        """Each image's texts in it, where it has none its own best class; or the reason why the image is not usable.

        Raises:
            RuntimeError: the device has not the memory for several images; the caller tries fewer.
            CliptoolsError: it has not the memory for a single one.
        """
        try:
            return self._find(images, texts)
        except (RuntimeError, MemoryError) as error:
            if len(images) > 1 or not out_of_memory(error):
                raise
            raise CliptoolsError("out of memory with a single image: lower --size, or use --stride") from None

    def _find(self, images: Tensor, texts: Sequence[Sequence[str]]) -> list[list[Found] | str]:

        visual = self.visual
        images = images.to(self.model.device, visual.conv1.weight.dtype)
        shape = (images.shape[-2], images.shape[-1])
        window = native_size(visual) if self.stride else shape
        corners = window_corners(*shape, window, self.stride or 1)
        down, across = token_stride(visual)
        with on_grid(visual, window[0] // down, window[1] // across):
            if self.classes:
                texts = [[name] for name in self._best(images, corners, window)]
            most = max(map(len, texts))
            self._encode([text for own in texts for text in own])
            padded = [[*own, *[own[0]] * (most - len(own))] for own in texts]
            t = torch.stack([torch.stack([self.vectors[text] for text in own]) for own in padded])  # (b, text, d)
            heat = heat_of(self.method, images, t, corners, window) if self.stride else self.method(images, t)
        cosine = cosines(heat.embedding, t).tolist()
        reasons = unusable(heat.embedding, heat.scores)
        return [
            reasons.get(b) or [Found(text, cosine[b][i], heat.scores[b, i].float().cpu()) for i, text in enumerate(own)]
            for b, own in enumerate(texts)
        ]

    def _best(self, images: Tensor, corners: list[tuple[int, int]], window: tuple[int, int]) -> list[str]:

        with torch.inference_mode():
            seen = [self.visual(images[..., y : y + window[0], x : x + window[1]]) for y, x in corners]
            best = best_text(torch.stack(seen).mean(0), torch.stack([self.vectors[name] for name in self.classes]))
        return [self.classes[i] for i in best.tolist()]

    def _encode(self, texts: Sequence[str]) -> None:

        if new := [text for text in dict.fromkeys(texts) if text not in self.vectors]:
            self.vectors |= dict(zip(new, encode_texts(self.model, *text_sentences(new, self.templates)), strict=True))


def heat_maps(found: Sequence[Found], width: int, height: int) -> "np.ndarray":
    """Maps in [0, 1] at the image's own size. [text, y, x]"""

    return min_max(at_size(torch.stack([one.scores for one in found]), height, width)).numpy()


def load_segmenter(opened: Opened, options: dict[str, Any]) -> Segmenter:
    """Method, texts and classes as the options name them.

    Raises:
        CliptoolsError: a bundle without neurons; a size or stride that cannot be.
    """

    thresholds = tuple(parse_threshold(text) for text in options["thresholds"])
    visual: Any = opened.model.clip.visual
    native = min(native_size(visual))
    size, stride = options["size"] or native, options["stride"]
    if stride and size < max(native_size(visual)):
        raise UsageError(f"--size {size}: windows (--stride) are of the model's own {native} pixels, expected no less")
    method, chosen = (_resnet_method if opened.resnet else _vit_method)(opened, options)
    said = record_source(opened.bundle) | {"method": opened.method} | chosen
    said |= {"size": size, "stride": stride, "templates": templates_name(opened.model.name, options["templates"])}
    templates = class_templates(opened.model.name, options["templates"])
    made = Segmenter(opened.bundle, opened.model, method, size, stride, thresholds, templates, said)
    if options["classes"]:
        _add_classes(made, options["classes"])
    return made


def _vit_method(opened: Opened, options: dict[str, Any]) -> tuple[Method, dict[str, Any]]:
    """The method, and what records say of it."""

    bundle, visual, name = opened.bundle, opened.model.clip.visual, opened.method
    if name not in BY_NEURONS:
        return baseline(name, visual), {}
    _check_units(bundle)
    unit, r = (torch.from_numpy(bundle[key]).to(opened.model.device) for key in ("unit", "direction"))
    _check_within(unit, visual)
    neurons = min(options["neurons"] or NEURONS, bundle.units)
    said = {"neurons": neurons}
    if name == "effects":
        return effect_method(visual, unit, r, neurons), said
    return neuron_method(visual, unit, r, neurons, signed=name == "signed"), said


def _resnet_method(opened: Opened, options: dict[str, Any]) -> tuple[Method, dict[str, Any]]:
    """Likewise."""

    visual: Any = opened.model.clip.visual
    pairs = pair_units(opened, options["top_pairs"])
    if pairs is None:
        return resnet_heat(opened.method, visual), {}
    repaired, measured = repair_sink(options["sink"] or "auto", opened.model, min(native_size(visual)))
    return resnet_heat(opened.method, visual, pairs, repaired), {"top_pairs": pairs.k, "pairs": len(pairs.r), "sink": measured}


def parse_threshold(text: str) -> float | str:
    """A number above 0 and up to 1, or `mean`.

    Raises:
        UsageError: neither.
    """
    try:
        if text == "mean" or 0 < float(text) <= 1:
            return text if text == "mean" else float(text)
    except ValueError:
        pass
    raise UsageError(f"--threshold {text}: expected a number above 0 and up to 1, or 'mean'")


def _check_units(bundle: Bundle) -> None:
    if not bundle.units:
        raise StreamError("the bundle holds no neurons: nothing to choose from (was the selection before it too narrow?)")
    if (bundle["unit"][:, 1] < 0).any() or (bundle["unit"][:, 2] >= 0).any():
        raise StreamError("the bundle is not of single neurons: their patch activations are what this method reads")


def _check_within(unit: Tensor, visual: Any) -> None:

    depth = len(visual.transformer.resblocks)
    for layer in sorted(set(unit[:, 0].tolist())):
        if not 0 <= layer < depth or int(unit[unit[:, 0] == layer, 1].max()) >= neurons_per_layer(visual, layer):
            raise StreamError(f"the bundle has neurons of layer {layer} that the model has not")


def _add_classes(made: Segmenter, name: str) -> None:

    made.classes = tuple(each.name for each in distinct_classes(load_classes(name)))
    pool = Pool(name, made.classes, digest(*made.classes))
    made.vectors |= dict(zip(made.classes, encode_named(made.model, pool, made.templates), strict=True))
    made.settings["classes"] = {"name": name, "count": len(made.classes), "digest": pool.digest}
