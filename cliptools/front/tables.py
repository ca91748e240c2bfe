"""Results as tables, for a terminal with its width and colours, else with 120 columns and without colours; records of results."""

import importlib
import io
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from cliptools.console import harmless
from cliptools.errors import CliptoolsError
from cliptools.io.files import stdout_is_terminal, whole_file
from cliptools.io.jsonl import write_record


def rendered(*parts: RenderableType, terminal: bool | None = None) -> bytes:
    """Render parts to UTF-8 bytes, for standard output or a file.

    Args:
        terminal: Render for a terminal, with its width and colours [default: if standard output is one].
    """
    on_terminal = stdout_is_terminal() if terminal is None else terminal
    buffer = io.StringIO()
    size = shutil.get_terminal_size() if on_terminal else os.terminal_size((120, 25))  # rich would assume 80 for a dumb terminal
    console = Console(
        file=buffer, force_terminal=on_terminal, force_jupyter=False, width=size.columns, height=size.lines, highlight=False
    )  # in a notebook, rich would show the table itself and write nothing to the buffer
    for part in parts:
        console.print(_HarmlessPart(part))
    return buffer.getvalue().encode("utf-8")


@dataclass
class _HarmlessPart:
    """A part without the control characters of its texts, so that the terminal gets only letters and rich's colours."""

    part: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self.part, options):
            yield segment if segment.control else Segment(harmless(segment.text), segment.style)


def write_table(stream: BufferedIOBase, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a table of texts, as text_table makes it."""
    stream.write(rendered(text_table(columns, rows)))


def text_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return a table of texts; all columns but the first two are right-aligned."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, title in enumerate(columns):
        table.add_column(title, justify="left" if number < 2 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


Show = Callable[[Sequence[dict[str, Any]]], Sequence[RenderableType]]
"""Function from records to the parts of a table."""


class Records(list[dict[str, Any]]):
    """Records of a result: the plain dictionaries that the command writes as JSON lines."""

    def __init__(self, records: Iterable[dict[str, Any]], show: Show) -> None:
        """
        Args:
            records: The records, in order.
            show: Makes the parts of the table from the records.
        """
        super().__init__(records)
        self._show = show

    def table(self) -> str:
        """Return the table that the command shows, as text."""
        return rendered(*self._show(self), terminal=False).decode("utf-8").rstrip("\n")

    def to_frame(self) -> Any:
        """Return a pandas.DataFrame with a row for each record.

        Raises:
            CliptoolsError: pandas is not installed.
        """
        return data_frame(self)

    def save(self, path: str | Path) -> None:
        """Write the records as JSON lines, as the command does; the file appears whole or not at all."""
        with whole_file(Path(path)) as stream:
            for record in self:
                write_record(stream, record)


def data_frame(records: Iterable[Mapping[str, Any]]) -> Any:
    """Return a pandas.DataFrame with a row for each record.

    Raises:
        CliptoolsError: pandas is not installed.
    """
    try:
        pandas = importlib.import_module("pandas")
    except ImportError:
        raise CliptoolsError("a data frame needs pandas, which is not installed: pip install 'cliptools[frame]'") from None
    return pandas.DataFrame(list(records))
