"""Checks of the arguments of public functions, which commands leave to their options."""

import functools
import inspect
import os
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin

from cliptools.errors import UsageError

CHECKED_WHERE_OPENED = ("images", "verify", "device")
"""Arguments of too many kinds to name here: images of any kind, and devices, which may be torch's own."""
P = ParamSpec("P")
R = TypeVar("R")
NUMBERS: dict[Any, type] = {int: Integral, float: Real}
NAMES: dict[Any, str] = {
    str: "a text", int: "a whole number", float: "a number", os.PathLike: "a path", Path: "a path", NoneType: "None",
    "Bundle": "a bundle", "UnitBundle": "a bundle", "LoadedModel": "what load_model returns", Mapping: "a dictionary",
}  # fmt: skip
"""Words for types; a class is found by itself or by its name."""


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Check the types of a function's arguments by its annotations, before it runs.

    Only kinds are checked: a text, a number, a bundle, a list of bundles, one of several words. What belongs to a list of
    numbers or texts, and ranges, are checked where they are used. A path in place of a text is its text.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        bound = signature.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            kind = signature.parameters[name].annotation
            if name in CHECKED_WHERE_OPENED or _is_a(value, kind):
                continue
            if isinstance(value, os.PathLike) and _is_a(os.fspath(value), kind):
                bound.arguments[name] = os.fspath(value)
                continue
            raise UsageError(f"{name}={_shortened(value)}: expected {_described(kind)}")
        return function(*bound.args, **bound.kwargs)

    return call


def _is_a(value: Any, kind: Any) -> bool:
    """Return False if a value is not of this type; types that say nothing here accept all."""
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        return any(_is_a(value, one) for one in get_args(kind))
    if origin is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if kind in NUMBERS:
        return isinstance(value, NUMBERS[kind]) and not isinstance(value, bool)
    if origin is not None and issubclass(origin, Iterable) and not issubclass(origin, Mapping):
        of = get_args(kind)[0] if get_args(kind) else Any
        given = isinstance(value, Iterable) and not isinstance(value, bytes) and not (of is float and isinstance(value, str))
        return given and (not _names_class(of) or not isinstance(value, Collection) or all(_is_a(one, of) for one in value))
    if kind in (Any, bool, inspect.Parameter.empty):
        return True
    return isinstance(value, origin or kind) if isinstance(origin or kind, type) else True


def _names_class(kind: Any) -> bool:
    """Return whether each member of a list of this kind must be checked: objects that nothing else stands for."""
    return get_origin(kind) is Mapping or (isinstance(kind, type) and kind not in (Any, str, int, float))


def _described(kind: Any) -> str:
    """Return what a type is in words."""
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_described(one) for one in get_args(kind)))
    if origin is Literal:
        return f"one of {', '.join(get_args(kind))}"
    if origin is not None and issubclass(origin, Iterable) and not issubclass(origin, Mapping):
        of = get_args(kind)[0] if get_args(kind) else Any
        return f"a list, each {_described(of)}" if _names_class(of) else "a list"
    key = origin or kind
    return NAMES.get(key) or NAMES.get(getattr(key, "__name__", ""), str(getattr(key, "__name__", key)))


def _shortened(value: Any) -> str:
    """Return a value as an error shows it: on one line, not longer than a line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


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
