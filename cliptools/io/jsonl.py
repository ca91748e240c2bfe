"""Records as JSON lines, and the strict JSON parser for all input of the suite.

A record is one JSON object per line; every line is flushed, so that the next command of a pipeline can start at once. Strict
JSON is UTF-8 and rejects duplicate keys, NaN, numbers beyond 64 bits and deep nesting, so that all readers agree on its value. It
is parsed with hooks of the json module, because the parsers of other libraries silently keep one of duplicate keys.
"""

import json
import math
import re
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import Any, SupportsFloat

from cliptools.console import harmless_json
from cliptools.errors import StreamError
from cliptools.io.text_file import open_file_or_stdin

SHOWN = 40  # characters of invalid input that a message quotes
MOST = 1 << 28  # bytes of the largest JSON array, which is read as a whole
LONGEST = 1 << 24  # bytes of the longest line: many times what any command writes


def write_record(stream: BufferedIOBase, record: dict[str, Any]) -> None:
    """Write a record as one line of JSON in UTF-8, keys in the given order, and flush the stream."""
    line = harmless_json(json.dumps(record, ensure_ascii=False, allow_nan=False))
    stream.write(line.encode("utf-8") + b"\n")
    stream.flush()


def rounded(value: SupportsFloat, digits: int = 6) -> float:
    """Return a float32 statistic rounded to its significant digits."""
    return float(f"{float(value):.{digits}g}")


def objects(stream: BufferedIOBase, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a stream of JSON lines with their line numbers; skip blank lines.

    A single array of objects, and objects of several lines as jq writes them without -c, are read too; such a stream is read
    to its end first.

    Raises:
        StreamError: a line is not an object in strict JSON, or longer than LONGEST.
    """
    number, started = 0, False
    while line := stream.readline(LONGEST + 1):
        number += 1
        if len(line) > LONGEST:
            raise StreamError(f"{name}, line {number}: expected a JSON object, found a line of more than {LONGEST} bytes")
        line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if not (text := line.strip()):
            continue
        if not started and (text.startswith(b"[") or text == b"{"):
            yield from _spread_objects(line + stream.read(MOST), name, number)
            return
        started = True
        yield number, _object(line, f"{name}, line {number}")


def _object(text: bytes, source: str) -> dict[str, Any]:
    """Parse one object of strict JSON.

    Raises:
        StreamError: the text is not such an object.
    """
    try:
        record = parse(text)
    except ValueError as error:
        reason = "" if isinstance(error, json.JSONDecodeError) else f" ({error})"
        raise StreamError(f"{source}: expected a JSON object, found {_start(text)}{reason}") from None
    if not isinstance(record, dict):
        raise StreamError(f"{source}: expected a JSON object, found {_start(text)}")
    return record


def _spread_objects(data: bytes, name: str, line: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of an array, or objects that follow each other over several lines, with the lines where they start.

    Args:
        line: Number of the first line of the data.

    Raises:
        StreamError: the data holds anything but objects, an array without end, MOST bytes or more, or another encoding.
    """
    if len(data) >= MOST:
        raise StreamError(f"{name}: a JSON array, or objects of several lines, of more than {MOST} bytes; expected JSON lines")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise StreamError(f"{name}: expected JSON in UTF-8, found byte 0x{data[error.start]:02x} at {error.start}") from None
    is_array = text.lstrip().startswith("[")
    if is_array and re.fullmatch(r"\s*\[\s*\]\s*", text):
        return
    decoder, position = json.JSONDecoder(), text.index("[") + 1 if is_array else 0
    while True:
        position, line = _skip_space(text, position, line)
        try:
            end = decoder.raw_decode(text, position)[1]
        except (ValueError, RecursionError):
            end = position + SHOWN  # invalid JSON, which `_object` reports
        yield line, _object(text[position:end].encode(), f"{name}, line {line}")
        line += text.count("\n", position, end)
        position, line = _skip_space(text, end, line)
        if not is_array and position == len(text):
            return
        if is_array and text[position : position + 1] == "]" and not text[position + 1 :].strip():
            return
        if is_array and text[position : position + 1] != ",":
            continuation = repr(text[position : position + SHOWN]) if position < len(text) else "its end"
            raise StreamError(f"{name}, line {line}: expected one JSON array, found {continuation} after an object")
        position += is_array


def _skip_space(text: str, position: int, line: int) -> tuple[int, int]:
    """Return the position of the next character that is not white space, and its line."""
    match = re.compile(r"\s*").match(text, position)
    end = position if match is None else match.end()
    return end, line + text.count("\n", position, end)


def file_objects(path: Path, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a file with their line numbers.

    Args:
        name: Name of the file in messages: the option and its value.

    Raises:
        StreamError: as for `objects`, or the file cannot be read.
    """
    try:
        with open_file_or_stdin(path, name) as stream:
            yield from objects(stream, name)
    except (OSError, ValueError) as error:
        raise StreamError(f"{name}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def _start(line: bytes) -> str:
    return repr(line[:SHOWN].decode("utf-8", "replace").rstrip("\n"))


def unit_name(layer: int, neuron: int, head: int) -> str:
    """Return a unit as users write it: `6:391`, `6:391.3` with a head, `6:.3` for a whole head; -1 where not applicable."""
    return f"{layer}:" + (str(neuron) if neuron >= 0 else "") + (f".{head}" if head >= 0 else "")


DEPTH = 100
"""Largest nesting of lists and objects; the suite itself writes a dozen levels."""
LARGEST = 1 << 64


def parse(text: bytes | str) -> Any:
    """Parse strict JSON.

    Raises:
        ValueError: the text is not strict JSON; the message is the reason in a few words.
    """
    try:
        value = DECODER.decode(text if isinstance(text, str) else text.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: byte 0x{error.object[error.start]:02x} at {error.start}") from None
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    check_depth(value)
    if "\\u" in text if isinstance(text, str) else b"\\u" in text:
        check_characters(value)
    return value


def parse_foreign(text: str) -> Any:
    """Parse JSON of other programs, which may hold NaN, infinity and large numbers.

    Raises:
        ValueError: the text is not JSON, or an object has two values for one key.
    """
    try:
        return json.loads(text, object_pairs_hook=_equal_duplicates)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None


TOO_DEEP = f"nested more than {DEPTH} deep"


def check_depth(value: Any) -> None:
    """Check the nesting of a parsed value.

    Raises:
        ValueError: lists or objects are nested more than DEPTH deep.
    """
    level = [value]
    for _ in range(DEPTH):
        level = [
            child
            for item in level
            if isinstance(item, list | dict)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return
    raise ValueError(TOO_DEEP)


def check_characters(value: Any) -> None:
    """Check that a parsed value can be written as UTF-8.

    Raises:
        ValueError: it holds a lone surrogate, from an escape like `\\ud800`.
    """
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("half a character (a lone surrogate)") from None


def _distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object, and reject duplicate keys."""
    record = dict(pairs)
    if len(record) < len(pairs):
        keys: set[str] = set()
        duplicate = next(key for key, _ in pairs if key in keys or keys.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"duplicate key {duplicate[:40]!r}")
    return record


def _equal_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object that may repeat a key with the same value."""
    record: dict[str, Any] = {}
    for key, value in pairs:
        if key in record and repr(record[key]) != repr(value):
            raise ValueError(f"duplicate key {key[:40]!r}, with {record[key]!r:.40} and {value!r:.40}")
        record[key] = value
    return record


def _integer(digits: str) -> int:
    if len(digits) > 21 or abs(int(digits)) >= LARGEST:
        raise ValueError(f"the number {digits[:20]}… is too large")
    return int(digits)


def _finite_float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {digits[:20]} is too large")
    return value


def _reject_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


DECODER = json.JSONDecoder(
    object_pairs_hook=_distinct_keys, parse_int=_integer, parse_float=_finite_float, parse_constant=_reject_constant
)


WHOLE = re.compile(r"[+-]?\d{1,18}(?:\.0{0,18})?", re.ASCII)


def whole_number(value: Any) -> int | None:
    """Return a whole number given as a number or a text, also as 3.0, which tables of floats contain; None for anything else.

    >>> [whole_number(value) for value in (3, 3.0, "3", "-3.00", 3.5, "3.5", True, "n03444034")]
    [3, 3, 3, -3, None, None, None, None]
    """
    if isinstance(value, str):
        return int(value.strip().partition(".")[0]) if WHOLE.fullmatch(value.strip()) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if isinstance(value, int) or (value.is_integer() and abs(value) < 1 << 53) else None
