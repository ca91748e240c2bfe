"""A safetensors file of tensors that come one by one: their bytes wait in a temporary file, for the header comes first."""

import contextlib
import json
import math
import shutil
import struct
import tempfile
from io import BufferedIOBase
from types import TracebackType

import numpy as np

from cliptools.ground.bundle import check_finite
from cliptools.ground.errors import CliptoolsError
from cliptools.ground.provenance import KEY


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
