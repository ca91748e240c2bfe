"""A table in a CSV file that says something of images, a line each: the group they are of, what they show."""

import csv
import io
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from cliptools.ground.errors import StreamError
from cliptools.ground.given_files import open_given
from cliptools.ground.text_lines import decoded

Row = dict[str, str]
SEPARATORS = (",", "\t", ";")
SHOWN = 200  # characters of a table that a message repeats


class Columns(NamedTuple):
    """What a table calls the column of images and the one that says what they are of."""

    image: str = "image"
    label: str = "label"


class ImageNames:
    """Images by the names that a table has for them."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = names

    def find(self, image: str) -> str | None:
        """What the table calls an image, whose name may have folders or an archive in front of that, or another ending."""
        if (known := next((rest for rest in _ends(image) if rest in self._names), None)) is not None:
            return known
        return next((self._bare[rest] for rest in _ends(without_ending(image)) if rest in self._bare), None)

    @cached_property
    def _bare(self) -> dict[str, str]:
        return {without_ending(name): name for name in self._names}


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
    """A CSV file (or one with tabs or semicolons) with the columns' names in its first line, UTF-8.

    Raises:
        StreamError: no such file, no such column, a line of another length, an image twice, or no line at all.
    """
    reader = _reader(path, image_column)
    return ImageTable(dict(_rows(reader, path, image_column)), reader.fieldnames or (), str(path))


def read_column(path: Path, columns: Columns) -> dict[str, str]:
    """One column of such a file by image, of millions of lines if need be.

    Raises:
        StreamError: as read_table.
    """
    reader = _reader(path, columns.image)
    ImageTable({}, reader.fieldnames or (), str(path)).require(columns.label, "--label-column")
    return {image: row[columns.label].strip() for image, row in _rows(reader, path, columns.image)}


def _reader(path: Path, image_column: str) -> csv.DictReader:
    try:
        with open_given(path, str(path)) as stream:
            text = decoded(stream.read())
    except (OSError, ValueError) as error:
        raise StreamError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, delimiter=separator_of(text, image_column))
    try:
        _ = reader.fieldnames  # reads the first line
    except csv.Error as error:
        raise StreamError(f"{path}: line 1 is no CSV ({error})") from None
    return reader


def separator_of(text: str, image_column: str) -> str:
    """What stands between the fields of a table: a comma, or a tab or semicolon where that parts the columns' names."""
    head = text.partition("\n")[0]
    parts = {separator: [name.strip().strip('"') for name in head.split(separator)] for separator in SEPARATORS}
    return next((separator for separator, names in parts.items() if len(names) > 1 and image_column in names), ",")


def _rows(reader: csv.DictReader, path: Path, image_column: str) -> Iterator[tuple[str, Row]]:
    """Images and their lines, one by one."""
    ImageTable({}, reader.fieldnames or (), str(path)).require(image_column, "--image-column")
    seen: set[str] = set()
    for line, row in _lines(reader, path):
        name = row[image_column].strip().removeprefix("./")
        if not name or name in seen:
            raise StreamError(f"{path}: line {line} {f'names {name[:SHOWN]} a second time' if name else 'names no image'}")
        seen.add(name)
        yield name, row
    if not seen:
        raise StreamError(f"{path}: expected a line an image after the columns' names, found none")


def _lines(reader: csv.DictReader, path: Path) -> Iterator[tuple[int, Row]]:
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
