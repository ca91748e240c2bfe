"""Damage of bytes for any stream, and counts of the readers' results."""

import random
import resource
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from cliptools.console import escape
from cliptools.errors import CliptoolsError

LONGEST_LINE = 1000  # characters of a message
SLOWEST = 5.0  # seconds that a small stream may take to be refused, on a machine that does other things too
MEMORY = 300_000_000  # bytes that many thousand refused streams may leave behind


def truncated(draw: random.Random, data: bytes) -> bytes:
    """Truncate anywhere, more often near the beginning."""
    return data[: draw.choice((draw.randrange(len(data)), draw.randrange(min(len(data), 12))))]


def flipped(draw: random.Random, data: bytes, start: int = 0, stop: int | None = None) -> bytes:
    """Flip one to eight bits."""
    changed = bytearray(data)
    for _ in range(draw.randint(1, 8)):
        changed[draw.randrange(start, stop or len(data))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def spliced(draw: random.Random, data: bytes) -> bytes:
    """Remove, double or replace a part by noise."""
    start = draw.randrange(len(data))
    piece = data[start : start + draw.randint(1, 40)]
    other = draw.choice((b"", piece + piece, draw.randbytes(len(piece)), b"\0" * len(piece), b"\n", b"\xff\xfe"))
    return data[:start] + other + data[start + len(piece) :]


def noise(draw: random.Random, data: bytes) -> bytes:
    """Return noise instead of the stream."""
    return draw.randbytes(draw.randint(0, 200))


def check_line(error: CliptoolsError, kind: str) -> None:
    """Check that a rejection is one line of limited length."""
    text = escape(str(error))
    assert text and "\n" not in text and len(text) < LONGEST_LINE, (kind, text)


class Tally:
    """Counts of the results for bad streams."""

    def __init__(self) -> None:
        self.refused: Counter[str] = Counter()
        self.accepted: Counter[str] = Counter()
        self.slowest = 0.0
        self._memory = _peak()

    def read(self, kind: str, reader: Callable[[], Any], must: bool) -> None:
        """Read a stream that has this kind of damage.

        Args:
            must: Whether it has to be refused.
        """
        begin = time.perf_counter()
        try:
            reader()
        except CliptoolsError as error:
            check_line(error, kind)
            self.refused[kind] += 1
        except Exception as error:
            pytest.fail(f"{kind}: {type(error).__name__}: {error}", pytrace=True)
        else:
            assert not must, f"{kind}: accepted"
            self.accepted[kind] += 1
        self.slowest = max(self.slowest, time.perf_counter() - begin)

    def close(self, what: str) -> None:
        """Check time and memory, and print figures for the table of docs/reliability.md."""
        grown = _peak() - self._memory
        print(
            f"\n{what}: {self.refused.total()} refused, {self.accepted.total()} accepted {dict(self.accepted)}, "
            f"slowest {self.slowest * 1000:.0f} ms, memory grew by {grown / 1e6:.0f} MB"
        )
        assert self.slowest < SLOWEST and grown < MEMORY
        assert self.refused.total() > self.accepted.total() / 4


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
