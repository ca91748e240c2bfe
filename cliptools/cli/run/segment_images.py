"""clip-segment IMAGE...: heat maps and masks of texts, or label maps of classes, written image by image.

One idea, the way from images to results: `_heat_records` and `_label_records` make the records of each image, `_write` writes
them as JSON lines, a table or tensors. `Folder` is --out-dir: pictures, and the records by which --resume continues.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from cliptools.cli.app import choose_format
from cliptools.cli.run.segment_heat_maps import (
    CommonOptions,
    Segmenter,
    TextScores,
    check_applicable,
    check_inputs,
    check_texts,
    heat_maps,
    load_segmenter,
    open_bundle,
    parse_threshold,
)
from cliptools.cli.run.segment_label_maps import Labeller, load_labeller
from cliptools.console import count_of, progress, summarise
from cliptools.devices import in_halves
from cliptools.errors import CliptoolsError, ImageError, UsageError
from cliptools.front.tables import write_table
from cliptools.images.loader import ImageSource, Skipped, open_images, same_shapes
from cliptools.io.cache import check_same
from cliptools.io.files import binary_output, only_writer, put_whole, text_output
from cliptools.io.header import canonical
from cliptools.io.jsonl import parse, rounded, write_record
from cliptools.io.spools import TensorSpool
from cliptools.models.unusable import Screen
from cliptools.render import contact_sheet as pictures
from cliptools.segmentation.masks import Threshold, best_texts, bounding_box, label_map, logits_at_size, mask_of, to_labels
from cliptools.text.classes import load_classes

RECORDS = "segments.json"  # in the folder of an image, written last: an image whose folder has this file is finished
MOST_ROWS = 40  # rows of a table on a terminal
MOST_CLASSES = 3  # classes of an image in a row
LONGEST_SLUG = 60
MOST_TEXTS = 255  # labels of a label map of 8 bits

Records = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class SegmentOptions(CommonOptions):
    """Parameters of clip-segment."""

    texts: tuple[str, ...]
    threshold: str | None
    background: str | None
    out_dir: Path | None
    resume: bool


@dataclass
class Folder:
    """--out-dir: a folder for each image, with masks, overlays and the image's records."""

    path: Path
    resume: bool

    def __post_init__(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            occupied = any(self.path.iterdir())
        except OSError as error:
            raise CliptoolsError(f"{self.path}: cannot write here ({error.strerror})") from None
        if occupied and not self.resume:
            raise CliptoolsError(f"{self.path}: the folder is not empty; continue it with --resume, or name a new folder")

    def finished(self, name: str, settings: dict[str, Any], texts: Sequence[str] = ()) -> Records:
        """Records of an image that an earlier run finished; empty if it did not.

        Raises:
            CliptoolsError: the earlier run had other settings or texts.
        """
        path = self.path / folder_of(name) / RECORDS
        if not self.resume or not path.is_file():
            return []
        try:
            records: Records = parse(path.read_bytes())
            earlier_texts = [record.get("text") for record in records]
        except (ValueError, TypeError, AttributeError):
            raise CliptoolsError(f"{path}: the file is damaged; remove it, or name a new folder") from None
        for record in records:
            for key, value in settings.items():
                check_same(path, key, record.get(key), value)
        if texts:
            check_same(path, "texts", earlier_texts, list(texts))
        return records

    def write(self, name: str, data: bytes) -> str:
        """Write a file that appears whole or not at all; return its name for records."""
        path = self.path / name
        try:
            put_whole(path, data)
        except OSError as error:
            raise CliptoolsError(f"{path}: could not be written ({error.strerror})") from None
        return name


class Job(NamedTuple):
    """The images, and the destinations of maps and messages: common to heat maps and label maps."""

    source: ImageSource
    folder: Folder | None
    spool: TensorSpool | None
    skipped: Skipped
    screen: Screen[str]
    strict: bool

    def load(self, index: int) -> Image.Image | None:
        """Load an image; if it cannot be read, warn and return None, or with --strict raise an ImageError."""
        name = self.source.names[index]
        try:
            return self.source.load(index)
        except ImageError as error:
            if self.strict:
                raise ImageError(f"{name}: {error}") from None
            self.skipped.add(name, str(error))
            return None

    def load_again(self, index: int) -> Image.Image | None:
        """Load an image that an earlier run finished; None if it can no longer be read."""
        try:
            return self.source.load(index)
        except ImageError:
            return None


class Layout(NamedTuple):
    """The form of results that are not JSON lines: the header of tensors, and the columns and rows of the table."""

    header: dict[str, Any]
    columns: list[str]
    row: Callable[[dict[str, Any]], list[str]]


def run(options: SegmentOptions) -> None:
    """Make heat maps of --text or of a ViT's best class, or label maps of a CLIP-ResNet, and write them image by image."""
    threshold = _check(options)
    output_format = choose_format(options.output_format, options.output, "jsonl")
    if output_format == "safetensors" and options.resume:
        raise UsageError("--resume does not go with -f safetensors: images finished earlier would be missing from the tensors")
    source = open_images(options.paths)
    opened = open_bundle(options)
    label_maps = opened.resnet and not options.texts
    check_applicable(
        options,
        resnet=opened.resnet,
        label_maps=label_maps,
        heat_map_only={"--threshold": options.threshold},
        label_map_only={"--background": options.background},
    )
    if label_maps:
        backgrounds = () if options.background is None else (options.background,)
        labeller = load_labeller(opened, load_classes(str(options.classes), known=False), options, backgrounds)
        settings = labeller.settings | {"background": labeller.background(labeller.cuts[0])}
        header = {"kind": "logits", "format": 1, "label": labeller.label_of_text.tolist(), "names": list(labeller.classes)}
        layout = Layout(header | settings, ["image", "classes"], _label_row)
        _write(options, output_format, source, partial(_label_records, labeller, settings), layout)
    else:
        segmenter = load_segmenter(opened, options)
        settings = segmenter.settings | {"threshold": threshold}
        layout = Layout({"kind": "heat maps", "format": 1} | settings, ["image", "text", "score", "share"], _heat_row)
        _write(options, output_format, source, partial(_heat_records, segmenter, settings, options), layout)


def _check(options: SegmentOptions) -> Threshold:
    """Reject invalid options before any input is read; return the threshold.

    Raises:
        UsageError: nothing to look for, texts that are invalid, or --resume without a folder.
    """
    check_inputs(options)
    check_texts(options.texts, options.classes)
    if len(set(options.texts)) < len(options.texts):
        raise UsageError("--text: the same text is given twice")
    if len(options.texts) > MOST_TEXTS:
        raise UsageError(
            f"--text: {count_of(len(options.texts), 'text')}, expected at most {MOST_TEXTS}, the labels of a label map"
        )
    if not (options.texts or options.classes):
        raise UsageError("nothing to look for: give --text, or --classes for the model's own best class")
    if options.resume and not options.out_dir:
        raise UsageError("--resume needs --out-dir, the folder to continue")
    return parse_threshold(options.threshold or "0.5")


def _write(
    options: SegmentOptions, output_format: str, source: ImageSource, make: Callable[[Job], Iterator[Records]], layout: Layout
) -> None:
    """Write the records of every image as they come, or at the end the tensors or the table."""
    skipped = Skipped()
    screen = Screen[str](str, skipped.add, options.strict)
    count = 0
    rows: list[list[str]] = []
    with ExitStack() as stack:
        folder = spool = None
        if options.out_dir:
            stack.enter_context(only_writer(options.out_dir))
            folder = Folder(options.out_dir, options.resume)
        if output_format == "safetensors":
            stream = stack.enter_context(binary_output(options.output))
            spool = stack.enter_context(closing(TensorSpool()))
        else:
            stream = stack.enter_context(text_output(options.output))
        for records in make(Job(source, folder, spool, skipped, screen, options.strict)):
            count += 1
            for record in records:
                if output_format == "jsonl":
                    write_record(stream, record)
                elif len(rows) <= MOST_ROWS:
                    rows.append(layout.row(record))
        screen.require(count)
        if spool is not None:
            spool.write(stream, canonical(layout.header))
        elif output_format == "table":
            write_table(stream, layout.columns, rows[:MOST_ROWS])
            if len(rows) > MOST_ROWS:
                stream.write("… more images (-f jsonl for all)\n".encode())
    summarise(f"clip-segment: {count_of(count, 'image')}" + (f", {len(skipped)} skipped" if len(skipped) else ""))


class QueuedImage(NamedTuple):
    """An image in a batch."""

    name: str
    picture: Image.Image | None
    """None for a finished image that can no longer be read."""
    records: Records
    """Records of a finished image, empty for any other image.

    A finished image stays in its batch, because the last digits of the other images' scores depend on the batch.
    """


def _heat_records(segmenter: Segmenter, settings: dict[str, Any], options: SegmentOptions, job: Job) -> Iterator[Records]:
    """Yield the records of each image, one for each text; with --out-dir, write its pictures."""

    def score(batch: Sequence[QueuedImage], tensors: Tensor | None) -> list[list[TextScores] | str] | None:
        if tensors is None or all(image.records for image in batch):
            return None
        return segmenter.score(tensors, [options.texts] * len(batch))

    images = progress(_queued_images(segmenter, settings, options.texts, job), "images", len(job.source))
    for batch, scores in in_halves(same_shapes(images, options.batch_size), score):
        if scores is None:
            yield from (image.records for image in batch)
            continue
        reasons = {i: row for i, row in enumerate(scores) if isinstance(row, str) and not batch[i].records}
        for place in job.screen.places([image.name for image in batch], reasons):
            image, row = batch[place], scores[place]
            if image.records:
                yield image.records
                continue
            assert image.picture is not None and not isinstance(row, str)
            heat = heat_maps(row, *image.picture.size)
            if job.spool is not None:
                job.spool.put_whole(image.name, heat)
            yield _image_records(settings, image.name, image.picture, row, heat, job.folder)


def _queued_images(
    segmenter: Segmenter, settings: dict[str, Any], texts: tuple[str, ...], job: Job
) -> Iterator[tuple[QueuedImage, Tensor | None]]:
    """Yield each image with its tensor [3, y, x]; None instead of the tensor if the image can no longer be read."""
    for index, name in enumerate(job.source.names):
        records = job.folder.finished(name, settings, texts) if job.folder is not None else []
        picture = job.load_again(index) if records else job.load(index)
        if picture is not None:
            yield QueuedImage(name, picture, records), segmenter.tensor(picture)
        elif records:
            yield QueuedImage(name, None, records), None


def _image_records(
    settings: dict[str, Any],
    name: str,
    picture: Image.Image,
    scores: Sequence[TextScores],
    heat: Float[np.ndarray, "text y x"],
    folder: Folder | None,
) -> Records:
    """Make the records of one image; with a folder, write its pictures and, last of all, its records."""
    maps = torch.from_numpy(heat)
    masks = mask_of(maps, settings["threshold"]).numpy()  # (text, y, x)
    labels = label_map(maps, settings["threshold"]).numpy() if len(scores) > 1 else None  # (y, x)
    records: Records = []
    for i, (text, stem) in enumerate(zip(scores, slugs([text.text for text in scores]), strict=True)):
        low, high = text.scores.min(), text.scores.max()
        record = {"image": name, "text": text.text, "score": rounded(text.cosine), "share": rounded(masks[i].mean())}
        record |= {"box": bounding_box(masks[i]), "lowest": rounded(low), "highest": rounded(high)}
        record |= {"width": picture.width, "height": picture.height, "grid": list(text.scores.shape)}
        if labels is not None:
            record |= {"label": i + 1, "label_share": rounded((labels == i + 1).mean())}
            record["label_rule"] = "highest of the maps standardised over the image, 0 below every threshold"
        if folder is not None:
            place = folder_of(name)
            record["mask"] = folder.write(f"{place}/{stem}.mask.png", pictures.png(pictures.mask_picture(masks[i])))
            overlay = pictures.overlay(picture, heat[i], masks[i])
            record["overlay"] = folder.write(f"{place}/{stem}.overlay.png", pictures.png(overlay))
            if labels is not None:
                record["label_map"] = f"{place}/labels.png"
        records.append(record | settings)
    if folder is not None:
        if labels is not None:
            folder.write(f"{folder_of(name)}/labels.png", pictures.png(pictures.label_picture(labels)))
        folder.write(f"{folder_of(name)}/{RECORDS}", json.dumps(records, ensure_ascii=False).encode())
    return records


def _label_records(labeller: Labeller, settings: dict[str, Any], job: Job) -> Iterator[Records]:
    """Yield the record of each image; with --out-dir, write its pictures."""
    for index, name in enumerate(progress(job.source.names, "images", len(job.source))):
        if job.folder is not None and (records := job.folder.finished(name, settings)):
            if job.screen.places([name], {}):
                yield records[:1]
            continue
        picture = job.load(index)
        if picture is None:
            continue
        record = _label_record(labeller, settings, name, picture, job)
        if job.screen.places([name], {0: record} if isinstance(record, str) else {}):
            assert not isinstance(record, str)
            yield [record]


def _label_record(
    labeller: Labeller, settings: dict[str, Any], name: str, picture: Image.Image, job: Job
) -> dict[str, Any] | str:
    """The record of one image, or the reason why it is not usable; with --out-dir, write its pictures and, last, its record."""
    try:
        averaged = labeller.averaged(picture)
    except ImageError as error:
        return str(error)
    if job.spool is not None:
        job.spool.put_whole(name, logits_at_size(averaged, labeller.limits))
    cut = labeller.cuts[0]
    best = best_texts(averaged, picture.height, picture.width, cut is not None, limits=labeller.limits)
    labels = to_labels(best, labeller.label_of_text, cut).numpy()  # (y, x)
    numbers, pixels = (counts.tolist() for counts in np.unique(labels, return_counts=True))
    classes = []
    for label, count in sorted(zip(numbers, pixels, strict=True), key=lambda pair: (-pair[1], pair[0])):
        share = {"label": label, "class": labeller.classes[label], "share": rounded(count / labels.size)}
        classes.append(share | {"box": bounding_box(labels == label)})
    record = {"image": name, "width": picture.width, "height": picture.height, "found": classes} | settings
    if job.folder is not None:
        place = folder_of(name)
        drawn = pictures.label_picture(labels, len(labeller.classes) - 1)
        record["label_map"] = job.folder.write(f"{place}/labels.png", pictures.png(drawn))
        record["overlay"] = job.folder.write(f"{place}/overlay.png", pictures.png(pictures.label_overlay(picture, labels)))
        job.folder.write(f"{place}/{RECORDS}", json.dumps([record], ensure_ascii=False).encode())
    return record


def folder_of(name: str) -> str:
    """The folder of an image below --out-dir: the image's name, without parts such as `..` that lead out of --out-dir."""
    parts = [part for part in PurePosixPath(name).parts if part.strip("/")]
    return "/".join(f"{part}_" if set(part) == {"."} else part for part in parts)


def slugs(texts: Sequence[str]) -> list[str]:
    """File names without ending, one for each text and all different."""
    plain = [re.sub(r"\W+", "-", text.lower()).strip("-")[:LONGEST_SLUG] or "text" for text in texts]
    used_names: set[str] = set()
    names = []
    for number, name in enumerate(plain):
        names.append(name if name not in used_names else f"{number + 1}-{name}")
        used_names.add(names[-1])
    return names


def _heat_row(record: dict[str, Any]) -> list[str]:
    return [record["image"], record["text"], f"{record['score']:.3f}", f"{100 * record['share']:.1f} %"]


def _label_row(record: dict[str, Any]) -> list[str]:
    classes = [f"{share['class']} {100 * share['share']:.0f} %" for share in record["found"][:MOST_CLASSES]]
    more = len(record["found"]) - MOST_CLASSES
    return [record["image"], ", ".join(classes) + (f" and {more} more" if more > 0 else "")]
