"""What lies beside a model's weights is never run: no pickle's, and none that a model's folder brings or names."""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from cliptools.ground.shared_change import SharedChange

ONLY, NOT_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"  # as torch.load reads them
FORCED = {ONLY: "1", NOT_ONLY: None}


@contextmanager
def _refusing() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in FORCED}
    _set(FORCED)
    try:
        if importlib.util.find_spec("transformers") is None:
            yield
            return
        from transformers import dynamic_module_utils

        module: Any = dynamic_module_utils
        kept = module.TIME_OUT_REMOTE_CODE, module.get_cached_module_file
        module.TIME_OUT_REMOTE_CODE, module.get_cached_module_file = 0, _refuse
        try:
            yield
        finally:
            module.TIME_OUT_REMOTE_CODE, module.get_cached_module_file = kept
    finally:
        _set(before)


no_foreign_code = SharedChange(_refusing)
"""While this context lasts, torch unpickles nothing but tensors, and transformers loads no module of a model's own.

It holds whatever a configuration asks for (`trust_remote_code` may stand among its tokenizer's settings), and nobody is asked
whether to trust a model, which transformers otherwise does on standard input. It holds for the whole process, and ends with the
last thread that needs it.
"""


def _set(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _refuse(folder: Any, *arguments: Any, **options: Any) -> NoReturn:
    raise ValueError(f"{folder} wants code of its own to be run, which is never done")
