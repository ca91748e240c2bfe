"""One picture with its masks, whichever way it is kept. Read one by one, so that memory stays small."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from cliptools.ground.decode import decode
from cliptools.ground.errors import ImageError


class MaskedImage(NamedTuple):
    """A picture, and for each of its texts the pixels that show it."""

    name: str
    picture: Image.Image
    texts: tuple[str, ...]
    """What the masks are of; empty where the source does not say, and there is one mask."""
    masks: Bool[np.ndarray, "mask y x"]


Reading = MaskedImage | ImageError
"""A picture, or why there is none: an error that names it."""


def pair(name: str, image: Path | BytesIO, masks: Bool[np.ndarray, "mask y x"], texts: tuple[str, ...]) -> MaskedImage:
    """Picture and masks, which must be of one size: a mask of another would not lie where it should.

    Raises:
        ImageError: they are not, or one cannot be read.
    """
    picture = decode(image if isinstance(image, BytesIO) else str(image))
    if masks.shape[1:] != (picture.height, picture.width):
        raise ImageError(f"the image has {picture.width} × {picture.height} pixels, its mask {masks.shape[2]} × {masks.shape[1]}")
    return MaskedImage(name, picture, texts, masks)


def guarded(name: str, read: Callable[[], MaskedImage]) -> Reading:
    """What `read` gives, or its error with the picture's name before it."""
    try:
        return read()
    except ImageError as error:
        return ImageError(f"{name}: {error}")


def label_pixels(file: Path | BytesIO) -> UInt8[np.ndarray, "y x"]:
    """A mask's labels; of a coloured picture, whether a pixel is black.

    Raises:
        ImageError: it cannot be read.
    """
    try:
        with Image.open(file, formats=["PNG", "BMP", "TIFF", "GIF"]) as image:
            image.load()
            pixels: np.ndarray = np.asarray(image)
    except Exception as error:  # Pillow's readers raise nearly anything on damaged data
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ImageError(f"its mask cannot be read ({reason})") from None
    labels = pixels[..., :3].any(axis=2) if pixels.ndim == 3 else pixels
    return np.asarray(labels, dtype=np.uint8)
