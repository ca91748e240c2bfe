"""What an earlier run has left, and a file of lines that a later run can go on with."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import Any

from cliptools.ground.errors import CliptoolsError
from cliptools.ground.one_writer import only_writer_of
from cliptools.ground.strict_json import parse

PART = ".part"


def whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file, one after the other; half a line, left by a run that was killed, is cut off.

    Raises:
        CliptoolsError: a line is no record, or the file cannot be read.
    """
    try:
        with path.open("rb") as stream:
            whole = 0
            for line in stream:
                if not line.endswith(b"\n"):
                    os.truncate(path, whole)
                    return
                whole += len(line)
                record = parse(line)
                if not isinstance(record, dict):
                    raise ValueError(f"expected an object, found {line[:20].decode('utf-8', 'replace')!r}")
                yield record
    except OSError as error:
        raise CliptoolsError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise CliptoolsError(f"{path}: damaged ({error}); remove it, or write elsewhere") from None


def check_same(where: Path, key: str, was: Any, wanted: Any) -> None:
    """Whether an earlier run had this field as it is wanted now.

    Raises:
        CliptoolsError: it had not, so that its results do not go with those to come.
    """
    if isinstance(was, dict) and isinstance(wanted, dict):
        for inner in sorted(set(was) | set(wanted)):
            check_same(where, inner, was.get(inner), wanted.get(inner))
    elif was != wanted:
        raise CliptoolsError(
            f"{where}: begun with {key} {was!r}, asked for now {wanted!r}; give the same options, or write elsewhere"
        )


class KeptLines:
    """Lines on their way into a file: they stand in FILE.part until all are there, also where a run ends before."""

    def __init__(self, path: Path, resume: bool) -> None:
        self.path, self.part = path, path.with_name(path.name + PART)
        try:
            if not resume and self.part.exists() and self.part.stat().st_size:
                raise CliptoolsError(f"{self.part}: left by an earlier run; go on with it (--resume), or remove it")
            if resume and path.is_file() and not (self.part.exists() and self.part.stat().st_size):
                shutil.copyfile(path, self.part)
            self.stream: BufferedIOBase = self.part.open("ab")
        except OSError as error:
            raise CliptoolsError(f"{path}: cannot write here ({error.strerror})") from None

    def earlier(self) -> Iterator[dict[str, Any]]:
        """The records that are there."""
        return whole_lines(self.part)

    def keep(self, lines: int) -> None:
        """Drop what stands after so many lines."""
        with self.part.open("rb") as stream:
            for _ in range(lines):
                stream.readline()
            kept = stream.tell()
        os.truncate(self.part, kept)


@contextlib.contextmanager
def kept_lines(path: Path, resume: bool) -> Iterator[KeptLines]:
    """A file that takes its name when the block ends without an error; with one, its lines stay in FILE.part.

    Args:
        resume: Whether to go on with FILE.part, or else with FILE, where there is one.

    Raises:
        CliptoolsError: FILE.part is there, without `resume`; another run writes it; or it cannot be written.
    """
    with only_writer_of(path.with_name(path.name + PART)):
        kept = KeptLines(path, resume)
        try:
            with kept.stream:
                yield kept
                kept.stream.flush()
                os.fsync(kept.stream.fileno())
            os.replace(kept.part, path)
        except OSError as error:
            raise CliptoolsError(f"{path}: could not be written ({error.strerror})") from None
