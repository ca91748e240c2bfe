"""Files from the Hugging Face hub, with its log messages in one line, and protection from code that models bring.

While a model is loaded, neither code in pickles nor code that a model's folder contains or names is run.
"""

import importlib.util
import logging
import os
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn
from urllib.error import HTTPError, URLError

import huggingface_hub
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils.logging import get_logger

from cliptools.console import note
from cliptools.errors import first_line
from cliptools.library_patches import SharedChange

CLIENT = "huggingface_hub"
SILENT = "the hub does not answer, asking again; HF_HUB_OFFLINE=1 uses the cache without asking"
OUT_OF_REACH = "not in the cache, and the hub cannot be reached"
MISSING = re.compile(r"No module named '(\w+)'|requires the (\w+) library")
"""Messages about a missing package, of Python and of transformers."""


@contextmanager
def _quiet_hub() -> Iterator[None]:
    get_logger()  # sets up the client's log on the first call
    client, root = logging.getLogger(CLIENT), logging.getLogger()
    original = client.handlers, client.propagate, root.handlers
    client.handlers, client.propagate = [_RetryHandler()], False
    root.handlers = root.handlers or [logging.NullHandler()]  # else the first message adds a handler that prints
    try:
        yield
    finally:
        client.handlers, client.propagate, root.handlers = original


quiet_hub = SharedChange(_quiet_hub)
"""Context in which the hub's client reports once that it has to wait, and open_clip logs nothing."""


class _RetryHandler(logging.Handler):
    """Reports once that requests fail, and drops all other messages of the client."""

    reported = False

    def emit(self, record: logging.LogRecord) -> None:
        if "thrown while requesting" in record.getMessage() and not self.reported:
            self.reported = True
            note(SILENT)


def reason(error: BaseException, advice: str = "") -> str:
    """Return in one line why something could not be loaded: a missing package, no network, or else the message of the error.

    Args:
        advice: Advice for a missing network.
    """
    if isinstance(error, ImportError) and (match := MISSING.search(str(error))):
        package = (match[1] or match[2]).lower()
        return f"it needs {package}, which is not installed: pip install {package}"
    network = LocalEntryNotFoundError, OfflineModeIsEnabled, URLError, ConnectionError, TimeoutError, socket.gaierror
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, network) and not isinstance(cause, HTTPError):
            return "; ".join(filter(None, (OUT_OF_REACH, advice)))
        cause = cause.__cause__ or cause.__context__
    return first_line(error)


def hub_file(hub_id: str, names: Sequence[str]) -> Path:
    """Return the cached path of the first of these files that a hub's model has; download it if it is not in the cache.

    Raises:
        Exception: any error of the hub's client, if the model has none of the files.
    """
    not_found: Exception = FileNotFoundError(f"{hub_id} has none of {', '.join(names)}")
    for name in names:
        try:
            return Path(huggingface_hub.hf_hub_download(hub_id, name))
        except LocalEntryNotFoundError as error:  # the hub cannot be reached: another file may be in the cache
            cached = (huggingface_hub.try_to_load_from_cache(hub_id, other_name) for other_name in names)
            if (path := next((path for path in cached if isinstance(path, str)), None)) is None:
                raise error from None
            return Path(path)
        except EntryNotFoundError:
            continue
    raise not_found


ONLY, NOT_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"  # variables that torch.load reads
FORCED = {ONLY: "1", NOT_ONLY: None}


@contextmanager
def _refuse_foreign_code() -> Iterator[None]:
    original = {name: os.environ.get(name) for name in FORCED}
    _set(FORCED)
    try:
        if importlib.util.find_spec("transformers") is None:
            yield
            return
        from transformers import dynamic_module_utils

        module: Any = dynamic_module_utils
        log = logging.getLogger("transformers")
        originals = module.TIME_OUT_REMOTE_CODE, module.get_cached_module_file, log.level
        module.TIME_OUT_REMOTE_CODE, module.get_cached_module_file = 0, _refuse_module
        log.setLevel(logging.ERROR)  # it warns of ids in a configuration of SigLIP that nothing reads
        try:
            yield
        finally:
            module.TIME_OUT_REMOTE_CODE, module.get_cached_module_file, level = originals
            log.setLevel(level)
    finally:
        _set(original)


no_foreign_code = SharedChange(_refuse_foreign_code)
"""Context in which torch unpickles only tensors, and transformers loads no code of a model and logs only errors.

It overrides settings of the model (`trust_remote_code` in those of its tokenizer), and transformers does not ask on standard
input whether to trust it. It applies to the whole process until the last thread leaves it.
"""


def _set(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _refuse_module(folder: Any, *arguments: Any, **options: Any) -> NoReturn:
    raise ValueError(f"{folder} requires code of its own, which is never run")
