"""Label maps of many classes by neuron-head pairs: model, method, classes and windows, put together from the settings.

`load_labeller` checks the settings and encodes the classes. Its `Labeller` computes the logits of all texts in windows of a
picture, averaged where windows overlap; cliptools/segmentation/masks.py makes labels of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from cliptools.devices import Limit, in_halves
from cliptools.errors import CliptoolsError, ImageError, UsageError, out_of_memory
from cliptools.front.segment_setup import MapSettings, OpenedBundle, pair_method
from cliptools.images.loader import fitted_tensor
from cliptools.io.header import digest
from cliptools.models.load import LoadedModel
from cliptools.models.templates import class_templates, templates_name
from cliptools.models.text_encoder import encode_named
from cliptools.models.unusable import unusable
from cliptools.segmentation.masks import MemoryLimits, WindowAverage, window_starts
from cliptools.segmentation.resnet_methods import Logits, Look, class_texts
from cliptools.segmentation.towers import native_size, on_grid, token_stride
from cliptools.text.classes import ClassName, distinct_names
from cliptools.text.vocabularies import Pool
from cliptools.towers.tower import weight_of

Cut = float | None
"""The probability below which a pixel is background; None where every pixel gets a class."""
SCENES_SOURCE = "of the scenes"
"""Name in records for a list of classes that comes from the scenes themselves."""


@dataclass(frozen=True)
class Labeller:
    """Computes the logits of all class texts over an image, and holds the classes by which pixels are labelled."""

    model: LoadedModel
    look: Look
    classes: tuple[str, ...]
    """Names by label: the background, then the classes from 1."""
    label_of_text: Int[Tensor, " text"]
    """The label of each text: a class may have several texts."""
    has_background: bool
    """True if the background is one of the classes."""
    cuts: tuple[Cut, ...]
    """One for each --background."""
    size: int
    crop: int
    stride: int
    batch_size: int
    settings: dict[str, Any]
    """Fields of every record: the model, the bundle, the method and all other settings of the label maps."""
    window_limit: Limit
    """Number of windows at a time, limited once the device has run out of memory."""
    limits: MemoryLimits
    """Numbers of texts and of rows of pixels at a time, limited likewise."""

    def background(self, cut: Cut) -> str | Cut:
        """The background for records: a class, a probability, or None."""
        return self.classes[0] if self.has_background else cut

    def averaged(self, picture: Image.Image) -> WindowAverage:
        """Compute the logits of all texts over the picture, averaged over the windows.

        Raises:
            ImageError: the model's output is not usable.
            CliptoolsError: the device has too little memory for a single window.
        """
        try:
            return self._averaged(picture)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise CliptoolsError("out of memory with a single window: lower --size or --crop") from None

    def _averaged(self, picture: Image.Image) -> WindowAverage:
        visual: Any = self.model.clip.visual
        image = fitted_tensor(picture, self.size, (1, 1), self.model.preprocessing)
        image = image.to(self.model.device, weight_of(visual).dtype)  # (3, y, x)
        tops, lefts = (window_starts(length, self.crop, self.stride) for length in image.shape[1:])
        corners = [(top, left) for top in tops for left in lefts]
        down, across = token_stride(visual)

        def look(batch: Sequence[tuple[int, int]], _: Tensor | None) -> Logits:
            return self.look(torch.stack([image[:, y : y + self.crop, x : x + self.crop] for y, x in batch]))

        logits = []
        batches = [(corners[start : start + self.batch_size], None) for start in range(0, len(corners), self.batch_size)]
        with on_grid(visual, self.crop // down, self.crop // across):
            for _, windows in in_halves(batches, look, "windows", self.window_limit):
                for reason in unusable(windows.embedding, windows.logits).values():
                    raise ImageError(reason)
                logits.append(windows.logits)  # (window, text, row, column)
        size = (image.shape[1], image.shape[2])
        return WindowAverage(torch.cat(logits), (tops, lefts), (self.crop, self.crop), size)


def load_labeller(
    opened: OpenedBundle, classes: Sequence[ClassName], options: MapSettings, backgrounds: Sequence[str]
) -> Labeller:
    """Build the labeller of the settings' method, windows, templates and classes.

    Args:
        classes: At least one; with the background among them if --background names it.
        backgrounds: The values of --background.

    Raises:
        CliptoolsError: windows, pairs or a background that do not fit the model, the bundle or the classes.
    """
    model = opened.model
    size, crop, stride = _window(options, model.clip.visual)
    source = options.classes_name or SCENES_SOURCE
    names, owner = distinct_names(classes, source)
    background, cuts = parse_backgrounds(backgrounds, [row.name for row in classes])
    look_of, method_settings = pair_method(opened, options, crop)
    settings: dict[str, Any] = opened.source | {"method": opened.method} | method_settings
    center = options.center or "classes"
    pool = Pool(source, names, digest(*names))
    t = class_texts(encode_named(model, pool, class_templates(model.name, options.templates)), center)  # (text, d)
    settings |= {"size": size, "crop": crop, "stride": stride}
    settings |= {"templates": templates_name(model.name, options.templates), "center": center}
    settings["classes"] = {"name": pool.name, "texts": len(names), "digest": pool.digest, "count": len(classes)}

    label_names, label_of_class = _labels(classes, background)
    label_of_text = torch.tensor([label_of_class[number] for number in owner], device=model.device)
    windows = size, crop, stride, options.batch_size
    return Labeller(
        model, look_of(t), label_names, label_of_text, background is not None, cuts, *windows, settings, Limit(), MemoryLimits()
    )


def parse_backgrounds(values: Sequence[str], classes: Sequence[str]) -> tuple[str | None, tuple[Cut, ...]]:
    """Read the values of --background: the class that is the background, or the probabilities below which a pixel is background.

    Raises:
        UsageError: a value that is no class, no probability and not `none`; or a class together with other values.
    """
    cuts: list[Cut] = []
    for text in values or ("none",):
        if text in classes:
            if len(values) > 1:
                raise UsageError(f"--background {text}: this is one of the classes, leave out the other --background")
            return text, (None,)
        try:
            cuts.append(None if text == "none" else float(text))
        except ValueError:
            raise UsageError(f"--background {text}: expected one of the classes, a probability, or 'none'") from None
        if (last := cuts[-1]) is not None and not 0 < last < 1:
            raise UsageError(f"--background {text}: expected a probability between 0 and 1")
    return None, tuple(dict.fromkeys(cuts))


def _labels(classes: Sequence[ClassName], background: str | None) -> tuple[tuple[str, ...], list[int]]:
    """Return the names by label, the background's first, and the label of each class."""
    label_of_class, names = [], [background or "background"]
    for row in classes:
        if row.name == background:
            label_of_class.append(0)
        else:
            label_of_class.append(len(names))
            names.append(row.name)
    return tuple(names), label_of_class


def keys_of(names: Sequence[str]) -> list[str]:
    """Keys of labels in records: their names; where several labels have the same name, with the label added.

    >>> keys_of(["background", "bed", "cat", "bed"])
    ['background', 'bed (label 1)', 'cat', 'bed (label 3)']
    """
    return [name if names.count(name) == 1 else f"{name} (label {label})" for label, name in enumerate(names)]


def _window(options: MapSettings, visual: Any) -> tuple[int, int, int]:
    """Size, crop and stride, in pixels of the resized image.

    Raises:
        UsageError: the window is larger than the image, does not consist of whole tokens, or its steps leave gaps.
    """
    native, token = min(native_size(visual)), token_stride(visual)[0]
    crop = options.crop or native
    size = options.size or max(crop, native)
    stride = options.stride or max(1, crop // 2)
    if crop % token:
        raise UsageError(f"--crop {crop}: expected a multiple of {token}, the pixels of a token")
    if size < crop:
        raise UsageError(f"--size {size}: images would be smaller than the window (--crop {crop})")
    if stride > crop:
        raise UsageError(f"--stride {stride}: windows of {crop} pixels would leave gaps, expected at most {crop}")
    return size, crop, stride
