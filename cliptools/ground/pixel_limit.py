"""The most pixels that a picture may have to be decoded: Pillow's limit, or what is asked for."""

import contextlib
from collections.abc import Iterator

from PIL import Image

_asked: list[int] = []
"""Limits asked for, the innermost last; one for all threads, because those that decode obey it."""


def most_pixels() -> int | None:
    """The limit; None where Pillow has none."""
    return _asked[-1] if _asked else Image.MAX_IMAGE_PIXELS


@contextlib.contextmanager
def pixel_limit(pixels: int | None) -> Iterator[None]:
    """Set the limit for a while; None leaves it as it is.

    Pillow's own, by which it refuses to open a picture, is raised where need be, never lowered, and is afterwards as before.
    """
    if pixels is None:
        yield
        return
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None if before is None else max(before, pixels)
    _asked.append(pixels)
    try:
        yield
    finally:
        _asked.pop()
        Image.MAX_IMAGE_PIXELS = before
