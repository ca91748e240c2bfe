"""JSON of which everybody reads the same: UTF-8, no key twice, no NaN, no number that no machine word holds, no endless depth."""

import json
import math
from typing import Any

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


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
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


DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_whole, parse_float=_real, parse_constant=_constant)
