"""Images in groups, and tables of images.

* `by_path` and `by_column` assign images to groups: by the PATH they come from, by the model year of Stanford Cars, or by a
  column of a table. `with_neighbour_blocks` adds blocks of consecutive images.
* `read_table` reads such a table, with one line per image, from a CSV file or JSON lines; `ImageNames` matches the names of
  images with the names in the table.
"""

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from cliptools.console import count_of
from cliptools.errors import StreamError, UsageError
from cliptools.images.listing import ListedImage, find, full_name, named_path
from cliptools.images.loader import ListedImages
from cliptools.images.stanford_cars import Car, is_cars, read_cars
from cliptools.io.jsonl import objects, whole_number
from cliptools.io.text_file import HEAD, decode_text, kind_of, open_file_or_stdin

Row = dict[str, str]
SEPARATORS = (",", "\t", ";")
DRIVE = re.compile(r"^[A-Za-z]:(?=[\\/])")
JSON_START = re.compile(r"\s*(\[\s*)?\{")
QUOTED = 200  # largest number of characters of a table that a message quotes


class Columns(NamedTuple):
    """Names of the two columns of a table: the images, and their labels."""

    image: str = "image"
    label: str = "label"


class ImageTable:
    """Rows of a table by image."""

    def __init__(self, rows: dict[str, Row], columns: Sequence[str], source: str) -> None:
        """
        Args:
            rows: The fields of each row, by the image as the table names it.
            source: Name of the table in messages.
        """
        self.rows, self.columns, self.source = rows, columns, source
        self._names = ImageNames(rows)

    def require(self, column: str, option: str) -> None:
        """Check that the table has a column.

        Raises:
            StreamError: there is no such column.
        """
        if column not in self.columns:
            raise StreamError(f"{self.source}: no column {column!r} ({option}); it has {', '.join(self.columns)[:QUOTED]}")

    def of(self, image: str) -> Row:
        """Return the row of an image, by any name that ImageNames matches.

        Raises:
            StreamError: the table has no such image.
        """
        if (name := self._names.find(image)) is None:
            raise StreamError(f"{self.source}: has no row for {image}")
        return self.rows[name]


@dataclass(frozen=True)
class Groups:
    """Images and the group of each."""

    source: ListedImages
    images: Sequence[ListedImage]
    """Each image's name and place."""
    names: tuple[str, ...]
    """The names of the groups."""
    of: Sequence[int]
    """Each image's group, an index into `names`."""
    cars: Sequence[Car] | None = None
    """Each image's car, if the images are Stanford Cars."""
    block: Sequence[int] | None = None
    """Each image's block, numbered from 0 in order of appearance. Different blocks are independent, images of a block are not."""


def by_path(paths: Sequence[str]) -> Groups:
    """Group images by PATH: each folder and archive given is a group, and files belong to the group of their folder.

    The folder of Stanford Cars, given alone, is grouped by model year.

    Raises:
        UsageError: two PATHs have the same images; or as images.open_images.
        CliptoolsError: as images.open_images.
    """
    if len(paths) == 1 and is_cars(Path(paths[0])):
        return _by_year(Path(paths[0]))
    repeated: list[ListedImage] = []
    images = find(paths, repeated=repeated)
    if repeated:
        raise UsageError(
            f"{named_path(repeated[0])}: {count_of(len(repeated), 'image')} of an earlier PATH again, as "
            f"{full_name(repeated[0])}; groups share no image, so name each once"
        )
    places = [named_path(image) for image in images]
    short = {place: PurePosixPath(place).name or place for place in dict.fromkeys(places)}
    distinct = len(set(short.values())) == len(short)
    return _grouped(images, [short[place] if distinct else place for place in places], sort=False)


def by_column(paths: Sequence[str], table: ImageTable, folder: Path, column: str, block: str | None = None) -> Groups:
    """Group the images of the paths, or without paths those of the table, by a column of the table.

    Groups are sorted by name, numerically if all names are numbers.

    Args:
        folder: Folder that the table's image names are relative to.
        block: Column with each image's block.

    Raises:
        StreamError: there is no such column, an image has no group or block, or the table does not have an image of the paths.
        UsageError, CliptoolsError: as images.open_images.
    """
    table.require(column, "--group-column")
    if empty := next((image for image, row in table.rows.items() if not row[column].strip()), None):
        raise StreamError(f"{table.source}: {empty} has no group (column {column!r} is empty)")
    if paths:
        images = find(paths)
        rows = [table.of(full_name(image)) for image in images]
    else:
        images = [ListedImage(name, str(folder), place_in(folder, name)) for name in table.rows]
        rows = list(table.rows.values())
    groups = _grouped(images, [row[column].strip() for row in rows], sort=True)
    if block is None:
        return groups
    table.require(block, "--block")
    if empty := next((image.name for image, row in zip(images, rows, strict=True) if not row[block].strip()), None):
        raise StreamError(f"{table.source}: {empty} has no block (column {block!r} is empty)")
    return replace(groups, block=_numbered([row[block].strip() for row in rows]))


def with_neighbour_blocks(groups: Groups, size: int) -> Groups:
    """Return the groups with blocks of `size` consecutive images of a group; a shorter rest joins the last block."""
    counts = Counter(groups.of)
    position: Counter[int] = Counter()
    blocks = []
    for group in groups.of:
        last = max(1, counts[group] // size) - 1
        blocks.append((group, min(position[group] // size, last)))
        position[group] += 1
    return replace(groups, block=_numbered(blocks))


def _numbered(names: Sequence[Hashable]) -> list[int]:
    number = {name: index for index, name in enumerate(dict.fromkeys(names))}
    return [number[name] for name in names]


def _by_year(folder: Path) -> Groups:
    cars = read_cars(folder)
    images = [ListedImage(car.file, str(folder), str(folder / car.file)) for car in cars]
    return _grouped(images, [car.year for car in cars], sort=True, cars=cars)


def _grouped(images: Sequence[ListedImage], groups: Sequence[str], sort: bool, cars: Sequence[Car] | None = None) -> Groups:
    names = list(dict.fromkeys(groups))
    if sort:
        names.sort(key=_sort_key(names))
    number = {name: index for index, name in enumerate(names)}
    return Groups(ListedImages(images), images, tuple(names), [number[group] for group in groups], cars)


def _sort_key(names: Sequence[str]) -> Callable[[str], tuple[float, str]]:
    """Return a sort key: numeric if all names are numbers, else by text."""
    try:
        values = {name: float(name) for name in names}
    except ValueError:
        values = {}
    if not values or not all(map(math.isfinite, values.values())):  # nan has no order
        return lambda name: (0.0, name)
    return lambda name: (values[name], name)


def read_table(path: Path, image_column: str) -> ImageTable:
    """Read a CSV file (or one with tabs or semicolons) whose first line names the columns, or JSON lines; both in UTF-8.

    Raises:
        StreamError: the file or the column does not exist, a line has another length, an image comes twice, or there is no line.
    """
    columns, lines = _lines_of(_text(path), path, image_column)
    return ImageTable(dict(_rows(columns, lines, path, image_column)), columns, str(path))


def column_of(text: str, path: Path, columns: Columns, option: str = "--label-column") -> dict[str, str]:
    """Return one column of such a file by image, without keeping the other columns of millions of lines.

    Args:
        text: The whole file, which may be standard input and cannot be read again.
        option: Option that names the column, for messages.

    Raises:
        StreamError: as read_table.
    """
    names, lines = _lines_of(text, path, columns.image)
    ImageTable({}, names, str(path)).require(columns.image, "--image-column")
    ImageTable({}, names, str(path)).require(columns.label, option)
    return {image: row[columns.label].strip() for image, row in _rows(names, lines, path, columns.image)}


def column_names(text: str, path: Path, image_column: str) -> frozenset[str]:
    """Return the names of a table's columns.

    Args:
        image_column: Column by which the separator is known.

    Raises:
        StreamError: the first line is not CSV, or a JSON file has neither a record in each line nor an array of records.
    """
    return frozenset(_lines_of(text, path, image_column)[0])


def _text(path: Path) -> str:
    try:
        with open_file_or_stdin(path, str(path)) as stream:
            data = stream.read()
        if (kind := kind_of(data[:HEAD])) is not None:
            raise StreamError(f"{path}: {kind}; expected a CSV file or JSON lines")
        return decode_text(data)
    except (OSError, ValueError) as error:
        raise StreamError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def _lines_of(text: str, path: Path, image_column: str) -> tuple[Sequence[str], Iterator[tuple[int, Row]]]:
    """Return the column names, and the rows with their line numbers."""
    if is_json(text):
        return _json_lines(text, path)
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, delimiter=separator_of(text, image_column))
    try:
        columns = reader.fieldnames or ()  # reads the first line
    except csv.Error as error:
        raise StreamError(f"{path}: line 1 is no CSV ({error})") from None
    return columns, _csv_lines(reader, path)


def is_json(text: str) -> bool:
    """Return True if a table is JSON: JSON lines, or an array of objects."""
    return JSON_START.match(text) is not None


def separator_of(text: str, image_column: str) -> str:
    """Return the separator of a table: a comma, or the tab or semicolon that separates the column names."""
    head = text.partition("\n")[0]
    parts = {separator: [name.strip().strip('"') for name in head.split(separator)] for separator in SEPARATORS}
    return next((separator for separator, names in parts.items() if len(names) > 1 and image_column in names), ",")


def _json_lines(text: str, path: Path) -> tuple[Sequence[str], Iterator[tuple[int, Row]]]:
    """Return the same for JSON lines or an array; the columns are the keys with text or number that all objects have."""
    records = list(objects(io.BytesIO(text.encode()), str(path)))
    rows = [
        (line, {key: cell for key, value in record.items() if (cell := _cell(value)) is not None}) for line, record in records
    ]
    if records and {"images", "annotations"} <= records[0][1].keys():
        raise StreamError(f"{path}: COCO's annotations, several labels an image; expected a CSV file with one, or JSON lines")
    columns = [key for key in (rows[0][1] if rows else ()) if all(key in row for _, row in rows)]
    return columns, iter(rows)


def _cell(value: object) -> str | None:
    """Return a JSON value as the text that a CSV file would have; None for an array or object."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, bool):
        return str(int(value))
    number = whole_number(value)
    return str(number if number is not None else value) if isinstance(value, int | float) else None


def _rows(columns: Sequence[str], lines: Iterator[tuple[int, Row]], path: Path, image_column: str) -> Iterator[tuple[str, Row]]:
    """Yield each image with its row."""
    ImageTable({}, columns, str(path)).require(image_column, "--image-column")
    names: set[str] = set()
    for line, row in lines:
        name = row[image_column].strip().removeprefix("./")
        if not name or name in names:
            raise StreamError(f"{path}: line {line} {f'names {name[:QUOTED]} a second time' if name else 'names no image'}")
        names.add(name)
        yield name, row
    if not names:
        raise StreamError(f"{path}: expected a line an image after the columns' names, found none")


def _csv_lines(reader: csv.DictReader, path: Path) -> Iterator[tuple[int, Row]]:
    """Yield the rows with their line numbers."""
    try:
        for row in reader:
            if None in row or None in row.values():
                raise StreamError(f"{path}: line {reader.line_num} has another number of fields than the first line")
            yield reader.line_num, row
    except csv.Error as error:
        raise StreamError(f"{path}: line {reader.reader.line_num} is no CSV ({error})") from None


class ImageNames:
    """Look-up of images by the names that a table has for them."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._owners: dict[str, str] = {}  # name from another machine -> the image that it was matched with

    def find(self, image: str) -> str | None:
        """Return the table's name for an image, or None. The image may have further folders, an archive, or another ending.

        Paths from another machine are compared without the folders that all of them share, and with slashes for backslashes.
        """
        if (name := next((tail for tail in _tails(image) if tail in self._names), None)) is not None:
            return name
        if (name := next((self._bare[tail] for tail in _tails(without_ending(image)) if tail in self._bare), None)) is not None:
            return name
        name = next((self._foreign[tail] for tail in _tails(image) if tail in self._foreign), None)
        return name if name is None or self._owners.setdefault(name, image) == image else None

    @cached_property
    def _bare(self) -> dict[str, str]:
        return {without_ending(name): name for name in self._names}

    @cached_property
    def _foreign(self) -> dict[str, str]:
        """Names by their paths below the shared folder, if they are paths from another machine or from Windows."""
        paths = {name: with_slashes(name) for name in self._names}
        if all(path == name and not path.startswith(("/", "../")) for name, path in paths.items()):
            return {}
        folders = [path.split("/")[:-1] for path in paths.values()]
        all_foreign = all(path.startswith(("/", "../")) for path in paths.values())
        shared = takewhile(lambda level: len(set(level)) == 1, zip(*folders, strict=False))
        depth = len(list(shared)) if all_foreign else 0
        short = {name: "/".join(path.split("/")[depth:]).lstrip("./") for name, path in paths.items()}
        counts = Counter(short.values())
        return {path: name for name, path in short.items() if counts[path] == 1}


def with_slashes(name: str) -> str:
    """Return a Windows path with slashes and without its drive; any other path is unchanged.

    >>> with_slashes("C:\\\\data\\\\cat\\\\1.jpg"), with_slashes("cat\\\\1.jpg"), with_slashes("cat/1.jpg")
    ('/data/cat/1.jpg', 'cat/1.jpg', 'cat/1.jpg')
    """
    return DRIVE.sub("", name).replace("\\", "/")


def place_in(folder: Path, name: str) -> str:
    """Return the path of an image that a table names relative to a folder, possibly with the backslashes of Windows."""
    place = folder / name
    return str(place if "\\" not in name or place.exists() else folder / with_slashes(name))


def without_ending(name: str) -> str:
    """Return a name without its ending; "." and "/", which are no files, are unchanged."""
    path = PurePosixPath(name)
    return str(path.with_suffix("") if path.name else path)


def _tails(name: str) -> Iterator[str]:
    """Yield a path, then the path without its first folder, without its first two folders, …"""
    while name:
        yield name
        name = name.partition("/")[2]
