"""clip-segment --evaluate: how well masks and heat maps fit the truth, an image a record and all of them in the last."""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import BufferedIOBase
from pathlib import Path
from typing import Any, TypeVar

import torch

from cliptools.cli.app import open_input
from cliptools.cli.run.bundle_output import write_table
from cliptools.cli.run.segment_heat_maps import Found, Segmenter, heat_maps
from cliptools.console import count_of, note, progress, summarise, warn
from cliptools.devices import in_halves
from cliptools.errors import CliptoolsError, ImageError
from cliptools.images.loader import same_shapes
from cliptools.images.segmentation.label_maps import LabelledImage
from cliptools.images.segmentation.masked_image import MaskedImage, Reading
from cliptools.images.segmentation.sources import masked_images
from cliptools.io.files import text_output
from cliptools.io.jsonl import rounded, write_record
from cliptools.models.unusable import Screen
from cliptools.segmentation.masks import mask_of
from cliptools.segmentation.metrics import Fit, fit

Read = TypeVar("Read")
Masked = TypeVar("Masked", "MaskedImage", "LabelledImage")
Numbered = tuple[int, str]
"""An image's number and name."""


def evaluate(made: Segmenter, paths: Sequence[str], options: dict[str, Any], output_format: str, output: Path | None) -> None:
    """Records of all texts in all images, then one of the whole; or a table of the whole."""

    whole = {threshold: Fit() for threshold in made.thresholds}
    skipped: list[str] = []
    remarks: Counter[str] = Counter()

    def tell(name: str, reason: str) -> None:
        skipped.append(name)
        warn(f"{name}: {reason} (skipped)")

    screen = Screen[Numbered](lambda image: image[1], tell, options["strict"])
    texts = tuple(options["texts"])
    readings = (reading for path in paths for reading in _open(path, bool(texts or made.classes), options))
    images = counting(remarks, progress(readable(readings, options["strict"], skipped), "images"))
    with text_output(output) as stream:
        for record, fit in _fits(made, images, texts, options, screen):
            whole[record["threshold"]] += fit
            if output_format == "jsonl":
                write_record(stream, record | _said(fit) | made.settings)
        count = whole[made.thresholds[0]].images
        if not count and not len(screen):
            raise CliptoolsError("no image with a mask could be read")
        screen.require(count)
        said = {"all": True, "count": count, "skipped": len(skipped)}
        summaries = [said | {"threshold": threshold} | _said(fit) for threshold, fit in whole.items()]
        if output_format == "jsonl":
            for summary in summaries:
                write_record(stream, summary | made.settings)
        else:
            _write_table(stream, made, summaries)
    say_remarks(remarks)
    summarise(f"clip-segment: {count_of(count, 'mask')}" + (f", {count_of(len(skipped), 'image')} skipped" if skipped else ""))


def _open(path: str, whole: bool, options: dict[str, Any]) -> Iterator[Reading]:

    ignored = tuple(options["ignored"])
    if path != "-":
        return masked_images(Path(path), None, whole, ignored, options["lie"])
    stream, _ = open_input(None, "a tar of clip-scenes", "a PATH")
    return masked_images(None, stream, whole, ignored)


def readable(readings: Iterator[Read | ImageError], strict: bool, skipped: list[str]) -> Iterator[Read]:
    """What could be read; of the rest a warning, or with `strict` an error."""

    for reading in readings:
        if not isinstance(reading, ImageError):
            yield reading
        elif strict:
            raise reading
        else:
            skipped.append(str(reading))
            warn(f"{reading} (skipped)")


def counting(remarks: Counter[str], images: Iterable[Masked]) -> Iterator[Masked]:
    """The images; what was assumed of their masks is counted."""
    for image in images:
        remarks.update(image.remarks)
        yield image


SINGULAR = {"are": "is", "have": "has"}  # verbs with which remarks begin, of one mask


def say_remarks(remarks: Mapping[str, int]) -> None:
    """A note for each thing that was assumed, and of how many masks."""
    for remark, count in remarks.items():
        verb, _, rest = remark.partition(" ")
        masks = f"1 mask {SINGULAR.get(verb, verb + 's')}" if count == 1 else f"{count} masks {verb}"
        note(f"clip-segment: {masks} {rest}")


def figures(values: Mapping[str, float]) -> dict[str, float | None]:
    """Figures for a record; None for one that is not defined, such as the overlap of a class that no pixel has."""
    return {key: None if math.isnan(value) else rounded(value) for key, value in values.items()}


def _fits(
    made: Segmenter,
    images: Iterator[MaskedImage],
    texts: tuple[str, ...],
    options: dict[str, Any],
    screen: Screen[Numbered],
) -> Iterator[tuple[dict[str, Any], Fit]]:

    def find(batch: Sequence[MaskedImage], tensors: torch.Tensor | None) -> list[list[Found] | str]:
        assert tensors is not None
        return made.find(tensors, [_texts(image, texts, made) for image in batch])

    numbers = itertools.count()  # two sources may use the same name
    drawn = (image for image in images if len(image.masks))
    batches = same_shapes(((image, made.tensor(image.picture)) for image in drawn), options["batch_size"])
    for batch, maps in in_halves(batches, find):
        reasons = {i: found for i, found in enumerate(maps) if isinstance(found, str)}
        for place in screen.places([(next(numbers), image.name) for image in batch], reasons):
            image, found = batch[place], maps[place]
            assert not isinstance(found, str)
            heat = heat_maps(found, image.picture.width, image.picture.height)
            masks = {each: mask_of(torch.from_numpy(heat), each).numpy() for each in made.thresholds}
            for i, one in enumerate(found):
                truth = image.masks[i if image.texts else 0]
                record = {"image": image.name, "text": one.text, "score": rounded(one.cosine)}
                record["share"] = rounded((truth if image.void is None else truth[~image.void]).mean())
                for threshold, mask in masks.items():
                    yield record | {"threshold": threshold}, fit(heat[i], mask[i], truth, image.void)


def _texts(image: MaskedImage, texts: tuple[str, ...], made: Segmenter) -> tuple[str, ...]:
    """What to look for: the image's own names, or what the options say.

    Raises:
        CliptoolsError: neither says.
    """
    if not (image.texts or texts or made.classes):
        raise CliptoolsError(f"{image.name}: these masks have no names; say what they are of (--text, or --classes)")
    return image.texts or texts


def _said(fit: Fit) -> dict[str, float | None]:
    ground, thing = fit.iou
    said = {"accuracy": fit.accuracy, "miou": fit.mean_iou, "iou_ground": ground, "iou_object": thing}
    return figures(said | {"map": fit.mean_precision, "object_map": fit.mean_object_precision})


def _write_table(stream: BufferedIOBase, made: Segmenter, summaries: Sequence[dict[str, Any]]) -> None:

    columns = ("accuracy", "miou", "map", "object_map")
    rows = [
        [made.settings["method"], str(summary["threshold"]), str(summary["count"]), *(percent(summary[key]) for key in columns)]
        for summary in summaries
    ]
    write_table(stream, ["method", "threshold", "masks", *columns], rows)


def percent(figure: float | None) -> str:
    """A figure in a table; nothing where it is not defined."""
    return "" if figure is None else f"{100 * figure:.1f}"
