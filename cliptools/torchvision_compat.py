"""Let torchvision import beside a torch that its compiled operators were not built for.

The registry's torchvision looks for CUDA libraries; beside a CPU build of torch its import ends with "operator
torchvision::nms does not exist", and open_clip's with it. Nothing here uses those operators, so it is enough that their
schemas exist. Where torchvision imports, nothing is done.
"""

import importlib
import sys
from typing import Any

_kept_alive: list[Any] = []  # a Library undoes its definitions when it is collected


def ensure_torchvision() -> None:
    """Import torchvision, defining the missing operator schemas first where that is what fails.

    Raises:
        RuntimeError: torchvision fails for another reason.
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
