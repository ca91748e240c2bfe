"""Checks of the arguments of the front's functions, which commands leave to their options."""

import sys
from collections.abc import Collection, Iterable, Sequence
from numbers import Integral, Real

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
        least: If it is an int and belongs to the range, the argument is a whole number.
        most: None: the largest number that records and sizes can hold, 2^63 - 1.
        inside: Exclude the ends of the range.

    Raises:
        UsageError: the number is outside, or the argument is not a number of this type.
    """
    if value is None:
        return
    whole = isinstance(least, int) and not inside
    if not isinstance(value, Integral if whole else Real) or isinstance(value, bool):
        raise UsageError(f"{name}={value!r}: expected a {'whole ' if whole else ''}number")
    high = sys.maxsize if most is None else most
    if not (least < value < high if inside else least <= value <= high):
        at_least = most is None and not value > high
        limits = f"between {least} and {high}" if inside else f"at least {least}" if at_least else f"from {least} to {high}"
        raise UsageError(f"{name}={value}: expected a number {limits}")


def chosen_layers(layers: Iterable[int] | None) -> tuple[int, ...] | None:
    """Return layers in their order, each once; None for None.

    Raises:
        UsageError: there are none, or one is not a whole number from 0.
    """
    if layers is None:
        return None
    listed = [] if isinstance(layers, str) or not isinstance(layers, Iterable) else list(layers)
    if not listed or any(isinstance(layer, bool) or not isinstance(layer, Integral) or layer < 0 for layer in listed):
        raise UsageError(f"layers={layers!r}: expected whole numbers from 0, as [8, 9, 10]")
    return tuple(sorted({int(layer) for layer in listed}))


def chosen_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """Return templates; a text in place of a list is one template."""
    return (templates,) if isinstance(templates, str) else tuple(templates)
