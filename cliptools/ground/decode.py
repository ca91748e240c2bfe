"""One picture from a file or from bytes: decoded whole, upright, RGB, or refused with a reason."""

import contextlib
import functools
import math
import os
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from cliptools.ground.errors import ImageError, first_line
from cliptools.ground.first_bytes import HEAD as KIND
from cliptools.ground.first_bytes import is_text, kind_of
from cliptools.ground.other_kinds import open_other, read_by_plugin
from cliptools.ground.pixel_limit import most_pixels
from cliptools.ground.quiet_pillow import quiet_pillow

PICTURES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".avif",
    ".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".qoi", ".tga", ".ico",
)  # fmt: skip
"""Endings taken for pictures in folders and archives."""
LABELS = ".masks.png"  # label pictures, as clip-scenes writes them beside images: never taken for photographs
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM", "QOI", "TGA", "ICO", "MPO")
"""Pillow's names of what is read; its EPS reader, among others, would start another program."""
TILE = (322, 323)  # TIFF's tags for width and height of a tile, which is decoded whole however small the picture is
ORIENTATION = 0x0112  # EXIF's and TIFF's tag for how stored pixels are to be turned
HEAD = 16  # bytes that tell a kind of file
MOST_ELONGATED = 200  # long side to short: resizing the short side to a model's 224 would blow up the long one


def is_picture(name: str) -> bool:
    """Whether a file or member of this name is to be read as an image: a picture's ending, not hidden, no label picture."""
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") for part in path.parts)
    known = path.suffix.lower() in PICTURES or read_by_plugin(path.name)
    return known and not hidden and not path.name.lower().endswith(LABELS)


def decode(source: str | BytesIO) -> Image.Image:
    """The picture in a file or in bytes, as a decoded RGB image.

    EXIF orientation is applied, transparency lies on white, of an animation the first frame is taken, and greyscale of
    more than 8 bits is brought to 8 by its full range.

    Raises:
        ImageError: why this is not to be read, in a few words (without the picture's name).
    """
    return decode_turned(source)[0]


def decode_turned(source: str | BytesIO) -> tuple[Image.Image, int | None]:
    """The picture as `decode` gives it, and the EXIF orientation of its file, which has been applied; None where it has none.

    Raises:
        ImageError: as `decode`.
    """
    try:
        with quiet_pillow(), _opened(source) as image:
            _refuse_extremes(image)
            picture, orientation = load_upright(image)
            return _rgb(picture), orientation
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(_unidentified(source)) from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise ImageError(_too_large(_size(source))) from None
    except OSError as error:
        raise ImageError(error.strerror.lower() if error.strerror else first_line(error)) from None
    except Exception as error:  # Pillow's readers raise nearly anything on damaged data
        raise ImageError(f"damaged ({first_line(error)})") from None


def _opened(source: str | BytesIO) -> Image.Image:
    try:
        return Image.open(source, formats=_formats())
    except UnidentifiedImageError:
        if (image := open_other(source)) is None:
            raise
        return image


def header(source: str) -> tuple[int, int, int | None] | None:
    """A picture's width and height as shown, and its EXIF orientation, without decoding it; None if it cannot be read."""
    try:
        with quiet_pillow(), _opened(source) as image:
            orientation = _orientation(getattr(image, "tag_v2", {}))
            swapped = orientation is None  # a TIFF's size is that of the picture as shown
            if orientation is None and (image.format != "PNG" or "exif" in image.info):  # else a PNG would be decoded for it
                orientation = _orientation(image.getexif())
            width, height = image.size
    except Exception:  # whoever decodes the picture says what is wrong with it
        return None
    return (height, width, orientation) if swapped and (orientation or 1) > 4 else (width, height, orientation)


@functools.cache
def _formats() -> list[str]:
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _refuse_extremes(image: Image.Image) -> None:
    tile = [getattr(image, "tag_v2", {}).get(tag, 0) for tag in TILE]
    limit = most_pixels()
    if limit and all(isinstance(side, int) for side in tile) and math.prod(tile) > limit:
        raise ImageError(_too_large((tile[0], tile[1]), "a tile of "))
    width, height = image.size
    if limit and width * height > limit:
        raise ImageError(_too_large(image.size))
    if max(width, height) > MOST_ELONGATED * min(width, height):
        raise ImageError(f"{width} × {height} pixels is too elongated to resize (at most {MOST_ELONGATED}:1)")


def _unidentified(source: str | BytesIO) -> str:
    size = Path(source).stat().st_size if isinstance(source, str) else source.seek(0, os.SEEK_END)
    if not size:
        return "empty"
    head = _head(source, KIND)
    if head[8:10] == b'{"':
        return "a safetensors file, not an image (bundles are named by --bundle)"
    if (kind := kind_of(head)) is not None and not kind.endswith("picture"):
        return f"{kind}, not an image"
    return "text, not an image" if is_text(head) else "not an image of a kind that can be read here"


def _head(source: str | BytesIO, size: int = HEAD) -> bytes:
    """The first bytes."""
    with Path(source).open("rb") if isinstance(source, str) else contextlib.nullcontext(source) as stream:
        stream.seek(0)
        return stream.read(size)


def _too_large(size: tuple[int, int], of: str = "") -> str:
    width, height = size
    limit = most_pixels() or 0
    remedy = f"; if it is no decompression bomb, --max-pixels {width * height} reads it" if width else " (a decompression bomb?)"
    return f"{of}{width} × {height} pixels, at most {limit} are decoded{remedy}"


def _size(source: str | BytesIO) -> tuple[int, int]:
    """Width and height of a picture that Pillow does not open because it has too many pixels; zeros where that is unknown."""
    head = _head(source)
    with Path(source).open("rb") if isinstance(source, str) else contextlib.nullcontext(source) as stream:
        for name in _formats():
            reader, accepts = Image.OPEN[name]
            stream.seek(0)
            with contextlib.suppress(Exception):
                if accepts is None or accepts(head) is True:
                    return reader(stream, "").size
    return 0, 0


def load_upright(image: Image.Image) -> tuple[Image.Image, int | None]:
    """An opened picture decoded and turned by the EXIF orientation of its file, and that orientation, 1 to 8 or None."""
    before = _orientation(getattr(image, "tag_v2", {}))  # Pillow turns a TIFF while it loads it, and drops the tag
    if before is not None and isinstance(image, ImageFile.ImageFile):
        image.filename = ""  # or Pillow would map the file into memory with the sides swapped already, which garbles the rows
    image.load()
    after = None
    with contextlib.suppress(Exception):  # a damaged EXIF block says nothing about the pixels
        after = _orientation(image.getexif())
    return _upright(image), before or after


def _orientation(tags: Mapping[int, object]) -> int | None:
    value = tags.get(ORIENTATION)
    return value if isinstance(value, int) and 1 <= value <= 8 else None


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a damaged EXIF block says nothing about the pixels, which are decoded by now
        return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        ground = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _eight_bits(grey: np.ndarray) -> np.ndarray:
    """Greyscale [y, x] of 16 bits by their full range; wider and real numbers from their least to their greatest."""
    low, high = float(grey.min()), float(grey.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ImageError("holds NaN or infinity")
    if low >= 0 and high <= 65535 and grey.dtype.kind in "iu":
        low, high = 0.0, 65535.0
    elif low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    scaled = (grey.astype(np.float64) - low) * (255 / max(high - low, 1e-30))
    return scaled.round().astype(np.uint8)
