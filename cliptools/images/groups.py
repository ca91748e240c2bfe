"""A table in a CSV file or JSON lines that says something of images, a line each: the group they are of, what they show.

Images in groups: by the PATH they come from, by a column of a table, or by the model year of Stanford Cars.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from cliptools.errors import StreamError
from cliptools.images.listing import Found, find, named_path
from cliptools.images.loader import ListedImages
from cliptools.images.stanford_cars import Car, is_cars, read_cars
from cliptools.io.jsonl import objects, whole_number
from cliptools.io.text_file import HEAD, decoded, kind_of, open_given

Row = dict[str, str]
SEPARATORS = (",", "\t", ";")
DRIVE = re.compile(r"^[A-Za-z]:(?=[\\/])")
JSON_START = re.compile(r"\s*(\[\s*)?\{")
SHOWN = 200  # characters of a table that a message repeats


class Columns(NamedTuple):
    """What a table calls the column of images and the one that says what they are of."""

    image: str = "image"
    label: str = "label"


class ImageNames:
    """Images by the names that a table has for them."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._owners: dict[str, str] = {}  # of names of another machine, the image that each has been taken for

    def find(self, image: str) -> str | None:
        """What the table calls an image, whose name may have folders or an archive in front of that, or another ending.

        Paths of another machine go by what they have behind the folder that all of them lie in, and backslashes are slashes.
        """
        if (known := next((rest for rest in _ends(image) if rest in self._names), None)) is not None:
            return known
        if (known := next((self._bare[rest] for rest in _ends(without_ending(image)) if rest in self._bare), None)) is not None:
            return known
        known = next((self._elsewhere[rest] for rest in _ends(image) if rest in self._elsewhere), None)
        return known if known is None or self._owners.setdefault(known, image) == image else None

    @cached_property
    def _bare(self) -> dict[str, str]:
        return {without_ending(name): name for name in self._names}

    @cached_property
    def _elsewhere(self) -> dict[str, str]:
        """Names by paths from the folder that holds all images, where they are paths of another machine or of Windows."""
        paths = {name: with_slashes(name) for name in self._names}
        if all(path == name and not path.startswith(("/", "../")) for name, path in paths.items()):
            return {}
        folders = [path.split("/")[:-1] for path in paths.values()]
        elsewhere = all(path.startswith(("/", "../")) for path in paths.values())
        shared = takewhile(lambda level: len(set(level)) == 1, zip(*folders, strict=False))
        depth = len(list(shared)) if elsewhere else 0
        short = {name: "/".join(path.split("/")[depth:]).lstrip("./") for name, path in paths.items()}
        counts = Counter(short.values())
        return {path: name for name, path in short.items() if counts[path] == 1}


def with_slashes(name: str) -> str:
    """A path of Windows with slashes and without its drive; any other as it is.

    >>> with_slashes("C:\\\\data\\\\cat\\\\1.jpg"), with_slashes("cat\\\\1.jpg"), with_slashes("cat/1.jpg")
    ('/data/cat/1.jpg', 'cat/1.jpg', 'cat/1.jpg')
    """
    return DRIVE.sub("", name).replace("\\", "/")


def place_in(folder: Path, name: str) -> str:
    """Where the image lies that a table names relative to a folder, be it with the backslashes of Windows."""
    place = folder / name
    return str(place if "\\" not in name or place.exists() else folder / with_slashes(name))


class ImageTable:
    """Lines of a table by the image they are about."""

    def __init__(self, rows: dict[str, Row], columns: Sequence[str], source: str) -> None:
        """
        Args:
            rows: What each column says, by the image as the table names it.
            source: What to call the table in messages.
        """
        self.rows, self.columns, self.source = rows, columns, source
        self._names = ImageNames(rows)

    def require(self, column: str, option: str) -> None:
        """
        Raises:
            StreamError: there is no such column.
        """
        if column not in self.columns:
            raise StreamError(f"{self.source}: no column {column!r} ({option}); it has {', '.join(self.columns)[:SHOWN]}")

    def of(self, image: str) -> Row:
        """What is said of an image, by any name that ImageNames takes.

        Raises:
            StreamError: nothing is.
        """
        if (known := self._names.find(image)) is None:
            raise StreamError(f"{self.source}: says nothing of {image}")
        return self.rows[known]


def read_table(path: Path, image_column: str) -> ImageTable:
    """A CSV file (or one with tabs or semicolons) with the columns' names in its first line, or JSON lines; UTF-8.

    Raises:
        StreamError: no such file, no such column, a line of another length, an image twice, or no line at all.
    """
    columns, lines = _lines_of(_text(path), path, image_column)
    return ImageTable(dict(_rows(columns, lines, path, image_column)), columns, str(path))


def column_of(text: str, path: Path, columns: Columns) -> dict[str, str]:
    """One column of such a file by image, of millions of lines if need be.

    Args:
        text: All of the file, which may be standard input and cannot be read again.

    Raises:
        StreamError: as read_table.
    """
    names, lines = _lines_of(text, path, columns.image)
    ImageTable({}, names, str(path)).require(columns.image, "--image-column")
    ImageTable({}, names, str(path)).require(columns.label, "--label-column")
    return {image: row[columns.label].strip() for image, row in _rows(names, lines, path, columns.image)}


def _text(path: Path) -> str:
    try:
        with open_given(path, str(path)) as stream:
            data = stream.read()
        if (kind := kind_of(data[:HEAD])) is not None:
            raise StreamError(f"{path}: {kind}; expected a CSV file or JSON lines")
        return decoded(data)
    except (OSError, ValueError) as error:
        raise StreamError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def _lines_of(text: str, path: Path, image_column: str) -> tuple[Sequence[str], Iterator[tuple[int, Row]]]:
    """The columns' names and the lines with their numbers."""
    if is_json(text):
        return _json_lines(text, path)
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, delimiter=separator_of(text, image_column))
    try:
        columns = reader.fieldnames or ()  # reads the first line
    except csv.Error as error:
        raise StreamError(f"{path}: line 1 is no CSV ({error})") from None
    return columns, _csv_lines(reader, path)


def is_json(text: str) -> bool:
    """Whether a table is JSON: lines, or an array of objects."""
    return JSON_START.match(text) is not None


def _json_lines(text: str, path: Path) -> tuple[Sequence[str], Iterator[tuple[int, Row]]]:
    """The same of JSON lines or of an array: columns are the keys that all of them have, with texts or numbers."""
    records = list(objects(io.BytesIO(text.encode()), str(path)))
    rows = [
        (line, {key: cell for key, value in record.items() if (cell := _cell(value)) is not None}) for line, record in records
    ]
    if records and {"images", "annotations"} <= records[0][1].keys():
        raise StreamError(f"{path}: COCO's annotations, several labels an image; expected a CSV file with one, or JSON lines")
    columns = [key for key in (rows[0][1] if rows else ()) if all(key in row for _, row in rows)]
    return columns, iter(rows)


def _cell(value: object) -> str | None:
    """A JSON value as a CSV file has it; None of an array or object."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, bool):
        return str(int(value))
    whole = whole_number(value)
    return str(whole if whole is not None else value) if isinstance(value, int | float) else None


def separator_of(text: str, image_column: str) -> str:
    """What stands between the fields of a table: a comma, or a tab or semicolon where that parts the columns' names."""
    head = text.partition("\n")[0]
    parts = {separator: [name.strip().strip('"') for name in head.split(separator)] for separator in SEPARATORS}
    return next((separator for separator, names in parts.items() if len(names) > 1 and image_column in names), ",")


def _rows(columns: Sequence[str], lines: Iterator[tuple[int, Row]], path: Path, image_column: str) -> Iterator[tuple[str, Row]]:
    """Images and their lines, one by one."""
    ImageTable({}, columns, str(path)).require(image_column, "--image-column")
    seen: set[str] = set()
    for line, row in lines:
        name = row[image_column].strip().removeprefix("./")
        if not name or name in seen:
            raise StreamError(f"{path}: line {line} {f'names {name[:SHOWN]} a second time' if name else 'names no image'}")
        seen.add(name)
        yield name, row
    if not seen:
        raise StreamError(f"{path}: expected a line an image after the columns' names, found none")


def _csv_lines(reader: csv.DictReader, path: Path) -> Iterator[tuple[int, Row]]:
    """Lines with their numbers."""
    try:
        for row in reader:
            if None in row or None in row.values():
                raise StreamError(f"{path}: line {reader.line_num} has not as many fields as the first line")
            yield reader.line_num, row
    except csv.Error as error:
        raise StreamError(f"{path}: line {reader.reader.line_num} is no CSV ({error})") from None


def without_ending(name: str) -> str:
    """A name without its ending; one that a table has for no file, "." or "/", as it is."""
    path = PurePosixPath(name)
    return str(path.with_suffix("") if path.name else path)


def _ends(name: str) -> Iterator[str]:
    """A path, and what is left of it without its first folder, its second, …"""
    while name:
        yield name
        name = name.partition("/")[2]


@dataclass(frozen=True)
class Groups:
    """Images, and which group each is of."""

    source: ListedImages
    found: Sequence[Found]
    """Where each image is."""
    names: tuple[str, ...]
    of: Sequence[int]
    """Each image's group, an index into `names`."""
    cars: Sequence[Car] | None = None
    """What each image shows, where they are Stanford Cars."""
    block: Sequence[int] | None = None
    """Each image's block, numbered from 0 in order of appearance: blocks are independent, images of one are not."""


def by_path(paths: Sequence[str]) -> Groups:
    """Each folder and archive named is a group, and files are of the folder they lie in.

    The folder of Stanford Cars, named alone, is grouped by model year.

    Raises:
        UsageError, CliptoolsError: as images.open_images.
    """
    if len(paths) == 1 and is_cars(Path(paths[0])):
        return _by_year(Path(paths[0]))
    found = find(paths)
    places = [named_path(one) for one in found]
    short = {place: PurePosixPath(place).name or place for place in dict.fromkeys(places)}
    distinct = len(set(short.values())) == len(short)
    return _grouped(found, [short[place] if distinct else place for place in places], sort=False)


def by_column(paths: Sequence[str], table: ImageTable, folder: Path, column: str, block: str | None = None) -> Groups:
    """Images in the groups a column names: those of the paths, or without paths those of the table itself.

    Groups are in the order of their names, as numbers where all are numbers.

    Args:
        folder: What the table's images are relative to.
        block: The column that names each image's block.

    Raises:
        StreamError: no such column, an image without a group or block, or one of the paths that the table does not know.
        UsageError, CliptoolsError: as images.open_images.
    """
    table.require(column, "--group-column")
    if empty := next((image for image, row in table.rows.items() if not row[column].strip()), None):
        raise StreamError(f"{table.source}: {empty} has no group (column {column!r} is empty)")
    if paths:
        found = find(paths)
        rows = [table.of(full_name(image)) for image in found]
    else:
        found = [Found(name, str(folder), place_in(folder, name)) for name in table.rows]
        rows = list(table.rows.values())
    groups = _grouped(found, [row[column].strip() for row in rows], sort=True)
    if block is None:
        return groups
    table.require(block, "--block")
    if empty := next((image.name for image, row in zip(found, rows, strict=True) if not row[block].strip()), None):
        raise StreamError(f"{table.source}: {empty} has no block (column {block!r} is empty)")
    return replace(groups, block=_numbered([row[block].strip() for row in rows]))


def in_neighbours(groups: Groups, size: int) -> Groups:
    """The same in blocks of `size` images that follow each other in a group; fewer at its end join the block before."""
    counts = Counter(groups.of)
    seen: Counter[int] = Counter()
    blocks = []
    for group in groups.of:
        last = max(1, counts[group] // size) - 1
        blocks.append((group, min(seen[group] // size, last)))
        seen[group] += 1
    return replace(groups, block=_numbered(blocks))


def _numbered(names: Sequence[Hashable]) -> list[int]:
    number = {name: index for index, name in enumerate(dict.fromkeys(names))}
    return [number[name] for name in names]


def full_name(found: Found) -> str:
    """An image by its base as given and its name below it, so that a table may name it from further up."""
    return str(PurePosixPath(found.base) / found.name)


def _by_year(folder: Path) -> Groups:
    cars = read_cars(folder)
    found = [Found(car.file, str(folder), str(folder / car.file)) for car in cars]
    return _grouped(found, [car.year for car in cars], sort=True, cars=cars)


def _grouped(found: Sequence[Found], groups: Sequence[str], sort: bool, cars: Sequence[Car] | None = None) -> Groups:
    names = list(dict.fromkeys(groups))
    if sort:
        names.sort(key=_order(names))
    number = {name: index for index, name in enumerate(names)}
    return Groups(ListedImages(found), found, tuple(names), [number[group] for group in groups], cars)


def _order(names: Sequence[str]) -> Callable[[str], tuple[float, str]]:
    """As numbers where all are numbers, else as texts."""
    try:
        values = {name: float(name) for name in names}
    except ValueError:
        return lambda name: (0.0, name)
    return lambda name: (values[name], name)
