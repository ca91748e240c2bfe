"""Images with one class each, for zero-shot accuracy, from label files, folders, archives or scenes."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from cliptools.console import warn
from cliptools.emoji.render import single_scenes_for
from cliptools.errors import StreamError, UsageError
from cliptools.images.classification.archives import LABEL_ENDINGS, are_labelled, by_members, key_of, pictures
from cliptools.images.classification.class_rows import (
    IMAGENET,
    NO_ROW,
    ClassRows,
    Label,
    LabelledImages,
    imagenet_list,
    load_rows,
    rows_named,
)
from cliptools.images.classification.label_files import are_scenes, by_file, by_folders, by_scenes
from cliptools.images.groups import Columns
from cliptools.images.listing import find
from cliptools.images.loader import ImageSource, ListedImages
from cliptools.images.tar import Span
from cliptools.io.jsonl import whole_number
from cliptools.text.classes import ClassName
from cliptools.text.vocabularies import WORDNET_ID

FOLDERS, SCENES = "folders", "scenes"  # values of --labels other than a file


@dataclass(frozen=True)
class ClassifiedImages:
    """Images and the class of each."""

    source: ImageSource
    label: Int64[np.ndarray, "image"]
    """Each image's class, an index into `classes`."""
    classes: tuple[ClassName, ...]
    """Classes in the order of their numbers. Names may repeat: ImageNet has two classes missile and two classes sunglasses."""
    classes_source: str
    """Origin of the classes: a list's name, a file, or `labels`."""


def open_classified(
    paths: Sequence[str],
    labels: str | None,
    classes: str | None,
    columns: Columns = Columns(),
    *,
    stdin: BufferedIOBase | None = None,
) -> ClassifiedImages:
    """Open the images that PATHs name, with the class of each.

    Args:
        labels: A file (label_files); `folders`: the class is the folder's name; `scenes`: the records of clip-scenes or of any
            WebDataset archive; None: the kind that the images suggest.
        classes: A list's name or a file (classes.class_list); None: the classes that the labels belong to.
        columns: Columns of `labels`, if that is a CSV file.
        stdin: Stream to read for `-`; standard input if None.

    Raises:
        UsageError: as loader.open_images, or the labels are numbers and `classes` is None.
        StreamError: an image has no label, a label is no class, or there are fewer than two classes.
        TextError: as classes.class_list, or a file of labels cannot be read.
    """
    labelled = by_file(paths, Path(str(labels)), columns, stdin) if is_label_file(labels) else _labelled(paths, labels, stdin)
    return classified(labelled, classes)


def classified(labelled: LabelledImages, classes: str | None) -> ClassifiedImages:
    """Return labelled images with the class of each; see open_classified.

    Raises:
        UsageError: the labels are numbers and no classes are known.
        StreamError: a label is not a class, an image has two classes, or there are fewer than two classes.
        TextError: as classes.class_list.
    """
    rows = load_rows(classes) if classes else labelled.classes or _rows_of(labelled.labels)
    require_several(rows)
    source = ListedImages(labelled.images)
    row = np.array(rows.of(labelled.labels), np.int64)  # (label,)
    label = row[labelled.number]  # (image,)
    if (unknown := label == NO_ROW).any():
        first = int(unknown.argmax())
        raise rows.refusal(source.names[first], labelled.labels[labelled.number[first]])
    _refuse_contradictions(labelled, rows, label)
    return ClassifiedImages(source, label, rows.classes, rows.source)


def classified_source(source: ImageSource, labels: Sequence[Label], rows: ClassRows | None) -> ClassifiedImages:
    """Return images that a program gives, with the class of each.

    Args:
        labels: A label for each image.
        rows: The classes; None: those that the labels belong to.

    Raises:
        UsageError: the labels are more or fewer than the images, or numbers while `rows` is None.
        StreamError: a label is no class, or there are fewer than two classes.
    """
    if len(labels) != len(source):
        raise UsageError(f"labels: {len(labels)} for {len(source)} images, expected one for each")
    rows = rows or _rows_of(tuple(dict.fromkeys(labels)))
    require_several(rows)
    label = np.array(rows.of(labels), np.int64)  # (image,)
    if (unknown := label == NO_ROW).any():
        first = int(unknown.argmax())
        raise rows.refusal(source.names[first], labels[first])
    return ClassifiedImages(source, label, rows.classes, rows.source)


def require_several(rows: ClassRows) -> None:
    """Check that there are two classes or more.

    Raises:
        StreamError: there is only one.
    """
    if len(rows.classes) < 2:
        raise StreamError(
            f"one class only, {rows.classes[0].name!r}: expected two or more, as a folder for each or --labels FILE"
        )


def is_label_file(labels: str | None) -> bool:
    """Return True if --labels names a file, not a place beside the images."""
    return labels not in (None, FOLDERS, SCENES)


def classified_scenes(model_name: str, count: int, seed: int) -> ClassifiedImages:
    """Return scenes of one emoji each, rendered at an embedded model's size: every concept in turn, each turn shuffled."""
    source = single_scenes_for(model_name, count, seed)
    rows = load_rows("emoji")
    return ClassifiedImages(source, source.concept, rows.classes, rows.source)


def _refuse_contradictions(labelled: LabelledImages, rows: ClassRows, label: Int64[np.ndarray, "image"]) -> None:
    """Check further labels of an image against its first label, which counts.

    Raises:
        StreamError: a further label means another class.
    """
    row = {label_text: rows.of([label_text])[0] for label_text in dict.fromkeys(extra.label for extra in labelled.further)}
    unknown = []
    for extra in labelled.further:
        first = labelled.labels[labelled.number[extra.image]]
        if row[extra.label] == label[extra.image] or (row[extra.label] == NO_ROW and extra.caption):
            continue
        if row[extra.label] == NO_ROW and type(extra.label) is not type(first):
            unknown.append(extra)
            continue
        raise StreamError(
            f"{labelled.images[extra.image].name}: two labels under its key {key_of(labelled.images[extra.image])!r}, {first!r} "
            f"in {extra.first} and {extra.label!r} in {extra.member}; expected one class (a key ends at the first dot of a name)"
        )
    if unknown:
        warn(
            f"{unknown[0].member} has {unknown[0].label!r}, which is not one of the classes of {rows.source}; {unknown[0].first} "
            f"counts ({len(unknown)} such labels)"
        )


def _labelled(paths: Sequence[str], labels: str | None, stdin: BufferedIOBase | None) -> LabelledImages:
    """Return the images with the labels that lie beside them."""
    members = find(paths, stdin, extra_endings=() if labels == FOLDERS else LABEL_ENDINGS)
    in_archive = isinstance(members[0].place, Span)
    if labels != FOLDERS and (are_labelled(members) or (labels == SCENES and in_archive)):
        return by_members(members)
    images = pictures(members)
    return by_scenes(images) if labels == SCENES or (labels is None and are_scenes(images[0])) else by_folders(images)


def _rows_of(labels: Sequence[Label]) -> ClassRows:
    """Return the classes that the labels belong to: ImageNet's if they are its ids, else the labels themselves.

    Raises:
        UsageError: the labels are numbers, or WordNet ids outside ImageNet.
    """
    words = list(map(str, labels))
    numbers = [number for word in words if (number := whole_number(word)) is not None]
    if len(numbers) == len(words) and min(numbers) >= 0:
        last = max(numbers)
        raise UsageError(
            f"labels are numbers, up to {last}: name their classes by --classes {IMAGENET} or a file with one class per line"
        )
    if (name := imagenet_list(words)) is not None:
        return load_rows(name)
    if all(map(WORDNET_ID.fullmatch, words)):
        raise UsageError(f"labels are WordNet ids, {min(words)} and others, not all ImageNet's: give --classes, `id name` a line")
    return rows_named(words)
