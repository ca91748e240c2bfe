"""The errors that commands report, each with a message of one line."""


class CliptoolsError(Exception):
    """An error the user can act on. The message is one line: where, what was found, what was expected. Exit code 1."""


class UsageError(CliptoolsError):
    """An argument of a function or an option of a command is invalid. Exit code 2."""


class ModelError(CliptoolsError):
    """A model cannot be loaded, or a method does not apply to it."""


class StreamError(CliptoolsError):
    """A bundle or a stream of records is damaged or of the wrong kind."""


class ImageError(CliptoolsError):
    """An image cannot be read."""


class TextError(CliptoolsError):
    """A file of texts or classes cannot be read, is malformed or is empty."""


class SingleItemError(RuntimeError):
    """Memory ran out with a batch of one item, so a smaller batch cannot help. The message is the allocator's."""

    def __init__(self, message: str, kind: str) -> None:
        """
        Args:
            kind: Kind of the item: image, window, picture, text, unit.
        """
        super().__init__(message)
        self.kind = kind


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error of Python or torch, on any device, says that memory ran out."""
    phrases = ("can't allocate memory", "not enough memory", "Invalid buffer size", "out of memory", "ALLOC_FAILED", "bad_alloc")
    return (
        isinstance(error, MemoryError | SingleItemError)
        or type(error).__name__ == "OutOfMemoryError"
        or any(phrase in str(error) for phrase in phrases)
    )


def first_line(error: BaseException) -> str:
    """Return the first line of another library's error message; the name of its type if it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
