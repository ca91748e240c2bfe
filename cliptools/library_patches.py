"""Libraries that need care: changes to the process that they need, and files of theirs that are read without importing them.

Changes are temporary ones that threads share, and a torchvision that can be imported.

The registry's torchvision needs CUDA libraries; with a CPU build of torch its import ends with "operator torchvision::nms
does not exist", and so does open_clip's. cliptools does not use these operators, so it is enough to define their schemas.
"""

import importlib
import importlib.util
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any


class SharedChange:
    """A change that threads share: the first thread to enter applies it, the last to leave reverts it.

    With a context per thread, the first thread to leave would revert what the others still need.
    """

    def __init__(self, change: Callable[[], AbstractContextManager[None]]) -> None:
        """
        Args:
            change: Returns a context that applies the change on entry and reverts it on exit.
        """
        self._change, self._lock = change, threading.Lock()
        self._users = 0
        self._context: AbstractContextManager[None] | None = None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Keep the change applied within this context."""
        with self._lock:
            if self._users == 0:
                self._context = self._change()
                self._context.__enter__()
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0 and self._context is not None:
                    self._context.__exit__(None, None, None)
                    self._context = None


_kept_alive: list[Any] = []  # a Library removes its definitions when it is garbage collected


def ensure_torchvision() -> None:
    """Import torchvision; if only the operator schemas are missing, define them and import it again.

    Raises:
        RuntimeError: the import of torchvision fails for another reason.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        import torch

        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept_alive.append(library)
        for module in [m for m in sys.modules if m.split(".")[0] == "torchvision"]:
            del sys.modules[module]
        importlib.import_module("torchvision")


def import_open_clip() -> Any:
    """Import open_clip and return it, as late as a caller needs it: the import takes seconds.

    Raises:
        RuntimeError: the import of torchvision fails.
    """
    ensure_torchvision()
    return importlib.import_module("open_clip")


DUPLICATE_OPENMP = "KMP_DUPLICATE_LIB_OK"
"""Variable that threadpoolctl sets when it is imported; scipy.io imports it."""


def import_scipy_io() -> Any:
    """Import scipy.io and return it, and leave the environment of the process as it was."""
    unset = DUPLICATE_OPENMP not in os.environ
    module = importlib.import_module("scipy.io")
    if unset:
        os.environ.pop(DUPLICATE_OPENMP, None)
    return module


def installed_file(package: str, name: str) -> Path | None:
    """Return a file or folder of an installed package without importing the package; None if it is missing."""
    spec = importlib.util.find_spec(package)
    path = Path(spec.origin).parent / name if spec and spec.origin else None
    return path if path and path.exists() else None


def imagenet_lists() -> ModuleType:
    """Return open_clip's module with ImageNet's class names and CLIP's templates.

    Its file imports nothing and is run alone; importing open_clip would take seconds. A version of open_clip that has moved the
    lists is imported whole.
    """
    path = installed_file("open_clip", "zero_shot_metadata.py")
    spec = importlib.util.spec_from_file_location("zero_shot_metadata", path) if path else None
    if spec is None or spec.loader is None:
        module: ModuleType = import_open_clip()
        return module
    lists = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(lists)
    return lists
