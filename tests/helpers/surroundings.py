"""The state of a process that a library must leave unchanged."""

import ctypes
import importlib
import locale
import logging
import os
import random
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFile, _imaging

for library in ("scipy.sparse", "scipy.special", "scipy.stats", "huggingface_hub", "transformers"):
    importlib.import_module(library)  # these add filters, handlers and finders of their own when they are first imported
LOGGERS = ("PIL", "huggingface_hub", "transformers", "diffusers", "open_clip", "timm", "torch", "matplotlib")


def state() -> dict[str, Any]:
    """Return the complete state by name, in a form that can be compared."""
    return _of_python() | _of_libraries()


def _of_python() -> dict[str, Any]:
    mask = os.umask(0)
    os.umask(mask)
    found: dict[str, Any] = {f"environ {key}": value for key, value in os.environ.items() if key != "PYTEST_CURRENT_TEST"}
    found |= {"cwd": Path.cwd(), "umask": mask, "locale": locale.setlocale(locale.LC_ALL)}
    if "beartype" not in sys.modules:  # the tests' checks of types, which draw from it
        found["random"] = hash(random.getstate())
    found |= {"filters": list(warnings.filters), "showwarning": warnings.showwarning}
    found |= {f"meta_path {number}": finder for number, finder in enumerate(sys.meta_path)}
    found |= {"path": list(sys.path), "path_hooks": list(sys.path_hooks), "excepthook": sys.excepthook, "argv": list(sys.argv)}
    found |= {"stdin": sys.stdin, "stdout": sys.stdout, "stderr": sys.stderr}
    found |= {f"errors {name}": getattr(getattr(sys, name), "errors", None) for name in ("stdout", "stderr")}
    found |= {f"signal {number.name}": signal.getsignal(number) for number in signal.valid_signals() if hasattr(number, "name")}
    for name in (None, *LOGGERS):
        log = logging.getLogger(name)
        found[f"log {name}"] = (log.level, log.propagate, log.disabled, [id(each) for each in log.handlers], list(log.filters))
    return found | {"log disabled below": logging.root.manager.disable, "recursion": sys.getrecursionlimit()}


def _of_libraries() -> dict[str, Any]:
    found: dict[str, Any] = {f"numpy {key}": value for key, value in np.geterr().items()}
    found["numpy random"] = hash(tuple(np.random.get_state()[1].tolist()))  # type: ignore[union-attr, index]
    found["numpy printing"] = repr(np.get_printoptions())
    found |= {"torch random": hash(torch.get_rng_state().numpy().tobytes()), "threads": torch.get_num_threads()}
    found |= {"dtype": torch.get_default_dtype(), "device": torch.get_default_device(), "grad": torch.is_grad_enabled()}
    found |= {"inference": torch.is_inference_mode_enabled(), "deterministic": torch.are_deterministic_algorithms_enabled()}
    found |= {"matmul": torch.get_float32_matmul_precision(), "tf32": torch.backends.cudnn.allow_tf32}
    found["bf16 sums"] = torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
    found |= {"pixels": Image.MAX_IMAGE_PIXELS, "truncated": ImageFile.LOAD_TRUNCATED_IMAGES, "block": ImageFile.MAXBLOCK}
    library = ctypes.CDLL(_imaging.__file__)
    for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
        setter = getattr(library, name)
        setter.argtypes, setter.restype = [ctypes.c_void_p], ctypes.c_void_p
        found[name] = setter(None)
        setter(found[name])
    if "transformers" in sys.modules:
        from transformers import dynamic_module_utils as remote
        from transformers.utils import logging as speech

        found |= {f"transformers {name}": value for name, value in vars(remote).items() if not name.startswith("__")}
        found["transformers progress"] = speech.is_progress_bar_enabled()
    if "diffusers" in sys.modules:
        from diffusers.utils import logging as speech

        found["diffusers progress"] = speech.is_progress_bar_enabled()
    if "huggingface_hub" in sys.modules:
        from huggingface_hub.utils import are_progress_bars_disabled

        found["hub progress"] = are_progress_bars_disabled()
    if "matplotlib" in sys.modules:
        found["matplotlib"] = dict(sys.modules["matplotlib"].rcParams)
    return found


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return the differences as text."""
    lines = []
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        if isinstance(old, list) and isinstance(new, list) and old != new:
            lines += [f"{name}: + {each!r}" for each in new if each not in old] + [
                f"{name}: - {each!r}" for each in old if each not in new
            ]
            lines += [f"{name}: another order"] if len(old) == len(new) else []
        elif old != new or (name in before) != (name in after):
            lines.append(f"{name}: {old!r} -> {new!r}")
    return lines
