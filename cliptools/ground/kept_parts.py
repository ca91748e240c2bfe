"""What a long run makes piece by piece, records or arrays, kept beside its output until that is whole."""

import base64
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from cliptools.ground.earlier_run import PART, check_same, whole_lines
from cliptools.ground.errors import CliptoolsError
from cliptools.ground.one_writer import only_writer_of
from cliptools.ground.output import replaceable
from cliptools.ground.provenance import canonical, digest

Arrays = dict[str, np.ndarray]


class KeptRecords:
    """FILE.part: a line that says what is being made, then a line for each piece of it."""

    def __init__(self, path: Path, resume: bool) -> None:
        """
        Args:
            resume: Whether to go on with what an earlier run has left.

        Raises:
            CliptoolsError: an earlier run has left something, which is not to be gone on with.
        """
        self.path = path.with_name(path.name + PART)
        if self.path.exists() and self.path.stat().st_size and not resume:
            raise CliptoolsError(f"{self.path}: left by an earlier run; go on with it (--resume), or remove it")

    def records(self, said: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The pieces that an earlier run has left.

        Args:
            said: What they depend on.

        Raises:
            CliptoolsError: an earlier run has left pieces of something else, or damaged ones.
        """
        lines = whole_lines(self.path) if self.path.exists() else iter(())
        begun = next(lines, None)
        if begun is None:
            self.append(said)
            return
        for key in sorted(begun.keys() | said.keys()):
            check_same(self.path, key, begun.get(key), said.get(key))
        yield from lines

    def append(self, record: dict[str, Any]) -> None:
        """Keep a piece; it outlives whatever ends the run."""
        try:
            with self.path.open("ab") as stream:
                stream.write(canonical(record).encode() + b"\n")
        except OSError as error:
            raise CliptoolsError(f"{self.path}: cannot write here ({error.strerror})") from None

    def remove(self) -> None:
        """All is written."""
        self.path.unlink(missing_ok=True)


class KeptParts(KeptRecords):
    """Pieces that are arrays, in base64."""

    def earlier(self, said: dict[str, Any]) -> Iterator[Arrays]:
        """See `records`."""
        for line in self.records(said):
            try:
                part = base64.b64decode(line["part"], validate=True)
                if line["sha256"] != digest(part):
                    raise ValueError("not what was written")
                yield load(part)
            except (KeyError, TypeError, ValueError, SafetensorError) as error:
                raise CliptoolsError(f"{self.path}: damaged ({error}); remove it, or write elsewhere") from None

    def add(self, **arrays: np.ndarray) -> None:
        """Keep a part; it outlives whatever ends the run."""
        part = save({name: np.ascontiguousarray(value) for name, value in arrays.items()})
        self.append({"part": base64.b64encode(part).decode(), "sha256": digest(part)})


Kept = TypeVar("Kept", bound=KeptRecords)


def is_kept(path: Path | None) -> TypeGuard[Path]:
    """Whether there is a file beside which parts can stand."""
    return path is not None and str(path) != "-" and replaceable(path)


def kept_records(path: Path | None, resume: bool) -> contextlib.AbstractContextManager[KeptRecords | None]:
    """Records kept beside the file until the block ends without an error; None for standard output, a device or a pipe."""
    return _kept(path, resume, KeptRecords)


def kept_parts(path: Path | None, resume: bool) -> contextlib.AbstractContextManager[KeptParts | None]:
    """Arrays kept likewise."""
    return _kept(path, resume, KeptParts)


@contextlib.contextmanager
def _kept(path: Path | None, resume: bool, kind: type[Kept]) -> Iterator[Kept | None]:
    if not is_kept(path):
        yield None
        return
    with only_writer_of(path.with_name(path.name + PART)):
        kept = kind(path, resume)
        yield kept
        kept.remove()
