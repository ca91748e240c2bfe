"""Whole numbers as people's files have them: 3, and 3.0 where a table has gone through floating point."""

import re
from typing import Any

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
