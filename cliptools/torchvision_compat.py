"""Imports of torchvision and open_clip that work with a torch that torchvision's compiled operators were not built for.

The registry's torchvision needs CUDA libraries; with a CPU build of torch its import ends with "operator torchvision::nms
does not exist", and so does open_clip's. cliptools does not use these operators, so it is enough to define their schemas.
"""

import importlib
import sys
from typing import Any

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
