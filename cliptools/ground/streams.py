"""Streams of bytes by what is asked of them, whatever class they are: files, pipes, BytesIO, decompressors."""

from typing import Protocol, runtime_checkable


@runtime_checkable
class Readable(Protocol):
    """Gives bytes."""

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes; none at the end."""


@runtime_checkable
class Writable(Protocol):
    """Takes bytes."""

    def write(self, data: bytes, /) -> int:
        """Write all of them."""
