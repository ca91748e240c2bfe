"""Results kept between runs: a cache of arrays, and partial results that an interrupted run leaves for --resume.

The cache is addressed by content; a damaged, read-only or missing cache costs time, never the result. A long run keeps its
records, arrays or lines in FILE.part beside its output FILE until that is complete.
By hand, because joblib and diskcache keep pickles, which run code when they are read.
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
from platformdirs import user_cache_path
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save

from cliptools.console import warn_once
from cliptools.errors import CliptoolsError
from cliptools.io.files import only_writer_of, replaceable, whole_file
from cliptools.io.header import KEY, canonical, digest
from cliptools.io.jsonl import parse


def cache_dir() -> Path:
    """Return the directory in CLIPTOOLS_CACHE, else the user's cache directory."""
    folder = os.environ.get("CLIPTOOLS_CACHE")
    if folder:
        return Path(folder)
    return user_cache_path("cliptools", appauthor=False)


def cached(
    kind: str, key: str, shape: tuple[int, ...], compute: Callable[[], Float32[np.ndarray, "..."]]
) -> Float32[np.ndarray, "..."]:
    """Return the array cached under a key, else compute it and add it to the cache.

    Several runs may share a cache: files are replaced atomically, and their names depend on their content.

    Args:
        kind: Subdirectory of the cache.
        key: Digest of everything that the array depends on.
        shape: Expected shape; -1 allows any size.
        compute: Called if the cache has no usable array.
    """
    path = cache_dir() / kind / f"{key}.safetensors"
    value = _load_array(path, key, shape)
    if value is not None:
        return value
    value = np.ascontiguousarray(compute())
    _store_array(path, key, value)
    return value


def _load_array(path: Path, key: str, shape: tuple[int, ...]) -> Float32[np.ndarray, "..."] | None:
    """Return the array of a file; None if the file is missing, damaged or holds another array."""
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = parse(file.metadata()[KEY])
            value = file.get_tensor("value")
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None
    matches = value.dtype == np.float32 and len(value.shape) == len(shape)
    matches = matches and all(expected in (-1, size) for expected, size in zip(shape, value.shape, strict=True))
    return value if matches and metadata == _metadata(key, value) and np.isfinite(value).all() else None


def _store_array(path: Path, key: str, value: Float32[np.ndarray, "..."]) -> None:
    """Write the file; if that fails, warn once per run."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as stream:
            stream.write(save({"value": value}, metadata={KEY: canonical(_metadata(key, value))}))
    except (OSError, CliptoolsError) as error:
        warn_once("cache", f"results cannot be kept in the cache, so every run computes them again: {error}")


def _metadata(key: str, value: Float32[np.ndarray, "..."]) -> dict[str, str]:
    """Return the metadata of an intact file: its key and the digest of the array."""
    return {"key": key, "sha256": digest(value.tobytes())}


PART = ".part"  # suffix of partial results


def whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a file; truncate the file before an incomplete last line, which a killed run leaves.

    Raises:
        CliptoolsError: a line is not a record, or the file cannot be read.
    """
    try:
        with path.open("rb") as stream:
            length = 0
            for line in stream:
                if not line.endswith(b"\n"):
                    os.truncate(path, length)
                    return
                length += len(line)
                record = parse(line)
                if not isinstance(record, dict):
                    raise ValueError(f"expected an object, found {line[:20].decode('utf-8', 'replace')!r}")
                yield record
    except OSError as error:
        raise CliptoolsError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise CliptoolsError(f"{path}: damaged ({error}); remove it or use another output file") from None


def check_same(path: Path, key: str, earlier: Any, now: Any) -> None:
    """Check that an earlier run had the same value of a setting as this run.

    Raises:
        CliptoolsError: it had another one, so its results cannot be continued.
    """
    if isinstance(earlier, dict) and isinstance(now, dict):
        for inner_key in sorted(set(earlier) | set(now)):
            check_same(path, inner_key, earlier.get(inner_key), now.get(inner_key))
    elif earlier != now:
        raise CliptoolsError(
            f"{path}: started with {key} {earlier!r}, now asked for {now!r}; use the same options or another output file"
        )


class KeptLines:
    """Lines of an output FILE that is not complete yet; they are in FILE.part, also after an interrupted run."""

    def __init__(self, path: Path, resume: bool) -> None:
        self.path, self.part = path, path.with_name(path.name + PART)
        try:
            if not resume and self.part.exists() and self.part.stat().st_size:
                raise CliptoolsError(f"{self.part}: left by an earlier run; continue it with --resume or remove it")
            if resume and path.is_file() and not (self.part.exists() and self.part.stat().st_size):
                shutil.copyfile(path, self.part)
            self.stream: BufferedIOBase = self.part.open("ab")
        except OSError as error:
            raise CliptoolsError(f"{path}: cannot write here ({error.strerror})") from None

    def earlier(self) -> Iterator[dict[str, Any]]:
        """Yield the records that an earlier run has written."""
        return whole_lines(self.part)

    def keep(self, lines: int) -> None:
        """Truncate the file after a number of lines."""
        with self.part.open("rb") as stream:
            for _ in range(lines):
                stream.readline()
            length = stream.tell()
        os.truncate(self.part, length)


@contextlib.contextmanager
def kept_lines(path: Path, resume: bool) -> Iterator[KeptLines]:
    """Write lines to FILE.part, which is renamed to FILE if the block ends without an error and stays otherwise.

    Args:
        resume: Continue FILE.part, or else FILE, if one of them exists.

    Raises:
        CliptoolsError: FILE.part exists without `resume`, another run writes to it, or it cannot be written.
    """
    with only_writer_of(path.with_name(path.name + PART)):
        lines = KeptLines(path, resume)
        try:
            with lines.stream:
                yield lines
                lines.stream.flush()
                os.fsync(lines.stream.fileno())
            os.replace(lines.part, path)
        except OSError as error:
            raise CliptoolsError(f"{path}: could not be written ({error.strerror})") from None


Arrays = dict[str, np.ndarray]


class KeptRecords:
    """Partial results in FILE.part: a line with the settings they depend on, then a line per piece."""

    def __init__(self, path: Path, resume: bool) -> None:
        """
        Args:
            resume: Continue what an earlier run has left.

        Raises:
            CliptoolsError: an earlier run has left results, and `resume` is not set.
        """
        self.path = path.with_name(path.name + PART)
        if self.path.exists() and self.path.stat().st_size and not resume:
            raise CliptoolsError(f"{self.path}: left by an earlier run; continue it with --resume or remove it")

    def records(self, settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the pieces that an earlier run has left.

        Args:
            settings: Everything that the pieces depend on.

        Raises:
            CliptoolsError: the earlier run had other settings, or its pieces are damaged.
        """
        lines = whole_lines(self.path) if self.path.exists() else iter(())
        earlier = next(lines, None)
        if earlier is None:
            self.append(settings)
            return
        for key in sorted(earlier.keys() | settings.keys()):
            check_same(self.path, key, earlier.get(key), settings.get(key))
        yield from lines

    def append(self, record: dict[str, Any]) -> None:
        """Add a piece; it stays on disk if the run is interrupted."""
        try:
            with self.path.open("ab") as stream:
                stream.write(canonical(record).encode() + b"\n")
        except OSError as error:
            raise CliptoolsError(f"{self.path}: cannot write here ({error.strerror})") from None

    def remove(self) -> None:
        """Remove the file, once the output is complete."""
        self.path.unlink(missing_ok=True)


class KeptParts(KeptRecords):
    """Partial results that are arrays, stored in base64."""

    def earlier(self, settings: dict[str, Any]) -> Iterator[Arrays]:
        """Yield the arrays that an earlier run has left; see `records`."""
        for line in self.records(settings):
            try:
                part = base64.b64decode(line["part"], validate=True)
                if line["sha256"] != digest(part):
                    raise ValueError("its digest does not match")
                yield load(part)
            except (KeyError, TypeError, ValueError, SafetensorError) as error:
                raise CliptoolsError(f"{self.path}: damaged ({error}); remove it or use another output file") from None

    def add(self, **arrays: np.ndarray) -> None:
        """Add arrays; they stay on disk if the run is interrupted."""
        part = save({name: np.ascontiguousarray(value) for name, value in arrays.items()})
        self.append({"part": base64.b64encode(part).decode(), "sha256": digest(part)})


Kept = TypeVar("Kept", bound=KeptRecords)


def is_kept(path: Path | None) -> TypeGuard[Path]:
    """Return whether the output is a file beside which partial results can be kept."""
    return path is not None and str(path) != "-" and replaceable(path)


def kept_records(path: Path | None, resume: bool) -> contextlib.AbstractContextManager[KeptRecords | None]:
    """Keep records beside the file until the block ends without an error; None for standard output, a device or a pipe."""
    return _results_beside(path, resume, KeptRecords)


def kept_parts(path: Path | None, resume: bool) -> contextlib.AbstractContextManager[KeptParts | None]:
    """Keep arrays in the same way as `kept_records` keeps records."""
    return _results_beside(path, resume, KeptParts)


@contextlib.contextmanager
def _results_beside(path: Path | None, resume: bool, kind: type[Kept]) -> Iterator[Kept | None]:
    if not is_kept(path):
        yield None
        return
    with only_writer_of(path.with_name(path.name + PART)):
        results = kind(path, resume)
        yield results
        results.remove()
