"""A safetensors file whose tensors are filled by rows, in whatever order: none needs to be in memory whole.

A safetensors file of tensors that come one by one: their bytes wait in a temporary file, for the header comes first.
"""

import contextlib
import hashlib
import json
import math
import shutil
import struct
import tempfile
from io import BufferedIOBase
from pathlib import Path
from types import TracebackType

import numpy as np

from cliptools.errors import CliptoolsError
from cliptools.io.bundle import check_finite
from cliptools.io.header import KEY

NAMES = {"float64": "F64", "float32": "F32", "int64": "I64", "int32": "I32", "uint8": "U8"}


class RowSpool:
    """Tensors on their way into a file: their bytes wait where that will be, for the header comes first."""

    def __init__(self, folder: Path | None) -> None:
        """
        Args:
            folder: Where to wait; None: where temporary files go.

        Raises:
            CliptoolsError: no file can be made there.
        """
        self.where = str(folder or tempfile.gettempdir())
        try:
            self._file = tempfile.TemporaryFile(prefix="cliptools-", dir=self.where)  # noqa: SIM115 - closed by `close`
        except OSError as error:
            raise CliptoolsError(f"{self.where}: cannot write here ({error.strerror})") from None
        self._layout: dict[str, tuple[str, list[int], int, int]] = {}
        self._end = 0

    def close(self) -> None:
        """Let go of what waits."""
        with contextlib.suppress(OSError):  # a disk that is full, of which `put` has told
            self._file.close()

    def put(self, name: str, rows: int, start: int, values: np.ndarray) -> None:
        """Rows from `start` on, of a tensor that has `rows` of them. All are to be put, once."""
        row_bytes = values.dtype.itemsize * math.prod(values.shape[1:])
        if name not in self._layout:
            size = rows * row_bytes
            self._layout[name] = (NAMES[str(values.dtype)], [rows, *values.shape[1:]], self._end, self._end + size)
            self._end += size
        begins = self._layout[name][2]
        try:
            self._file.seek(begins + start * row_bytes)
            self._file.write(np.ascontiguousarray(values).tobytes())
            self._file.flush()
        except OSError as error:
            raise CliptoolsError(f"{self.where}: tensors cannot be kept here ({error.strerror})") from None

    def digest(self) -> str:
        """sha256 of the tensors, one after the other."""
        self._file.seek(0)
        return hashlib.file_digest(self._file, "sha256").hexdigest()

    def write(self, stream: BufferedIOBase, said: str) -> None:
        """The whole file, with `said` under the one key of its metadata."""
        layout = {
            name: {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}
            for name, (dtype, shape, start, stop) in self._layout.items()
        }
        header = json.dumps({"__metadata__": {KEY: said}, **layout}, ensure_ascii=False, separators=(",", ":")).encode()
        header += b" " * (-len(header) % 8)
        stream.write(struct.pack("<Q", len(header)) + header)
        self._file.seek(0)
        shutil.copyfileobj(self._file, stream, 1 << 20)


class TensorSpool:
    """Collects float32 tensors and writes them as one safetensors file; memory does not grow with their number's bytes."""

    def __init__(self) -> None:
        """
        Raises:
            CliptoolsError: no temporary file can be made.
        """
        try:
            self._file = tempfile.TemporaryFile(prefix="cliptools-")  # noqa: SIM115 - closed by __exit__
        except OSError as error:
            raise _cannot_keep(error) from None
        self._layout: dict[str, dict[str, object]] = {}
        self._end = 0

    def __enter__(self) -> "TensorSpool":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with contextlib.suppress(OSError):  # a disk that is full, of which `add` has told
            self._file.close()

    def add(self, name: str, tensor: np.ndarray) -> None:
        """One more tensor, under a name not used before.

        Raises:
            CliptoolsError: there is no room for it, or it holds NaN or infinity.
        """
        assert name not in self._layout
        check_finite({name: tensor})
        size = 4 * math.prod(tensor.shape)
        try:
            self._file.write(np.ascontiguousarray(tensor, dtype="<f4").tobytes())
            self._file.flush()
        except OSError as error:
            raise _cannot_keep(error) from None
        self._layout[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [self._end, self._end + size]}
        self._end += size

    def write(self, stream: BufferedIOBase, said: str) -> None:
        """The whole file, with `said` under the one key of its metadata."""
        header = json.dumps({"__metadata__": {KEY: said}, **self._layout}, ensure_ascii=False, separators=(",", ":")).encode()
        header += b" " * (-len(header) % 8)
        stream.write(struct.pack("<Q", len(header)) + header)
        self._file.seek(0)
        shutil.copyfileobj(self._file, stream, 1 << 20)


def _cannot_keep(error: OSError) -> CliptoolsError:
    where = tempfile.tempdir or "a temporary folder"
    return CliptoolsError(f"heat maps cannot be kept in {where} ({error.strerror}; TMPDIR names another folder)")
