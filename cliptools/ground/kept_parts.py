"""Arrays that a long run makes one after the other, kept beside its output until that is whole."""

import base64
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from cliptools.ground.earlier_run import PART, check_same, whole_lines
from cliptools.ground.errors import CliptoolsError
from cliptools.ground.output import replaceable
from cliptools.ground.provenance import canonical

Arrays = dict[str, np.ndarray]


class KeptParts:
    """FILE.part: a line that says what is being made, then a line for each part, in base64."""

    def __init__(self, path: Path, resume: bool) -> None:
        """
        Args:
            resume: Whether to go on with what an earlier run has left.

        Raises:
            CliptoolsError: an earlier run has left something, which is not to be gone on with.
        """
        self.path = path.with_name(path.name + PART)
        if self.path.exists() and not resume:
            raise CliptoolsError(f"{self.path}: left by an earlier run; go on with it (--resume), or remove it")

    def earlier(self, said: dict[str, Any]) -> Iterator[Arrays]:
        """The parts that an earlier run has left.

        Args:
            said: What the parts depend on.

        Raises:
            CliptoolsError: an earlier run has left parts of something else, or damaged ones.
        """
        lines = whole_lines(self.path) if self.path.exists() else iter(())
        begun = next(lines, None)
        if begun is None:
            self._append(said)
            return
        for key in sorted(begun.keys() | said.keys()):
            check_same(self.path, key, begun.get(key), said.get(key))
        for line in lines:
            try:
                yield load(base64.b64decode(line["part"], validate=True))
            except (KeyError, TypeError, ValueError, SafetensorError) as error:
                raise CliptoolsError(f"{self.path}: damaged ({error}); remove it, or write elsewhere") from None

    def add(self, **arrays: np.ndarray) -> None:
        """Keep a part; it outlives whatever ends the run."""
        self._append({"part": base64.b64encode(save({k: np.ascontiguousarray(v) for k, v in arrays.items()})).decode()})

    def remove(self) -> None:
        """All is written."""
        self.path.unlink(missing_ok=True)

    def _append(self, record: dict[str, Any]) -> None:
        try:
            with self.path.open("ab") as stream:
                stream.write(canonical(record).encode() + b"\n")
        except OSError as error:
            raise CliptoolsError(f"{self.path}: cannot write here ({error.strerror})") from None


def is_kept(path: Path | None) -> TypeGuard[Path]:
    """Whether there is a file beside which parts can stand."""
    return path is not None and str(path) != "-" and replaceable(path)


@contextlib.contextmanager
def kept_parts(path: Path | None, resume: bool) -> Iterator[KeptParts | None]:
    """Parts kept beside the file until the block ends without an error; None for standard output, a device or a pipe."""
    if not is_kept(path):
        yield None
        return
    parts = KeptParts(path, resume)
    yield parts
    parts.remove()
