"""Bad lines made from valid ones: records, texts, tables."""

import json
import random
from collections.abc import Callable
from typing import Any

from helpers.stream_bundles import NO_VALUES
from helpers.stream_bytes import flipped, noise, spliced, truncated

Record = dict[str, Any]
Damage = Callable[[random.Random, list[Record]], bytes]

NO_OBJECTS = (
    b"5",
    b'"a"',
    b"[]",
    b"[1, 2]",
    b"null",
    b"true",
    b"{",
    b"}",
    b"{]",
    b"{'a': 1}",
    b"a,b,c",
    b"{} {}",
    b"NaN",
    b"Infinity",
    b"\0\0",
    b"<html>",
    b"\x80\x81",
    b"\xff\xfe{\x00}\x00",
    b'{"a": 01}',
    b'{"a": .5}',
    b'{"a": 1,}',
    b"{a: 1}",
    b'{"a" 1}',
    b'{"a": \x00}',
    b'{"a": "\n"}',
)
NO_NUMBERS = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "-1e999",
    "1" * 30,
    "-" + "9" * 5000,
    "1" * 400 + ".5",
    "18446744073709551616",
)


def line_of(record: Record) -> bytes:
    """Return a record as commands write it."""
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogatepass")


def joined(lines: list[bytes]) -> bytes:
    """Return lines as a stream."""
    return b"".join(line + b"\n" for line in lines)


def replaced(change: Callable[[random.Random, Record], bytes]) -> Damage:
    """Return damage of one of several lines."""

    def damage(draw: random.Random, records: list[Record]) -> bytes:
        lines = [line_of(record) for record in records]
        at = draw.randrange(len(lines))
        lines[at] = change(draw, json.loads(lines[at]))
        return joined(lines)

    return damage


def not_utf8(draw: random.Random, record: Record) -> bytes:
    """Insert a byte that never occurs in UTF-8 into a text."""
    line = line_of(record)
    at = max(line.find(b'"', draw.randrange(len(line))), line.index(b'"'))
    return (
        line[: at + 1] + draw.choice((b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xe2\x82")) + line[at + 1 :]
    )


def with_literal(draw: random.Random, record: Record, literal: str) -> bytes:
    """Add or replace a field whose value is inserted literally."""
    key = draw.choice((*record, "more"))
    return line_of(record | {key: "@@"}).replace(b'"@@"', literal.encode())


def no_number(draw: random.Random, record: Record) -> bytes:
    """Insert NaN, or a number that does not fit a machine word."""
    return with_literal(draw, record, draw.choice(NO_NUMBERS))


def nested(draw: random.Random, record: Record) -> bytes:
    """Insert deeply nested lists or objects."""
    depth = draw.choice((150, 1000, 20_000))
    return with_literal(draw, record, draw.choice(("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth)))


def key_twice(draw: random.Random, record: Record) -> bytes:
    """Insert a field twice."""
    key = draw.choice(list(record))
    return line_of(record)[:-1] + f", {json.dumps(key)}: {json.dumps(draw.choice((1, 'x', record[key])))}}}".encode()


def half_a_character(draw: random.Random, record: Record) -> bytes:
    """Insert an escape of half a surrogate pair."""
    return with_literal(draw, record, draw.choice(('"\\ud800"', '"a\\udfff"', '["\\ud83d"]', '{"\\udc00": 1}')))


def nul(draw: random.Random, record: Record) -> bytes:
    """Insert a literal NUL into the line."""
    line = line_of(record)
    at = draw.randrange(1, len(line))
    return line[:at] + b"\0" + line[at:]


def other_value(draw: random.Random, record: Record) -> bytes:
    """Replace the value of a field, or of a field of an inner object."""
    inner = [value for value in record.values() if isinstance(value, dict) and value]
    inner += [each for value in record.values() if isinstance(value, list) for each in value if isinstance(each, dict)]
    among = draw.choice(inner) if inner and draw.random() < 0.4 else record
    among[draw.choice(list(among))] = draw.choice(NO_VALUES)
    return json.dumps(record).encode()


def one_less(draw: random.Random, record: Record) -> bytes:
    """Remove a field."""
    del record[draw.choice(list(record))]
    return line_of(record)


def raw(change: Callable[[random.Random, bytes], bytes]) -> Damage:
    """Return damage of bytes as damage of lines."""
    return lambda draw, records: change(draw, joined([line_of(record) for record in records]))


REFUSED: dict[str, Damage] = {
    "no object": replaced(lambda draw, record: draw.choice(NO_OBJECTS)),
    "invalid UTF-8": replaced(not_utf8),
    "no number": replaced(no_number),
    "nested": replaced(nested),
    "key twice": replaced(key_twice),
    "half a character": replaced(half_a_character),
    "NUL": replaced(nul),
    "UTF-16": lambda draw, records: (
        joined([line_of(each) for each in records]).decode().encode(draw.choice(("utf-16", "utf-16-le", "utf-32")))
    ),
    "empty": lambda draw, records: draw.choice((b"", b"\n", b"\n\n  \n", b"\xef\xbb\xbf")),
}
"""What no reader of records may take."""
PERHAPS: dict[str, Damage] = {
    "truncated": raw(truncated),
    "flipped": raw(flipped),
    "spliced": raw(spliced),
    "noise": raw(noise),
    "other value": replaced(other_value),
    "one less": replaced(one_less),
}
"""What may leave records that say something else."""


def lines_damaged(draw: random.Random, data: bytes) -> bytes:
    """Return a file of lines with damage that a reader may accept or reject."""
    lines = data.split(b"\n")
    at = draw.randrange(len(lines))
    kind = draw.randrange(8)
    if kind == 0:
        lines[at] = draw.choice(
            (b'"', b'"open', b"a,b,c,d", b",,,", b" ", b"\t", b"#", b'a "b" c', b"-1", b"9" * 5000, b"x\r", b"\x0b\x0c")
        )
    elif kind == 1:
        lines.append(lines[at])
    elif kind == 2:
        draw.shuffle(lines)
    elif kind == 3:
        lines[at] = lines[at].replace(b",", draw.choice((b";", b"", b",,", b"\t")))
    return (truncated, flipped, spliced, noise)[kind - 4](draw, data) if kind >= 4 else b"\n".join(lines)


TEXT_REFUSED: dict[str, Callable[[random.Random, bytes], bytes]] = {
    "invalid UTF-8": lambda draw, data: data + draw.choice((b"\xff", b"\xc0\x80", b"\xed\xa0\x80x", b"caf\xe9\n")),
    "NUL": lambda draw, data: data + b"x\0y\n",
    "UTF-16 without a mark": lambda draw, data: data.decode().encode(draw.choice(("utf-16-le", "utf-16-be"))),
    "empty": lambda draw, data: draw.choice((b"", b"\n", b" \r\n\n", b"\xef\xbb\xbf")),
}
"""What no file of texts may hold."""
