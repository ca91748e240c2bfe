"""What comes from a hub: its client's many words in one line, and what is said where it does not answer."""

import logging
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError, URLError

from cliptools.ground.errors import first_line
from cliptools.ground.progress import note
from cliptools.ground.shared_change import SharedChange

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
