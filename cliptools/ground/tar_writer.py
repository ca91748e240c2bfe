"""Tar archives written member by member to anything that takes bytes, a pipe included; equal members give equal bytes.

tarfile's own writers ask a pipe where it stands, or write again to one that has broken when they are collected.
"""

import tarfile
from io import BufferedIOBase


def write_member(stream: BufferedIOBase, name: str, data: bytes) -> None:
    """One regular file, without a time or an owner."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    stream.write(member.tobuf(tarfile.USTAR_FORMAT))
    stream.write(data)
    stream.write(bytes(-len(data) % tarfile.BLOCKSIZE))


def write_end(stream: BufferedIOBase) -> None:
    """The two empty blocks by which a reader knows that nothing is missing."""
    stream.write(bytes(2 * tarfile.BLOCKSIZE))
