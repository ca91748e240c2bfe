"""The most pixels that a picture may have to be decoded."""

import contextlib
from collections.abc import Iterator

from PIL import Image


@contextlib.contextmanager
def pixel_limit(pixels: int | None) -> Iterator[None]:
    """Set the limit for a while; None leaves it as it is.

    Pillow has one limit, for all threads of the process: what was set before is set again at the end.
    """
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = before if pixels is None else pixels
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before
