"""Records: JSON Lines, one object a line, flushed per line, so that the next command can begin before this one ends."""

import json
import re
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import Any, SupportsFloat

from cliptools.ground.errors import StreamError
from cliptools.ground.given_files import open_given
from cliptools.ground.legible import harmless_json
from cliptools.ground.strict_json import parse

SHOWN = 40  # characters of what was expected to be JSON
MOST = 1 << 28  # bytes of a stream that is read to its end
LONGEST = 1 << 24  # bytes of a line that is read: many times what any command writes


def write_record(stream: BufferedIOBase, record: dict[str, Any]) -> None:
    """One line of JSON, UTF-8, keys in the order given."""
    line = harmless_json(json.dumps(record, ensure_ascii=False, allow_nan=False))
    stream.write(line.encode("utf-8") + b"\n")
    stream.flush()


def rounded(value: SupportsFloat, digits: int = 6) -> float:
    """A float32 statistic without the digits it does not have."""
    return float(f"{float(value):.{digits}g}")


def objects(stream: BufferedIOBase, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSONL stream with their line numbers; blank lines are passed over.

    One array of objects is read as well, and objects that go over several lines, as jq without -c writes them: such a stream
    is read to its end first.

    Raises:
        StreamError: a line that is no JSON object as strict_json reads it, or longer than LONGEST.
    """
    number, began = 0, False
    while line := stream.readline(LONGEST + 1):
        number += 1
        if len(line) > LONGEST:
            raise StreamError(f"{name}, line {number}: expected a JSON object, found a line of more than {LONGEST} bytes")
        line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if not (text := line.strip()):
            continue
        if not began and (text.startswith(b"[") or text == b"{"):
            yield from _spread_objects(line + stream.read(MOST), name, number)
            return
        began = True
        yield number, _object(line, f"{name}, line {number}")


def _object(text: bytes, where: str) -> dict[str, Any]:
    """
    Raises:
        StreamError: no JSON object as strict_json reads it.
    """
    try:
        record = parse(text)
    except ValueError as error:
        why = "" if isinstance(error, json.JSONDecodeError) else f" ({error})"
        raise StreamError(f"{where}: expected a JSON object, found {_start(text)}{why}") from None
    if not isinstance(record, dict):
        raise StreamError(f"{where}: expected a JSON object, found {_start(text)}")
    return record


def _spread_objects(data: bytes, name: str, line: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of an array, or those that follow each other, over as many lines as they take, with the lines they begin in.

    Args:
        line: The number of the line with which the data begins.

    Raises:
        StreamError: anything but objects, an array that does not end, MOST bytes or more, or another encoding.
    """
    if len(data) >= MOST:
        raise StreamError(f"{name}: a JSON array, or objects of several lines, of more than {MOST} bytes; expected JSON lines")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise StreamError(f"{name}: expected JSON in UTF-8, found byte 0x{data[error.start]:02x} at {error.start}") from None
    listed = text.lstrip().startswith("[")
    if listed and re.fullmatch(r"\s*\[\s*\]\s*", text):
        return
    decoder, at = json.JSONDecoder(), text.index("[") + 1 if listed else 0
    while True:
        at, line = _past_space(text, at, line)
        try:
            end = decoder.raw_decode(text, at)[1]
        except (ValueError, RecursionError):
            end = at + SHOWN  # of what is no JSON, which `_object` says
        yield line, _object(text[at:end].encode(), f"{name}, line {line}")
        line += text.count("\n", at, end)
        at, line = _past_space(text, end, line)
        if not listed and at == len(text):
            return
        if listed and text[at : at + 1] == "]" and not text[at + 1 :].strip():
            return
        if listed and text[at : at + 1] != ",":
            after = repr(text[at : at + SHOWN]) if at < len(text) else "its end"
            raise StreamError(f"{name}, line {line}: expected one JSON array, found {after} after an object")
        at += listed


def _past_space(text: str, at: int, line: int) -> tuple[int, int]:
    """The place of the next character that is no space, and its line."""
    match = re.compile(r"\s*").match(text, at)
    end = at if match is None else match.end()
    return end, line + text.count("\n", at, end)


def file_objects(path: Path, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Those of a file.

    Args:
        name: What to call it in messages: the option and its value.

    Raises:
        StreamError: as `objects`, or it cannot be read.
    """
    try:
        with open_given(path, name) as stream:
            yield from objects(stream, name)
    except (OSError, ValueError) as error:
        raise StreamError(f"{name}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def _start(line: bytes) -> str:
    return repr(line[:SHOWN].decode("utf-8", "replace").rstrip("\n"))
