"""Files that options name: `-` for standard input, pipes, and pictures that a list names relative to itself."""

import shutil
import sys
import tempfile
from io import BufferedIOBase, BytesIO
from pathlib import Path
from typing import Any, cast

from cliptools.ground.errors import StreamError, UsageError

STDIN = "-"
LINES = "images.jsonl"  # of an --out-dir: its pictures are named relative to the folder


def open_given(path: Path, option: str) -> BufferedIOBase:
    """A file to read from its beginning to its end; `-` is standard input.

    Args:
        option: What to call it in messages: the option and its value.

    Raises:
        StreamError: standard input is empty: another input has read it, or the command before it failed.
        UsageError: standard input is a terminal.
        OSError: the file cannot be read.
    """
    if str(path) != STDIN:
        return path.open("rb")
    data = standard_input(option).read()
    if not data:
        raise StreamError(f"{option}: standard input is empty; one input can come from it (did the command before it fail?)")
    return BytesIO(data)


def standard_input(option: str) -> BufferedIOBase:
    """
    Raises:
        UsageError: it is a terminal, or closed.
    """
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        raise UsageError(f"{option}: expected data on standard input: pipe it in or name a file")
    return cast(BufferedIOBase, sys.stdin.buffer)


def spooled(path: Path, option: str) -> tuple[Path, Any]:
    """A path that can be opened again at any place, and what to hold on to meanwhile: of `-` and of pipes a temporary copy.

    Raises:
        OSError: the file cannot be read, or there is no room for the copy.
        UsageError: standard input is a terminal.
    """
    if str(path) != STDIN and (path.is_file() or not path.exists()):
        return path, None
    with standard_input(option) if str(path) == STDIN else path.open("rb") as stream:
        copy = tempfile.NamedTemporaryFile(prefix="cliptools-")  # noqa: SIM115  # whoever holds it closes it
        shutil.copyfileobj(stream, copy, 1 << 20)
    copy.flush()
    return Path(copy.name), copy


def file_beside(name: str, lines: Path | None, folder: Path | None = None) -> str:
    """The path of a picture that a line names: as it stands, relative to the file of the lines, or in a folder.

    Lines of an --out-dir itself speak of its pictures by their place in it; others as they are to be opened from where the
    command was started.

    Args:
        lines: The file of the lines, None where they come on standard input.
        folder: Where else it may lie.
    """
    here = lines.parent / name if lines is not None and str(lines) != STDIN else None
    places: list[Path | None]
    places = [here, Path(name)] if here is not None and lines is not None and lines.name == LINES else [Path(name), here]
    places.append(None if folder is None else folder / name)
    return next((str(place) for place in places if place is not None and place.is_file()), name)
