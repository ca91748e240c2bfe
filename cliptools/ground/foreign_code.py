"""What lies beside a model's weights is never run: no pickle's, and none that a model's folder brings or names."""

import importlib.util
import os
from typing import Any, NoReturn

ONLY, NOT_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"  # as torch.load reads them


def refuse_foreign_code() -> None:
    """From now on, in this process, torch unpickles nothing but tensors, and transformers loads no module of a model's own.

    This holds whatever a configuration asks for (`trust_remote_code` may stand among its tokenizer's settings), and nobody
    is asked whether to trust a model, which transformers otherwise does on standard input.
    """
    os.environ.pop(NOT_ONLY, None)
    os.environ[ONLY] = "1"
    if importlib.util.find_spec("transformers") is None:
        return
    from transformers import dynamic_module_utils

    changed: Any = dynamic_module_utils
    changed.TIME_OUT_REMOTE_CODE = 0
    changed.get_cached_module_file = _refuse


def _refuse(folder: Any, *arguments: Any, **options: Any) -> NoReturn:
    raise ValueError(f"{folder} wants code of its own to be run, which is never done")
