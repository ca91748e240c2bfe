"""Labels in a file: ImageNet's three kinds for its flat folder of validation images, and tables of images and labels.

* Caffe's lists: `ILSVRC2012_val_00000001.JPEG 65`, numbers in the order of the sorted WordNet ids.
* Kaggle's LOC_val_solution.csv: `ImageId,PredictionString`, the latter beginning with a WordNet id.
* ILSVRC2012_validation_ground_truth.txt of the development kit: a number for image 1, 2, …, in an order of the kit's own, which
  meta.mat beside it translates.
* A CSV file with the columns' names in its first line.
"""

import csv
import re
from collections.abc import Sequence
from io import BufferedIOBase
from pathlib import Path, PurePosixPath

from cliptools.ground.classified.class_rows import IMAGENET, Label, load_rows
from cliptools.ground.classified.labelled import Labelled, gather
from cliptools.ground.errors import StreamError, UsageError
from cliptools.ground.groups import full_name
from cliptools.ground.image_table import Columns, ImageNames, read_column
from cliptools.ground.imagenet import WORDNET_ID
from cliptools.ground.listing import Found, find
from cliptools.ground.matlab import read_variables
from cliptools.ground.text_lines import read_text

KAGGLE = ("ImageId", "PredictionString")
LISTED = re.compile(rf"(\S.*?)\s+(-?\d{{1,18}}|{WORDNET_ID.pattern})", re.ASCII)
OF_IMAGENET = re.compile(rf"ILSVRC2012_val_|{WORDNET_ID.pattern}_")  # how its images' names begin
META = "meta.mat"


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
        found = [Found(name, str(file.parent), str(file.parent / name)) for name in labels]
    else:
        raise UsageError(f"no images named: {file} gives no files, so give their folder or archive beside --labels")
    known = ImageNames(labels)
    names = (known.find(full_name(one)) for one in found)
    labelled = gather(found, (labels[name] if name else None for name in names), f"--labels {file} says nothing of it")
    of_imagenet = all(OF_IMAGENET.match(PurePosixPath(name).name) for name in labels)
    return labelled._replace(classes=load_rows(IMAGENET)) if of_imagenet else labelled


def _read(file: Path, columns: Columns) -> dict[str, Label | None]:
    """Labels by image.

    Raises:
        StreamError: a file of none of these kinds.
    """
    lines = [line for line in read_text(file, "--labels").split("\n") if line.strip()]
    if not lines:
        raise StreamError(f"--labels {file}: empty, expected a line an image")
    try:
        head = [field.strip() for field in next(csv.reader(lines[:1]), [])]
    except csv.Error as error:
        raise StreamError(f"--labels {file}: line 1 is no CSV ({error})") from None
    if tuple(head) == KAGGLE:
        return {image: said.partition(" ")[0] or None for image, said in read_column(file, Columns(*KAGGLE)).items()}
    if set(head) & set(columns):
        return {image: said or None for image, said in read_column(file, columns).items()}
    if lines[0].strip().isdecimal():
        return _of_kit(file, lines)
    return _listed(file, lines)


def _listed(file: Path, lines: Sequence[str]) -> dict[str, Label | None]:
    """Caffe's."""
    labels: dict[str, Label | None] = {}
    for number, line in enumerate(lines, 1):
        if (match := LISTED.fullmatch(line.strip())) is None:
            kinds = "an image and its number, a CSV file that names its columns (--image-column, --label-column), or ImageNet's"
            raise StreamError(f"--labels {file}: line {number} is {line[:40]!r}; expected {kinds}")
        name, said = match[1].removeprefix("./"), match[2]
        if name in labels:
            raise StreamError(f"--labels {file}: line {number} names {name} a second time")
        labels[name] = said if WORDNET_ID.fullmatch(said) else int(said)
    return labels


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
