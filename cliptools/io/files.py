"""Outputs: files and folders that appear complete or not at all, standard output, and locks against a second writer.

A lock is the kernel's (flock) on the output folder or file itself: it needs no other file and ends with the process, however
that ends. By hand, because libraries for atomic writes replace single files, without folders, standard output and locks.
"""

import contextlib
import errno
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from io import BufferedIOBase, RawIOBase
from pathlib import Path
from typing import cast

from cliptools.console import warn
from cliptools.errors import CliptoolsError, UsageError

SUFFIX = ".part"
MOST_BYTES = 200  # of an output's name in a temporary one: file systems take 255


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BufferedIOBase]:
    """Open a file that takes its name only if the block ends without an error; a device or a pipe is written to directly.

    Raises:
        CliptoolsError: the file cannot be written (no such folder, read-only, disk full).
    """
    if not replaceable(path):
        try:
            with path.open("wb") as stream:
                yield stream
        except BrokenPipeError:
            raise
        except OSError as error:
            raise CliptoolsError(f"{path}: could not be written ({error.strerror})") from None
        return
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=_hidden(path), suffix=SUFFIX, dir=path.parent)
    except OSError as error:
        raise CliptoolsError(f"{path}: cannot write here ({error.strerror})") from None
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # as for any new file, instead of mkstemp's 0600
        os.replace(temporary, path)
    except OSError as error:
        raise CliptoolsError(f"{path}: could not be written ({error.strerror})") from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _hidden(path: Path) -> str:
    """Return the start of a temporary name: the output's own, hidden and cut, so that what a killed run leaves can be told."""
    return f".{os.fsencode(path.name)[:MOST_BYTES].decode(errors='ignore')}."


def _umask() -> int:
    """Return the process's mask of permissions, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def replaceable(path: Path) -> bool:
    """Return whether a new file can take this name: it is free, or that of a regular file."""
    return path.is_file() or not path.exists()


def put_whole(path: Path, data: bytes) -> None:
    """Write one of many small files, complete or not at all, and create its folder.

    There is no fsync, which would take longer than writing the files.

    Raises:
        OSError: the file cannot be written; the error names it.
    """
    temporary = path.with_name(f"{_hidden(path)}{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}{SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from None


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Create a folder that takes its name only if the block ends without an error; it may replace an empty folder.

    Raises:
        CliptoolsError: the path exists and is not an empty folder, or the folder cannot be written.
    """
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise CliptoolsError(f"{path}: not empty; name a new folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=_hidden(path), suffix=SUFFIX, dir=path.parent))
    except OSError as error:
        raise CliptoolsError(f"{path}: cannot write here ({error.strerror})") from None
    try:
        yield temporary
        os.chmod(temporary, 0o777 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        raise CliptoolsError(f"{path}: could not be written ({error.strerror})") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def binary_output(path: Path | None) -> Iterator[BufferedIOBase]:
    """Open the file, or standard output for None and `-`; binary data is never written to a terminal.

    Raises:
        UsageError: standard output is a terminal.
        CliptoolsError: the file cannot be written, or standard output is closed.
    """
    if path is not None and str(path) != "-":
        with whole_file(path) as stream:
            yield stream
        return
    if stdout_is_terminal():
        raise UsageError("binary output would garble the terminal: redirect it (> FILE) or name a file (-o FILE)")
    with _standard_output() as stream:
        yield stream


@contextlib.contextmanager
def text_output(path: Path | None) -> Iterator[BufferedIOBase]:
    """Open the file, or standard output for None and `-`, for lines of UTF-8.

    Raises:
        CliptoolsError: the file cannot be written, or standard output is closed.
    """
    if path is not None and str(path) != "-":
        with whole_file(path) as stream:
            yield stream
        return
    with _standard_output() as stream:
        yield stream


@contextlib.contextmanager
def _standard_output() -> Iterator[BufferedIOBase]:
    """Yield standard output as a binary stream, and flush it at the end.

    Raises:
        CliptoolsError: it was closed before the start.
    """
    if sys.stdout is None:
        raise CliptoolsError("standard output is closed: redirect it (> FILE) or name a file (-o FILE)")
    stream = cast(BufferedIOBase | RawIOBase, sys.stdout.buffer)
    if isinstance(stream, RawIOBase):  # PYTHONUNBUFFERED: its `write` may write only a part, after 2 GB or on a full disk
        stream = open(sys.stdout.fileno(), "wb", closefd=False)  # noqa: SIM115 - must stay open
    try:
        yield stream
        stream.flush()
    except OSError as error:
        if error.errno == errno.EFBIG:  # the interpreter would try to write the rest again at its end
            silence_stdout()
        raise


def stdout_is_terminal() -> bool:
    """Return whether standard output is a terminal; False if it was closed before the start."""
    return sys.stdout is not None and sys.stdout.isatty()


def silence_stdout() -> None:
    """Send standard output to os.devnull, so that the interpreter's last flush does not fail after the reader has gone."""
    devnull = os.open(os.devnull, os.O_WRONLY)  # as Python's manual advises
    os.dup2(devnull, sys.stdout.fileno())


try:
    import fcntl
except ImportError:  # Windows: without locks
    fcntl = None  # type: ignore[assignment]

LOCKS = Path("/proc/locks")  # Linux's list of locks and their holders


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Lock a folder against other runs, and create it if it is missing.

    Raises:
        CliptoolsError: another run writes to it, or a file has its name.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except FileExistsError:
        raise CliptoolsError(f"{folder}: expected a new folder or an empty one, found a file of this name") from None
    except OSError:  # writing the first file will report the reason
        yield
        return
    try:
        _lock(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def only_writer_of(file: Path) -> Iterator[None]:
    """Lock a file against other runs; create it if it is missing, and remove it at the end if it is still empty.

    Raises:
        CliptoolsError: another run writes to it.
    """
    try:
        descriptor = _open_locked(file)
    except OSError:
        yield
        return
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), file.stat()) and not file.stat().st_size:
                file.unlink()
        os.close(descriptor)


def _open_locked(file: Path) -> int:
    """Open and lock a file; open it again if another run has renamed it between opening and locking."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor, file)
            if os.path.samestat(os.fstat(descriptor), file.stat()):
                return descriptor
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    """Lock an open file or folder; warn if the file system has no locks.

    Raises:
        CliptoolsError: another run holds the lock.
    """
    if fcntl is None:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        process = _holder(descriptor)
        writer = "another run" if process is None else f"another run (process {process})"
        raise CliptoolsError(f"{path}: {writer} writes here; wait until it ends or use another output") from None
    except OSError as error:  # file systems without locks, NFS above all
        warn(f"{path}: cannot be locked here ({error.strerror}); make sure that no other run writes to it")


def _holder(descriptor: int) -> int | None:
    """Return the process that holds the lock; None if the system does not tell."""
    status = os.fstat(descriptor)
    identity = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in LOCKS.read_text().splitlines():
            fields = line.split()
            if fields[1] == "FLOCK" and fields[5] == identity and int(fields[4]) > 0:
                return int(fields[4])
    return None
