"""Changes to the whole process that last only while somebody needs them."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager


class SharedChange:
    """A change that threads share: the first to enter makes it, the last to leave takes it back.

    With one such context a thread, the first to leave would take back what the others still need, and the last would put back
    what the first has changed.
    """

    def __init__(self, change: Callable[[], AbstractContextManager[None]]) -> None:
        """
        Args:
            change: Makes the change when it is entered, and takes it back when it is left.
        """
        self._change, self._lock = change, threading.Lock()
        self._users = 0
        self._held: AbstractContextManager[None] | None = None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """The change is in force within this context."""
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
