"""Tensors of files of torch.save and of TorchScript archives (OpenAI's releases), read without running their code.

`read_torch` reads files of torch.save by torch's restricted unpickler; known objects beside the weights are skipped.

`read_torchscript` reads archives. torch.jit.load would interpret code of an archive, so `read_pickle` parses its data.pkl, which
builds modules with their tensors as attributes: it walks the operations that pickletools lists, accepts only those that
torch.jit writes, and calls nothing.
"""

import io
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from pickletools import genops
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cliptools.console import escape
from cliptools.models.checkpoints.file_kinds import unreadable

WEIGHTS = (
    "state_dict", "model_state_dict", "model", "module", "model_state", "weights", "net", "network", "params", "clip",
    "student", "base_model",
)  # fmt: skip
AVERAGED = (
    "ema", "model_ema", "ema_model", "state_dict_ema", "ema_state_dict", "model_ema_state_dict", "ema_model_state_dict",
)  # fmt: skip
"""Keys of a running average of the weights."""
UNSAFE = "weights_only"  # in torch's messages about pickles of other objects, which advise an unsafe load
DEEPEST = 4  # dicts within dicts


class _Inert:
    """Placeholder for a known object beside the weights; it accepts any arguments and keeps nothing."""

    def __new__(cls, *arguments: Any, **options: Any) -> "_Inert":
        return super().__new__(cls)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class Attributes(_Inert):
    """Placeholder for an object of which only the attributes are read."""

    attributes: Mapping[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        """Keep the attributes that the pickle gives the object."""
        self.attributes = state if isinstance(state, Mapping) else {}


def _no_dict(*arguments: Any) -> dict[Any, Any]:
    """Return a plain dict in place of a subclass, because torch fills only plain ones."""
    return {}


def _no_list(*arguments: Any) -> list[Any]:
    """Return a plain list in place of a subclass."""
    return []


FILLED = {"collections.defaultdict": _no_dict, "collections.deque": _no_list}
BESIDE = (
    "argparse.Namespace", "types.SimpleNamespace",
    *(f"numpy.{core}.{name}" for core in ("core", "_core") for name in ("multiarray.scalar", "multiarray._reconstruct")),
    "numpy.dtype", "numpy.ndarray", *(f"numpy.dtypes.{kind}DType" for kind in ("Float64", "Float32", "Int64", "Int32", "Bool")),
    "pathlib.Path", "pathlib.PosixPath", "pathlib.PurePosixPath", "pathlib.WindowsPath", "pathlib.PureWindowsPath",
    "pathlib._local.Path", "pathlib._local.PosixPath", "pathlib._local.WindowsPath",
    "datetime.datetime", "datetime.date", "datetime.timedelta", "datetime.timezone",
    "omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig", "omegaconf.nodes.AnyNode", "omegaconf.base.Metadata",
    "omegaconf.base.ContainerMetadata", "typing.Any",
    *(f"builtins.{kind}" for kind in ("int", "float", "str", "bool", "list", "dict", "complex", "range", "slice")),
)  # fmt: skip
"""Objects that are pickled beside weights, such as settings and counters. They are never created: _Inert takes their place."""


class Unpacked(NamedTuple):
    """Tensors of a file, with notes for the user on where they were in it."""

    tensors: dict[str, Tensor]
    notes: tuple[str, ...]


def read_torch(path: Path, mapped: bool) -> Unpacked:
    """Read a file of torch.save.

    Args:
        mapped: The file is a zip file, whose tensors can be mapped into memory.

    Raises:
        ModelError: it holds objects that only code could rebuild, holds no tensors, or is damaged.
    """
    return unpack(load_restricted(path, mapped=mapped), path)


def load_restricted(path: Path, stream: io.BytesIO | None = None, attributes_of: Sequence[str] = (), mapped: bool = False) -> Any:
    """Return the value of a file of torch.save, read by torch's restricted unpickler.

    Args:
        path: The file, for messages and, without a stream, to be read.
        stream: The place in memory of the value, where the file has something else before it.
        attributes_of: Names of further classes, whose objects become `Attributes`.
        mapped: As in `read_torch`.

    Raises:
        ModelError: it holds objects that only code could rebuild, or is damaged.
    """
    placeholders = [*((_Inert, name) for name in BESIDE), *((Attributes, name) for name in attributes_of)]
    try:
        with torch.serialization.safe_globals([*placeholders, *((make, name) for name, make in FILLED.items())]):
            if stream is not None:
                return torch.load(stream, map_location="cpu", weights_only=True)
            if path.suffix != ".safetensors":
                return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
            with path.open("rb") as file:  # a misleading name, which torch.load would believe
                return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for files it cannot read
        raise unreadable(path, _reason(path, str(error))) from None


def _reason(path: Path, message: str) -> str:
    """Return the reason why torch cannot read a file."""
    names = dict.fromkeys(re.findall(r"GLOBAL (?!instruction)(\S+) (?:was|whose)", message))
    with suppress(Exception):  # for an old or damaged file only the message has names
        names |= dict.fromkeys(
            name for name in torch.serialization.get_unsafe_globals_in_checkpoint(path) if name not in {*BESIDE, *FILLED}
        )
    if names or UNSAFE in message.lower():
        names_text = ", ".join(escape(name) for name in sorted(names)[:3])
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        return pickle_fault(f" ({names_text}{more})" if names_text else "")
    detail = (message.strip().splitlines() or [""])[0][:120]
    return f"a damaged file of torch.save{f' ({escape(detail)})' if detail else ''}: fetch it again"


def pickle_fault(names_text: str = "") -> str:
    """Return the reason why a pickle is not read, with the objects in it."""
    return (
        f"a pickle of objects that only code could rebuild{names_text}, which is never run; where it was made, save the tensors "
        "alone: torch.save(model.state_dict(), FILE)"
    )


def unpack(content: Any, path: Path) -> Unpacked:
    """Find the weights in the value of a file: a state dict, or one in nested dicts under a known key.

    Raises:
        ModelError: there are no tensors.
    """
    notes: list[str] = []
    for _ in range(DEEPEST):
        if not isinstance(content, Mapping):
            break
        weight_keys = [key for key in WEIGHTS if _holds_tensors(content.get(key))]
        average_keys = [key for key in AVERAGED if _holds_tensors(content.get(key))]
        if weight_keys and average_keys:
            notes.append(
                f"{escape(path.name)}: the weights under {weight_keys[0]!r} are read, not their running average under "
                f"{average_keys[0]!r}"
            )
        elif average_keys:
            notes.append(f"{escape(path.name)}: its weights are a running average, under {average_keys[0]!r}")
        if weight_keys or average_keys:
            content = content[(weight_keys or average_keys)[0]]
            continue
        tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
        if tensors:
            return Unpacked(tensors, tuple(notes))
        break
    keys = ", ".join(escape(str(key)) for key in list(content)[:6]) if isinstance(content, Mapping) else type(content).__name__
    raise unreadable(path, f"no weights in it (it holds {keys or 'nothing'}); expected a state dict, or one under {WEIGHTS[0]!r}")


def _holds_tensors(value: Any, depth: int = 0) -> bool:
    """Return whether a dict has tensors, or nested dicts of them under known keys."""
    if not isinstance(value, Mapping) or depth == DEEPEST:
        return False
    return any(isinstance(part, Tensor) for part in value.values()) or any(
        _holds_tensors(value.get(key), depth + 1) for key in (*WEIGHTS, *AVERAGED)
    )


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
    """A call of a name, which is not executed: the name and its arguments."""

    name: Any
    arguments: Sequence[Any]


class Stored(NamedTuple):
    """An object stored outside the pickle."""

    identity: Any


class Built:
    """An object with the attributes that the pickle gives it."""

    def __init__(self, name: Any) -> None:
        self.name = name
        self.attributes: Mapping[str, Any] = {}


class PlainPickleError(ValueError):
    """The pickle has an operation that torch.jit does not write."""


def read_pickle(content: bytes) -> Any:
    """Return the value of a pickle, built of dicts, lists, tuples, numbers, texts and the classes above.

    Raises:
        ValueError: it is not a pickle, or has other operations.
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
    """Execute one operation on the stack.

    Raises:
        PlainPickleError: torch.jit does not write this operation.
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


STORAGES = {
    "FloatStorage": torch.float32, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64, "LongStorage": torch.int64, "IntStorage": torch.int32, "ShortStorage": torch.int16,
    "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
TENSOR = Name("torch._utils", "_rebuild_tensor_v2")
DEEPEST_MODULE = 64  # modules within modules


class _Storage(NamedTuple):
    """Record of the archive that holds the bytes of a tensor, and their type."""

    record: str
    dtype: torch.dtype


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Read the tensors of an archive by their names in its modules.

    Raises:
        ModelError: the archive is damaged or does not hold modules.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            (name,) = (name for name in archive.namelist() if name.partition("/")[2] == "data.pkl")
            root = read_pickle(archive.read(name))
            if not isinstance(root, Built):
                raise ValueError("its data.pkl holds no module")
            folder = name.removesuffix("data.pkl")
            records: dict[_Storage, Tensor] = {}
            return {key: _tensor_of(described, archive, folder, records) for key, described in _walk(root, "", 0)}
    except Exception as error:  # a damaged archive can raise many types
        reason = escape(str(error)) or type(error).__name__
        raise unreadable(path, f"a TorchScript archive that cannot be read ({reason})") from None


def _walk(value: Any, prefix: str, depth: int) -> Iterator[tuple[str, Call]]:
    """Yield names and descriptions of the tensors of a module and its submodules."""
    if isinstance(value, Call) and value.name == TENSOR:
        yield prefix, value
    elif isinstance(value, Built) and depth < DEEPEST_MODULE:
        for name, part in value.attributes.items():
            yield from _walk(part, f"{prefix}.{name}" if prefix else str(name), depth + 1)


def _tensor_of(described: Call, archive: zipfile.ZipFile, folder: str, records: dict[_Storage, Tensor]) -> Tensor:
    """Return the tensor of a description.

    Raises:
        ValueError: its record is compressed or too short.
    """
    reference, offset, size, stride = described.arguments[:4]
    storage = _storage(reference)
    if storage not in records:
        member = archive.getinfo(f"{folder}data/{storage.record}")
        if member.compress_type != zipfile.ZIP_STORED:
            raise ValueError("its tensors are compressed")
        content = bytearray(archive.read(member))
        records[storage] = torch.frombuffer(content, dtype=storage.dtype) if content else torch.empty(0, dtype=storage.dtype)
    values = records[storage]
    last = offset + sum((extent - 1) * step for extent, step in zip(size, stride, strict=True))
    if min((offset, *size, *stride), default=0) < 0 or (0 not in size and last >= len(values)):
        raise ValueError("a tensor reaches beyond its bytes")
    return values.as_strided(size, stride, offset)


def _storage(reference: Any) -> _Storage:
    """Return the storage of a tensor.

    Raises:
        ValueError: its numbers have an unknown type.
    """
    storage_type = reference.identity[1] if isinstance(reference, Stored) else None
    if not isinstance(storage_type, Name) or storage_type.module != "torch" or storage_type.name not in STORAGES:
        raise ValueError("a storage of an unknown type")
    return _Storage(str(reference.identity[2]), STORAGES[storage_type.name])
