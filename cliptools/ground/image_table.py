"""A table in a CSV file that says something of images, a line each: the group they are of, what they show."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from cliptools.ground.errors import StreamError

Row = dict[str, str]


class ImageTable:
    """Lines of a table by the image they are about."""

    def __init__(self, rows: dict[str, Row], columns: Sequence[str], source: str) -> None:
        """
        Args:
            rows: What each column says, by the image as the table names it.
            source: What to call the table in messages.
        """
        self.rows, self.columns, self.source = rows, columns, source
        self._bare = {_bare(name): name for name in rows}

    def require(self, column: str, option: str) -> None:
        """
        Raises:
            StreamError: there is no such column.
        """
        if column not in self.columns:
            raise StreamError(f"{self.source}: no column {column!r} ({option}); it has {', '.join(self.columns)}")

    def of(self, image: str) -> Row:
        """What is said of an image. Its name may have folders or an archive in front of what the table calls it, or an ending.

        Raises:
            StreamError: nothing is.
        """
        parts = PurePosixPath(image).parts
        for start in range(len(parts)):
            rest = "/".join(parts[start:])
            known = rest if rest in self.rows else self._bare.get(_bare(rest))
            if known is not None:
                return self.rows[known]
        raise StreamError(f"{self.source}: says nothing of {image}")


def read_table(path: Path, image_column: str) -> ImageTable:
    """A CSV file with the columns' names in its first line, UTF-8.

    Raises:
        StreamError: no such file, no such column, a line of another length, an image twice, or no line at all.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise StreamError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    rows: dict[str, Row] = {}
    table = ImageTable(rows, reader.fieldnames or (), str(path))
    table.require(image_column, "--image-column")
    for line, row in _rows(reader, path):
        name = row[image_column].strip().removeprefix("./")
        if not name or name in rows:
            raise StreamError(f"{path}: line {line} {f'names {name} a second time' if name else 'names no image'}")
        rows[name] = row
    if not rows:
        raise StreamError(f"{path}: expected a line an image after the columns' names, found none")
    return ImageTable(rows, table.columns, str(path))


def _rows(reader: csv.DictReader, path: Path) -> Iterator[tuple[int, Row]]:
    """Lines with their numbers."""
    try:
        for row in reader:
            if None in row or None in row.values():
                raise StreamError(f"{path}: line {reader.line_num} has not as many fields as the first line")
            yield reader.line_num, row
    except csv.Error as error:
        raise StreamError(f"{path}: line {reader.line_num} is no CSV ({error})") from None


def _bare(name: str) -> str:
    """A name without its ending."""
    return str(PurePosixPath(name).with_suffix(""))
