"""Images with a class each, from every way such sets are kept: what zero-shot accuracy is measured on."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BufferedIOBase

import numpy as np
from jaxtyping import Int64

from cliptools.ground.class_names import ClassName
from cliptools.ground.classified.class_rows import IMAGENET, NONE, ClassRows, imagenet_list, load_rows
from cliptools.ground.classified.folders import by_folders, folder_rows
from cliptools.ground.classified.labelled import Labelled
from cliptools.ground.classified.scenes import are_scenes, by_scenes
from cliptools.ground.errors import StreamError, UsageError
from cliptools.ground.images import ImageSource, ListedImages
from cliptools.ground.listing import find
from cliptools.ground.scene_images import single_scenes_for

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
    """Where the classes are from: a list's name, a file, or `folders`."""


def open_classified(
    paths: Sequence[str], labels: str | None, classes: str | None, *, stdin: BufferedIOBase | None = None
) -> ClassifiedImages:
    """The images that PATHs name, with the class of each.

    Args:
        labels: `folders`: the class is the folder's name. `scenes`: what clip-scenes wrote beside each. None: as it looks there.
        classes: A list's name or a file (class_names.class_rows); None: what the labels are of.
        stdin: What `-` reads; standard input unless given.

    Raises:
        UsageError: as images.open_images, or labels that are numbers of nobody knows which classes.
        StreamError: an image without a label, a label that is no class, or fewer than two classes.
        TextError: as class_names.class_rows.
    """
    labelled = _labelled(paths, labels, stdin)
    rows = load_rows(classes) if classes else labelled.classes or _rows_of(labelled)
    if len(rows.classes) < 2:
        raise StreamError(
            f"one class only, {rows.classes[0].name!r}, of {rows.source}: expected two or more, as a folder for each"
        )
    source = ListedImages(labelled.found)
    row = np.array(rows.of(labelled.labels), np.int64)  # (label,)
    label = row[labelled.number]  # (image,)
    if (strange := label == NONE).any():
        first = int(strange.argmax())
        raise rows.refusal(source.names[first], labelled.labels[labelled.number[first]])
    return ClassifiedImages(source, label, rows.classes, rows.source)


def classified_scenes(model_name: str, count: int, seed: int) -> ClassifiedImages:
    """Scenes of one emoji each, rendered as large as an embedded model takes them: every concept in turn, each turn shuffled."""
    source = single_scenes_for(model_name, count, seed)
    rows = load_rows("emoji")
    return ClassifiedImages(source, source.concept, rows.classes, rows.source)


def _labelled(paths: Sequence[str], labels: str | None, stdin: BufferedIOBase | None) -> Labelled:
    found = find(paths, stdin)
    if labels == SCENES or (labels is None and are_scenes(found[0])):
        return by_scenes(found)
    return by_folders(found)


def _rows_of(labelled: Labelled) -> ClassRows:
    """The classes that the labels speak of: ImageNet's if they are its ids, else the labels themselves."""
    words = [label for label in labelled.labels if isinstance(label, str)]
    if len(words) < len(labelled.labels):
        last = max(label for label in labelled.labels if isinstance(label, int))
        raise UsageError(
            f"labels are numbers, up to {last}: say what they stand for by --classes {IMAGENET} or a file, a class a line"
        )
    if (name := imagenet_list(words)) is not None:
        return load_rows(name)
    return folder_rows(words)
