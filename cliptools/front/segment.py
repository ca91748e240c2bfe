"""Heat maps of texts, or label maps of classes, image by image.

front/heat_maps.py has the methods by name, front/label_maps.py the windows of label maps; both are made from the settings.
"""

import os
from collections.abc import Sequence
from typing import Literal

from cliptools.arguments import checked, chosen_templates
from cliptools.console import front_call
from cliptools.errors import UsageError
from cliptools.front.bundles import require_neurons
from cliptools.front.heat_maps import load_segmenter
from cliptools.front.images import Images, open_any
from cliptools.front.label_maps import load_labeller
from cliptools.front.models import check_given
from cliptools.front.prepared import PreparedImages
from cliptools.front.segment_setup import MapSettings, OpenedBundle, check_applicable, opened_bundle, parse_threshold
from cliptools.front.segments import HeatSegments, LabelSegments, SegmentRequest, Segments
from cliptools.images.loader import ImageSource
from cliptools.images.relocate import recorded_source
from cliptools.io.bundle import Bundle
from cliptools.models.load import LoadedModel, load_model, load_recorded_model
from cliptools.models.templates import check_template_options
from cliptools.segmentation.masks import Threshold
from cliptools.segmentation.resnet_methods import CenterClasses


@checked
def segment(
    images: Images | None,
    texts: str | Sequence[str] = (),
    *,
    classes: str | os.PathLike[str] | Sequence[str] | None = None,
    bundle: Bundle | None = None,
    model: LoadedModel | str | None = None,
    method: str | None = None,
    threshold: Threshold | None = None,
    background: str | float | None = None,
    templates: Sequence[str] = (),
    neurons: int | None = None,
    top_pairs: int | None = None,
    sink: Literal["auto", "on", "off"] | None = None,
    center: CenterClasses | None = None,
    size: int | None = None,
    crop: int | None = None,
    stride: int | None = None,
    batch_size: int = 16,
    device: str = "auto",
    strict: bool = False,
    progress: bool = False,
) -> Segments:
    """Find where in images texts are, or label every pixel with one of many classes, as clip-segment does.

    Images are read and segmented while the result is iterated, a batch at a time, so that memory does not grow with their number.

    Args:
        images: Paths, pictures of Pillow, or arrays uint8 [y, x, 3], as `open_any` takes them, but no preprocessed batches,
            because images keep their aspect and are not cropped. None: the scenes that were rendered for the bundle.
        texts: What to find: a text, or several in a list.
        classes: Instead of texts: emoji, imagenet, cifar10, the path of a file with a class per line, or a list of names, each
            with synonyms after commas. With a ResNet or pairs, label maps of all classes; with other units of a ViT, a heat map
            of each image's own best class.
        bundle: Units of the model, as `effects` returns them. None: only for methods without units (all but neurons, signed,
            effects, pairs and heads), with `model`.
        model: The bundle's model, if it is loaded already, or the name that it must have; without a bundle, the model to use.
        method: How maps are made (see clip-segment). None: neurons for a ViT, pairs for a ResNet and for pairs.
        threshold: Value of the heat map from which on a pixel is in the mask, or `mean`, the map's own mean. None: 0.5.
        background: Background of label maps: a class by name, a probability below which a pixel is background, or `none`.
        templates: Sentences with {} in place of the text, whose embeddings are averaged; imagenet, emoji or none.
        neurons: Number of neurons per text (ViT). None: 200.
        top_pairs: Number of pairs per text. None: 13.6 % of the pairs.
        sink: Repair the bottom-right token (ResNet): on, off or auto, where it is measured to stand out. None: auto.
        center: Label maps: subtract the mean over the texts of classes (classes), or not (none). None: classes.
        size: Pixels of the shorter side as the model sees it. None: the model's own size.
        crop: Side of the window of label maps, in the model's pixels. None: the model's own size.
        stride: Pixels from window to window. None: half a window for label maps; heat maps see the whole image at once.
        batch_size: Images of one shape, or windows, at a time.
        device: auto, cpu, cuda, cuda:1 or mps.
        strict: Raise an error for an unreadable image instead of a warning.
        progress: Write progress and messages to standard error; else messages go to the logger `cliptools`.

    Returns:
        The images that can be read, in order: HeatMaps for texts and for a ViT's neurons, LabelMap for classes by pairs.

    Raises:
        UsageError: an argument is invalid, or the model does not use it.
        StreamError: the bundle does not have the units that the method needs.
        ModelError: the model is not available, or not the bundle's.
        CliptoolsError: no image can be read, or memory runs out; also while the result is iterated.
    """
    request = SegmentRequest(
        texts=(texts,) if isinstance(texts, str) else tuple(texts),
        single=isinstance(texts, str),
        threshold=None if threshold is None else parse_threshold(threshold),
        background=None if background is None else str(background),
    )
    named = classes is None or isinstance(classes, str | os.PathLike)
    settings = MapSettings(
        classes=None if classes is None else os.fspath(classes) if named else tuple(classes),  # type: ignore[arg-type]
        method=method, neurons=neurons, top_pairs=top_pairs, sink=sink, center=center, size=size, crop=crop, stride=stride,
        templates=chosen_templates(templates), batch_size=batch_size, device=device, strict=strict,
    )  # fmt: skip
    with front_call(progress):
        request.check(settings.classes)
        settings.check()
        check_template_options(settings.templates)
        source = _source(images, bundle)
        return open_segments(source, _open(bundle, model, settings), settings, request, progress)


def _source(images: Images | None, bundle: Bundle | None) -> ImageSource:
    """Return the images, or the scenes that were rendered for the bundle.

    Raises:
        UsageError: there are neither images nor a bundle of scenes, or the images are preprocessed batches.
    """
    if images is None:
        if bundle is None:
            raise UsageError("images=None: expected images, as there is no bundle whose scenes could be rendered again")
        return recorded_source(bundle, ())
    source = open_any(images)
    if isinstance(source, PreparedImages):
        raise UsageError("images: maps need pictures: give paths, pictures or arrays uint8 [y, x, 3] instead of batches")
    return source


def _open(bundle: Bundle | None, model: LoadedModel | str | None, settings: MapSettings) -> OpenedBundle:
    """Return the bundle with its model, or a model alone.

    Raises:
        UsageError: there is neither.
        CliptoolsError: the bundle has no directions, or the model is not available, or not the bundle's.
    """
    device = settings.device
    if bundle is not None:
        effects = require_neurons(bundle, device=device)
        if isinstance(model, LoadedModel):
            check_given(model, effects)
            return opened_bundle(effects, model, settings.method)
        return opened_bundle(effects, load_recorded_model(effects.header.model, device, name=model), settings.method)
    if model is None:
        raise UsageError("bundle=None, model=None: expected a bundle, or a model for a method without units")
    return opened_bundle(None, model if isinstance(model, LoadedModel) else load_model(model, device=device), settings.method)


def open_segments(
    source: ImageSource, opened: OpenedBundle, settings: MapSettings, request: SegmentRequest, shown: bool
) -> Segments:
    """Return the images with the way to segment them: label maps of classes by pairs, else heat maps.

    Args:
        shown: Write progress and messages to standard error, as `segment`'s `progress`.

    Raises:
        UsageError: a setting is given that the model or the kind of map does not use.
        CliptoolsError: the bundle or the classes do not suit the method.
    """
    label_maps = opened.by_pairs and not request.texts
    check_applicable(
        settings,
        resnet=opened.resnet,
        by_pairs=opened.by_pairs,
        method=opened.method,
        label_maps=label_maps,
        heat_map_only={"--threshold": request.threshold},
        label_map_only={"--background": request.background},
    )
    if not label_maps:
        return HeatSegments(source, settings, shown, load_segmenter(opened, settings), request)
    backgrounds = () if request.background is None else (request.background,)
    return LabelSegments(source, settings, shown, load_labeller(opened, settings.class_names(known=False), settings, backgrounds))
