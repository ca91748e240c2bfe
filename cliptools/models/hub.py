"""What comes from a hub: its client's many words in one line, and what is said where it does not answer.

What lies beside a model's weights is never run: no pickle's, and none that a model's folder brings or names.
"""

import importlib.util
import logging
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn
from urllib.error import HTTPError, URLError

from cliptools.console import note
from cliptools.errors import first_line
from cliptools.shared_change import SharedChange

CLIENT = "huggingface_hub"
SILENT = "the hub does not answer, asking again; HF_HUB_OFFLINE=1 takes what the cache has without asking"
OUT_OF_REACH = "not in the cache, and the hub cannot be reached"


@contextmanager
def _in_a_line() -> Iterator[None]:
    from huggingface_hub.utils.logging import get_logger

    get_logger()  # which sets the client's log up, the first time
    client, root = logging.getLogger(CLIENT), logging.getLogger()
    before = client.handlers, client.propagate, root.handlers
    client.handlers, client.propagate = [_Waiting()], False
    root.handlers = root.handlers or [logging.NullHandler()]  # where there is none, whoever logs first makes one that prints
    try:
        yield
    finally:
        client.handlers, client.propagate, root.handlers = before


hub_in_a_line = SharedChange(_in_a_line)
"""While something is loaded, the hub's client says once that it has to wait, and open_clip's log nothing."""


class _Waiting(logging.Handler):
    """Says once that requests fail; all else that the client logs is its own business."""

    said = False

    def emit(self, record: logging.LogRecord) -> None:
        if "thrown while requesting" in record.getMessage() and not self.said:
            self.said = True
            note(SILENT)


def reason(error: BaseException, instead: str = "") -> str:
    """Why something could not be loaded, in one line: that the network is the matter, or else what the error says.

    Args:
        instead: What to do where the network is the matter.
    """
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    network = LocalEntryNotFoundError, OfflineModeIsEnabled, URLError, ConnectionError, TimeoutError, socket.gaierror
    behind: BaseException | None = error
    while behind is not None:
        if isinstance(behind, network) and not isinstance(behind, HTTPError):
            return "; ".join(filter(None, (OUT_OF_REACH, instead)))
        behind = behind.__cause__ or behind.__context__
    return first_line(error)


def hub_file(hub_id: str, names: Sequence[str]) -> Path:
    """The first of these files that a hub's model has, in the cache, where it is fetched into if it is not there.

    Raises:
        Exception: whatever the hub's client raises where there is none of them.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    missing: Exception = FileNotFoundError(f"{hub_id} has none of {', '.join(names)}")
    for name in names:
        try:
            return Path(hf_hub_download(hub_id, name))
        except LocalEntryNotFoundError as error:  # it cannot be reached: others may have been fetched before
            kept = (try_to_load_from_cache(hub_id, other) for other in names)
            if (path := next((path for path in kept if isinstance(path, str)), None)) is None:
                raise error from None
            return Path(path)
        except EntryNotFoundError:
            continue
    raise missing


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
