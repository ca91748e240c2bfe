"""A place that one run at a time writes to: a folder, or the file beside an output that a later run goes on with.

The lock is the kernel's (flock) and lies on the folder or file itself: no other file is needed, and it ends with the process,
however that ends.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from cliptools.ground.errors import CliptoolsError
from cliptools.ground.progress import warn

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
