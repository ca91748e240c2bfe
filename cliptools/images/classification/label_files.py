"""Labels of images from a file, from the folders of the images, or from the scenes.jsonl of clip-scenes --single.

`by_folders` takes the folder of each class, `by_scenes` the records of scenes with one emoji each. `by_file` reads a label file:

* Caffe's lists: `ILSVRC2012_val_00000001.JPEG 65`, numbers in the order of the sorted WordNet ids.
* Kaggle's LOC_val_solution.csv: `ImageId,PredictionString`, of which the latter begins with a WordNet id.
* ILSVRC2012_validation_ground_truth.txt of the development kit: a number for image 1, 2, …, in the kit's own order, which the
  meta.mat beside it translates.
* A CSV file with the columns' names in its first line, or one with tabs or semicolons.
* JSON lines, or an array of objects, whose keys are the columns, for example Hugging Face's metadata.jsonl.
* Tables without column names: images in the first column and labels in the second, followed by anything, for example
  tiny-imagenet's `val_0.JPEG n03444034 0 32 44 62`.
"""

import contextlib
import csv
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from io import BufferedIOBase
from itertools import takewhile
from pathlib import Path, PurePosixPath

from cliptools.console import count_of, note, warn
from cliptools.errors import StreamError, UsageError
from cliptools.images.annotations import SCENES, Annotations, scene_names
from cliptools.images.classification.class_rows import IMAGENET, Label, LabelledImages, load_rows, number_labels
from cliptools.images.decode import PICTURES, is_picture
from cliptools.images.groups import SEPARATORS, Columns, ImageNames, column_of, is_json, place_in, separator_of
from cliptools.images.listing import STDIN, ListedImage, find, full_name, named_path
from cliptools.images.stanford_cars import read_variables
from cliptools.images.tar import TAR_ENDINGS, Span
from cliptools.io.jsonl import WHOLE, whole_number
from cliptools.io.text_file import COMMENT, read_text
from cliptools.text.vocabularies import WORDNET_ID

SPLITS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing", "trainval", "minival"}
Place = tuple[str, str, bool]
"""A base, a folder below it, and True if the folder is in an archive."""
KAGGLE = ("ImageId", "PredictionString")
LABEL = rf"(?:{WHOLE.pattern}|{WORDNET_ID.pattern})"
LISTED = re.compile(rf"(?P<image>\S.*?)\s+(?P<label>{LABEL})", re.ASCII)
PLAIN = re.compile(rf"(?P<image>\S.*?(?i:{'|'.join(map(re.escape, PICTURES))}))\s+(?P<label>{LABEL})(?P<rest>\s.*)?", re.ASCII)
"""An image whose name ends like a picture and its label, with further columns."""
ONE_WORD = re.compile(rf"(?P<image>\S.*?(?i:{'|'.join(map(re.escape, PICTURES))}))\s+(?P<label>[^\s,;|]+)")
"""An image whose name ends like a picture and one word as its label."""
SIGNS = {"0", "1", "-1"}
OF_IMAGENET = re.compile(rf"ILSVRC2012_val_|{WORDNET_ID.pattern}_")  # beginning of the names of ImageNet's images
META = "meta.mat"
QUOTED = 80  # largest number of characters of a name that a message quotes


def by_file(paths: Sequence[str], file: Path, columns: Columns, stdin: BufferedIOBase | None = None) -> LabelledImages:
    """Label the images of the PATHs by a file, or without a PATH the images that the file names, which lie beside it.

    Raises:
        StreamError: the file is of an unknown kind, has no label for an image, or names an image twice.
        TextError: the file cannot be read.
        UsageError: no PATH is given, and the file names images without their endings.
    """
    labels = _read_labels(file, columns)
    if paths:
        images = find(paths, stdin)
    elif any(PurePosixPath(name).suffix for name in labels):
        folder = _folder_of(file, next(iter(labels)))
        images = [ListedImage(name, str(folder), place_in(folder, name)) for name in labels]
    else:
        raise UsageError(f"no images named: {file} gives no files, so give their folder or archive beside --labels")
    image_names = ImageNames(labels)
    names = (image_names.find(full_name(image)) for image in images)
    missing = f"--labels {file} has no label for it, {_name_example(labels)}"
    labelled = number_labels(images, (labels[name] if name else None for name in names), missing)
    of_imagenet = all(OF_IMAGENET.match(PurePosixPath(name).name) for name in labels)
    return labelled._replace(classes=load_rows(IMAGENET)) if of_imagenet else labelled


def _name_example(labels: Iterable[str]) -> str:
    """Describe a file's names of images, for messages."""
    first, *more = list(labels)
    if first.isdecimal() and all(name.isdecimal() for name in more):
        return f"its images are numbers like {first}, from another list (CUB's folders in images/ are classes without --labels)"
    return f"its first image is {first[:QUOTED]!r}"


def _folder_of(file: Path, first: str) -> Path:
    """Return the folder of the images that a file names: its own folder, or `images/` in it, as in tiny-imagenet."""
    inner = file.parent / "images"
    return inner if not (file.parent / first).exists() and Path(place_in(inner, first)).exists() else file.parent


def _read_labels(file: Path, columns: Columns) -> dict[str, Label | None]:
    """Read the labels by image.

    Raises:
        StreamError: the file is of an unknown kind.
    """
    text = read_text(file, "--labels")
    if is_json(text):
        return {image: label or None for image, label in column_of(text, file, columns).items()}
    lines = [line for line in text.split("\n") if line.strip() and not COMMENT.match(line.strip())]
    if not lines:
        raise StreamError(f"--labels {file}: empty, expected a line an image")
    try:
        separator = separator_of(lines[0], columns.image)
        head = [field.strip() for field in next(csv.reader(lines[:1], delimiter=separator), [])]
    except csv.Error as error:
        raise StreamError(f"--labels {file}: line 1 is no CSV ({error})") from None
    table = text[text.index(lines[0]) :]  # without leading comments
    if tuple(head) == KAGGLE:
        return {image: label.partition(" ")[0] or None for image, label in column_of(table, file, Columns(*KAGGLE)).items()}
    if set(head) & set(columns):
        return {image: label or None for image, label in column_of(table, file, columns).items()}
    if lines[0].strip().isdecimal():
        return _kit_labels(file, lines)
    return _numbered(file, _fields(file, lines))


def _numbered(file: Path, rows: Iterable[tuple[str, str]]) -> dict[str, Label | None]:
    """Return labels by image, from the rows of a table.

    Raises:
        StreamError: an image comes a second time.
    """
    labels: dict[str, Label | None] = {}
    for number, (image, label) in enumerate(rows, 1):
        name = image.removeprefix("./")
        if name in labels:
            raise StreamError(f"--labels {file}: line {number} names {name} a second time")
        class_number = whole_number(label)
        labels[name] = (label or None) if class_number is None else class_number
    return labels


def _fields(file: Path, lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the image and the label of each line of a table without column names.

    Raises:
        StreamError: a line is of another kind, or there are several columns of 0 and 1 without names.
    """
    separator = next((mark for mark in SEPARATORS if _begins_row(*lines[0].partition(mark))), None)
    first = _split(lines[0], separator)
    if len(first) > 2:
        if all(set(_split(line, separator)[1:]) <= SIGNS for line in lines):
            raise StreamError(
                f"--labels {file}: {len(first) - 1} columns of 0 and 1 without a line that names them; expected one column of "
                "classes, or a first line with the names of the columns (--image-column, --label-column)"
            )
        note(f"labels: the first two of the {len(first)} columns of {file}, for example {first[0]} {first[1]}")
    for number, line in enumerate(lines, 1):
        fields = _split(line, separator)
        if len(fields) < 2 or len(fields) != len(first) or not fields[0]:
            kinds = "an image and its number, a CSV file that names its columns (--image-column, --label-column), or ImageNet's"
            *words, last_word = re.split(r"[\s,;]+", line.strip())
            order = " (the image comes first)" if words and not _is_named(words[0]) and _is_named(last_word) else ""
            raise StreamError(f"--labels {file}: line {number} is {line[:40]!r}; expected {kinds}{order}")
        yield fields[0], fields[1]


def _begins_row(image: str, separator: str, remainder: str) -> bool:
    """Return True if a line split at a separator begins with the name of a picture, or continues with a number or id."""
    label = re.split(r"[,\t;]", remainder)[0].strip()
    quoted = image.strip()[1:-1] if image.strip()[:1] == image.strip()[-1:] == '"' else image.strip()
    return bool(separator) and (_is_named(quoted) or re.fullmatch(LABEL, label) is not None)


def _is_named(name: str) -> bool:
    """Return True if a name has the ending of a picture."""
    return PurePosixPath(name).suffix.lower() in PICTURES or is_picture(name)


def _split(line: str, separator: str | None) -> list[str]:
    """Return the fields of a line; empty if it is of another kind.

    Args:
        separator: None for spaces, which names of images may contain.
    """
    if separator is not None:
        return [field.strip() for field in next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])]
    match = next((match for kind in (PLAIN, LISTED, ONE_WORD) if (match := kind.fullmatch(line.strip()))), None)
    return [] if match is None else [match["image"], match["label"], *(match.groupdict().get("rest") or "").split()]


def _kit_labels(file: Path, lines: Sequence[str]) -> dict[str, Label | None]:
    """Return the labels of the development kit, where line i has the class of validation image i.

    Raises:
        StreamError: there is no meta.mat beside the file, or a number is not in meta.mat.
    """
    meta = file.parent / META
    if not meta.is_file():
        raise StreamError(
            f"--labels {file}: numbers in the development kit's own order: put the kit's {META}, which explains them, beside it, "
            "or use Caffe's val.txt or Kaggle's LOC_val_solution.csv"
        )
    (synsets,) = read_variables(meta, "ImageNet's development kit", "synsets")
    if not {"ILSVRC2012_ID", "WNID"} <= set(synsets.dtype.names or ()):
        raise StreamError(f"{meta}: synsets without ILSVRC2012_ID and WNID, expected a file of ImageNet's development kit")
    words = {str(number): str(word) for number, word in zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True)}
    if unknown := next((number for number, line in enumerate(lines, 1) if line.strip() not in words), None):
        raise StreamError(f"--labels {file}: line {unknown} is {lines[unknown - 1].strip()!r}, which {meta} does not know")
    return {f"ILSVRC2012_val_{number:08d}": words[line.strip()] for number, line in enumerate(lines, 1)}


def by_folders(images: Sequence[ListedImage]) -> LabelledImages:
    """Label each image by the first folder below its PATH that differs between images, like torchvision's ImageFolder.

    If all images of a PATH lie in one folder, the class is that folder, or the PATH itself.

    Raises:
        StreamError: an image lies beside the folders of the classes, or the folders are splits of a data set.
    """
    first: dict[Place, ListedImage] = {}
    for image in images:
        first.setdefault(_place(image), image)
    classes = _classes(first)
    _refuse_splits({name for name in classes.values() if name is not None}, images[0].base)
    _warn_of_empty(classes)
    labels = (classes[_place(image)] for image in images)
    return number_labels(images, labels, "it lies beside the folders of the classes, not in one of them")


def _refuse_splits(classes: Collection[str], base: str) -> None:
    """Reject folders that are splits of a data set, such as train and val, each with folders of classes.

    Raises:
        StreamError: all folders have names of splits.
    """
    if len(classes) > 1 and all(name.lower() in SPLITS for name in classes):
        parts = " and ".join(sorted(classes))
        raise StreamError(f"{base}: the folders {parts} are parts of a data set, no classes: name one of them as PATH")


def _warn_of_empty(classes: Mapping[Place, str | None]) -> None:
    """Warn of folders without images beside those of the classes, since they are no classes."""
    class_folders: dict[Path, set[str]] = {}
    for base, folder, in_archive in classes:
        name = classes[base, folder, in_archive]
        levels = folder.split("/")
        if not in_archive and name in levels:
            class_folders.setdefault(Path(base, *levels[: levels.index(name)]), set()).add(name)
    for parent, names in class_folders.items():
        if len(names) < 2:
            continue
        with contextlib.suppress(OSError):
            empty = sorted(path.name for path in parent.iterdir() if path.name not in names and _may_be_class(path))
            if empty:
                more = f" and {count_of(len(empty) - 1, 'more folder')}" if len(empty) > 1 else ""
                warn(f"{parent / empty[0]}{more}: no images, so no class; {count_of(len(names), 'class')} of folders beside it")


def _may_be_class(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith((".", "__MACOSX", "@eaDir"))


def _place(image: ListedImage) -> Place:
    return image.base, image.name.rpartition("/")[0], isinstance(image.place, Span)


def _classes(first: dict[Place, ListedImage]) -> dict[Place, str | None]:
    """Return the class of every place with images."""
    below: dict[str, dict[Place, list[str]]] = {}
    for place, image in first.items():
        path = named_path(image)
        levels = place[1].split("/") if place[1] else []
        in_shard = path != image.base  # then the name begins with the name of the archive
        below.setdefault(path, {})[place] = levels[1:] if in_shard else levels
    return {place: folder for path, places in below.items() for place, folder in _classes_below(path, places).items()}


def _classes_below(path: str, places: dict[Place, list[str]]) -> dict[Place, str | None]:
    """Return the classes for one PATH, from the folders that lead to each place."""
    shared = [column[0] for column in takewhile(lambda column: len(set(column)) == 1, zip(*places.values(), strict=False))]
    depth = len(shared)
    if len(places) == 1 or (shared and any(len(levels) == depth for levels in places.values())):
        name = shared[-1] if shared else _own_name(path)
        return dict.fromkeys(places, name)
    return {place: levels[depth] if len(levels) > depth else None for place, levels in places.items()}


def _own_name(path: str) -> str | None:
    """Return the name of a folder, or of an archive without its ending."""
    if path == STDIN:
        return None
    name = Path(path).resolve().name
    return next((name[: -len(ending)] for ending in TAR_ENDINGS if name.lower().endswith(ending)), name)


OPTION = "--labels scenes"


def are_scenes(image: ListedImage) -> bool:
    """Return True if a folder above the image has the scenes.jsonl of clip-scenes."""
    return isinstance(image.place, str) and any((folder / SCENES).is_file() for folder in Path(image.place).parents)


def by_scenes(images: Sequence[ListedImage]) -> LabelledImages:
    """Label each scene by the only name that it shows.

    Raises:
        StreamError: an image has no record, or shows several things.
    """
    by_folder: dict[Path, Annotations | None] = {}
    labels = (only_name(image.name, scene_names(image, by_folder, OPTION)) for image in images)
    return number_labels(images, labels, "it has no record")._replace(classes=load_rows("emoji"))


def only_name(image: str, names: Sequence[str]) -> str:
    """Return the only name.

    Raises:
        StreamError: there is no name, or more than one.
    """
    if len(names) != 1:
        objects = f"{len(names)} things ({', '.join(names)})" if names else "nothing"
        raise StreamError(f"{image}: it shows {objects}, expected one class an image, as clip-scenes --single draws")
    return names[0]
