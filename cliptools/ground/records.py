"""Records: JSON Lines, one object a line, flushed per line, so that the next command can begin before this one ends."""

import json
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import Any, SupportsFloat

from cliptools.ground.errors import StreamError
from cliptools.ground.legible import harmless_json
from cliptools.ground.strict_json import parse

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

    Raises:
        StreamError: a line that is no JSON object as strict_json reads it, or longer than LONGEST.
    """
    number = 0
    while line := stream.readline(LONGEST + 1):
        number += 1
        if len(line) > LONGEST:
            raise StreamError(f"{name}, line {number}: expected a JSON object, found a line of more than {LONGEST} bytes")
        line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if not line.strip():
            continue
        try:
            record = parse(line)
        except ValueError as error:
            why = "" if isinstance(error, json.JSONDecodeError) else f" ({error})"
            raise StreamError(f"{name}, line {number}: expected a JSON object, found {_start(line)}{why}") from None
        if not isinstance(record, dict):
            raise StreamError(f"{name}, line {number}: expected a JSON object, found {_start(line)}")
        yield number, record


def file_objects(path: Path, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Those of a file.

    Args:
        name: What to call it in messages: the option and its value.

    Raises:
        StreamError: as `objects`, or it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            yield from objects(stream, name)
    except (OSError, ValueError) as error:
        raise StreamError(f"{name}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def _start(line: bytes) -> str:
    return repr(line[:40].decode("utf-8", "replace").rstrip("\n"))
