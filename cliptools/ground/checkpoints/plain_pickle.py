"""A reader of the pickles in TorchScript archives that can call nothing: objects become records of their parts.

Python's own unpickler looks names up and calls them. This one walks the operations as pickletools lists them, and knows those
that torch.jit writes.
"""

from collections.abc import Callable, Mapping, Sequence
from pickletools import genops
from typing import Any, NamedTuple

CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
LITERALS = {
    "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINSTRING",
    "SHORT_BINSTRING",
}  # fmt: skip
EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
PASSED = {"PROTO", "FRAME"}


class Name(NamedTuple):
    """A class or a function that the pickle names."""

    module: str
    name: str


class Call(NamedTuple):
    """What calling a name would give: the name and what it would be called with."""

    name: Any
    arguments: Sequence[Any]


class Stored(NamedTuple):
    """An object that is kept outside the pickle."""

    identity: Any


class Built:
    """An object with the attributes that the pickle gives it."""

    def __init__(self, name: Any) -> None:
        self.name = name
        self.attributes: Mapping[str, Any] = {}


class PlainPickleError(ValueError):
    """An operation that such pickles do not have."""


def read_plain(content: bytes) -> Any:
    """The value that a pickle describes, of dicts, lists, tuples, numbers, texts and the records above.

    Raises:
        ValueError: it is no pickle, or not of this kind.
    """
    stack: list[Any] = []
    below: list[list[Any]] = []
    memo: dict[Any, Any] = {}
    for operation, argument, _ in genops(content):
        name = operation.name
        if name == "STOP":
            return stack.pop()
        if name == "MARK":
            below.append(stack)
            stack = []
        elif name in ("TUPLE", "APPENDS", "SETITEMS"):
            items, stack = stack, below.pop()
            _extend(stack, name, items)
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        else:
            _step(stack, name, argument)
    raise PlainPickleError("it has no end")


def _extend(stack: list[Any], name: str, items: list[Any]) -> None:
    if name == "TUPLE":
        stack.append(tuple(items))
    elif name == "APPENDS" and isinstance(stack[-1], list):
        stack[-1].extend(items)
    elif name == "SETITEMS" and isinstance(stack[-1], dict):
        stack[-1].update(zip(items[::2], items[1::2], strict=True))
    else:
        raise PlainPickleError(f"{name.lower()} to an object")


def _step(stack: list[Any], name: str, argument: Any) -> None:
    """One operation on the stack.

    Raises:
        PlainPickleError: it is not one of those that torch.jit writes.
    """
    if name in LITERALS:
        stack.append(argument)
    elif name in CONSTANTS:
        stack.append(CONSTANTS[name])
    elif name in EMPTY:
        stack.append(EMPTY[name]())
    elif name in TUPLES:
        stack[-TUPLES[name] :] = [tuple(stack[-TUPLES[name] :])]
    elif name == "GLOBAL":
        stack.append(Name(*argument.split(" ", 1)))
    elif name in ("REDUCE", "NEWOBJ"):
        arguments, called = stack.pop(), stack.pop()
        stack.append(Built(called) if name == "NEWOBJ" else Call(called, arguments))
    elif name == "BINPERSID":
        stack.append(Stored(stack.pop()))
    elif name == "BUILD":
        state = stack.pop()
        if isinstance(stack[-1], Built) and isinstance(state, dict):
            stack[-1].attributes = state
    elif name in ("APPEND", "SETITEM"):
        items = [stack.pop()] if name == "APPEND" else [stack.pop(), stack.pop()][::-1]
        _extend(stack, f"{name}S", items)
    elif name not in PASSED:
        raise PlainPickleError(f"{name.lower()} in its data.pkl")
