"""Label maps of many classes by a CLIP-ResNet: model, method, classes and windows, put together as the options say.

clip-segment IMAGE… --classes with a CLIP-ResNet: label maps, as records, pictures or logits.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cliptools.cli.run.bundle_output import record_source, write_table
from cliptools.cli.run.segment_images import RECORDS, SHOWN, Folder, folder_of, loaded, open_folder, spool_for
from cliptools.cli.run.segment_open import Opened, pair_units, repair_sink
from cliptools.console import count_of, progress, summarise
from cliptools.devices import Limit, in_halves
from cliptools.errors import CliptoolsError, ImageError, UsageError, out_of_memory
from cliptools.images.loader import ImageSource, Skipped, fitted_tensor
from cliptools.io.files import binary_output, text_output
from cliptools.io.header import canonical, digest
from cliptools.io.jsonl import rounded, write_record
from cliptools.io.spools import TensorSpool
from cliptools.models.load import LoadedModel
from cliptools.models.text_encoder import class_templates, encode_named, templates_name
from cliptools.models.unusable import Screen, unusable
from cliptools.render import contact_sheet as pictures
from cliptools.segmentation.masks import Averaged, Room, best_texts, bounding_box, logits_at_size, to_labels, window_starts
from cliptools.segmentation.resnet_methods import Logits, Look, class_texts, resnet_method
from cliptools.segmentation.towers import native_size, on_grid, token_stride
from cliptools.text.classes import ClassName, distinct_names
from cliptools.text.vocabularies import Pool

Cut = float | None
"""The probability below which a pixel is ground; None where there is no such."""


@dataclass
class Labeller:
    """Gives every pixel of an image one of the classes."""

    model: LoadedModel
    look: Look
    classes: tuple[str, ...]
    """By label: the ground, then the classes from 1."""
    label_of_text: Tensor
    has_ground: bool
    """Whether the ground is one of the classes by name."""
    cuts: tuple[Cut, ...]
    size: int
    crop: int
    stride: int
    batch_size: int
    settings: dict[str, Any]
    """What every record says: model, bundle, method and all that label maps depend on."""
    limit: Limit
    """Windows at a time, once the device has run out of memory with more."""
    room: Room
    """The same of texts and rows of pixels."""

    def averaged(self, picture: Image.Image) -> Averaged:
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

    def _averaged(self, picture: Image.Image) -> Averaged:

        visual: Any = self.model.clip.visual
        image = fitted_tensor(picture, self.size, (1, 1), self.model.preprocessing)
        image = image.to(self.model.device, visual.conv1.weight.dtype)
        tops, lefts = (window_starts(length, self.crop, self.stride) for length in image.shape[1:])
        corners = [(top, left) for top in tops for left in lefts]
        down, across = token_stride(visual)

        def look(batch: Sequence[tuple[int, int]], _: Tensor | None) -> Logits:
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


def load_labeller(opened: Opened, classes: Sequence[ClassName], options: dict[str, Any]) -> Labeller:
    """The method and its texts, as the options name them.

    Args:
        classes: At least one; the ground among them if --background names it.

    Raises:
        CliptoolsError: windows, pairs or a background that cannot be.
    """

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

    look = resnet_method(method, model.clip.visual, t, pairs, repaired)
    numbered, label_of_class = _labels(classes, ground)
    said |= {"size": size, "crop": crop, "stride": stride} | texts_said
    said["classes"]["count"] = len(classes)

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


def _labels(classes: Sequence[ClassName], ground: str | None) -> tuple[tuple[str, ...], list[int]]:
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


def _texts(opened: Opened, names: tuple[str, ...], options: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """Embeddings of all names, and what records say of them."""

    templates = class_templates(opened.model.name, options["templates"])
    center: Any = options["center"] or "classes"
    pool = Pool(options["classes"] or "of the scenes", names, digest(*names))
    t = class_texts(encode_named(opened.model, pool, templates), center)
    said: dict[str, Any] = {"templates": templates_name(opened.model.name, options["templates"]), "center": center}
    return t, said | {"classes": {"name": pool.name, "texts": len(names), "digest": pool.digest}}


NAMED = 3  # classes of an image in it


def label_images(made: Labeller, source: ImageSource, options: dict[str, Any], output_format: str, output: Path | None) -> None:
    """A label map of every image, written as they come."""

    folder = open_folder(options)
    made.settings["background"] = made.classes[0] if made.has_ground else made.cuts[0]
    skipped = Skipped()
    screen = Screen[str](str, skipped.add, options["strict"])
    count = 0
    shown: list[list[str]] = []
    keep_tensors = output_format == "safetensors"
    with binary_output(output) if keep_tensors else text_output(output) as stream, spool_for(keep_tensors) as spool:
        for index, name in enumerate(progress(source.names, "images", len(source))):
            done = folder.finished(name, made.settings, ()) if folder is not None else []
            picture = None if done else loaded(source, index, options["strict"], skipped)
            if not done and picture is None:
                continue
            record = done[0] if picture is None else _made(made, name, picture, folder, spool)
            if not screen.places([name], {0: record} if isinstance(record, str) else {}):
                continue
            assert not isinstance(record, str)
            count += 1
            if output_format == "jsonl":
                write_record(stream, record)
            elif len(shown) <= SHOWN:
                shown.append(_row(record))
        screen.require(count)
        _finish(stream, made, spool, shown)
    summarise(f"clip-segment: {count_of(count, 'image')}" + (f", {len(skipped)} skipped" if len(skipped) else ""))


def _made(
    made: Labeller, name: str, picture: Image.Image, folder: Folder | None, spool: TensorSpool | None
) -> dict[str, Any] | str:
    """The record of one image, and all that is kept of it; or the reason why it is not usable."""

    try:
        averaged = made.averaged(picture)
    except ImageError as error:
        return str(error)
    if spool is not None:
        spool.add(name, logits_at_size(averaged, made.room))
    cut = made.cuts[0]
    found = best_texts(averaged, picture.height, picture.width, cut is not None, room=made.room)
    labels = to_labels(found, made.label_of_text, cut).numpy()
    record = _record(made, name, picture, labels)
    if folder is not None:
        record = _written(record, labels, picture, folder, len(made.classes) - 1)
    return record


def _record(made: Labeller, name: str, picture: Image.Image, labels: "np.ndarray") -> dict[str, Any]:

    numbers, pixels = np.unique(labels, return_counts=True)
    seen = []
    for label, many in sorted(zip(numbers.tolist(), pixels.tolist(), strict=True), key=lambda one: (-one[1], one[0])):
        each = {"label": label, "class": made.classes[label], "share": rounded(many / labels.size)}
        seen.append(each | {"box": bounding_box(labels == label)})
    return {"image": name, "width": picture.width, "height": picture.height, "found": seen} | made.settings


def _written(record: dict[str, Any], labels: "np.ndarray", picture: Image.Image, folder: Folder, most: int) -> dict[str, Any]:
    """Pictures of the label map, and the record, last of all: where that is, the image is finished."""

    where = folder_of(record["image"])
    label_map = folder.write(f"{where}/labels.png", pictures.png(pictures.label_picture(labels, most)))
    overlay = folder.write(f"{where}/overlay.png", pictures.png(pictures.label_overlay(picture, labels)))
    record |= {"label_map": label_map, "overlay": overlay}
    folder.write(f"{where}/{RECORDS}", json.dumps([record], ensure_ascii=False).encode())
    return record


def _finish(stream: BufferedIOBase, made: Labeller, spool: TensorSpool | None, shown: list[list[str]]) -> None:
    """What is written once all is known: the tensors, or the table."""
    if spool is not None:
        said = {"kind": "logits", "format": 1, "label": made.label_of_text.tolist(), "names": list(made.classes)}
        spool.write(stream, canonical(said | made.settings))
    elif shown:
        write_table(stream, ["image", "classes"], shown[:SHOWN])
        if len(shown) > SHOWN:
            stream.write("… more images (-f jsonl for all)\n".encode())


def _row(record: dict[str, Any]) -> list[str]:
    named = [f"{each['class']} {100 * each['share']:.0f} %" for each in record["found"][:NAMED]]
    more = len(record["found"]) - NAMED
    return [record["image"], ", ".join(named) + (f" and {more} more" if more > 0 else "")]
