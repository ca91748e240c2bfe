"""Images with a class each, from every way such sets are kept: what zero-shot accuracy is measured on."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from cliptools.console import warn
from cliptools.emoji.render import single_scenes_for
from cliptools.errors import StreamError, UsageError
from cliptools.images.classification.archives import BESIDE, are_labelled, by_members, key_of, pictures
from cliptools.images.classification.class_rows import IMAGENET, NONE, ClassRows, Labelled, imagenet_list, load_rows, rows_named
from cliptools.images.classification.label_files import are_scenes, by_file, by_folders, by_scenes
from cliptools.images.groups import Columns
from cliptools.images.listing import find
from cliptools.images.loader import ImageSource, ListedImages
from cliptools.images.tar import Span
from cliptools.io.jsonl import whole_number
from cliptools.text.classes import ClassName
from cliptools.text.imagenet_classes import WORDNET_ID

FOLDERS, SCENES = "folders", "scenes"  # what --labels may say instead of a file


@dataclass(frozen=True)
class ClassifiedImages:
    """Images, and the class of each."""

    source: ImageSource
    label: Int64[np.ndarray, "image"]
    """Each image's class, an index into `classes`."""
    classes: tuple[ClassName, ...]
    """In the order of their numbers; of ImageNet's, two are called missile and two sunglasses."""
    classes_source: str
    """Where the classes are from: a list's name, a file, or `labels`."""


def open_classified(
    paths: Sequence[str],
    labels: str | None,
    classes: str | None,
    columns: Columns = Columns(),
    *,
    stdin: BufferedIOBase | None = None,
) -> ClassifiedImages:
    """The images that PATHs name, with the class of each.

    Args:
        labels: A file (label_files); `folders`: the class is the folder's name; `scenes`: what clip-scenes wrote beside each, or
            any maker of WebDataset archives; None: as it looks there.
        classes: A list's name or a file (class_names.class_list); None: what the labels are of.
        columns: Of `labels`, where that is a CSV file.
        stdin: What `-` reads; standard input unless given.

    Raises:
        UsageError: as images.open_images, or labels that are numbers of nobody knows which classes.
        StreamError: an image without a label, a label that is no class, or fewer than two classes.
        TextError: as class_names.class_list, or a file of labels that cannot be read.
    """
    labelled = by_file(paths, Path(str(labels)), columns, stdin) if is_label_file(labels) else _labelled(paths, labels, stdin)
    rows = load_rows(classes) if classes else labelled.classes or _rows_of(labelled)
    if len(rows.classes) < 2:
        raise StreamError(
            f"one class only, {rows.classes[0].name!r}: expected two or more, as a folder for each or --labels FILE"
        )
    source = ListedImages(labelled.found)
    row = np.array(rows.of(labelled.labels), np.int64)  # (label,)
    label = row[labelled.number]  # (image,)
    if (strange := label == NONE).any():
        first = int(strange.argmax())
        raise rows.refusal(source.names[first], labelled.labels[labelled.number[first]])
    _refuse_contradictions(labelled, rows, label)
    return ClassifiedImages(source, label, rows.classes, rows.source)


def is_label_file(labels: str | None) -> bool:
    """Whether --labels names a file, not a way to find labels where the images are."""
    return labels not in (None, FOLDERS, SCENES)


def classified_scenes(model_name: str, count: int, seed: int) -> ClassifiedImages:
    """Scenes of one emoji each, rendered as large as an embedded model takes them: every concept in turn, each turn shuffled."""
    source = single_scenes_for(model_name, count, seed)
    rows = load_rows("emoji")
    return ClassifiedImages(source, source.concept, rows.classes, rows.source)


def _refuse_contradictions(labelled: Labelled, rows: ClassRows, label: Int64[np.ndarray, "image"]) -> None:
    """Check further labels of images against those that count.

    Raises:
        StreamError: one that means another class.
    """
    row = {other: rows.of([other])[0] for other in dict.fromkeys(other.label for other in labelled.others)}
    unknown = []
    for other in labelled.others:
        first = labelled.labels[labelled.number[other.image]]
        if row[other.label] == label[other.image] or (row[other.label] == NONE and other.caption):
            continue
        if row[other.label] == NONE and type(other.label) is not type(first):
            unknown.append(other)
            continue
        raise StreamError(
            f"{labelled.found[other.image].name}: two labels under its key {key_of(labelled.found[other.image])!r}, {first!r} in "
            f"{other.first} and {other.label!r} in {other.member}; expected one class (a key ends at the first dot of a name)"
        )
    if unknown:
        named = f"{unknown[0].member} says {unknown[0].label!r}"
        warn(f"{named}, which is none of the classes of {rows.source}; {unknown[0].first} counts ({len(unknown)} such labels)")


def _labelled(paths: Sequence[str], labels: str | None, stdin: BufferedIOBase | None) -> Labelled:
    """What is said where the images are."""
    found = find(paths, stdin, beside=() if labels == FOLDERS else BESIDE)
    in_archive = isinstance(found[0].place, Span)
    if labels != FOLDERS and (are_labelled(found) or (labels == SCENES and in_archive)):
        return by_members(found)
    images = pictures(found)
    return by_scenes(images) if labels == SCENES or (labels is None and are_scenes(images[0])) else by_folders(images)


def _rows_of(labelled: Labelled) -> ClassRows:
    """The classes that the labels speak of: ImageNet's if they are its ids, else the labels themselves.

    Raises:
        UsageError: they are numbers, or ids beyond ImageNet's.
    """
    words = list(map(str, labelled.labels))
    numbers = [number for word in words if (number := whole_number(word)) is not None]
    if len(numbers) == len(words) and min(numbers) >= 0:
        last = max(numbers)
        raise UsageError(
            f"labels are numbers, up to {last}: say of which classes by --classes {IMAGENET} or a file, a class a line"
        )
    if (name := imagenet_list(words)) is not None:
        return load_rows(name)
    if all(map(WORDNET_ID.fullmatch, words)):
        raise UsageError(f"labels are WordNet ids, {min(words)} and others, not all ImageNet's: give --classes, `id name` a line")
    return rows_named(words)
