"""Checks of the arguments of the front's functions, which commands leave to their options."""

import sys
from collections.abc import Collection

from cliptools.errors import UsageError


def require_one_of(name: str, value: str | None, allowed: Collection[str]) -> None:
    """Check that an argument has one of these values, or is None.

    Raises:
        UsageError: it has another value.
    """
    if value is not None and value not in allowed:
        raise UsageError(f"{name}={value!r}: expected one of {', '.join(allowed)}")


def require_number(name: str, value: float | None, least: float, most: float | None = None, *, inside: bool = False) -> None:
    """Check that an argument is a number in a range, or None.

    Args:
        most: None: the largest number that records and sizes can hold, 2^63 - 1.
        inside: Exclude the ends of the range.

    Raises:
        UsageError: the number is outside.
    """
    if value is None:
        return
    high = sys.maxsize if most is None else most
    if not (least < value < high if inside else least <= value <= high):
        at_least = most is None and not value > high
        limits = f"between {least} and {high}" if inside else f"at least {least}" if at_least else f"from {least} to {high}"
        raise UsageError(f"{name}={value}: expected a number {limits}")
