"""Labels in a file: ImageNet's three kinds for its flat folder of validation images, and tables of images and labels.

* Caffe's lists: `ILSVRC2012_val_00000001.JPEG 65`, numbers in the order of the sorted WordNet ids.
* Kaggle's LOC_val_solution.csv: `ImageId,PredictionString`, the latter beginning with a WordNet id.
* ILSVRC2012_validation_ground_truth.txt of the development kit: a number for image 1, 2, …, in an order of the kit's own, which
  meta.mat beside it translates.
* A CSV file with the columns' names in its first line, or one with tabs or semicolons.
* JSON lines, or an array of objects, whose keys are the columns, as Hugging Face's metadata.jsonl.
* Tables without names of columns: images in the first column and labels in the second, whatever follows, as tiny-imagenet's
  `val_0.JPEG n03444034 0 32 44 62`.
"""

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from io import BufferedIOBase
from pathlib import Path, PurePosixPath

from cliptools.ground.classified.class_rows import IMAGENET, Label, load_rows
from cliptools.ground.classified.labelled import Labelled, gather
from cliptools.ground.decode import PICTURES, is_picture
from cliptools.ground.errors import StreamError, UsageError
from cliptools.ground.groups import full_name
from cliptools.ground.image_table import SEPARATORS, Columns, ImageNames, column_of, is_json, place_in, separator_of
from cliptools.ground.imagenet import WORDNET_ID
from cliptools.ground.listing import Found, find
from cliptools.ground.matlab import read_variables
from cliptools.ground.progress import note
from cliptools.ground.text_lines import COMMENT, read_text
from cliptools.ground.whole_numbers import WHOLE, whole_number

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
