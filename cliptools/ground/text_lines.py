"""Small lists in UTF-8 files: a thing a line, # for comments."""

from pathlib import Path

from cliptools.ground.errors import TextError

LONGEST = 1 << 20  # characters of a line


def read_lines(path: Path, what: str, presets: str = "") -> list[tuple[int, str]]:
    """The lines that say something, with their numbers from 1.

    Args:
        what: What the file is, for messages.
        presets: Names that would have done instead of a file, for messages.

    Raises:
        TextError: the file cannot be read or is not UTF-8.
    """
    lines = read_text(path, what, presets).splitlines()
    if long := next((number for number, line in enumerate(lines, 1) if len(line) > LONGEST), None):
        raise TextError(f"{what} {path}: line {long} has {len(lines[long - 1])} characters, expected at most {LONGEST}")
    numbered = ((number, line.split("#", 1)[0].strip()) for number, line in enumerate(lines, 1))
    return [(number, line) for number, line in numbered if line]


def read_text(path: Path, what: str, presets: str = "") -> str:
    """All of a UTF-8 file.

    Args:
        what: What the file is, for messages.
        presets: Names that would have done instead of a file, for messages.

    Raises:
        TextError: the file cannot be read or is not UTF-8.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise TextError(f"{what} {path}: {f'neither a file nor one of {presets}' if presets else 'no such file'}") from None
    except UnicodeDecodeError as error:
        raise TextError(f"{what} {path}: expected UTF-8, found byte 0x{error.object[error.start]:02x}") from None
    except (OSError, ValueError) as error:
        raise TextError(f"{what} {path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise TextError(f"{what} {path}: expected text in UTF-8, found byte 0x00 in line {line} (is it UTF-16, or no text?)")
    return text
