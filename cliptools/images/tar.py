"""Reading and writing tar archives of pictures, including WebDataset shards.

Reading: `tar_members` and `stream_members` list the pictures of an archive as `Span`s, which can be read in any order and any
number of times. Compressed archives and streams are first copied to an unnamed temporary file (`Spool`). webdataset is not
used, because it yields members once, in the order of the archive.

Writing: `write_member` and `write_end` write an archive member by member to any binary stream, including a pipe; equal members
give equal bytes. tarfile's own writers are not used: they ask a pipe for its position, and write again to a broken pipe when
they are garbage-collected.
"""

import bz2
import gzip
import lzma
import os
import shutil
import tarfile
import tempfile
import weakref
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from io import BufferedIOBase, BufferedReader, BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from cliptools.console import warn
from cliptools.errors import CliptoolsError, StreamError, first_line
from cliptools.images.decode import is_picture
from cliptools.images.formats import count_omitted
from cliptools.io.text_file import HEAD, is_text, kind_of

TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
Endings = tuple[str, ...]
OmittedFiles = Counter[tuple[str, str]]
"""Number of files by (kind, remedy) that cannot be read as pictures, as formats.count_omitted counts them."""


class Spool:
    """An unnamed temporary file with a copy of a stream that can be read only once, for reading at any position."""

    def __init__(self) -> None:
        with tempfile.TemporaryFile(prefix="cliptools-") as file:
            self.descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self.descriptor)

    def append(self, stream: BufferedIOBase, name: str) -> int:
        """Copy the whole stream to the end of the spool and return the offset at which the copy begins.

        Raises:
            StreamError: the compressed data is damaged or truncated.
            CliptoolsError: the temporary folder has no space left.
        """
        try:
            with os.fdopen(os.dup(self.descriptor), "wb") as end:
                start = end.seek(0, os.SEEK_END)
                shutil.copyfileobj(stream, end, 1 << 20)
        except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
            raise StreamError(f"{name}: damaged compressed archive ({error})") from None
        except OSError as error:
            reason = f"cannot be copied to {tempfile.gettempdir()} ({error.strerror or error}; TMPDIR names another folder)"
            raise CliptoolsError(f"{name}: {reason}") from None
        return start


class Span(NamedTuple):
    """Bytes inside a file or a spool."""

    container: str | Spool
    offset: int
    size: int

    def read(self) -> BytesIO:
        """Return the bytes as a stream; several threads may call this at the same time.

        Raises:
            OSError: the file no longer exists.
        """
        if isinstance(self.container, Spool):
            return BytesIO(os.pread(self.container.descriptor, self.size, self.offset))
        with Path(self.container).open("rb") as file:
            return BytesIO(os.pread(file.fileno(), self.size, self.offset))


def is_tar(name: str) -> bool:
    """Return True if the name has the ending of a tar archive."""
    return name.lower().endswith(TAR_ENDINGS)


def tar_members(
    path: Path, spool: Spool, extra_endings: Endings = (), omitted: OmittedFiles | None = None
) -> list[tuple[str, Span]]:
    """Return names and places of an archive's pictures, in its order; a compressed archive is unpacked into the spool.

    Args:
        extra_endings: Endings of further members to list, in lower case.
        omitted: Counter for members of other kinds that may contain pictures.

    Raises:
        StreamError: the file is not a tar archive, is damaged, or is truncated.
    """
    name = str(path)
    try:
        with path.open("rb") as file:
            unpack = _unpacker(file.read(8))
            if unpack is None:
                return list(_members(file, 0, name, name, extra_endings, omitted))
            file.seek(0)
            with unpack(file) as unpacked:
                start = spool.append(unpacked, name)
    except OSError as error:
        raise StreamError(f"{name}: {error.strerror or error}") from None
    return _spooled_members(spool, start, name, extra_endings, omitted)


def stream_members(
    stream: BufferedIOBase, name: str, extra_endings: Endings = (), omitted: OmittedFiles | None = None
) -> list[tuple[str, Span]]:
    """Return names and places of the pictures in a stream with an archive; the whole stream is copied to a spool.

    Args:
        extra_endings: Endings of further members to list, in lower case.
        omitted: Counter for members of other kinds that may contain pictures.

    Raises:
        StreamError: the stream is empty, not a tar archive, damaged, or truncated.
    """
    spool = Spool()
    spool.append(stream, name)
    head = os.pread(spool.descriptor, 8, 0)
    if not head:
        raise StreamError(f"{name}: empty input, expected a tar of images (did the command before it fail?)")
    unpack = _unpacker(head)
    if unpack is None:
        return _spooled_members(spool, 0, name, extra_endings, omitted)
    unpacked_spool = Spool()
    with os.fdopen(os.dup(spool.descriptor), "rb") as file:
        file.seek(0)
        with unpack(file) as unpacked:
            unpacked_spool.append(unpacked, name)
    return _spooled_members(unpacked_spool, 0, name, extra_endings, omitted)


Unpacker = Callable[[BufferedReader], Any]
MAGIC: dict[bytes, Unpacker] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
}
BLOCK = tarfile.BLOCKSIZE
LONGEST_HEADER = 1 << 24


def _unpacker(head: bytes) -> Unpacker | None:
    return next((unpack for magic, unpack in MAGIC.items() if head.startswith(magic)), None)


def _spooled_members(
    spool: Spool, start: int, name: str, extra_endings: Endings, omitted: OmittedFiles | None
) -> list[tuple[str, Span]]:
    with os.fdopen(os.dup(spool.descriptor), "rb") as file:
        return list(_members(file, start, spool, name, extra_endings, omitted))


def _members(
    file: BufferedReader, start: int, container: str | Spool, name: str, extra_endings: Endings, omitted: OmittedFiles | None
) -> Iterator[tuple[str, Span]]:
    """Yield the members of the archive at `start`, without links and sparse members, which hold no whole picture."""
    end = file.seek(0, os.SEEK_END)
    file.seek(start)
    headers: Any = _Headers(file)
    try:
        with tarfile.open(fileobj=headers, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # else the list grows with the archive
                if member.offset_data + member.size > end:
                    raise StreamError(f"{name}: truncated tar: {member.name} should have {member.size} bytes")
                is_listed = is_picture(member.name) or member.name.lower().endswith(extra_endings)
                if is_listed and member.isreg() and not member.issparse():
                    yield member.name.removeprefix("./"), Span(container, member.offset_data, member.size)
                elif not is_listed and omitted is not None and member.isreg():
                    count_omitted(member.name, omitted)
            _check_end(file, archive.offset, end, name)
    except (tarfile.TarError, ValueError, ArithmeticError, LookupError) as error:  # tarfile does not check values in pax headers
        file.seek(start)
        head = file.read(HEAD)
        kind = kind_of(head) or ("text" if is_text(head) else None)
        if kind is not None and "tar" not in kind.split():
            raise StreamError(f"{name}: {kind}; expected a tar archive of images") from None
        raise StreamError(f"{name}: not a tar archive, or damaged ({first_line(error)})") from None


class _Headers:
    """The archive's file as tarfile reads it; refuses headers of gigabytes, which tarfile would read into memory."""

    def __init__(self, file: BufferedReader) -> None:
        self.file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int) -> bytes:
        """Return at most LONGEST_HEADER bytes."""
        if size > LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self.file.read(size)


def _check_end(file: BufferedReader, offset: int, end: int, name: str) -> None:
    """Check that the archive ends with zeros or with the file: tarfile takes any header it cannot parse for the end."""
    file.seek(offset)
    block = file.read(BLOCK)
    if block.strip(b"\0"):
        raise StreamError(f"{name}: damaged tar: no member's header at byte {offset} of {end}")
    if len(block) < BLOCK:
        warn(f"{name}: the tar has no end mark; it may have been cut short")


def write_member(stream: BufferedIOBase, name: str, data: bytes) -> None:
    """Write one regular file without a time or an owner."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    stream.write(member.tobuf(tarfile.USTAR_FORMAT))
    stream.write(data)
    stream.write(bytes(-len(data) % tarfile.BLOCKSIZE))


def write_end(stream: BufferedIOBase) -> None:
    """Write the two empty blocks that mark the end of an archive."""
    stream.write(bytes(2 * tarfile.BLOCKSIZE))
