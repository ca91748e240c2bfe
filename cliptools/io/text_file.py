"""Text files with one item per line, and the opening of input files that options name.

Text is UTF-8, or UTF-16 or UTF-32 with a byte order mark; lists may have comments. `-` is standard input. For messages about
files of the wrong kind, `kind_of` recognises a file by its first bytes.
"""

import codecs
import re
import shutil
import sys
import tempfile
from io import BufferedIOBase, BytesIO
from pathlib import Path
from typing import Any, cast

from cliptools.console import count_of
from cliptools.errors import StreamError, TextError, UsageError

LONGEST = 1 << 20  # characters per line
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark is its start
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
COMMENT = re.compile(r"#(?:[\s#!]|$)")
"""Start of a comment line: `# pets`, `##`, `#`; not `#1 fan`."""
TRAILING_COMMENT = re.compile(r"(?<=\S)(?:\s{2,}|\t)#\s.*$")
"""Comment after an item: two or more spaces, then `# `."""
UNCLEAR = re.compile(r"\S #\s")


def read_lines(path: Path, title: str, presets: str = "") -> list[tuple[int, str]]:
    """Read the lines of a file that are neither blank nor comments, with their numbers from 1.

    A comment starts with `# `, at the start of a line or after two spaces; any other `#` belongs to the text, as in `C# logo`.

    Args:
        title: Kind of the file, for messages.
        presets: Names accepted instead of a file, for messages.

    Raises:
        TextError: as for read_text, or a line is too long, or it is unclear whether it ends in a comment.
    """
    return content_lines(read_text(path, title, presets), f"{title} {path}")


def content_lines(text: str, source: str) -> list[tuple[int, str]]:
    """Return the lines of a text that are neither blank nor comments, with their numbers from 1.

    Args:
        source: Name of the text in messages.

    Raises:
        TextError: a line is too long, or it is unclear whether it ends in a comment.
    """
    numbered = []
    for number, line in enumerate(text.split("\n"), 1):
        if len(line) > LONGEST:
            raise TextError(f"{source}: line {number} has {count_of(len(line), 'character')}, expected at most {LONGEST}")
        if COMMENT.match(line.strip()):
            continue
        item = TRAILING_COMMENT.sub("", line).strip()
        if UNCLEAR.search(item):
            raise TextError(
                f"{source}: line {number} is {item[:40]!r}: a comment needs a line of its own or two spaces before it; "
                "for a # within a text leave out the space after it"
            )
        if item:
            numbered.append((number, item))
    return numbered


def read_text(path: Path, title: str, presets: str = "") -> str:
    r"""Read a text file; all line ends become `\n`.

    Args:
        title: Kind of the file, for messages.
        presets: Names accepted instead of a file, for messages.

    Raises:
        TextError: the file cannot be read, has another encoding, or is of another kind.
    """
    try:
        with open_file_or_stdin(path, f"{title} {path}") as stream:
            data = stream.read()
    except FileNotFoundError:
        raise TextError(f"{title} {path}: {f'neither a file nor one of {presets}' if presets else 'no such file'}") from None
    except (OSError, ValueError) as error:
        raise TextError(f"{title} {path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if (kind := kind_of(data[:HEAD])) is not None:
        raise TextError(f"{title} {path}: {kind}; expected a text file")
    try:
        text = decode_text(data)
    except ValueError as error:
        raise TextError(f"{title} {path}: {error}") from None
    return text


def decode_text(data: bytes) -> str:
    r"""Decode UTF-8, or UTF-16 or UTF-32 with a byte order mark, which is left out; all line ends become `\n`.

    >>> decode_text("\ufeffcat\r\ndog\r".encode("utf-16-le"))
    'cat\ndog\n'

    Raises:
        ValueError: the data has another encoding or is not text; the message names the place.
    """
    mark, encoding = next(((mark, name) for mark, name in BYTE_ORDER_MARKS if data.startswith(mark)), (b"", "utf-8"))
    body = data[len(mark) :]
    try:
        text = body.decode(encoding)
    except UnicodeDecodeError as error:
        text_before = body[: error.start].decode(encoding, "replace")
        line, offset = _unix_line_ends(text_before).count("\n") + 1, len(mark) + error.start
        if encoding == "utf-8":
            byte = f"byte 0x{body[error.start]:02x} in line {line} (byte {offset} of the file)"
            raise ValueError(f"expected UTF-8, found {byte}; is it Latin-1 or Windows-1252?") from None
        raise ValueError(f"damaged {encoding.upper()} in line {line} (byte {offset} of the file)") from None
    text = _unix_line_ends(text)
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise ValueError(
            f"expected text in UTF-8, found byte 0x00 in line {line} (is it UTF-16 without its byte order mark, or not text?)"
        )
    return text


def _unix_line_ends(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


STDIN = "-"
LINES = "images.jsonl"  # file of an --out-dir; it names images relative to that folder


def open_file_or_stdin(path: Path, option: str) -> BufferedIOBase:
    """Open a file to be read once from start to end; `-` is standard input.

    Args:
        option: Name of the file in messages: the option and its value.

    Raises:
        StreamError: standard input is empty: another option has read it, or the command before it failed.
        UsageError: standard input is a terminal.
        OSError: the file cannot be read.
    """
    if str(path) != STDIN:
        return path.open("rb")
    data = standard_input(option).read()
    if not data:
        raise StreamError(
            f"{option}: standard input is empty; only one input can be read from it (did the command before it fail?)"
        )
    return BytesIO(data)


def standard_input(option: str) -> BufferedIOBase:
    """Return standard input as a binary stream.

    Raises:
        UsageError: it is a terminal or closed.
    """
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        raise UsageError(f"{option}: expected data on standard input: pipe it in or name a file")
    return cast(BufferedIOBase, sys.stdin.buffer)


def seekable_copy(path: Path, option: str) -> tuple[Path, Any]:
    """Return a path that can be opened repeatedly, and an object that keeps it alive: for `-` and pipes a temporary copy.

    Raises:
        OSError: the file cannot be read, or the copy cannot be written.
        UsageError: standard input is a terminal.
    """
    if str(path) != STDIN and (path.is_file() or not path.exists()):
        return path, None
    with standard_input(option) if str(path) == STDIN else path.open("rb") as stream:
        copy = tempfile.NamedTemporaryFile(prefix="cliptools-")  # noqa: SIM115 - closed when the caller drops it
        shutil.copyfileobj(stream, copy, 1 << 20)
    copy.flush()
    return Path(copy.name), copy


def file_beside(name: str, lines: Path | None, folder: Path | None = None) -> str:
    """Return the path of an image that a line names: as written, relative to the file of the lines, or in a folder.

    Lines in an --out-dir name images relative to it; all other lines name them relative to the working directory.

    Args:
        lines: File of the lines; None for standard input.
        folder: Another folder to look in.
    """
    relative = lines.parent / name if lines is not None and str(lines) != STDIN else None
    places: list[Path | None]
    places = (
        [relative, Path(name)] if relative is not None and lines is not None and lines.name == LINES else [Path(name), relative]
    )
    places.append(None if folder is None else folder / name)
    return next((str(place) for place in places if place is not None and place.is_file()), name)


HEAD = 512  # bytes from which the kind of a file is recognised
SIGNATURES = (
    (b"version https://git-lfs.github.com/spec/", "a pointer of Git LFS, not the file it stands for (git lfs pull)"),
    (b"\x1f\x8b", "gzip data (gunzip it)"),
    (b"BZh", "bzip2 data (bunzip2 it)"),
    (b"\xfd7zXZ\0", "xz data (unxz it)"),
    (b"\x28\xb5\x2f\xfd", "zstd data (unzstd it)"),
    (b"PK\x03\x04", "a zip archive, as .xlsx and .npz are too (unpack or export it)"),
    (b"7z\xbc\xaf", "a 7z archive (unpack it)"),
    (b"Rar!", "a RAR archive (unpack it)"),
    (b"PAR1", "a Parquet table (write it as CSV, its images as files)"),
    (b"ARROW1", "an Arrow table (write it as CSV, its images as files)"),
    (b"\x93NUMPY", "a numpy array"),
    (b"\x89HDF\r\n", "an HDF5 file"),
    (b"MATLAB 5.0", "a MATLAB file"),
    (b"SQLite format", "an SQLite database"),
    (b"%PDF", "a PDF document"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"\x80\x04\x95", "pickled data of Python"),
    (b"\x80\x05\x95", "pickled data of Python"),
    (b"Obj\x01", "an Avro file"),
)
WEB_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype html|html|head|body)", re.IGNORECASE)
SVG = re.compile(rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?(<!doctype svg[^>]*>\s*)?<svg", re.IGNORECASE | re.DOTALL)
SERVER_ERROR = re.compile(rb"\s*(404: not found|access denied|<\?xml[^>]*>\s*<error>)", re.IGNORECASE)
APPLE_DOUBLE = b"\0\x05\x16\x07"  # start of the file ._NAME that macOS writes beside a file NAME
TAR = slice(257, 262)  # place of the signature of a tar archive


def kind_of(head: bytes) -> str | None:
    r"""Return the kind of a file, with an article, from its first bytes; None for an unknown kind.

    >>> kind_of(b"\x1f\x8b\x08"), kind_of(b"<!DOCTYPE html>"), kind_of(b"cat dog")
    ('gzip data (gunzip it)', "a web page (a site's link to the raw file gives the file)", None)
    """
    if (kind := next((kind for start, kind in SIGNATURES if head.startswith(start)), None)) is not None:
        return kind
    if WEB_PAGE.match(head):
        return "a web page (a site's link to the raw file gives the file)"
    if SERVER_ERROR.match(head):
        return "a server's answer that there is no such file"
    if SVG.match(head):
        return "vector graphics (draw them to PNG first)"
    if head.startswith(APPLE_DOUBLE):
        return "a file that macOS keeps beside another (._NAME), not the file itself"
    return "a tar archive" if head[TAR] == b"ustar" else None


def is_text(head: bytes) -> bool:
    """Return whether the first bytes of a file may be UTF-8 text: no control characters; the last character may be cut off."""
    if not head or any(byte < 9 or 13 < byte < 32 for byte in head):
        return False
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start > len(head) - 4 and error.start > 0
    return True
