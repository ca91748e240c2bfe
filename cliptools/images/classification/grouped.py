"""Groups of images for accuracy per group: each group has one class and one value of another attribute, such as the background.

`open_grouped` finds class and value of every image in two levels of folders, in the records of clip-scenes --groups, in a column
beside the labels, or in the metadata of Waterbirds and CelebA (group_tables.py). Images of folders three deep and scenes of
several planted pairs are several tasks: classifications of their own, each among the classes of its own images.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedIOBase
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from cliptools.console import warn
from cliptools.errors import StreamError, UsageError
from cliptools.images.annotations import SCENES as SCENES_FILE
from cliptools.images.annotations import member_record
from cliptools.images.classification import ClassifiedImages, classified, is_label_file
from cliptools.images.classification.class_rows import Label, LabelledImages, number_labels
from cliptools.images.classification.group_tables import TRAINING, TableRow, attribute_rows, metadata_rows, split_of
from cliptools.images.classification.label_files import SPLITS
from cliptools.images.groups import Columns, without_ending
from cliptools.images.listing import ListedImage, find, full_name, named_path
from cliptools.images.tar import Span
from cliptools.io.jsonl import file_objects

FOLDERS, SCENES = "folders", "scenes"  # values of --groups other than a file or a column
DEPTH = 2  # levels of folders: class and value


class GroupTask(NamedTuple):
    """Groups that belong together, with the classes that their images are classified among."""

    name: str
    """Empty if it is the only one."""
    groups: tuple[int, ...]
    classes: tuple[int, ...]
    """Rows of the classes; all classes if it is the only task."""


@dataclass(frozen=True)
class ImageGroups:
    """The group of each image."""

    of: Int64[np.ndarray, "image"]
    names: tuple[str, ...]
    """Class and value of each group, as `landbird/water`, after the name of the task if there are several."""
    tasks: tuple[GroupTask, ...]
    training: Mapping[str, int] | None = None
    """Number of training images of each group, if a table has them."""


def open_grouped(
    paths: Sequence[str],
    groups: str,
    labels: str | None,
    classes: str | None,
    columns: Columns = Columns(),
    split: str | None = None,
    stdin: BufferedIOBase | None = None,
) -> tuple[ClassifiedImages, ImageGroups]:
    """Open the images that PATHs name, with the class and the group of each.

    Args:
        groups: `folders`, `scenes`, a column of the file `labels`, or a file of metadata.
        labels: A file of labels, if `groups` is a column of it.
        classes: A list's name or a file; None: the classes that the labels belong to.
        columns: Columns of `labels`.
        split: train, validation or test, for tables with a column `split` and for scenes; None: test for metadata, else all.
        stdin: Stream to read for `-`; standard input if None.

    Raises:
        UsageError: `groups` is neither of these, or does not go with another argument.
        StreamError: an image has no class or no group, or no image is of the split.
        TextError: a table cannot be read.
    """
    table = groups not in (FOLDERS, SCENES)
    if table and is_label_file(labels):
        rows, known = attribute_rows(paths, Path(str(labels)), columns, groups, stdin)
    elif table:
        if not Path(groups).is_file():
            raise UsageError(
                f"--groups {groups}: no file has this name; expected {FOLDERS}, {SCENES}, the metadata of Waterbirds or "
                "CelebA, or with --labels FILE a column of that file"
            )
        rows, known = metadata_rows(paths, Path(groups), stdin)
        split = split or "test"
    elif labels is not None:
        raise UsageError(f"--groups {groups} has the classes too: leave out --labels")
    else:
        rows, known = (folder_rows if groups == FOLDERS else _scene_rows)(paths, stdin), None
    kept = _of_split(rows, split, f"--groups {groups}")
    labelled = number_labels([row.image for row in kept], (row.label for row in kept), "it has no class")
    images = classified(labelled._replace(classes=known), classes)
    return images, _groups(kept, images, _training(rows, labelled, images))


def groups_of(images: ClassifiedImages, values: Sequence[object]) -> ImageGroups:
    """Return the groups of classified images by values that a program gives, one for each image.

    Raises:
        UsageError: there are more or fewer values than images.
    """
    if len(values) != len(images.source):
        raise UsageError(f"groups: {len(values)} for {len(images.source)} images, expected one for each")
    return _grouped([("", int(row), str(value)) for row, value in zip(images.label, values, strict=True)], images)


def folder_rows(paths: Sequence[str], stdin: BufferedIOBase | None) -> list[TableRow]:
    """Return class and value of images from two levels of folders, and the task from a third level above them.

    Folders that all images share do not count.

    Raises:
        StreamError: images lie less deep or deeper, not all at the same depth, or in folders of several splits.
    """
    images = find(paths, stdin)
    levels = [_levels(image) for image in images]
    shared = len(list(takewhile(lambda column: len(set(column)) == 1, zip(*levels, strict=False))))
    deepest = max(map(len, levels))
    top = max(0, min(shared, deepest - DEPTH))
    for image, folders in zip(images, levels, strict=True):
        if len(folders) != deepest or not DEPTH <= deepest - top <= DEPTH + 1:
            expected = "expected CLASS/VALUE/IMAGE, or TASK/CLASS/VALUE/IMAGE for all images"
            raise StreamError(f"--groups {FOLDERS}: {image.name} lies in {'/'.join(folders[top:]) or 'no folder'}; {expected}")
    rows = [
        TableRow(image, folders[-2], folders[-1], "/".join(folders[top:-2]))
        for image, folders in zip(images, levels, strict=True)
    ]
    tasks = {row.task for row in rows}
    if len(tasks) > 1 and all(task.lower() in SPLITS for task in tasks):
        raise StreamError(f"--groups {FOLDERS}: {' and '.join(sorted(tasks))} are parts of a data set: name one of them as PATH")
    return rows if len(tasks) > 1 else [row._replace(task="") for row in rows]


def _levels(image: ListedImage) -> list[str]:
    """Return the folders of an image below its PATH or in its archive."""
    folders = list(PurePosixPath(image.name).parts[:-1])
    return folders[1:] if isinstance(image.place, Span) and named_path(image) != image.base else folders


def _of_split(rows: Sequence[TableRow], split: str | None, source: str) -> list[TableRow]:
    """Return the images of a split; without a split all of them.

    Raises:
        StreamError: there is none, or scenes are of several splits and none is named.
    """
    splits = dict.fromkeys(split_of(row.split) for row in rows)
    if split is None:
        if any(row.task for row in rows) and len(splits) > 1:
            raise StreamError(f"{source}: images of the splits {', '.join(splits)}; expected --split with one of them")
        return list(rows)
    if not (kept := [row for row in rows if split_of(row.split) == split]):
        raise StreamError(f"{source}: no image of the split {split}; there are {', '.join(filter(None, splits)) or 'no splits'}")
    return kept


Key = tuple[str, int, str]
"""Task, row of the class, and value of a group."""


def _groups(rows: Sequence[TableRow], images: ClassifiedImages, training: Counter[Key] | None) -> ImageGroups:
    return _grouped([(row.task, int(label), row.value) for row, label in zip(rows, images.label, strict=True)], images, training)


def _grouped(keys: Sequence[Key], images: ClassifiedImages, training: Counter[Key] | None = None) -> ImageGroups:
    """Return groups, sorted by task, row of the class and value.

    Raises:
        StreamError: all images of a task have the same class.
    """
    distinct = sorted(set(keys))
    number = {key: g for g, key in enumerate(distinct)}
    tasks = list(dict.fromkeys(task for task, _, _ in distinct))
    if single := next((task for task in tasks if len({row for name, row, _ in distinct if name == task}) < 2), None):
        raise StreamError(f"--groups: all images of {single} have the same class; expected two or more")
    names = [_group_name(key, images) for key in distinct]
    if absent := [_group_name(key, images) for key in sorted(training or ()) if key not in number]:
        warn(f"--groups: no image of {', '.join(absent)}, which training images have: figures are without this group")
    all_classes = tuple(range(len(images.classes)))
    return ImageGroups(
        np.array([number[key] for key in keys], np.int64),
        tuple(names),
        tuple(
            GroupTask(
                name,
                tuple(g for g, (task, _, _) in enumerate(distinct) if task == name),
                tuple(sorted({row for task, row, _ in distinct if task == name})) if len(tasks) > 1 else all_classes,
            )
            for name in tasks
        ),
        None if training is None else {name: training[key] for name, key in zip(names, distinct, strict=True)},
    )


def _group_name(key: Key, images: ClassifiedImages) -> str:
    task, row, value = key
    return "/".join(filter(None, (task, images.classes[row].name, value)))


def _training(rows: Sequence[TableRow], labelled: LabelledImages, images: ClassifiedImages) -> Counter[Key] | None:
    """Return the number of training images of each group; None if no row is of the split `train`."""
    row_of: dict[Label, int] = {}
    for number, label in zip(labelled.number.tolist(), images.label.tolist(), strict=True):
        row_of[labelled.labels[number]] = label
    counts = Counter(
        (row.task, row_of[row.label], row.value) for row in rows if split_of(row.split) == TRAINING and row.label in row_of
    )
    return counts or None


def _scene_rows(paths: Sequence[str], stdin: BufferedIOBase | None) -> list[TableRow]:
    """Return class, value, pair and split of scenes.

    Raises:
        StreamError: an image has no record of a scene with a group.
    """
    return [_scene_row(image, record) for image, record in _scene_records(find(paths, stdin))]


def _scene_row(image: ListedImage, record: dict[str, Any]) -> TableRow:
    label, beside, pair, split = (record.get(field) for field in ("label", "beside", "pair", "split"))
    if not (isinstance(label, str) and isinstance(beside, str) and isinstance(pair, str) and isinstance(split, str)):
        raise StreamError(
            f"--groups scenes: the record of {image.name} has no `pair`, `label`, `beside` and `split`, as clip-scenes "
            "--groups writes them"
        )
    return TableRow(image, label, beside, pair, split)


def _scene_records(images: Sequence[ListedImage]) -> Iterator[tuple[ListedImage, dict[str, Any]]]:
    """Yield each image with its record.

    Raises:
        StreamError: an image has no record.
    """
    by_folder: dict[Path, dict[str, dict[str, Any]]] = {}
    for image in images:
        record = member_record(image.name, image.place) if isinstance(image.place, Span) else _line(image, by_folder)
        if record is None:
            raise StreamError(
                f"--groups scenes: {image.name} has no record: expected KEY.json after it in its archive, or {SCENES_FILE} in a "
                "folder above it, as clip-scenes --groups writes them"
            )
        yield image, record


def _line(image: ListedImage, by_folder: dict[Path, dict[str, dict[str, Any]]]) -> dict[str, Any] | None:
    """Return the line of an image in the scenes.jsonl of the next folder above it that has one."""
    for folder in Path(str(image.place)).parents:
        if folder not in by_folder:
            path = folder / SCENES_FILE
            lines = file_objects(path, f"--groups scenes {path}") if path.is_file() else ()
            by_folder[folder] = {str(record.get("key")): record for _, record in lines}
        if records := by_folder[folder]:
            parts = PurePosixPath(without_ending(full_name(image))).parts
            tails = ("/".join(parts[start:]) for start in range(len(parts)))
            return next((records[tail] for tail in tails if tail in records), None)
    return None
