"""clip-segment-eval: agreement of masks, heat maps and label maps with the ground truth, by image and over all images.

`run` chooses the kind of map. For heat maps, `_evaluate_heat_maps` compares the masks at each --threshold; for label maps of a
CLIP-ResNet, `_evaluate_label_maps` compares the labels at each --background. Both write a record for each image and setting, then
the totals. `Report` counts images that are left out. The figures are those of cliptools/segmentation/metrics.py.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from io import BufferedIOBase
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from cliptools.cli.app import choose_format, open_input
from cliptools.cli.run.segment_eval_labels import Scenes, check_numbering, classes_of, labelled_folder, labelled_scenes
from cliptools.cli.run.segment_images import CommonOptions, check_inputs, open_bundle
from cliptools.cli.surroundings import refuse_idle
from cliptools.console import count_of, note, progress, summarise, warn
from cliptools.devices import in_halves
from cliptools.errors import CliptoolsError, ImageError, UsageError
from cliptools.front.heat_maps import Segmenter, TextScores, heat_maps, load_segmenter
from cliptools.front.label_maps import Cut, Labeller, keys_of, load_labeller
from cliptools.front.segment_setup import OpenedBundle, check_applicable, check_texts, parse_threshold
from cliptools.front.tables import write_table
from cliptools.images.listing import distinct_paths
from cliptools.images.loader import same_shapes
from cliptools.images.segmentation.label_maps import IGNORED, LabelledImage
from cliptools.images.segmentation.masked_image import MaskBasis, MaskedImage, Reading
from cliptools.images.segmentation.sources import masked_images
from cliptools.io.files import text_output
from cliptools.io.jsonl import rounded, write_record
from cliptools.models.unusable import Screen
from cliptools.segmentation.masks import Threshold, best_texts, mask_of, to_labels
from cliptools.segmentation.metrics import Fit, LabelFit, fit, label_fit
from cliptools.text.classes import ClassName, class_list

SINGULAR = {"are": "is", "have": "has"}  # irregular verbs at the beginning of remarks, for a single mask
Annotated = TypeVar("Annotated", MaskedImage, LabelledImage)
"""An image with its ground truth."""
NumberedName = tuple[int, str]
"""Number and name of an image: two sources may use the same name."""


@dataclass(frozen=True, kw_only=True)
class SegmentEvalOptions(CommonOptions):
    """Parameters of clip-segment-eval."""

    text: str | None
    thresholds: tuple[str, ...]
    backgrounds: tuple[str, ...]
    labels: Path | None
    first_label: int | None
    ignored: tuple[int, ...]
    mask_pixels: MaskBasis | None

    @property
    def texts(self) -> tuple[str, ...]:
        """The text of --text, if it is given."""
        return () if self.text is None else (self.text,)


@dataclass
class Report:
    """Counts images that are left out and assumptions about masks, and writes records and totals."""

    strict: bool
    output_format: str
    skipped: list[str] = field(default_factory=list)
    remarks: Counter[str] = field(default_factory=Counter)

    def screen(self) -> Screen[NumberedName]:
        """A screen that counts and names images that are not usable."""
        return Screen[NumberedName](lambda image: image[1], self.skip, self.strict)

    def skip(self, name: str, reason: str) -> None:
        """Count an image that is left out, and warn."""
        self.skipped.append(name)
        warn(f"{name}: {reason} (skipped)")

    def readable(self, readings: Iterable[Annotated | ImageError]) -> Iterator[Annotated]:
        """Yield the images that can be read; warn of every other image.

        Raises:
            ImageError: with --strict, an image cannot be read.
        """
        for reading in progress(self._without_errors(readings), "images"):
            self.remarks.update(reading.remarks)
            yield reading

    def _without_errors(self, readings: Iterable[Annotated | ImageError]) -> Iterator[Annotated]:
        for reading in readings:
            if not isinstance(reading, ImageError):
                yield reading
            elif self.strict:
                raise reading
            else:
                self.skipped.append(str(reading))
                warn(f"{reading} (skipped)")

    def write_record(self, stream: BufferedIOBase, record: dict[str, Any]) -> None:
        """Write the record of one image, unless the output is a table."""
        if self.output_format == "jsonl":
            write_record(stream, record)

    def write_totals(
        self, stream: BufferedIOBase, totals: Sequence[dict[str, Any]], settings: dict[str, Any], table: Mapping[str, list[str]]
    ) -> None:
        """Write the totals: as the last records, or as a table.

        Args:
            table: Cells of each column, by title.
        """
        if self.output_format == "jsonl":
            for total in totals:
                write_record(stream, total | settings)
        else:
            write_table(stream, list(table), list(zip(*table.values(), strict=True)))

    def finish(self, count: int, noun: str) -> None:
        """Print the assumptions about masks, and the summary line.

        Args:
            noun: Noun for `count`: `mask` or `image`.
        """
        for remark, masks in self.remarks.items():
            verb, _, predicate = remark.partition(" ")
            subject = f"1 mask {SINGULAR.get(verb, verb + 's')}" if masks == 1 else f"{masks} masks {verb}"
            note(f"clip-segment-eval: {subject} {predicate}")
        skipped = f", {count_of(len(self.skipped), 'image')} skipped" if self.skipped else ""
        summarise(f"clip-segment-eval: {count_of(count, noun)}{skipped}")


def run(options: SegmentEvalOptions) -> None:
    """Compare heat maps, or label maps of a CLIP-ResNet, with the ground truth; write the figures."""
    options = replace(options, paths=distinct_paths(options.paths))
    check_inputs(options)
    check_texts(options.texts, options.classes)
    thresholds = tuple(parse_threshold(text) for text in options.thresholds or ("0.5",))
    output_format = choose_format(options.output_format, options.output, "jsonl")
    if options.labels and len(options.paths) != 1:
        raise UsageError(f"--labels: expected one folder of images, found {len(options.paths)} paths")
    if options.labels is None:
        refuse_idle(("first_label",), "without --labels, as scenes name their classes")
    opened = open_bundle(options)
    label_maps = opened.by_pairs and not options.texts
    if options.labels is None and (label_maps or set(options.paths) == {"-"}):
        refuse_idle(("mask_pixels",), "on scenes, whose pictures no EXIF turns")
    labels = {"--labels": options.labels, "--first-label": options.first_label, "--background": options.backgrounds}
    check_applicable(
        options,
        resnet=opened.resnet,
        by_pairs=opened.by_pairs,
        method=opened.method,
        label_maps=label_maps,
        heat_map_only={"--threshold": options.thresholds},
        label_map_only=labels,
    )
    report = Report(options.strict, output_format)
    if label_maps:
        _evaluate_label_maps(opened, options, report)
    else:
        _evaluate_heat_maps(load_segmenter(opened, options), thresholds, options, report)


def _evaluate_heat_maps(
    segmenter: Segmenter, thresholds: Sequence[Threshold], options: SegmentEvalOptions, report: Report
) -> None:
    """Write a record for each image, text and threshold, then the totals by threshold."""
    fits = {threshold: Fit() for threshold in thresholds}
    screen = report.screen()
    readings = itertools.chain.from_iterable(_masked_images(path, options) for path in options.paths)
    images: Iterator[MaskedImage] = report.readable(readings)
    with text_output(options.output) as stream:
        for record, result in _heat_map_fits(segmenter, thresholds, images, options, screen):
            fits[record["threshold"]] += result
            report.write_record(stream, record | _mask_figures(result) | segmenter.settings)
        count = fits[thresholds[0]].images
        if not count and not len(screen):
            raise CliptoolsError("no image with a mask could be read")
        screen.require(count)
        start: dict[str, Any] = {"all": True, "count": count, "skipped": len(report.skipped)}
        totals = [start | {"threshold": threshold} | _mask_figures(total) for threshold, total in fits.items()]
        table = {"method": [str(segmenter.settings["method"])] * len(totals)}
        table |= {title: [str(total[key]) for total in totals] for title, key in (("threshold", "threshold"), ("masks", "count"))}
        table |= {key: [percent(total[key]) for total in totals] for key in ("accuracy", "miou", "map", "object_map")}
        report.write_totals(stream, totals, segmenter.settings, table)
    report.finish(count, "mask")


def _masked_images(path: str, options: SegmentEvalOptions) -> Iterator[Reading]:
    """Images and masks of a path, or of a tar of scenes on standard input."""
    single = bool(options.texts or options.classes)  # one mask for everything in a scene
    if path != "-":
        return masked_images(Path(path), None, single, options.ignored, options.mask_pixels)
    stream, _ = open_input(None, "a tar of clip-scenes", "a PATH")
    return masked_images(None, stream, single, options.ignored)


def _heat_map_fits(
    segmenter: Segmenter,
    thresholds: Sequence[Threshold],
    images: Iterator[MaskedImage],
    options: SegmentEvalOptions,
    screen: Screen[NumberedName],
) -> Iterator[tuple[dict[str, Any], Fit]]:
    """Yield the first fields of a record and the counts, for each image, text and threshold."""

    def score(batch: Sequence[MaskedImage], tensors: Tensor | None) -> list[list[TextScores] | str]:
        assert tensors is not None
        return segmenter.score(tensors, [_texts_of(image, options) for image in batch])

    numbers = itertools.count()
    masked = (image for image in images if len(image.masks))
    batches = same_shapes(((image, segmenter.tensor(image.picture)) for image in masked), options.batch_size)
    for batch, scores in in_halves(batches, score):
        reasons = {i: row for i, row in enumerate(scores) if isinstance(row, str)}
        for place in screen.places([(next(numbers), image.name) for image in batch], reasons):
            image, row = batch[place], scores[place]
            assert not isinstance(row, str)
            heat = heat_maps(row, image.picture.width, image.picture.height)  # (text, y, x)
            masks = {threshold: mask_of(torch.from_numpy(heat), threshold).numpy() for threshold in thresholds}
            for i, text in enumerate(row):
                truth = image.masks[i if image.texts else 0]  # (y, x)
                record = {"image": image.name, "text": text.text, "score": rounded(text.cosine)}
                record["share"] = rounded((truth if image.void is None else truth[~image.void]).mean())
                for threshold, mask in masks.items():
                    yield record | {"threshold": threshold}, fit(heat[i], mask[i], truth, image.void)


def _texts_of(image: MaskedImage, options: SegmentEvalOptions) -> tuple[str, ...]:
    """The texts to find: the image's own texts, or that of --text; empty with --classes.

    Raises:
        CliptoolsError: neither the image nor the options name a text.
    """
    if not (image.texts or options.texts or options.classes):
        raise CliptoolsError(f"{image.name}: its masks have no names; name what they show by --text or --classes")
    return image.texts or options.texts


def _mask_figures(result: Fit) -> dict[str, float | None]:
    background_iou, object_iou = result.iou
    values = {"accuracy": result.accuracy, "miou": result.mean_iou, "iou_ground": background_iou, "iou_object": object_iou}
    return figures(values | {"map": result.mean_precision, "object_map": result.mean_object_precision})


def _evaluate_label_maps(opened: OpenedBundle, options: SegmentEvalOptions, report: Report) -> None:
    """Write a record for each image and --background, then the totals by --background.

    Raises:
        UsageError: --labels without --classes.
    """
    if options.labels and not options.classes:
        raise UsageError("--labels: its PNGs hold numbers, not names: name the classes by --classes")
    with ExitStack() as stack:
        if options.labels:
            classes = _numbered_classes(options)
            labeller = load_labeller(opened, classes, options, options.backgrounds)
            numbers = options.first_label, options.ignored, options.mask_pixels
            images = labelled_folder(Path(options.paths[0]), options.labels, len(labeller.classes) - 1, *numbers)
        else:
            scenes = Scenes(options.paths, options.ignored, stack)
            classes = class_list(options.classes, known=False).classes if options.classes else classes_of(scenes)
            labeller = load_labeller(opened, classes, options, options.backgrounds)
            images = labelled_scenes(scenes, labeller.classes)
        _write_label_maps(labeller, images, options, report)


def _numbered_classes(options: SegmentEvalOptions) -> tuple[ClassName, ...]:
    """The classes of --classes, after a check that their numbers in label PNGs are clear."""
    listed = class_list(str(options.classes), known=False)
    check_numbering(listed, str(options.classes), options.first_label, options.backgrounds)
    return listed.classes


def _write_label_maps(
    labeller: Labeller, images: Iterator[LabelledImage | ImageError], options: SegmentEvalOptions, report: Report
) -> None:
    fits = [LabelFit.empty(len(labeller.classes)) for _ in labeller.cuts]
    screen = report.screen()
    settings = labeller.settings
    readable: Iterator[LabelledImage] = report.readable(images)
    with text_output(options.output) as stream:
        for number, image in enumerate(readable):
            results = _label_map_fits(labeller, image)
            if not screen.places([(number, image.name)], {0: results} if isinstance(results, str) else {}):
                continue
            assert not isinstance(results, str)
            for place, (cut, result) in enumerate(zip(labeller.cuts, results, strict=True)):
                fits[place] += result
                record = {"image": image.name, "background": labeller.background(cut)} | _label_figures(result)
                report.write_record(stream, record | settings)
        count = fits[0].images
        if not count and not len(screen):
            raise CliptoolsError("no image with labels could be read")
        screen.require(count)
        start = {"all": True, "count": count, "skipped": len(report.skipped)}
        totals = [start | _label_total(labeller, cut, total) for cut, total in zip(labeller.cuts, fits, strict=True)]
        table = {"method": [str(settings["method"])] * len(totals)}
        table["background"] = [str(total["background"] or "left out") for total in totals]
        table |= {
            title: [str(total[key]) for total in totals] for title, key in (("images", "count"), ("classes", "true_classes"))
        }
        table |= {key: [percent(total[key]) for total in totals] for key in ("miou", "accuracy")}
        report.write_totals(stream, totals, settings, table)
    report.finish(count, "image")


def _label_map_fits(labeller: Labeller, image: LabelledImage) -> list[LabelFit] | str:
    """Counts of the label map, one for each --background, or the reason why the image is not usable."""
    probabilities = any(cut is not None for cut in labeller.cuts)
    picture = image.picture
    try:
        best = best_texts(labeller.averaged(picture), picture.height, picture.width, probabilities, limits=labeller.limits)
    except ImageError as error:
        return str(error)
    fits = []
    for cut in labeller.cuts:
        labels = to_labels(best, labeller.label_of_text, cut).numpy()  # (y, x)
        background_counts = labeller.has_background or cut is not None
        truth: np.ndarray = image.labels if background_counts else np.where(image.labels == 0, IGNORED, image.labels)
        fits.append(label_fit(labels, truth, len(labeller.classes)))
    return fits


def _label_total(labeller: Labeller, cut: Cut, total: LabelFit) -> dict[str, Any]:
    keys = keys_of(labeller.classes)
    iou = {key: rounded(value) for key, value in zip(keys, total.iou, strict=True) if np.isfinite(value)}
    return {"background": labeller.background(cut)} | _label_figures(total) | {"iou": iou}


def _label_figures(result: LabelFit) -> dict[str, Any]:
    values = figures({"miou": result.mean_iou, "miou_true": result.mean_iou_true, "accuracy": result.accuracy})
    return values | {"true_classes": int((result.true > 0).sum())}


def figures(values: Mapping[str, float]) -> dict[str, float | None]:
    """Figures for a record; None for an undefined figure, such as the IoU of a class without a pixel."""
    return {key: None if math.isnan(value) else rounded(value) for key, value in values.items()}


def percent(figure: float | None) -> str:
    """A figure as text for a table, in per cent; empty if it is undefined."""
    return "" if figure is None else f"{100 * figure:.1f}"
