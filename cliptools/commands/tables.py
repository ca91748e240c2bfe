"""Tables of rich as bytes: as wide as the terminal, else 120 columns and without colour."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cliptools.ground.legible import harmless
from cliptools.ground.output import stdout_is_terminal

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult


def rendered(*parts: "RenderableType", terminal: bool | None = None) -> bytes:
    """What goes to standard output or into a file, UTF-8.

    Args:
        terminal: Whether a terminal will show it [default: whether standard output is one].
    """
    import io
    import os
    import shutil

    from rich.console import Console

    tty = stdout_is_terminal() if terminal is None else terminal
    buffer = io.StringIO()
    size = shutil.get_terminal_size() if tty else os.terminal_size((120, 25))  # of a dumb terminal rich would take 80 for granted
    console = Console(file=buffer, force_terminal=tty, width=size.columns, height=size.lines, highlight=False)
    for part in parts:
        console.print(_Harmless(part))
    return buffer.getvalue().encode("utf-8")


@dataclass
class _Harmless:
    """A part of which the terminal gets letters and rich's own colours, no commands that stood in its texts."""

    part: "RenderableType"

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        from rich.segment import Segment

        for segment in console.render(self.part, options):
            yield segment if segment.control else Segment(harmless(segment.text), segment.style)
