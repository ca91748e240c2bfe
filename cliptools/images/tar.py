"""Tar archives, WebDataset shards among them, as places of pictures that can be read in any order and again.

Tar archives written member by member to anything that takes bytes, a pipe included; equal members give equal bytes.

tarfile's own writers ask a pipe where it stands, or write again to one that has broken when they are collected.
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
from cliptools.images.formats import count_left_out
from cliptools.io.text_file import HEAD, is_text, kind_of

TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
Endings = tuple[str, ...]
LeftOut = Counter[tuple[str, str]]
"""How many files of which kinds are no pictures that can be read, as other_kinds.count_left_out counts."""
Unpacker = Callable[[BufferedReader], Any]
MAGIC: dict[bytes, Unpacker] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
}
BLOCK = tarfile.BLOCKSIZE
LONGEST_HEADER = 1 << 24


class Spool:
    """An unnamed temporary file that input which comes but once is written to, to be read at any place."""

    def __init__(self) -> None:
        with tempfile.TemporaryFile(prefix="cliptools-") as file:
            self.descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self.descriptor)

    def append(self, stream: BufferedIOBase, name: str) -> int:
        """Copy a stream to its end; the place where it begins in the spool.

        Raises:
            StreamError: compressed data that is damaged or cut short.
            CliptoolsError: no room for it.
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
        """The bytes, as a stream; safe to call from several threads.

        Raises:
            OSError: the file is gone.
        """
        if isinstance(self.container, Spool):
            return BytesIO(os.pread(self.container.descriptor, self.size, self.offset))
        with Path(self.container).open("rb") as file:
            return BytesIO(os.pread(file.fileno(), self.size, self.offset))


def is_tar(name: str) -> bool:
    """Whether the ending is an archive's."""
    return name.lower().endswith(TAR_ENDINGS)


def tar_members(path: Path, spool: Spool, beside: Endings = (), left: LeftOut | None = None) -> list[tuple[str, Span]]:
    """Names and places of the pictures in an archive, in its order; one that is compressed is unpacked into the spool.

    Args:
        beside: Endings of members that are wanted as well, in lower case.
        left: Where to count members of other kinds that may hold pictures.

    Raises:
        StreamError: not a tar archive, damaged, or cut short.
    """
    name = str(path)
    try:
        with path.open("rb") as file:
            unpack = _unpacker(file.read(8))
            if unpack is None:
                return list(_members(file, 0, name, name, beside, left))
            file.seek(0)
            with unpack(file) as unpacked:
                start = spool.append(unpacked, name)
    except OSError as error:
        raise StreamError(f"{name}: {error.strerror or error}") from None
    return _spooled_members(spool, start, name, beside, left)


def stream_members(
    stream: BufferedIOBase, name: str, beside: Endings = (), left: LeftOut | None = None
) -> list[tuple[str, Span]]:
    """Names and places of the pictures in an archive that comes as a stream, which is spooled to its end.

    Args:
        beside: Endings of members that are wanted as well, in lower case.
        left: Where to count members of other kinds that may hold pictures.

    Raises:
        StreamError: empty, not a tar archive, damaged, or cut short.
    """
    spool = Spool()
    spool.append(stream, name)
    head = os.pread(spool.descriptor, 8, 0)
    if not head:
        raise StreamError(f"{name}: empty input, expected a tar of images (did the command before it fail?)")
    unpack = _unpacker(head)
    if unpack is None:
        return _spooled_members(spool, 0, name, beside, left)
    larger = Spool()
    with os.fdopen(os.dup(spool.descriptor), "rb") as file:
        file.seek(0)
        with unpack(file) as unpacked:
            larger.append(unpacked, name)
    return _spooled_members(larger, 0, name, beside, left)


def _unpacker(head: bytes) -> Unpacker | None:
    return next((unpack for magic, unpack in MAGIC.items() if head.startswith(magic)), None)


def _spooled_members(spool: Spool, start: int, name: str, beside: Endings, left: LeftOut | None) -> list[tuple[str, Span]]:
    with os.fdopen(os.dup(spool.descriptor), "rb") as file:
        return list(_members(file, start, spool, name, beside, left))


def _members(
    file: BufferedReader, start: int, container: str | Spool, name: str, beside: Endings, left: LeftOut | None
) -> Iterator[tuple[str, Span]]:
    """The archive that begins at `start`; links and sparse members are left out, for they hold no picture's bytes."""
    end = file.seek(0, os.SEEK_END)
    file.seek(start)
    headers: Any = _Headers(file)
    try:
        with tarfile.open(fileobj=headers, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # the list would grow with the archive
                if member.offset_data + member.size > end:
                    raise StreamError(f"{name}: truncated tar: {member.name} should have {member.size} bytes")
                wanted = is_picture(member.name) or member.name.lower().endswith(beside)
                if wanted and member.isreg() and not member.issparse():
                    yield member.name.removeprefix("./"), Span(container, member.offset_data, member.size)
                elif not wanted and left is not None and member.isreg():
                    count_left_out(member.name, left)
            _check_end(file, archive.offset, end, name)
    except (tarfile.TarError, ValueError, ArithmeticError, LookupError) as error:  # tarfile takes what pax headers say as it is
        file.seek(start)
        head = file.read(HEAD)
        kind = kind_of(head) or ("text" if is_text(head) else None)
        if kind is not None and "tar" not in kind.split():
            raise StreamError(f"{name}: {kind}; expected a tar archive of images") from None
        raise StreamError(f"{name}: not a tar archive, or damaged ({first_line(error)})") from None


class _Headers:
    """An archive's file as tarfile sees it, which reads headers only: none of gigabytes is taken into memory."""

    def __init__(self, file: BufferedReader) -> None:
        self.file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int) -> bytes:
        """At most LONGEST_HEADER bytes."""
        if size > LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self.file.read(size)


def _check_end(file: BufferedReader, offset: int, end: int, name: str) -> None:
    """tarfile takes anything it cannot parse for the end; only zeros, or the file's own end, are one."""
    file.seek(offset)
    block = file.read(BLOCK)
    if block.strip(b"\0"):
        raise StreamError(f"{name}: damaged tar: no member's header at byte {offset} of {end}")
    if len(block) < BLOCK:
        warn(f"{name}: the tar has no end mark; it may have been cut short")


def write_member(stream: BufferedIOBase, name: str, data: bytes) -> None:
    """One regular file, without a time or an owner."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    stream.write(member.tobuf(tarfile.USTAR_FORMAT))
    stream.write(data)
    stream.write(bytes(-len(data) % tarfile.BLOCKSIZE))


def write_end(stream: BufferedIOBase) -> None:
    """The two empty blocks by which a reader knows that nothing is missing."""
    stream.write(bytes(2 * tarfile.BLOCKSIZE))
