"""Tensors of a TorchScript archive (OpenAI's releases, torch.jit.save), read without running any of its code.

torch.jit.load would interpret code of the archive. Its data.pkl is a pickle that builds the modules as plain objects with their
tensors as attributes. The reader below knows the few names that such a pickle may call; all of them only hold data, and any
other name ends the reading.
"""

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cliptools.ground.checkpoints.file_kinds import not_read
from cliptools.ground.legible import legible

STORAGES = {
    "FloatStorage": torch.float32, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64, "LongStorage": torch.int64, "IntStorage": torch.int32, "ShortStorage": torch.int16,
    "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
DEEPEST = 64  # modules within modules


class _Module:
    """A module of the archive: only its attributes, none of its code."""

    attributes: Mapping[str, Any] = MappingProxyType({})

    def __setstate__(self, state: Any) -> None:
        self.attributes = state if isinstance(state, dict) else {}


class _Storage(NamedTuple):
    """Where the bytes of a tensor lie."""

    record: str
    dtype: torch.dtype


class _Stored(NamedTuple):
    """A tensor as the pickle describes it."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> _Stored:
    return _Stored(storage, offset, tuple(size), tuple(stride))


def _plain(value: Any, *rest: Any) -> Any:
    return value


KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("collections", "OrderedDict"): OrderedDict,
    ("torch.jit._pickle", "restore_type_tag"): _plain,
    **{("torch.jit._pickle", f"build_{kind}list"): _plain for kind in ("int", "double", "bool", "tensor")},
}
"""All that such a pickle may call, beside the names of storages and modules."""


class _Reader(pickle.Unpickler):
    """A pickle whose every call is of one of KNOWN, or makes an inert module."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in KNOWN:
            return KNOWN[module, name]
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if module.partition(".")[0] == "__torch__":
            return _Module
        raise pickle.UnpicklingError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        _, dtype, record, *_ = pid
        if not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError("a storage of no known type")
        return _Storage(str(record), dtype)


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Tensors of an archive by the names that its modules give them.

    Raises:
        ModelError: a damaged archive, or one that wants other objects.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            (name,) = (name for name in archive.namelist() if name.partition("/")[2] == "data.pkl")
            folder = name.removesuffix("data.pkl")
            with archive.open(name) as stream:
                root = _Reader(stream).load()
            records: dict[_Storage, Tensor] = {}
            return {key: _filled(stored, archive, folder, records) for key, stored in _walk(root, "", 0)}
    except Exception as error:  # whatever a damaged archive leads to
        raise not_read(
            path, f"a TorchScript archive that cannot be read ({legible(str(error)) or type(error).__name__})"
        ) from None


def _walk(value: Any, prefix: str, depth: int) -> Iterator[tuple[str, _Stored]]:
    if isinstance(value, _Stored):
        yield prefix, value
    elif isinstance(value, _Module) and depth < DEEPEST:
        for name, part in value.attributes.items():
            yield from _walk(part, f"{prefix}.{name}" if prefix else str(name), depth + 1)


def _filled(stored: _Stored, archive: zipfile.ZipFile, folder: str, records: dict[_Storage, Tensor]) -> Tensor:
    """
    Raises:
        ValueError: a record that is packed, or too short for its tensor.
    """
    storage, offset, size, stride = stored
    if storage not in records:
        member = archive.getinfo(f"{folder}data/{storage.record}")
        if member.compress_type != zipfile.ZIP_STORED:
            raise ValueError("its tensors are compressed")
        content = bytearray(archive.read(member))
        records[storage] = torch.frombuffer(content, dtype=storage.dtype) if content else torch.empty(0, dtype=storage.dtype)
    whole = records[storage]
    last = offset + sum((extent - 1) * step for extent, step in zip(size, stride, strict=True))
    if min((offset, *size, *stride), default=0) < 0 or (0 not in size and last >= len(whole)):
        raise ValueError("a tensor reaches beyond its bytes")
    return whole.as_strided(size, stride, offset)
