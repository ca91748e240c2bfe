"""A folder for each class, below the PATHs named or in archives.

Scenes of one emoji each, as clip-scenes --single writes them: scenes.jsonl in a folder above says what each shows.

Labels in a file: ImageNet's three kinds for its flat folder of validation images, and tables of images and labels.

* Caffe's lists: `ILSVRC2012_val_00000001.JPEG 65`, numbers in the order of the sorted WordNet ids.
* Kaggle's LOC_val_solution.csv: `ImageId,PredictionString`, the latter beginning with a WordNet id.
* ILSVRC2012_validation_ground_truth.txt of the development kit: a number for image 1, 2, …, in an order of the kit's own, which
  meta.mat beside it translates.
* A CSV file with the columns' names in its first line, or one with tabs or semicolons.
* JSON lines, or an array of objects, whose keys are the columns, as Hugging Face's metadata.jsonl.
* Tables without names of columns: images in the first column and labels in the second, whatever follows, as tiny-imagenet's
  `val_0.JPEG n03444034 0 32 44 62`.
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
from cliptools.images.annotations import SCENES, Truth, scene_names
from cliptools.images.classification.class_rows import IMAGENET, Label, Labelled, gather, load_rows
from cliptools.images.decode import PICTURES, is_picture
from cliptools.images.groups import SEPARATORS, Columns, ImageNames, column_of, full_name, is_json, place_in, separator_of
from cliptools.images.listing import STDIN, Found, find, named_path
from cliptools.images.stanford_cars import read_variables
from cliptools.images.tar import TAR_ENDINGS, Span
from cliptools.io.jsonl import WHOLE, whole_number
from cliptools.io.text_file import COMMENT, read_text
from cliptools.text.imagenet_classes import WORDNET_ID

SPLITS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing", "trainval", "minival"}
Place = tuple[str, str, bool]
"""A base, a folder below it, and whether that is in an archive."""


def by_folders(found: Sequence[Found]) -> Labelled:
    """The class of an image is the first folder below its PATH that differs between images, as torchvision's ImageFolder has it.

    Where all of a PATH lies in one folder, it is that folder, or the PATH itself.

    Raises:
        StreamError: an image lies beside the folders, or these are parts of a data set.
    """
    first: dict[Place, Found] = {}
    for one in found:
        first.setdefault(_place(one), one)
    classes = _classes(first)
    _refuse_splits({name for name in classes.values() if name is not None}, found[0].base)
    _tell_of_empty(classes)
    return gather(found, (classes[_place(one)] for one in found), "it lies beside the folders of the classes, in none of them")


def _refuse_splits(classes: Collection[str], base: str) -> None:
    """
    Raises:
        StreamError: the folders are the parts of a data set, as train and val, each with folders of classes in it.
    """
    if len(classes) > 1 and all(name.lower() in SPLITS for name in classes):
        parts = " and ".join(sorted(classes))
        raise StreamError(f"{base}: the folders {parts} are parts of a data set, no classes: name one of them as PATH")


def _tell_of_empty(classes: Mapping[Place, str | None]) -> None:
    """Warn of folders beside those of the classes that hold no image: of these classes nothing is measured."""
    beside: dict[Path, set[str]] = {}
    for base, folder, in_archive in classes:
        name = classes[base, folder, in_archive]
        levels = folder.split("/")
        if not in_archive and name in levels:
            beside.setdefault(Path(base, *levels[: levels.index(name)]), set()).add(name)
    for parent, names in beside.items():
        if len(names) < 2:
            continue
        with contextlib.suppress(OSError):
            empty = sorted(path.name for path in parent.iterdir() if path.name not in names and _may_be_class(path))
            if empty:
                more = f" and {count_of(len(empty) - 1, 'more folder')}" if len(empty) > 1 else ""
                warn(f"{parent / empty[0]}{more}: no images, so no class; {count_of(len(names), 'class')} of folders beside it")


def _may_be_class(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith((".", "__MACOSX", "@eaDir"))


def _place(one: Found) -> Place:
    return one.base, one.name.rpartition("/")[0], isinstance(one.place, Span)


def _classes(first: dict[Place, Found]) -> dict[Place, str | None]:
    """The class of every place that holds images."""
    below: dict[str, dict[Place, list[str]]] = {}
    for place, one in first.items():
        path = named_path(one)
        levels = place[1].split("/") if place[1] else []
        in_shard = path != one.base  # then a name begins with the archive's
        below.setdefault(path, {})[place] = levels[1:] if in_shard else levels
    return {place: folder for path, places in below.items() for place, folder in _below(path, places).items()}


def _below(path: str, places: dict[Place, list[str]]) -> dict[Place, str | None]:
    """The same for one PATH, from the folders that lead to each place."""
    shared = [column[0] for column in takewhile(lambda column: len(set(column)) == 1, zip(*places.values(), strict=False))]
    depth = len(shared)
    if len(places) == 1 or (shared and any(len(levels) == depth for levels in places.values())):
        own = shared[-1] if shared else _own_name(path)
        return dict.fromkeys(places, own)
    return {place: levels[depth] if len(levels) > depth else None for place, levels in places.items()}


def _own_name(path: str) -> str | None:
    """What a folder or an archive is called."""
    if path == STDIN:
        return None
    name = Path(path).resolve().name
    return next((name[: -len(ending)] for ending in TAR_ENDINGS if name.lower().endswith(ending)), name)


OPTION = "--labels scenes"


def are_scenes(found: Found) -> bool:
    """Whether clip-scenes wrote what is said of the image into a folder above it."""
    return isinstance(found.place, str) and any((folder / SCENES).is_file() for folder in Path(found.place).parents)


def by_scenes(found: Sequence[Found]) -> Labelled:
    """The one name that each scene shows.

    Raises:
        StreamError: an image of which nothing is said, or one that shows several things.
    """
    truths: dict[Path, Truth | None] = {}
    labels = (only_name(one.name, scene_names(one, truths, OPTION)) for one in found)
    return gather(found, labels, "nothing is said of it")._replace(classes=load_rows("emoji"))


def only_name(image: str, names: Sequence[str]) -> str:
    """The name, of one.

    Raises:
        StreamError: none, or more.
    """
    if len(names) != 1:
        shown = f"{len(names)} things ({', '.join(names)})" if names else "nothing"
        raise StreamError(f"{image}: it shows {shown}, expected one class an image, as clip-scenes --single draws")
    return names[0]


KAGGLE = ("ImageId", "PredictionString")
LABEL = rf"(?:{WHOLE.pattern}|{WORDNET_ID.pattern})"
LISTED = re.compile(rf"(?P<image>\S.*?)\s+(?P<label>{LABEL})", re.ASCII)
PLAIN = re.compile(rf"(?P<image>\S.*?(?i:{'|'.join(map(re.escape, PICTURES))}))\s+(?P<label>{LABEL})(?P<rest>\s.*)?", re.ASCII)
"""The same of an image whose name ends as pictures do, with more columns behind."""
ONE_WORD = re.compile(rf"(?P<image>\S.*?(?i:{'|'.join(map(re.escape, PICTURES))}))\s+(?P<label>[^\s,;|]+)")
"""The same with a class of one word for a label."""
SIGNS = {"0", "1", "-1"}
OF_IMAGENET = re.compile(rf"ILSVRC2012_val_|{WORDNET_ID.pattern}_")  # how its images' names begin
META = "meta.mat"
SHOWN = 80  # characters of a name that a message repeats


def by_file(paths: Sequence[str], file: Path, columns: Columns, stdin: BufferedIOBase | None = None) -> Labelled:
    """Images of the PATHs, or without any those that the file names, which lie where it does.

    Raises:
        StreamError: a file of none of these kinds, an image it does not know, or one it names twice.
        TextError: it cannot be read.
        UsageError: no PATH, and a file that names images without ending.
    """
    labels = _read(file, columns)
    if paths:
        found = find(paths, stdin)
    elif any(PurePosixPath(name).suffix for name in labels):
        folder = _folder_of(file, next(iter(labels)))
        found = [Found(name, str(folder), place_in(folder, name)) for name in labels]
    else:
        raise UsageError(f"no images named: {file} gives no files, so give their folder or archive beside --labels")
    known = ImageNames(labels)
    names = (known.find(full_name(one)) for one in found)
    labelled = gather(
        found, (labels[name] if name else None for name in names), f"--labels {file} says nothing of it, {_like(labels)}"
    )
    of_imagenet = all(OF_IMAGENET.match(PurePosixPath(name).name) for name in labels)
    return labelled._replace(classes=load_rows(IMAGENET)) if of_imagenet else labelled


def _like(labels: Iterable[str]) -> str:
    """What a file calls its images, for messages."""
    first, *more = list(labels)
    if first.isdecimal() and all(name.isdecimal() for name in more):
        return f"its images are numbers like {first}, of another list (CUB's folders in images/ say the classes without --labels)"
    return f"its first image is {first[:SHOWN]!r}"


def _folder_of(file: Path, first: str) -> Path:
    """Where the images that a file names are: beside it, or in `images/` there, as tiny-imagenet's are."""
    inner = file.parent / "images"
    return inner if not (file.parent / first).exists() and Path(place_in(inner, first)).exists() else file.parent


def _read(file: Path, columns: Columns) -> dict[str, Label | None]:
    """Labels by image.

    Raises:
        StreamError: a file of none of these kinds.
    """
    text = read_text(file, "--labels")
    if is_json(text):
        return {image: said or None for image, said in column_of(text, file, columns).items()}
    lines = [line for line in text.split("\n") if line.strip() and not COMMENT.match(line.strip())]
    if not lines:
        raise StreamError(f"--labels {file}: empty, expected a line an image")
    try:
        separator = separator_of(lines[0], columns.image)
        head = [field.strip() for field in next(csv.reader(lines[:1], delimiter=separator), [])]
    except csv.Error as error:
        raise StreamError(f"--labels {file}: line 1 is no CSV ({error})") from None
    table = text[text.index(lines[0]) :]  # without comments in front
    if tuple(head) == KAGGLE:
        return {image: said.partition(" ")[0] or None for image, said in column_of(table, file, Columns(*KAGGLE)).items()}
    if set(head) & set(columns):
        return {image: said or None for image, said in column_of(table, file, columns).items()}
    if lines[0].strip().isdecimal():
        return _of_kit(file, lines)
    return _numbered(file, _fields(file, lines))


def _numbered(file: Path, rows: Iterable[tuple[str, str]]) -> dict[str, Label | None]:
    """Images and labels, line by line.

    Raises:
        StreamError: an image a second time.
    """
    labels: dict[str, Label | None] = {}
    for number, (image, said) in enumerate(rows, 1):
        name = image.removeprefix("./")
        if name in labels:
            raise StreamError(f"--labels {file}: line {number} names {name} a second time")
        whole = whole_number(said)
        labels[name] = (said or None) if whole is None else whole
    return labels


def _fields(file: Path, lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The image and the label of each line of a table that does not name its columns.

    Raises:
        StreamError: a line of another kind, or columns of 0 and 1 of which nobody says what they stand for.
    """
    separator = next((one for one in SEPARATORS if _begins_row(*lines[0].partition(one))), None)
    first = _split(lines[0], separator)
    if len(first) > 2:
        if all(set(_split(line, separator)[1:]) <= SIGNS for line in lines):
            raise StreamError(
                f"--labels {file}: {len(first) - 1} columns of 0 and 1, whose names no line says; expected one column of "
                "classes, or a line with the columns' names (--image-column, --label-column)"
            )
        note(f"labels: of the {len(first)} columns of {file} the first two, as {first[0]} {first[1]}")
    for number, line in enumerate(lines, 1):
        fields = _split(line, separator)
        if len(fields) < 2 or len(fields) != len(first) or not fields[0]:
            kinds = "an image and its number, a CSV file that names its columns (--image-column, --label-column), or ImageNet's"
            *before, last = re.split(r"[\s,;]+", line.strip())
            order = " (the image comes first)" if before and not _is_named(before[0]) and _is_named(last) else ""
            raise StreamError(f"--labels {file}: line {number} is {line[:40]!r}; expected {kinds}{order}")
        yield fields[0], fields[1]


def _begins_row(image: str, separator: str, rest: str) -> bool:
    """Whether a line parted at a separator begins with the name of a picture, or goes on with a number or id."""
    label = re.split(r"[,\t;]", rest)[0].strip()
    quoted = image.strip()[1:-1] if image.strip()[:1] == image.strip()[-1:] == '"' else image.strip()
    return bool(separator) and (_is_named(quoted) or re.fullmatch(LABEL, label) is not None)


def _is_named(name: str) -> bool:
    """Whether a name ends as pictures' do."""
    return PurePosixPath(name).suffix.lower() in PICTURES or is_picture(name)


def _split(line: str, separator: str | None) -> list[str]:
    """The fields of a line, none where it is of another kind.

    Args:
        separator: None for blanks, which names of images may contain.
    """
    if separator is not None:
        return [field.strip() for field in next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])]
    match = next((match for kind in (PLAIN, LISTED, ONE_WORD) if (match := kind.fullmatch(line.strip()))), None)
    return [] if match is None else [match["image"], match["label"], *(match.groupdict().get("rest") or "").split()]


def _of_kit(file: Path, lines: Sequence[str]) -> dict[str, Label | None]:
    """The development kit's: validation image i is of line i's class.

    Raises:
        StreamError: no meta.mat beside it, or a number that it does not know.
    """
    meta = file.parent / META
    if not meta.is_file():
        raise StreamError(
            f"--labels {file}: numbers in the development kit's own order: put the kit's {META} beside it, which says what they "
            "stand for, or take Caffe's val.txt or Kaggle's LOC_val_solution.csv"
        )
    (synsets,) = read_variables(meta, "ImageNet's development kit", "synsets")
    if not {"ILSVRC2012_ID", "WNID"} <= set(synsets.dtype.names or ()):
        raise StreamError(f"{meta}: synsets without ILSVRC2012_ID and WNID, expected a file of ImageNet's development kit")
    words = {str(number): str(word) for number, word in zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True)}
    if strange := next((number for number, line in enumerate(lines, 1) if line.strip() not in words), None):
        raise StreamError(f"--labels {file}: line {strange} is {lines[strange - 1].strip()!r}, which {meta} does not know")
    return {f"ILSVRC2012_val_{number:08d}": words[line.strip()] for number, line in enumerate(lines, 1)}
