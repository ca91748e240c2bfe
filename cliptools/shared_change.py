"""Temporary changes to the whole process, shared by threads."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager


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
        self._held: AbstractContextManager[None] | None = None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Keep the change applied within this context."""
        with self._lock:
            if self._users == 0:
                self._held = self._change()
                self._held.__enter__()
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0 and self._held is not None:
                    self._held.__exit__(None, None, None)
                    self._held = None
