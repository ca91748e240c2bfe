"""Labelled images as `ablate` takes them: of paths, as clip-ablate finds their classes; or objects with labels beside them."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from cliptools.embedded_models import require_scenes
from cliptools.errors import UsageError
from cliptools.front.ablate_settings import AblateRequest
from cliptools.front.images import Images, open_any
from cliptools.front.prepared import PreparedImages
from cliptools.front.segment_setup import LISTED
from cliptools.images.classification import (
    ClassifiedImages,
    classified_scenes,
    classified_source,
    is_label_file,
    open_classified,
    require_several,
)
from cliptools.images.classification.class_rows import NO_ROW, ClassRows, Label, load_rows
from cliptools.images.classification.grouped import ImageGroups, groups_of, open_grouped
from cliptools.images.groups import Columns
from cliptools.text.classes import parse_class

SCENES = 1052  # rendered if no images are named: two of every concept
Labels = str | os.PathLike[str] | Sequence[int] | Sequence[str] | np.ndarray | Tensor
Classes = str | os.PathLike[str] | Sequence[str] | None
LABEL_KEYS = ("labels", "label")  # of a batch that is a mapping


def open_with_groups(
    images: Images | None, labels: Labels | None, classes: Classes, columns: Columns, model: str, request: AblateRequest
) -> tuple[ClassifiedImages, ImageGroups | None]:
    """Return images with the class of each, and if the request has groups, the group of each.

    Raises:
        UsageError: the source of the groups is for images that paths name; or as open_labelled or classification.grouped.
        StreamError: an image has no class or no group.
        CliptoolsError: images, labels or classes cannot be read.
    """
    groups = request.groups
    if not isinstance(groups, str | os.PathLike):
        opened = open_labelled(images, labels, classes, columns, model, request.limit, request.sample, request.seed)
        return opened, None if groups is None else groups_of(opened, list(groups))
    named = images is None or _are_paths(images)
    if not named or not isinstance(labels, str | os.PathLike | None) or not isinstance(classes, str | os.PathLike | None):
        raise UsageError(f"groups={str(groups)!r}: it is for images that paths name; expected a value for each image")
    label_source, class_source = (None if place is None else os.fspath(place) for place in (labels, classes))
    return open_grouped(_paths(images), os.fspath(groups), label_source, class_source, columns, request.split)


def open_labelled(
    images: Images | None,
    labels: Labels | None,
    classes: Classes,
    columns: Columns,
    model: str,
    limit: int | None,
    sample: int | None,
    seed: int,
) -> ClassifiedImages:
    """Return images with the class of each, or rendered scenes for an embedded model.

    Args:
        columns: Columns of `labels`, if that is a CSV file.
        model: Name of the model.
        limit: Number of scenes, if scenes are rendered.
        seed: Random seed of the scenes.

    Raises:
        UsageError: there are no images and the model is not embedded, labels do not suit the images, or labels are missing.
        StreamError: an image has no label, or a label is no class.
        CliptoolsError: images, labels or classes cannot be read.
    """
    images = list(images) if isinstance(images, Iterator) else images
    place = os.fspath(labels) if isinstance(labels, str | os.PathLike) else None
    if (images is None and is_label_file(place)) or (_are_paths(images) and (place is not None or labels is None)):
        if classes is not None and not isinstance(classes, str | os.PathLike):
            raise UsageError("classes: a list of names is for images with labels beside them; for paths, name a list or a file")
        named = None if classes is None else os.fspath(classes)
        return open_classified(_paths(images), place, named, columns)
    if images is None:
        return _scenes(labels, classes, model, limit, sample, seed)
    if place is not None:
        raise UsageError(f"labels={place!r}: it is for images that paths name; expected a class for each image")
    source = open_any(images)
    rows = _rows(classes)
    if labels is not None:
        values: Any = labels.tolist() if isinstance(labels, np.ndarray | Tensor) else labels
        return classified_source(source, tuple(values), rows)
    if not isinstance(source, PreparedImages):
        raise UsageError("labels=None: expected a class for each image, as pictures and arrays have none")
    if rows is None:
        raise UsageError("classes=None: expected the classes, whose numbers or names are the labels in the batches")
    return _labelled_batches(source, rows)


def _are_paths(images: object) -> bool:
    """Return True for a path, or a list of paths."""
    if isinstance(images, list | tuple) and images:
        return all(isinstance(image, str | os.PathLike) for image in images)
    return isinstance(images, str | os.PathLike)


def _paths(images: Any) -> tuple[str, ...]:
    if images is None:
        return ()
    return (os.fspath(images),) if isinstance(images, str | os.PathLike) else tuple(os.fspath(path) for path in images)


def _rows(classes: Classes) -> ClassRows | None:
    """Return the classes in the order of their numbers; None if there are none."""
    if classes is None:
        return None
    if isinstance(classes, str | os.PathLike):
        return load_rows(os.fspath(classes))
    return ClassRows(tuple(parse_class(line, known=False) for line in classes), LISTED)


def _scenes(labels: object, classes: Classes, model: str, limit: int | None, sample: int | None, seed: int) -> ClassifiedImages:
    """Return rendered scenes for an embedded model.

    Raises:
        UsageError: the model is not embedded, or an argument is for images that are named.
    """
    require_scenes(model)
    if sample is not None:
        raise UsageError("--sample needs a PATH to draw images from; for other rendered scenes use --seed")
    if labels is not None or classes is not None:
        raise UsageError("--labels and --classes need images: name a PATH")
    return classified_scenes(model, limit or SCENES, seed)


def _labelled_batches(source: PreparedImages, rows: ClassRows) -> ClassifiedImages:
    """Return preprocessed images whose labels are taken from the batches while these are read."""
    require_several(rows)
    label = np.full(len(source), NO_ROW, np.int64)  # (image,)

    def watch(numbers: Sequence[int], batch: Any) -> None:
        given = _labels_of(batch, len(numbers))
        batch_rows = rows.of(given)
        if NO_ROW in batch_rows:
            first = batch_rows.index(NO_ROW)
            raise rows.refusal(source.names[numbers[first]], given[first])
        label[list(numbers)] = batch_rows

    source.watch = watch
    return ClassifiedImages(source, label, rows.classes, rows.source)


def _labels_of(batch: Any, count: int) -> list[Label]:
    """Return the labels beside the pictures of a batch.

    Raises:
        UsageError: there are none, or not one for each picture.
    """
    labels: Any = None
    if isinstance(batch, Mapping):
        labels = next((batch[key] for key in LABEL_KEYS if key in batch), None)
    elif isinstance(batch, tuple | list) and len(batch) > 1:
        labels = batch[1]
    labels = labels.tolist() if isinstance(labels, np.ndarray | Tensor) else labels
    if not isinstance(labels, Iterable) or isinstance(labels, str):
        raise UsageError("labels=None: a batch has no labels beside its pictures; expected (pictures, labels), or labels for all")
    values = list(labels)
    if len(values) != count or not all(isinstance(value, int | str) for value in values):
        raise UsageError(f"images: {len(values)} labels beside {count} pictures; expected a number or a name for each")
    return values
