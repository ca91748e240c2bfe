"""Small lists in text files: a thing a line, with comments; UTF-8, or UTF-16 and UTF-32 with a byte order mark."""

import codecs
import re
from pathlib import Path

from cliptools.ground.counted import count_of
from cliptools.ground.errors import TextError
from cliptools.ground.first_bytes import HEAD, kind_of
from cliptools.ground.given_files import open_given

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
