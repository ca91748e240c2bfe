"""Results kept between runs, by content: a damaged, read-only or missing cache costs time, never the result.

What an earlier run has left, and a file of lines that a later run can go on with.

What a long run makes piece by piece, records or arrays, kept beside its output until that is whole.
"""

import base64
import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

import numpy as np
from jaxtyping import Float32
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save

from cliptools.console import warn_once
from cliptools.errors import CliptoolsError
from cliptools.io.files import only_writer_of, replaceable, whole_file
from cliptools.io.header import KEY, canonical, digest
from cliptools.io.jsonl import parse


def cache_dir() -> Path:
    """The directory CLIPTOOLS_CACHE names, else the user's cache directory."""
    named = os.environ.get("CLIPTOOLS_CACHE")
    if named:
        return Path(named)
    from platformdirs import user_cache_path

    return user_cache_path("cliptools", appauthor=False)


def cached(
    kind: str, key: str, shape: tuple[int, ...], compute: Callable[[], Float32[np.ndarray, "..."]]
) -> Float32[np.ndarray, "..."]:
    """The array kept under this key, else the computed one, which is then kept.

    Several runs may share a cache: files appear whole, under names that say their content.

    Args:
        kind: A subdirectory.
        key: Digest of everything the array depends on.
        shape: What the array must look like; -1 where any size is right.
        compute: Called where the cache has nothing usable.
    """
    path = cache_dir() / kind / f"{key}.safetensors"
    kept = _recall(path, key, shape)
    if kept is not None:
        return kept
    value = np.ascontiguousarray(compute())
    _keep(path, key, value)
    return value


def _recall(path: Path, key: str, shape: tuple[int, ...]) -> Float32[np.ndarray, "..."] | None:
    """The array in the file if it is whole and what was asked for."""
    try:
        with safe_open(path, framework="numpy") as file:
            said = parse(file.metadata()[KEY])
            value = file.get_tensor("value")
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None
    fits = value.dtype == np.float32 and len(value.shape) == len(shape)
    fits = fits and all(want in (-1, size) for want, size in zip(shape, value.shape, strict=True))
    return value if fits and said == _seal(key, value) and np.isfinite(value).all() else None


def _keep(path: Path, key: str, value: Float32[np.ndarray, "..."]) -> None:
    """Write the file; where that is not possible, say so once a run."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as stream:
            stream.write(save({"value": value}, metadata={KEY: canonical(_seal(key, value))}))
    except (OSError, CliptoolsError) as error:
        warn_once("cache", f"nothing is kept in the cache, each run computes anew: {error}")


def _seal(key: str, value: Float32[np.ndarray, "..."]) -> dict[str, str]:
    """What must be true of a whole file: its own key, and the hash of its bytes."""
    return {"key": key, "sha256": digest(value.tobytes())}


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
