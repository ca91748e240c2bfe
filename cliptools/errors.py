"""What can go wrong, said in one line."""


class CliptoolsError(Exception):
    """An error the user can act on. The message is one line: what was expected, what was found, where. Exit code 1."""


class UsageError(CliptoolsError):
    """The command line itself asks for what cannot be. Exit code 2."""


class ModelError(CliptoolsError):
    """A model that cannot be loaded, or that a method does not apply to."""


class StreamError(CliptoolsError):
    """A bundle or record stream that is not what it should be."""


class ImageError(CliptoolsError):
    """A picture that cannot be read."""


class TextError(CliptoolsError):
    """A pool of texts that cannot be read or is empty."""


class SingleItemError(RuntimeError):
    """Memory has run out with a batch of one item, so that no smaller batch helps. The message is the allocator's own."""

    def __init__(self, message: str, kind: str) -> None:
        """
        Args:
            kind: The item: image, window, picture, text, unit.
        """
        super().__init__(message)
        self.kind = kind


def out_of_memory(error: BaseException) -> bool:
    """Whether Python or torch, on whichever device, could not get the memory it asked for."""
    said = ("can't allocate memory", "not enough memory", "Invalid buffer size", "out of memory", "ALLOC_FAILED", "bad_alloc")
    return (
        isinstance(error, MemoryError | SingleItemError)
        or type(error).__name__ == "OutOfMemoryError"
        or any(each in str(error) for each in said)
    )


def first_line(error: BaseException) -> str:
    """What another library's error says, in one line; its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
