"""Arrays and safetensors files that are larger than memory.

By hand, because safetensors writes only tensors that are all in memory. The header of a file comes first and depends on all
tensors, so their bytes are kept in a temporary file until then.
"""

import contextlib
import hashlib
import json
import math
import shutil
import struct
import tempfile
import weakref
from io import BufferedIOBase
from pathlib import Path

import numpy as np

from cliptools.errors import CliptoolsError
from cliptools.io.bundle import check_finite
from cliptools.io.bundle_schema import CODES
from cliptools.io.header import KEY

IN_MEMORY = 1 << 26  # bytes of a Scratch


class Scratch:
    """Bytes of arrays, kept in memory up to IN_MEMORY and beyond that in a temporary file, which is deleted with the object."""

    def __init__(self, content: str) -> None:
        """
        Args:
            content: Name of the arrays in messages.
        """
        self._content = content
        self._file = tempfile.SpooledTemporaryFile(IN_MEMORY, prefix="cliptools-")  # noqa: SIM115 - closed with self
        weakref.finalize(self, self._file.close)

    def put(self, offset: int, values: np.ndarray) -> None:
        """Write the bytes of an array.

        Raises:
            CliptoolsError: the temporary file cannot be written.
        """
        try:
            self._file.seek(offset)
            self._file.write(np.ascontiguousarray(values).tobytes())
        except OSError as error:
            place = f"{tempfile.gettempdir()}: {self._content} cannot be kept here"
            raise CliptoolsError(f"{place} ({error.strerror}; TMPDIR names another folder)") from None

    def get(self, offset: int, count: int, dtype: np.dtype) -> np.ndarray:
        """Read so many numbers of a type, as an array with one axis."""
        self._file.seek(offset)
        return np.frombuffer(self._file.read(count * dtype.itemsize), dtype)


class TensorSpool:
    """Collects tensors, whole or by rows in any order, and writes them as one safetensors file."""

    def __init__(self, folder: Path | None = None) -> None:
        """
        Args:
            folder: Folder of the temporary file [default: the system's folder for temporary files].

        Raises:
            CliptoolsError: no file can be created there.
        """
        self._folder = folder
        try:
            self._file = tempfile.TemporaryFile(prefix="cliptools-", dir=folder)  # noqa: SIM115 - closed by `close`
        except OSError as error:
            raise self._error(error) from None
        self._layout: dict[str, tuple[str, list[int], int, int]] = {}
        self._end = 0

    def _error(self, error: OSError) -> CliptoolsError:
        """Return the error for a temporary file that cannot be written."""
        folder, hint = (self._folder, "") if self._folder else (tempfile.tempdir or "TMPDIR", "; TMPDIR names another folder")
        return CliptoolsError(f"{folder}: tensors cannot be kept here ({error.strerror}{hint})")

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
            self._layout[name] = (CODES[str(values.dtype)], [rows, *values.shape[1:]], self._end, self._end + size)
            self._end += size
        offset = self._layout[name][2]
        try:
            self._file.seek(offset + start * row_bytes)
            self._file.write(np.ascontiguousarray(values).tobytes())
            self._file.flush()
        except OSError as error:
            raise self._error(error) from None

    def put_whole(self, name: str, values: np.ndarray) -> None:
        """Add a whole tensor as float32 under a new name.

        Raises:
            CliptoolsError: the temporary file cannot be written, or the tensor holds NaN or infinity.
        """
        assert name not in self._layout
        check_finite({name: values})
        self.put(name, len(values), 0, values.astype(np.float32, copy=False))

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
