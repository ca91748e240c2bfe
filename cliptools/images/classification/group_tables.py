"""Tables with the class and the group of each image: columns of a file of labels, and the metadata of Waterbirds and CelebA.

* Waterbirds: metadata.csv (img_filename, y, split, place), with the images in folders beside it.
* CelebA: list_attr_celeba.csv or .txt, with list_eval_partition of the same ending and the folder img_align_celeba beside it. The
  class is the hair colour, the group also the sex, as in the studies of groups.
"""

from collections.abc import Iterable, Mapping, Sequence
from io import BufferedIOBase
from pathlib import Path
from typing import NamedTuple

from cliptools.errors import StreamError, UsageError
from cliptools.images.classification.class_rows import ClassRows, Label, LabelledImages
from cliptools.images.classification.label_files import by_file
from cliptools.images.groups import Columns, ImageNames, column_names, column_of, place_in
from cliptools.images.listing import ListedImage, find, full_name
from cliptools.io.text_file import read_text
from cliptools.text.classes import ClassName

TRAINING = "train"
SPLIT_NAMES = {
    "train": TRAINING, "training": TRAINING, "0": TRAINING,
    "val": "validation", "valid": "validation", "validation": "validation", "dev": "validation", "1": "validation",
    "test": "test", "testing": "test", "2": "test",
}  # fmt: skip
"""The three splits, by the names and numbers that tables have for them."""
SPLIT_COLUMN = "split"


class TableRow(NamedTuple):
    """An image, its class, the value of its other attribute, its task and its split."""

    image: ListedImage
    label: Label
    value: str
    task: str = ""
    split: str = ""


class Metadata(NamedTuple):
    """Columns of a data set's table, and the meaning of their fields."""

    name: str
    image: str
    label: str
    value: str
    split: str
    classes: tuple[str, str]
    """Names of the classes with fields 0 (or -1) and 1."""
    values: tuple[str, str]
    folders: tuple[str, ...]
    """Folders beside the table that may hold the images; the first that exists does."""


WATERBIRDS = Metadata("Waterbirds", "img_filename", "y", "place", "split", ("landbird", "waterbird"), ("land", "water"), (".",))
CELEBA = Metadata(
    "CelebA", "image_id", "Blond_Hair", "Male", "partition", ("person with dark hair", "person with blond hair"),
    ("female", "male"), ("img_align_celeba/img_align_celeba", "img_align_celeba", "."),
)  # fmt: skip
FIELDS = {"0": 0, "-1": 0, "1": 1}


def split_of(field: str) -> str:
    """Return the name of a split: train, validation or test; any other name as it is."""
    return SPLIT_NAMES.get(field.strip().lower(), field.strip())


def attribute_rows(
    paths: Sequence[str], file: Path, columns: Columns, attribute: str, stdin: BufferedIOBase | None
) -> tuple[list[TableRow], ClassRows | None]:
    """Return images with the labels of a file, and the value of each from a further column; the split from a column `split`.

    Raises:
        UsageError: the file is standard input, which can be read only once.
        StreamError: the file lacks the column, an image has no value, or as label_files.by_file.
    """
    if str(file) == "-":
        raise UsageError("--groups needs the labels twice: name a file for --labels instead of -")
    labelled = by_file(paths, file, columns, stdin)
    text = read_text(file, "--labels")
    value = column_of(text, file, Columns(columns.image, attribute), "--groups")
    try:
        split: Mapping[str, str] = column_of(text, file, Columns(columns.image, SPLIT_COLUMN))
    except StreamError:
        split = {}
    return _attributed(labelled, value, split, f"--labels {file}: no {attribute}"), labelled.classes


def _attributed(labelled: LabelledImages, value: Mapping[str, str], split: Mapping[str, str], missing: str) -> list[TableRow]:
    """Return labelled images with their values.

    Args:
        missing: Message about an image without a value, before its name.

    Raises:
        StreamError: an image has no value.
    """
    names, rows = ImageNames(value), []
    for image, number in zip(labelled.images, labelled.number.tolist(), strict=True):
        name = names.find(full_name(image))
        if name is None or not value[name]:
            raise StreamError(f"{missing} of {image.name}")
        rows.append(TableRow(image, labelled.labels[number], value[name], "", split.get(name, "")))
    return rows


def metadata_rows(paths: Sequence[str], file: Path, stdin: BufferedIOBase | None) -> tuple[list[TableRow], ClassRows]:
    """Return the images of Waterbirds or CelebA with class, value and split.

    Args:
        paths: Images; empty: those of the table, which lie beside it.

    Raises:
        StreamError: the table is of neither, lacks an image, or has another field than 0 (or -1) and 1.
    """
    text = read_text(file, "--groups")
    head = text.partition("\n")[0]
    if head.strip().isdecimal():
        text = _with_commas(text, CELEBA.image)
    tables = ((kind, column_names(text, file, kind.image)) for kind in (WATERBIRDS, CELEBA))
    kinds = (kind for kind, names in tables if {kind.image, kind.label, kind.value} <= names)
    if (kind := next(kinds, None)) is None:
        known = "Waterbirds (img_filename, y, place, split) or CelebA (image_id, Blond_Hair, Male)"
        raise StreamError(
            f"--groups {file}: has neither the columns of {known}; for another table give --labels {file} and --groups COLUMN"
        )
    label, value = (column_of(text, file, Columns(kind.image, column), "--groups") for column in (kind.label, kind.value))
    split = _splits(text, file, kind)
    rows = []
    for image, name in _listed(paths, label, file, kind, stdin):
        if name is None:
            raise StreamError(f"--groups {file}: has no row for {image.name}")
        fields = [FIELDS.get(column[name].strip()) for column in (label, value)]
        if None in fields:
            raise StreamError(
                f"--groups {file}: {name} has {kind.label} {label[name]!r} and {kind.value} {value[name]!r}, expected "
                "0 or 1 (CelebA also -1)"
            )
        rows.append(TableRow(image, fields[0] or 0, kind.values[fields[1] or 0], "", split.get(name, "")))
    return rows, ClassRows(tuple(ClassName(name) for name in kind.classes), kind.name)


def _listed(
    paths: Sequence[str], label: Mapping[str, str], file: Path, kind: Metadata, stdin: BufferedIOBase | None
) -> Iterable[tuple[ListedImage, str | None]]:
    """Yield images and their names in the table."""
    if paths:
        names = ImageNames(label)
        return ((image, names.find(full_name(image))) for image in find(paths, stdin))
    folder = next(place for name in kind.folders if (place := file.parent / name).is_dir())
    return ((ListedImage(name, str(folder), place_in(folder, name)), name) for name in label)


def _splits(text: str, file: Path, kind: Metadata) -> Mapping[str, str]:
    """Return the split of each image, for CelebA from the file beside the table, with its ending or the other one.

    Raises:
        StreamError: that file does not exist or is of another kind.
    """
    if kind is WATERBIRDS:
        return column_of(text, file, Columns(kind.image, kind.split), "--groups")
    places = [file.with_name(f"list_eval_partition{ending}") for ending in dict.fromkeys((file.suffix, ".csv", ".txt"))]
    if (beside := next((place for place in places if place.is_file()), None)) is None:
        raise StreamError(f"--groups {file}: expected {places[0].name} beside it, which has the split of each image")
    partition = read_text(beside, "--groups")
    if not partition.startswith((kind.image, f'"{kind.image}"')):
        partition = f"{kind.image},{kind.split}\n" + "\n".join(",".join(line.split()) for line in partition.splitlines())
    return column_of(partition, beside, Columns(kind.image, kind.split), "--groups")


def _with_commas(text: str, image: str) -> str:
    """Return CelebA's own form, the number of images, the names of the attributes, and rows with spaces, as a CSV table."""
    head, *lines = text.splitlines()[1:]
    return "\n".join([f"{image},{','.join(head.split())}", *(",".join(line.split()) for line in lines)])
