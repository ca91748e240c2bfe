"""Where results go: files that appear whole or not at all, and a standard output that may be a pipe, a terminal or gone."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from cliptools.ground.errors import CliptoolsError, UsageError


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that takes its name only when the block ends without an error.

    Raises:
        CliptoolsError: the file cannot be written (no such folder, read-only, disk full).
    """
    try:
        descriptor, beside = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    except OSError as error:
        raise CliptoolsError(f"{path}: cannot write here ({error.strerror})") from None
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(beside, 0o666 & ~mask)  # mkstemp's 0600 is not what a user expects of an output file
        os.replace(beside, path)
    except OSError as error:
        raise CliptoolsError(f"{path}: could not be written ({error.strerror})") from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside)


@contextlib.contextmanager
def binary_output(path: Path | None) -> Iterator[IO[bytes]]:
    """The file named, or standard output for None and `-`; binary never goes to a terminal."""
    if path is not None and str(path) != "-":
        with whole_file(path) as stream:
            yield stream
        return
    if sys.stdout.isatty():
        raise UsageError("this is binary and would garble the terminal: redirect it (> FILE) or name a file (-o FILE)")
    yield sys.stdout.buffer
    sys.stdout.buffer.flush()


@contextlib.contextmanager
def text_output(path: Path | None) -> Iterator[IO[bytes]]:
    """Like binary_output for UTF-8 lines, which a terminal may show."""
    if path is not None and str(path) != "-":
        with whole_file(path) as stream:
            yield stream
        return
    yield sys.stdout.buffer
    sys.stdout.buffer.flush()


def silence_stdout() -> None:
    """After a reader has gone away: let the interpreter's own last flush go nowhere instead of failing (Python's documented way)."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
