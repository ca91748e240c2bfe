"""A small table on a terminal or in a file."""

from collections.abc import Sequence
from io import BufferedIOBase

from cliptools.commands.tables import rendered


def write_table(stream: BufferedIOBase, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Text columns first to last; all but the first two set to the right."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, title in enumerate(columns):
        table.add_column(title, justify="left" if number < 2 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    stream.write(rendered(table))
