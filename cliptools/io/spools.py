"""Safetensors files that are larger than memory: tensors arrive row by row (RowSpool) or one by one (TensorSpool).

The header of a safetensors file comes first and depends on all tensors, so their bytes are kept in a temporary file until then.
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

DTYPES = {"float64": "F64", "float32": "F32", "int64": "I64", "int32": "I32", "uint8": "U8"}


class RowSpool:
    """Collects tensors by rows, in any order, and writes them as one safetensors file."""

    def __init__(self, folder: Path | None) -> None:
        """
        Args:
            folder: Folder of the temporary file [default: the system's folder for temporary files].

        Raises:
            CliptoolsError: no file can be created there.
        """
        self.folder = str(folder or tempfile.gettempdir())
        try:
            self._file = tempfile.TemporaryFile(prefix="cliptools-", dir=self.folder)  # noqa: SIM115 - closed by `close`
        except OSError as error:
            raise CliptoolsError(f"{self.folder}: cannot write here ({error.strerror})") from None
        self._layout: dict[str, tuple[str, list[int], int, int]] = {}
        self._end = 0

    def close(self) -> None:
        """Delete the temporary file."""
        with contextlib.suppress(OSError):  # a full disk, which `put` has reported
            self._file.close()

    def put(self, name: str, rows: int, start: int, values: np.ndarray) -> None:
        """Add rows from `start` on to a tensor of `rows` rows; every row must be added once.

        Raises:
            CliptoolsError: the temporary file cannot be written.
        """
        row_bytes = values.dtype.itemsize * math.prod(values.shape[1:])
        if name not in self._layout:
            size = rows * row_bytes
            self._layout[name] = (DTYPES[str(values.dtype)], [rows, *values.shape[1:]], self._end, self._end + size)
            self._end += size
        offset = self._layout[name][2]
        try:
            self._file.seek(offset + start * row_bytes)
            self._file.write(np.ascontiguousarray(values).tobytes())
            self._file.flush()
        except OSError as error:
            raise CliptoolsError(f"{self.folder}: tensors cannot be kept here ({error.strerror})") from None

    def digest(self) -> str:
        """Return the sha256 of all tensors, in the order in which they were first added."""
        self._file.seek(0)
        return hashlib.file_digest(self._file, "sha256").hexdigest()

    def write(self, stream: BufferedIOBase, metadata: str) -> None:
        """Write the complete file, with `metadata` under the key KEY of its header."""
        layout = {
            name: {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}
            for name, (dtype, shape, start, stop) in self._layout.items()
        }
        header = json.dumps({"__metadata__": {KEY: metadata}, **layout}, ensure_ascii=False, separators=(",", ":")).encode()
        header += b" " * (-len(header) % 8)
        stream.write(struct.pack("<Q", len(header)) + header)
        self._file.seek(0)
        shutil.copyfileobj(self._file, stream, 1 << 20)


class TensorSpool:
    """Collects float32 tensors one by one and writes them as one safetensors file; memory use does not grow with their bytes."""

    def __init__(self) -> None:
        """
        Raises:
            CliptoolsError: no temporary file can be created.
        """
        try:
            self._file = tempfile.TemporaryFile(prefix="cliptools-")  # noqa: SIM115 - closed by __exit__
        except OSError as error:
            raise _spool_error(error) from None
        self._layout: dict[str, dict[str, object]] = {}
        self._end = 0

    def __enter__(self) -> "TensorSpool":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with contextlib.suppress(OSError):  # a full disk, which `add` has reported
            self._file.close()

    def add(self, name: str, tensor: np.ndarray) -> None:
        """Add a tensor under a new name.

        Raises:
            CliptoolsError: the disk is full, or the tensor holds NaN or infinity.
        """
        assert name not in self._layout
        check_finite({name: tensor})
        size = 4 * math.prod(tensor.shape)
        try:
            self._file.write(np.ascontiguousarray(tensor, dtype="<f4").tobytes())
            self._file.flush()
        except OSError as error:
            raise _spool_error(error) from None
        self._layout[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [self._end, self._end + size]}
        self._end += size

    def write(self, stream: BufferedIOBase, metadata: str) -> None:
        """Write the complete file, with `metadata` under the key KEY of its header."""
        header = json.dumps({"__metadata__": {KEY: metadata}, **self._layout}, ensure_ascii=False, separators=(",", ":")).encode()
        header += b" " * (-len(header) % 8)
        stream.write(struct.pack("<Q", len(header)) + header)
        self._file.seek(0)
        shutil.copyfileobj(self._file, stream, 1 << 20)


def _spool_error(error: OSError) -> CliptoolsError:
    """Return the error for a temporary file that cannot be written."""
    folder = tempfile.tempdir or "a temporary folder"
    return CliptoolsError(f"heat maps cannot be kept in {folder} ({error.strerror}; TMPDIR names another folder)")
