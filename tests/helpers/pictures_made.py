"""Invalid pictures and archives: their headers are wrong, or they are far larger than they look."""

import functools
import gzip
import io
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

from PIL import Image

SIDE = 20_000


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, pixels: bytes, *more: bytes) -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + png_chunk(b"IDAT", pixels) + png_chunk(b"IEND", b"")


def deflated_zeros(count: int) -> bytes:
    """Return zlib's data of so many zeros, made without storing them."""
    packer = zlib.compressobj(9)
    block = bytes(1 << 20)
    parts = [packer.compress(block) for _ in range(count >> 20)]
    return b"".join((*parts, packer.compress(bytes(count & 0xFFFFF)), packer.flush()))


def tiff(width: int, height: int, pixels: bytes, tile: tuple[int, int] | None = None) -> bytes:
    """Return a TIFF of 8-bit grey, deflated, in one strip or one tile."""
    fields = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 8), (262, 3, 1), (277, 3, 1)]
    if tile is None:
        fields += [(273, 4, 8), (278, 4, height), (279, 4, len(pixels))]
    else:
        fields += [(322, 4, tile[0]), (323, 4, tile[1]), (324, 4, 8), (325, 4, len(pixels))]
    padded = pixels + bytes(len(pixels) % 2)
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in sorted(fields))
    return struct.pack("<2sHI", b"II", 42, 8 + len(padded)) + padded + struct.pack("<H", len(fields)) + entries + bytes(4)


def gif(width: int, height: int, frame: tuple[int, int] | None = None) -> bytes:
    """Return a GIF with one frame of this size, of which one pixel is present."""
    screen = struct.pack("<6sHHBBB", b"GIF89a", width, height, 0x80, 0, 0) + bytes(6)
    inside = frame or (width, height)
    return screen + struct.pack("<BHHHHB", 0x2C, 0, 0, *inside, 0) + b"\x02\x02\x44\x01\x00\x3b"


def webp(width: int, height: int) -> bytes:
    """Return a lossless WebP whose header has this size."""
    packed = (width - 1) | (height - 1) << 14
    data = b"\x2f" + struct.pack("<I", packed) + bytes(32)
    chunk = b"VP8L" + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


@functools.cache
def bombs() -> dict[str, bytes]:
    """Return small files that would take gigabytes, by name."""
    zeros = deflated_zeros(SIDE * (1 + SIDE))
    many = deflated_zeros(1 << 28)
    dot = zlib.compress(b"\0\x80")
    return {
        "grey.png": png(SIDE, SIDE, 8, 0, zeros),
        "black-white.png": png(SIDE, SIDE, 1, 0, deflated_zeros(SIDE * (1 + SIDE // 8))),
        "strip.tif": tiff(SIDE, SIDE, zeros),
        "tile.tif": tiff(8, 8, zeros, (SIDE, SIDE)),
        "screen.gif": gif(65535, 65535),
        "frame.gif": gif(8, 8, (65535, 65535)),
        "largest.webp": webp(16383, 16383),
        "header.bmp": struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 1078, 0, 0, 1078, 40, SIDE, SIDE, 1, 8, *[1] * 6),
        "text.png": png(1, 1, 8, 0, dot, *[png_chunk(b"zTXt", b"k\0\0" + many)] * 4),
        "profile.png": png(1, 1, 8, 0, dot, png_chunk(b"iCCP", b"p\0\0" + many)),
    }  # fmt: skip


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tar(members: Iterable[tuple[tarfile.TarInfo | str, bytes]], kind: int = tarfile.PAX_FORMAT) -> bytes:
    """Return an archive of members, by name or with a given header."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as archive:
        for named, data in members:
            member = tarfile.TarInfo(named) if isinstance(named, str) else named
            member.size = len(data) if member.isreg() else 0
            archive.addfile(member, io.BytesIO(data) if member.isreg() else None)
    return buffer.getvalue()


def member(name: str, change: Callable[[tarfile.TarInfo], None]) -> tarfile.TarInfo:
    """Return a member with an unusual header."""
    made = tarfile.TarInfo(name)
    change(made)
    return made


def gzip_of_zeros(path: Path, size: int, begin: bytes = b"") -> None:
    """Return a compressed file with this beginning, followed by zeros."""
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(begin)
        for _ in range(size >> 20):
            file.write(bytes(1 << 20))
