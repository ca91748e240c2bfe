"""Records: JSON Lines, one object a line, flushed per line, so that the next command can begin before this one ends."""

import json
from io import BufferedIOBase
from typing import Any, SupportsFloat


def write_record(stream: BufferedIOBase, record: dict[str, Any]) -> None:
    """One line of JSON, UTF-8, keys in the order given."""
    stream.write(json.dumps(record, ensure_ascii=False, allow_nan=False).encode("utf-8") + b"\n")
    stream.flush()


def rounded(value: SupportsFloat, digits: int = 6) -> float:
    """A float32 statistic without the digits it does not have."""
    return float(f"{float(value):.{digits}g}")
