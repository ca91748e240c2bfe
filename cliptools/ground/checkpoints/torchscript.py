"""Tensors of a TorchScript archive (OpenAI's releases, torch.jit.save), read without running any of its code.

torch.jit.load would interpret code of the archive. Its data.pkl is a pickle that builds the modules as plain objects with their
tensors as attributes, and plain_pickle reads that without calling anything.
"""

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cliptools.ground.checkpoints.file_kinds import not_read
from cliptools.ground.checkpoints.plain_pickle import Built, Call, Name, Stored, read_plain
from cliptools.ground.legible import legible

STORAGES = {
    "FloatStorage": torch.float32, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64, "LongStorage": torch.int64, "IntStorage": torch.int32, "ShortStorage": torch.int16,
    "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
TENSOR = Name("torch._utils", "_rebuild_tensor_v2")
DEEPEST = 64  # modules within modules


class _Storage(NamedTuple):
    """Where the bytes of a tensor lie."""

    record: str
    dtype: torch.dtype


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Tensors of an archive by the names that its modules give them.

    Raises:
        ModelError: a damaged archive, or one that is not of modules.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            (name,) = (name for name in archive.namelist() if name.partition("/")[2] == "data.pkl")
            root = read_plain(archive.read(name))
            if not isinstance(root, Built):
                raise ValueError("its data.pkl holds no module")
            folder = name.removesuffix("data.pkl")
            records: dict[_Storage, Tensor] = {}
            return {key: _filled(described, archive, folder, records) for key, described in _walk(root, "", 0)}
    except Exception as error:  # whatever a damaged archive leads to
        why = legible(str(error)) or type(error).__name__
        raise not_read(path, f"a TorchScript archive that cannot be read ({why})") from None


def _walk(value: Any, prefix: str, depth: int) -> Iterator[tuple[str, Call]]:
    """Descriptions of the tensors among a module's attributes and its parts'."""
    if isinstance(value, Call) and value.name == TENSOR:
        yield prefix, value
    elif isinstance(value, Built) and depth < DEEPEST:
        for name, part in value.attributes.items():
            yield from _walk(part, f"{prefix}.{name}" if prefix else str(name), depth + 1)


def _filled(described: Call, archive: zipfile.ZipFile, folder: str, records: dict[_Storage, Tensor]) -> Tensor:
    """
    Raises:
        ValueError: a record that is packed, or too short for its tensor.
    """
    stored, offset, size, stride = described.arguments[:4]
    storage = _storage(stored)
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


def _storage(stored: Any) -> _Storage:
    """
    Raises:
        ValueError: not a record of numbers of a known type.
    """
    kind = stored.identity[1] if isinstance(stored, Stored) else None
    if not isinstance(kind, Name) or kind.module != "torch" or kind.name not in STORAGES:
        raise ValueError("a storage of no known type")
    return _Storage(str(stored.identity[2]), STORAGES[kind.name])
