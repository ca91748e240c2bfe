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
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

from cliptools.console import OWN_PROCESS


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
COMPILER = "torch._dynamo.utils"
"""Module of torch's compiler, which loads 1,500 others; torchvision imports one function of it, which no command calls."""
ADAPTERS = {"hf_model": "transformers", "timm_model": "timm"}
"""Modules of open_clip with towers of other libraries, and these libraries; open_clip can be imported without them."""


class _LaterCompiler(ModuleType):
    """Stands in for COMPILER while torchvision is imported, and loads the real module when it is needed."""

    def is_compile_supported(self, *arguments: Any) -> bool:
        """Return the answer of the real function."""
        return bool(self._real().is_compile_supported(*arguments))

    def __getattr__(self, name: str) -> Any:
        """Return any other name from the real module, at once; it has no name that only the import system asks for."""
        return getattr(self._real(), name) if not name.startswith("__") else object.__getattribute__(self, name)

    def _real(self) -> Any:
        if sys.modules.get(COMPILER) is self:
            del sys.modules[COMPILER]
        return importlib.import_module(COMPILER)


@contextmanager
def _replaced(modules: Mapping[str, ModuleType | None]) -> Iterator[None]:
    """Within the block an import of these modules gives the stand-ins, or fails for None; loaded modules are not replaced."""
    stand_ins = {name: module for name, module in modules.items() if name not in sys.modules}
    sys.modules.update(stand_ins)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name, module in stand_ins.items():
            if name in sys.modules and sys.modules[name] is module:
                del sys.modules[name]


def without_transformers() -> AbstractContextManager[None]:
    """Return a context in which transformers cannot be imported, unless it is loaded or the process is not a command's."""
    return _replaced({"transformers": None}) if OWN_PROCESS.get() else nullcontext()


def ensure_torchvision() -> None:
    """Import torchvision; if only the operator schemas are missing, define them and import it again.

    A command that has the process to itself leaves out torch's compiler until torchvision calls it.

    Raises:
        RuntimeError: the import of torchvision fails for another reason.
    """
    with _replaced({COMPILER: _LaterCompiler(COMPILER)} if OWN_PROCESS.get() else {}):
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
            _forget("torchvision")
            importlib.import_module("torchvision")


def _forget(package: str) -> None:
    """Remove a package from the imported modules, so that the next import runs it again."""
    for module in [name for name in sys.modules if name.split(".")[0] == package]:
        del sys.modules[module]


def import_open_clip() -> Any:
    """Import open_clip and return it, as late as a caller needs it: the import takes seconds.

    A command that has the process to itself leaves out transformers and timm until `complete_open_clip`.

    Raises:
        RuntimeError: the import of torchvision fails.
    """
    if (open_clip := sys.modules.get("open_clip")) is not None:
        return open_clip
    ensure_torchvision()
    if OWN_PROCESS.get():
        try:
            with _replaced(dict.fromkeys(ADAPTERS.values())):
                return importlib.import_module("open_clip")
        except ImportError:  # a version of open_clip that needs these libraries
            _forget("open_clip")
    return importlib.import_module("open_clip")


def complete_open_clip(libraries: Collection[str]) -> None:
    """Import what `import_open_clip` left out, for models with towers of these libraries.

    The modules run again in their namespaces, where the classes that are in use find the libraries.
    """
    import_open_clip()
    for name, library in ADAPTERS.items():
        module = sys.modules.get(f"open_clip.{name}")
        if (
            library in libraries
            and module is not None
            and getattr(module, library, module) is None
            and importlib.util.find_spec(library)
        ):
            classes = {key: value for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__}
            importlib.reload(module)
            vars(module).update(classes)


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
