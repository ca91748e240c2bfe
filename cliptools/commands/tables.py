"""Tables of rich as bytes: as wide as the terminal, else 120 columns and without colour."""

from typing import TYPE_CHECKING

from cliptools.ground.output import stdout_is_terminal

if TYPE_CHECKING:
    from rich.console import RenderableType


def rendered(*parts: "RenderableType", terminal: bool | None = None) -> bytes:
    """What goes to standard output or into a file, UTF-8.

    Args:
        terminal: Whether a terminal will show it [default: whether standard output is one].
    """
    import io

    from rich.console import Console

    tty = stdout_is_terminal() if terminal is None else terminal
    buffer = io.StringIO()
    console = Console(file=buffer, force_terminal=tty, width=None if tty else 120, highlight=False)
    for part in parts:
        console.print(part)
    return buffer.getvalue().encode("utf-8")
