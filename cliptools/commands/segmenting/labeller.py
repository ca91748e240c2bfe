"""Label maps of many classes by a CLIP-ResNet: model, method, classes and windows, put together as the options say."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cliptools.commands.consume import record_source
from cliptools.commands.segmenting.opened import Opened, pair_units
from cliptools.commands.segmenting.sink import repair_sink
from cliptools.ground.errors import CliptoolsError, ImageError, UsageError, out_of_memory

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from cliptools.ground.class_names import ClassName
    from cliptools.ground.halving import Limit
    from cliptools.ground.models import LoadedModel
    from cliptools.methods.segmentation.label_maps import Room
    from cliptools.methods.segmentation.resnet_methods import Logits, Look
    from cliptools.methods.segmentation.windows import Averaged

Cut = float | None
"""The probability below which a pixel is ground; None where there is no such."""


@dataclass
class Labeller:
    """Gives every pixel of an image one of the classes."""

    model: "LoadedModel"
    look: "Look"
    classes: tuple[str, ...]
    """By label: the ground, then the classes from 1."""
    label_of_text: "Tensor"
    has_ground: bool
    """Whether the ground is one of the classes by name."""
    cuts: tuple[Cut, ...]
    size: int
    crop: int
    stride: int
    batch_size: int
    settings: dict[str, Any]
    """What every record says: model, bundle, method and all that label maps depend on."""
    limit: "Limit"
    """Windows at a time, once the device has run out of memory with more."""
    room: "Room"
    """The same of texts and rows of pixels."""

    def averaged(self, picture: "Image.Image") -> "Averaged":
        """The picture seen in windows.

        Raises:
            ImageError: the model gives no numbers to compute with.
            CliptoolsError: the device has not the memory for a single window.
        """
        try:
            return self._averaged(picture)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise CliptoolsError("out of memory with a single window: lower --size or --crop") from None

    def _averaged(self, picture: "Image.Image") -> "Averaged":
        import torch

        from cliptools.ground.fitted_images import fitted_tensor
        from cliptools.ground.halving import in_halves
        from cliptools.ground.position_grid import on_grid, token_stride
        from cliptools.ground.unusable import unusable
        from cliptools.methods.segmentation.windows import Averaged, window_starts

        visual: Any = self.model.clip.visual
        image = fitted_tensor(picture, self.size, (1, 1), self.model.preprocessing)
        image = image.to(self.model.device, visual.conv1.weight.dtype)
        tops, lefts = (window_starts(length, self.crop, self.stride) for length in image.shape[1:])
        corners = [(top, left) for top in tops for left in lefts]
        down, across = token_stride(visual)

        def look(batch: Sequence[tuple[int, int]], _: "Tensor | None") -> "Logits":
            return self.look(torch.stack([image[:, y : y + self.crop, x : x + self.crop] for y, x in batch]))

        logits = []
        batches = [(corners[first : first + self.batch_size], None) for first in range(0, len(corners), self.batch_size)]
        with on_grid(visual, self.crop // down, self.crop // across):
            for _, looked in in_halves(batches, look, "windows", self.limit):
                for reason in unusable(looked.embedding, looked.logits).values():
                    raise ImageError(reason)
                logits.append(looked.logits)
        size = (image.shape[1], image.shape[2])
        return Averaged(torch.cat(logits), (tops, lefts), (self.crop, self.crop), size)


def load_labeller(opened: Opened, classes: Sequence["ClassName"], options: dict[str, Any]) -> Labeller:
    """The method and its texts, as the options name them.

    Args:
        classes: At least one; the ground among them if --background names it.

    Raises:
        CliptoolsError: windows, pairs or a background that cannot be.
    """
    from cliptools.ground.class_names import distinct_names

    model, method = opened.model, opened.method
    size, crop, stride = _window(options, model.clip.visual)
    names, owner = distinct_names(classes, options["classes"] or "of the scenes")
    ground, cuts = parse_backgrounds(options["backgrounds"], [each.name for each in classes])
    pairs = pair_units(opened, options["top_pairs"])
    said: dict[str, Any] = record_source(opened.bundle) | {"method": method}
    repaired = False
    if pairs is not None:
        repaired, measured = repair_sink(options["sink"] or "auto", model, crop)
        said |= {"top_pairs": pairs.k, "pairs": len(pairs.r), "sink": measured}
    t, texts_said = _texts(opened, names, options)
    from cliptools.methods.segmentation.resnet_methods import resnet_method

    look = resnet_method(method, model.clip.visual, t, pairs, repaired)
    numbered, label_of_class = _labels(classes, ground)
    said |= {"size": size, "crop": crop, "stride": stride} | texts_said
    said["classes"]["count"] = len(classes)
    import torch

    from cliptools.ground.halving import Limit
    from cliptools.methods.segmentation.label_maps import Room

    label_of_text = torch.tensor([label_of_class[each] for each in owner], device=model.device)
    windows = size, crop, stride, options["batch_size"]
    return Labeller(model, look, numbered, label_of_text, ground is not None, cuts, *windows, said, Limit(), Room())


def parse_backgrounds(given: Sequence[str], classes: Sequence[str]) -> tuple[str | None, tuple[Cut, ...]]:
    """The class that is the ground, if one is; and the probabilities below which a pixel is ground.

    Raises:
        UsageError: neither a probability, `none` nor one of the classes; or a class among other things.
    """
    cuts: list[Cut] = []
    for text in given or ("none",):
        if text in classes:
            if len(given) > 1:
                raise UsageError(f"--background {text}: a class of its own, leave out the other --background")
            return text, (None,)
        try:
            cuts.append(None if text == "none" else float(text))
        except ValueError:
            raise UsageError(f"--background {text}: neither one of the classes, a probability, nor 'none'") from None
        if (last := cuts[-1]) is not None and not 0 < last < 1:
            raise UsageError(f"--background {text}: expected a probability between 0 and 1")
    return None, tuple(dict.fromkeys(cuts))


def _labels(classes: Sequence["ClassName"], ground: str | None) -> tuple[tuple[str, ...], list[int]]:
    """Names by label, the ground's first; and the label of each class."""
    label, names = [], [ground or "background"]
    for each in classes:
        if each.name == ground:
            label.append(0)
        else:
            label.append(len(names))
            names.append(each.name)
    return tuple(names), label


def keys_of(names: Sequence[str]) -> list[str]:
    """What records call labels: their names, with the label behind where several have one name.

    >>> keys_of(["background", "bed", "cat", "bed"])
    ['background', 'bed (label 1)', 'cat', 'bed (label 3)']
    """
    return [name if names.count(name) == 1 else f"{name} (label {label})" for label, name in enumerate(names)]


def _window(options: dict[str, Any], visual: Any) -> tuple[int, int, int]:
    """Size, crop and stride, in the pixels that the model sees.

    Raises:
        UsageError: a window larger than the image, not of whole tokens, or steps that leave gaps.
    """
    from cliptools.ground.position_grid import native_size, token_stride

    native, token = min(native_size(visual)), token_stride(visual)[0]
    crop = options["crop"] or native
    size = options["size"] or max(crop, native)
    stride = options["stride"] or max(1, crop // 2)
    if crop % token:
        raise UsageError(f"--crop {crop}: expected a multiple of {token}, the pixels of a token")
    if size < crop:
        raise UsageError(f"--size {size}: images would be smaller than the window (--crop {crop})")
    if stride > crop:
        raise UsageError(f"--stride {stride}: windows of {crop} pixels would leave gaps, expected at most {crop}")
    return size, crop, stride


def _texts(opened: Opened, names: tuple[str, ...], options: dict[str, Any]) -> tuple["Tensor", dict[str, Any]]:
    """Embeddings of all names, and what records say of them."""
    from cliptools.ground.concept_texts import class_templates, encode_named, templates_name
    from cliptools.ground.provenance import digest
    from cliptools.ground.texts import Pool
    from cliptools.methods.segmentation.class_texts import class_texts

    templates = class_templates(opened.model.name, options["templates"])
    center: Any = options["center"] or "classes"
    pool = Pool(options["classes"] or "of the scenes", names, digest(*names))
    t = class_texts(encode_named(opened.model, pool, templates), center)
    said: dict[str, Any] = {"templates": templates_name(opened.model.name, options["templates"]), "center": center}
    return t, said | {"classes": {"name": pool.name, "texts": len(names), "digest": pool.digest}}
