"""Memory of large statistics: the device's, or temporary files', of which little is resident at a time.

Statistics of K paths take some K^2 numbers a unit, and every filling of the batch buffer changes them. Where they do not fit into
memory, a further pass over the images costs as much as the first one. Files cost little: they are mapped into memory, and their
pages are given back after each use. Pages that the system still has in its free memory are not read from the disk.
"""

import contextlib
import math
import mmap
import os
import shutil
import tempfile
import weakref

import torch
from torch import Tensor

POPULATE = 23  # MADV_POPULATE_WRITE of Linux: allocates pages faster than their first use does
SPARE = 1.25  # free disk, as a multiple of the statistics' size, below which no file is used


class Storage:
    """Memory for tensors: temporary files, or that of the device of each tensor."""

    def __init__(self, in_files: bool = False) -> None:
        """
        Args:
            in_files: Each tensor lies in a file of its own, which has no name and is removed with the tensor.
        """
        self.in_files = in_files
        self._maps = weakref.WeakSet[mmap.mmap]()

    def zeros(self, like: Tensor, *shape: int) -> Tensor:
        """Zeros of this shape, of another tensor's type.

        Raises:
            OSError: the disk is full.
        """
        count = math.prod(shape)
        if not self.in_files or not count:
            return like.new_zeros(shape)
        mapped = _mapped_file(count * like.element_size())
        self._maps.add(mapped)
        return torch.frombuffer(mapped, dtype=like.dtype).view(shape)  # which holds the file

    def release(self) -> None:
        """Give the memory of the files' pages back; the numbers stay in the files."""
        for mapped in self._maps:
            mapped.madvise(mmap.MADV_DONTNEED)


def _mapped_file(size: int) -> mmap.mmap:
    """A file of zeros without a name, mapped into memory."""
    with tempfile.TemporaryFile(dir=_folder()) as file:
        os.posix_fallocate(file.fileno(), 0, size)
        mapped = mmap.mmap(file.fileno(), size)
    with contextlib.suppress(OSError):  # older kernels
        mapped.madvise(POPULATE)
    mapped.madvise(mmap.MADV_DONTNEED)
    return mapped


def _folder() -> str:
    """The folder of temporary files, $TMPDIR or /var/tmp: /tmp may itself be memory."""
    candidates = (os.environ.get("TMPDIR"), "/var/tmp")
    return next((folder for folder in candidates if folder and os.access(folder, os.W_OK)), None) or tempfile.gettempdir()


def files_fit(size: float, device: torch.device) -> bool:
    """True if tensors of a device may lie in files of so many bytes: on the CPU, on a disk with room, in Linux."""
    if device.type != "cpu" or not hasattr(os, "posix_fallocate") or not hasattr(mmap, "MADV_DONTNEED"):
        return False
    return shutil.disk_usage(_folder()).free > SPARE * size
