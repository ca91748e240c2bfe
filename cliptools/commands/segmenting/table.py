"""A small table on a terminal or in a file."""

from collections.abc import Sequence
from io import BufferedIOBase


def write_table(stream: BufferedIOBase, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Text columns first to last; all but the first two set to the right."""
    import io

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from cliptools.ground.output import stdout_is_terminal

    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, title in enumerate(columns):
        table.add_column(title, justify="left" if number < 2 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    tty = stdout_is_terminal()
    buffer = io.StringIO()
    Console(file=buffer, force_terminal=tty, width=None if tty else 120, highlight=False).print(table)
    stream.write(buffer.getvalue().encode("utf-8"))
