"""Where results go: files that appear whole or not at all, and a standard output that may be a pipe, a terminal or gone.

A place that one run at a time writes to: a folder, or the file beside an output that a later run goes on with.

The lock is the kernel's (flock) and lies on the folder or file itself: no other file is needed, and it ends with the process,
however that ends.
"""

import contextlib
import errno
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


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BufferedIOBase]:
    """A file to write that takes its name only when the block ends without an error; a device or a pipe is written to as it is.

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


def replaceable(path: Path) -> bool:
    """Whether another file can take this name: there is none yet, or a plain one."""
    return path.is_file() or not path.exists()


def put_whole(path: Path, data: bytes) -> None:
    """One of many small files, whole or not at all, its folder made for it.

    Not forced to the disk one by one, which would take longer than making them.

    Raises:
        OSError: it cannot be written; the error names the file.
    """
    beside = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(data)
        os.replace(beside, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from None


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to fill that takes its name only when the block ends without an error; an empty one gives way to it.

    Raises:
        CliptoolsError: something is there already, or the folder cannot be written.
    """
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise CliptoolsError(f"{path}: not empty; name a new folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    except OSError as error:
        raise CliptoolsError(f"{path}: cannot write here ({error.strerror})") from None
    try:
        yield beside
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(beside, 0o777 & ~mask)
        os.replace(beside, path)
    except OSError as error:
        raise CliptoolsError(f"{path}: could not be written ({error.strerror})") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)


@contextlib.contextmanager
def binary_output(path: Path | None) -> Iterator[BufferedIOBase]:
    """The file named, or standard output for None and `-`; binary never goes to a terminal."""
    if path is not None and str(path) != "-":
        with whole_file(path) as stream:
            yield stream
        return
    if stdout_is_terminal():
        raise UsageError("this is binary and would garble the terminal: redirect it (> FILE) or name a file (-o FILE)")
    with _standard_output() as stream:
        yield stream


@contextlib.contextmanager
def text_output(path: Path | None) -> Iterator[BufferedIOBase]:
    """Like binary_output for UTF-8 lines, which a terminal may show."""
    if path is not None and str(path) != "-":
        with whole_file(path) as stream:
            yield stream
        return
    with _standard_output() as stream:
        yield stream


@contextlib.contextmanager
def _standard_output() -> Iterator[BufferedIOBase]:
    if sys.stdout is None:
        raise CliptoolsError("standard output is closed: redirect it (> FILE) or name a file (-o FILE)")
    stream = cast(BufferedIOBase | RawIOBase, sys.stdout.buffer)
    if isinstance(stream, RawIOBase):  # PYTHONUNBUFFERED: its `write` may write a part only, at 2 GB or a disk's end, and go on
        stream = open(sys.stdout.fileno(), "wb", closefd=False)  # noqa: SIM115 - not ours to close
    try:
        yield stream
        stream.flush()
    except OSError as error:
        if error.errno == errno.EFBIG:  # what could not be written would be tried again when the interpreter ends
            silence_stdout()
        raise


def stdout_is_terminal() -> bool:
    """Whether a person would see what is written; not where standard output was closed before the start."""
    return sys.stdout is not None and sys.stdout.isatty()


def silence_stdout() -> None:
    """After a reader has gone away: let the interpreter's last flush go nowhere instead of failing, as Python's manual has it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())


try:
    import fcntl
except ImportError:  # Windows: two runs are not kept apart there
    fcntl = None  # type: ignore[assignment]

LOCKS = Path("/proc/locks")  # Linux's list of who holds what


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Keep other runs from writing into a folder, which is made if need be.

    Raises:
        CliptoolsError: another run writes into it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # the reason will be given by whoever writes the first file
        yield
        return
    try:
        _lock(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def only_writer_of(file: Path) -> Iterator[None]:
    """The same for a file, which is made if need be, and removed at the end if it is still empty.

    Raises:
        CliptoolsError: another run writes it.
    """
    try:
        descriptor = _opened(file)
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


def _opened(file: Path) -> int:
    """Open and lock a file, anew where another run has finished it in between and given it its final name."""
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
    if fcntl is None:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        process = _holder(descriptor)
        who = "another run" if process is None else f"another run (process {process})"
        raise CliptoolsError(f"{path}: {who} writes here; wait until it has ended, or write elsewhere") from None
    except OSError as error:  # file systems without locks, NFS above all
        warn(f"{path}: cannot be locked here ({error.strerror}); take care that no other run writes to it")


def _holder(descriptor: int) -> int | None:
    """Return the process that holds the lock, where the system tells."""
    place = os.fstat(descriptor)
    wanted = f"{os.major(place.st_dev):02x}:{os.minor(place.st_dev):02x}:{place.st_ino}"
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in LOCKS.read_text().splitlines():
            fields = line.split()
            if fields[1] == "FLOCK" and fields[5] == wanted and int(fields[4]) > 0:
                return int(fields[4])
    return None
