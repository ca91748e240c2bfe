"""A safetensors file whose tensors are filled by rows, in whatever order: none needs to be in memory whole."""

import contextlib
import hashlib
import json
import math
import shutil
import struct
import tempfile
from io import BufferedIOBase
from pathlib import Path

import numpy as np

from cliptools.ground.errors import CliptoolsError
from cliptools.ground.provenance import KEY

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
