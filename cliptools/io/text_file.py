"""What a file is that is handed in as something else, by its first bytes: for messages only.

Files that options name: `-` for standard input, pipes, and pictures that a list names relative to itself.

Small lists in text files: a thing a line, with comments; UTF-8, or UTF-16 and UTF-32 with a byte order mark.
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

HEAD = 512  # bytes that are looked at
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
PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype html|html|head|body)", re.IGNORECASE)
VECTORS = re.compile(
    rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?(<!doctype svg[^>]*>\s*)?<svg", re.IGNORECASE | re.DOTALL
)
ANSWER = re.compile(rb"\s*(404: not found|access denied|<\?xml[^>]*>\s*<error>)", re.IGNORECASE)
MAC = b"\0\x05\x16\x07"  # of AppleDouble, the `._NAME` beside a file of macOS
TAR = slice(257, 262)


def kind_of(head: bytes) -> str | None:
    """What a file or stream that begins so is, with an article; None of one that is not known.

    >>> kind_of(b"\x1f\x8b\x08"), kind_of(b"<!DOCTYPE html>"), kind_of(b"cat dog")
    ('gzip data (gunzip it)', "a web page (a site's link to the raw file gives the file)", None)
    """
    if (kind := next((kind for start, kind in SIGNATURES if head.startswith(start)), None)) is not None:
        return kind
    if PAGE.match(head):
        return "a web page (a site's link to the raw file gives the file)"
    if ANSWER.match(head):
        return "a server's answer that there is no such file"
    if VECTORS.match(head):
        return "vector graphics (draw them to PNG first)"
    if head.startswith(MAC):
        return "what macOS keeps beside a file (._NAME), not the file"
    return "a tar archive" if head[TAR] == b"ustar" else None


def is_text(head: bytes) -> bool:
    """Whether a file that begins so may be text in UTF-8: some bytes, none of them a control's, the last character cut or not."""
    if not head or any(byte < 9 or 13 < byte < 32 for byte in head):
        return False
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start > len(head) - 4 and error.start > 0
    return True


STDIN = "-"
LINES = "images.jsonl"  # of an --out-dir: its pictures are named relative to the folder


def open_given(path: Path, option: str) -> BufferedIOBase:
    """A file to read from its beginning to its end; `-` is standard input.

    Args:
        option: What to call it in messages: the option and its value.

    Raises:
        StreamError: standard input is empty: another input has read it, or the command before it failed.
        UsageError: standard input is a terminal.
        OSError: the file cannot be read.
    """
    if str(path) != STDIN:
        return path.open("rb")
    data = standard_input(option).read()
    if not data:
        raise StreamError(f"{option}: standard input is empty; one input can come from it (did the command before it fail?)")
    return BytesIO(data)


def standard_input(option: str) -> BufferedIOBase:
    """
    Raises:
        UsageError: it is a terminal, or closed.
    """
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        raise UsageError(f"{option}: expected data on standard input: pipe it in or name a file")
    return cast(BufferedIOBase, sys.stdin.buffer)


def spooled(path: Path, option: str) -> tuple[Path, Any]:
    """A path that can be opened again at any place, and what to hold on to meanwhile: of `-` and of pipes a temporary copy.

    Raises:
        OSError: the file cannot be read, or there is no room for the copy.
        UsageError: standard input is a terminal.
    """
    if str(path) != STDIN and (path.is_file() or not path.exists()):
        return path, None
    with standard_input(option) if str(path) == STDIN else path.open("rb") as stream:
        copy = tempfile.NamedTemporaryFile(prefix="cliptools-")  # noqa: SIM115  # whoever holds it closes it
        shutil.copyfileobj(stream, copy, 1 << 20)
    copy.flush()
    return Path(copy.name), copy


def file_beside(name: str, lines: Path | None, folder: Path | None = None) -> str:
    """The path of a picture that a line names: as it stands, relative to the file of the lines, or in a folder.

    Lines of an --out-dir itself speak of its pictures by their place in it; others as they are to be opened from where the
    command was started.

    Args:
        lines: The file of the lines, None where they come on standard input.
        folder: Where else it may lie.
    """
    here = lines.parent / name if lines is not None and str(lines) != STDIN else None
    places: list[Path | None]
    places = [here, Path(name)] if here is not None and lines is not None and lines.name == LINES else [Path(name), here]
    places.append(None if folder is None else folder / name)
    return next((str(place) for place in places if place is not None and place.is_file()), name)


LONGEST = 1 << 20  # characters of a line
MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
COMMENT = re.compile(r"#(?:[\s#!]|$)")
"""How a line begins that is a comment: `# pets`, `##`, `#`; not `#1 fan`."""
BEHIND = re.compile(r"(?<=\S)(?:\s{2,}|\t)#\s.*$")
"""A comment behind a thing: two blanks or more, then `# `."""
UNCLEAR = re.compile(r"\S #\s")


def read_lines(path: Path, what: str, presets: str = "") -> list[tuple[int, str]]:
    """The lines that say something, with their numbers from 1.

    A comment is a line that begins with `# `, or follows two blanks; any other `#` belongs to the text, as in `C# logo`.

    Args:
        what: What the file is, for messages.
        presets: Names that would have done instead of a file, for messages.

    Raises:
        TextError: as read_text, a line that is too long, or one that may end in a comment or not.
    """
    return said_lines(read_text(path, what, presets), f"{what} {path}")


def said_lines(text: str, source: str) -> list[tuple[int, str]]:
    """The same of a text.

    Args:
        source: What to call it in messages.

    Raises:
        TextError: as read_lines.
    """
    numbered = []
    for number, line in enumerate(text.split("\n"), 1):
        if len(line) > LONGEST:
            raise TextError(f"{source}: line {number} has {count_of(len(line), 'character')}, expected at most {LONGEST}")
        if COMMENT.match(line.strip()):
            continue
        kept = BEHIND.sub("", line).strip()
        if UNCLEAR.search(kept):
            raise TextError(
                f"{source}: line {number} is {kept[:40]!r}: a comment has a line of its own or stands behind two blanks; "
                "for a # within a text leave out the blank behind it"
            )
        if kept:
            numbered.append((number, kept))
    return numbered


def read_text(path: Path, what: str, presets: str = "") -> str:
    r"""All of a text file, with `\n` at the ends of its lines, whichever they were.

    Args:
        what: What the file is, for messages.
        presets: Names that would have done instead of a file, for messages.

    Raises:
        TextError: the file cannot be read, is in another encoding, or stands for the one that was meant.
    """
    try:
        with open_given(path, f"{what} {path}") as stream:
            data = stream.read()
    except FileNotFoundError:
        raise TextError(f"{what} {path}: {f'neither a file nor one of {presets}' if presets else 'no such file'}") from None
    except (OSError, ValueError) as error:
        raise TextError(f"{what} {path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if (kind := kind_of(data[:HEAD])) is not None:
        raise TextError(f"{what} {path}: {kind}; expected a text file")
    try:
        text = decoded(data)
    except ValueError as error:
        raise TextError(f"{what} {path}: {error}") from None
    return text


def decoded(data: bytes) -> str:
    r"""Text of UTF-8, or of UTF-16 or UTF-32 with a byte order mark, which is left out; lines end in `\n`.

    >>> decoded("\ufeffcat\r\ndog\r".encode("utf-16-le"))
    'cat\ndog\n'

    Raises:
        ValueError: another encoding or no text, and where that shows.
    """
    mark, encoding = next(((mark, name) for mark, name in MARKS if data.startswith(mark)), (b"", "utf-8"))
    body = data[len(mark) :]
    try:
        text = body.decode(encoding)
    except UnicodeDecodeError as error:
        before = body[: error.start].decode(encoding, "replace")
        line, at = _one_end(before).count("\n") + 1, len(mark) + error.start
        if encoding == "utf-8":
            found = f"byte 0x{body[error.start]:02x} in line {line} (byte {at} of the file)"
            raise ValueError(f"expected UTF-8, found {found}; is it Latin-1 or Windows-1252?") from None
        raise ValueError(f"damaged {encoding.upper()} in line {line} (byte {at} of the file)") from None
    text = _one_end(text)
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise ValueError(
            f"expected text in UTF-8, found byte 0x00 in line {line} (is it UTF-16 without its byte order mark, or no text?)"
        )
    return text


def _one_end(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")
