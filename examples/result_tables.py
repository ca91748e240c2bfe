"""The tables of results/, and the intervals of their figures: for claims.py and for the page of results (tools/results_page).

Accuracies have Wilson's interval, 95 %. A difference from the unchanged model has the interval of a paired comparison: an image
becomes right or wrong only if its best class changes, so the variance of the difference is at most the share of such images,
1 − agreement, divided by the number of images. All other differences have Newcombe's interval (1998, method 10) for independent
images, which is too wide rather than too narrow.
"""

import csv
import math
import re
from pathlib import Path
from typing import NamedTuple

from scipy import stats


class TableError(Exception):
    """A table lacks a row, a column or a figure."""


class MissingTableError(TableError):
    """There is no such table."""


class Share(NamedTuple):
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        interval = f" ({100 * self.low:.1f}–{100 * self.high:.1f})" if self.low < self.high else ""
        return f"{100 * self.value:.1f} %{interval}"

    def __neg__(self) -> "Share":
        return Share(-self.value, -self.high, -self.low)


class Row(NamedTuple):
    """One line of a table."""

    place: str
    """The file and the values by which the line was found."""
    cells: dict[str, str]

    def text(self, column: str) -> str:
        """Return a cell.

        Raises:
            TableError: the table has no such column.
        """
        if column not in self.cells:
            raise TableError(f"{self.place}: expected a column {column!r}, found {', '.join(self.cells)}")
        return self.cells[column]

    def number(self, column: str) -> float:
        """Return a cell as a number.

        Raises:
            TableError: the table has no such column, or the cell is not a number.
        """
        try:
            return float(self.text(column))
        except ValueError:
            raise TableError(f"{self.place}: expected a number in column {column!r}, found {self.text(column)!r}") from None

    def share(self, value: str = "top1", low: str = "low", high: str = "high") -> Share:
        """Return a figure and the interval beside it."""
        return Share(*(self.number(column) for column in (value, low, high)))

    def plus_minus(self, value: str, half: str, times: float = 1.0) -> Share:
        """Return a figure with an interval of `times` the other column to either side."""
        middle, width = self.number(value), times * self.number(half)
        return Share(middle, middle - width, middle + width)


class Tables:
    """The tables of results, by the names of their files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._rows: dict[str, list[Row]] = {}

    def has(self, name: str) -> bool:
        """Return True if the table exists."""
        return (self.folder / f"{name}.csv").exists()

    def comment(self, name: str) -> str:
        """Return the first line of a table, without its #; empty if it is no comment."""
        with (self.folder / f"{name}.csv").open(encoding="utf-8") as lines:
            first = next(lines)
        return first.removeprefix("#").strip() if first.startswith("#") else ""

    def rows(self, name: str, **values: str) -> list[Row]:
        """Return the lines that have these values, at least one.

        Raises:
            TableError: there is no such file, column or line.
        """
        rows = self._all(name)
        for column, value in values.items():
            left = [row for row in rows if row.text(column) == value]
            if not left:
                there = ", ".join(dict.fromkeys(row.text(column) or "(empty)" for row in rows))
                raise TableError(
                    f"{name}.csv: expected a row with {_listed(values)}, found none: {column} is one of {there}"
                    + (" in the rows with the values before it" if len(rows) < len(self._all(name)) else "")
                )
            rows = left
        return [Row(f"{name}.csv, row with {_listed(values)}" if values else f"{name}.csv", row.cells) for row in rows]

    def row(self, name: str, **values: str) -> Row:
        """Return the one line that has these values; equal lines of the unchanged model count as one.

        Raises:
            TableError: there is no such line, or there are several.
        """
        rows = self.rows(name, **values)
        compared: list[str] = [column for column in ("top1", "n") if column in rows[0].cells] or list(rows[0].cells)
        if any([row.cells[column] for column in compared] != [rows[0].cells[column] for column in compared] for row in rows):
            raise TableError(f"{name}.csv: expected one row with {_listed(values)}, found {len(rows)}")
        return rows[0]

    def top1(self, name: str, **values: str) -> Share:
        """Return the accuracy of the one line that has these values."""
        return self.row(name, **values).share()

    def gain(self, name: str, **values: str) -> Share:
        """Return the accuracy of the line minus the accuracy of the unchanged model."""
        row, untouched = self.row(name, **values), self.top1(name, change="untouched")
        middle = row.number("top1") - untouched.value
        half = 1.96 * math.sqrt((1 - row.number("agreement")) / row.number("n"))
        return Share(middle, middle - half, middle + half)

    def layers_together(self, name: str) -> str:
        """Return the layers that a table of ablations has together, those of the default of clip-effects."""
        return next(row.text("layers") for row in self.rows(name, change="all") if " " in row.text("layers"))

    def _all(self, name: str) -> list[Row]:
        if name not in self._rows:
            path = self.folder / f"{name}.csv"
            if not path.exists():
                raise MissingTableError(f"{path}: no such table; make it by its target in examples/")
            with path.open(encoding="utf-8") as lines:
                reader = csv.DictReader(line for line in lines if not line.startswith("#"))
                self._rows[name] = [Row(f"{name}.csv", row) for row in reader]
        return self._rows[name]


def difference(a: Share, b: Share) -> Share:
    """Return a − b with its interval."""
    middle = a.value - b.value
    low = math.hypot(a.value - a.low, b.high - b.value)
    high = math.hypot(a.high - a.value, b.value - b.low)
    return Share(middle, middle - low, middle + high)


def wilson(share: float, count: int) -> Share:
    """Return a share of `count` with Wilson's interval."""
    interval = stats.binomtest(round(share * count), count).proportion_ci(method="wilson")
    return Share(share, float(interval.low), float(interval.high))


def counts_in(comment: str) -> dict[str, int]:
    """Return the numbers of a comment such as `of 8192 pairs (median 0.543), 512 neurons` by the words that follow them."""
    return {name: int(count) for count, name in re.findall(r"(\d+) ([a-z_]+) \(", comment)}


def points(d: Share) -> str:
    """Return a difference as text."""
    return f"{100 * d.value:+.1f} points ({100 * d.low:+.1f} to {100 * d.high:+.1f})"


def _listed(values: dict[str, str]) -> str:
    return ", ".join(f"{column}={value!r}" for column, value in values.items())
