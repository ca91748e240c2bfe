"""JSON of which everybody reads the same: UTF-8, no key twice, no NaN, no number that no machine word holds, no endless depth.

Whole numbers as people's files have them: 3, and 3.0 where a table has gone through floating point.

Records: JSON Lines, one object a line, flushed per line, so that the next command can begin before this one ends.

Units as people write them.
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
from cliptools.io.text_file import open_given

DEPTH = 100
"""Lists and objects within each other; what the suite writes has a dozen."""
LARGEST = 1 << 64


def parse(text: bytes | str) -> Any:
    """The value that a JSON text says.

    Raises:
        ValueError: why this is no JSON, or none that can be relied on, in a few words on one line.
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
    """The value of a JSON text that others wrote, in which NaN, infinity and large numbers may stand.

    Raises:
        ValueError: no JSON, or an object that says two things of one key.
    """
    try:
        return json.loads(text, object_pairs_hook=_agreeing)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None


TOO_DEEP = f"nested more than {DEPTH} deep"


def check_depth(value: Any) -> None:
    """
    Raises:
        ValueError: lists or objects within each other more than DEPTH deep.
    """
    level = [value]
    for _ in range(DEPTH):
        level = [
            inner for one in level if isinstance(one, list | dict) for inner in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return
    raise ValueError(TOO_DEEP)


def check_characters(value: Any) -> None:
    """
    Raises:
        ValueError: half a character, as an escape like `\\ud800` says it: no stream could carry it on.
    """
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("half a character (a lone surrogate)") from None


def _distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {twice[:40]!r} stands there twice")
    return made


def _agreeing(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record: dict[str, Any] = {}
    for key, value in pairs:
        if key in record and repr(record[key]) != repr(value):
            raise ValueError(f"key {key[:40]!r} stands there twice, with {record[key]!r:.40} and {value!r:.40}")
        record[key] = value
    return record


def _whole(digits: str) -> int:
    if len(digits) > 21 or abs(int(digits)) >= LARGEST:
        raise ValueError(f"the number {digits[:20]}… is too large")
    return int(digits)


def _real(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {digits[:20]} is too large")
    return value


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


DECODER = json.JSONDecoder(object_pairs_hook=_distinct_keys, parse_int=_whole, parse_float=_real, parse_constant=_constant)


WHOLE = re.compile(r"[+-]?\d{1,18}(?:\.0{0,18})?", re.ASCII)


def whole_number(value: Any) -> int | None:
    """A whole number from a number or a text that writes it; None where it is none.

    >>> [whole_number(value) for value in (3, 3.0, "3", "-3.00", 3.5, "3.5", True, "n03444034")]
    [3, 3, 3, -3, None, None, None, None]
    """
    if isinstance(value, str):
        return int(value.strip().partition(".")[0]) if WHOLE.fullmatch(value.strip()) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if isinstance(value, int) or (value.is_integer() and abs(value) < 1 << 53) else None


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


def unit_name(layer: int, neuron: int, head: int) -> str:
    """`6:391`, `6:391.3` with a head, `6:.3` for a whole head; -1 is what a unit has not."""
    return f"{layer}:" + (str(neuron) if neuron >= 0 else "") + (f".{head}" if head >= 0 else "")
