"""Decode one picture, from a file or from bytes, to an upright RGB image, or reject it with a reason."""

import contextlib
import functools
import math
import os
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from cliptools.errors import ImageError, first_line
from cliptools.images.formats import most_pixels, open_other, quiet_pillow, read_by_plugin
from cliptools.io.text_file import HEAD as KIND_BYTES
from cliptools.io.text_file import is_text, kind_of

QUALITY = 85  # of thumbnails
JPEG = b"\xff\xd8\xff"  # the first bytes of every JPEG
PICTURES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".avif",
    ".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".qoi", ".tga", ".ico",
)  # fmt: skip
"""Endings of files and archive members that are read as pictures."""
LABELS = ".masks.png"  # ending of the label pictures that clip-scenes writes beside images; they are not read as photographs
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM", "QOI", "TGA", "ICO", "MPO")
"""Pillow's names of the formats that are read; others are off because, for example, its EPS reader starts another program."""
TILE = (322, 323)  # TIFF tags for the width and height of a tile; a whole tile is decoded, however small the picture is
ORIENTATION = 0x0112  # EXIF and TIFF tag for the rotation and mirroring of the stored pixels
HEAD = 16  # number of leading bytes by which Pillow's readers recognize their format
MOST_ELONGATED = 200  # ratio of the sides: resizing the short side to a model's 224 pixels makes the long side huge


def is_picture(name: str) -> bool:
    """Return True if the name has the ending of a picture and is neither hidden nor a label picture."""
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") for part in path.parts)
    is_readable = path.suffix.lower() in PICTURES or read_by_plugin(path.name)
    return is_readable and not hidden and not path.name.lower().endswith(LABELS)


def decode(source: str | BytesIO) -> Image.Image:
    """Decode the picture in a file or in bytes to an RGB image.

    The EXIF orientation is applied, transparent pixels are put on white, the first frame of an animation is taken, and greyscale
    of more than 8 bits is scaled to 8 bits by its full range.

    Raises:
        ImageError: the picture cannot be read; the message gives the reason without the picture's name.
    """
    return decode_turned(source)[0]


def decode_turned(source: str | BytesIO) -> tuple[Image.Image, int | None]:
    """Return the picture as `decode` does, and the EXIF orientation that was applied (None if the file has none).

    Raises:
        ImageError: as `decode`.
    """
    try:
        with quiet_pillow(), _open(source) as image:
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
    except Exception as error:  # Pillow's readers raise nearly any exception on damaged data
        raise ImageError(f"damaged ({first_line(error)})") from None


def upright_rgb(picture: Image.Image) -> Image.Image:
    """Return a copy of an opened picture as `decode` returns that of its file.

    Raises:
        ImageError: the picture cannot be read; the message gives the reason.
    """
    try:
        _refuse_extremes(picture)
        with quiet_pillow():
            return _rgb(load_upright(picture.copy())[0])
    except ImageError:
        raise
    except Exception as error:  # Pillow's readers raise nearly any exception on damaged data
        raise ImageError(f"damaged ({first_line(error)})") from None


def _open(source: str | BytesIO) -> Image.Image:
    try:
        return Image.open(source, formats=_formats())
    except UnidentifiedImageError:
        if (image := open_other(source)) is None:
            raise
        return image


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


def load_upright(image: Image.Image) -> tuple[Image.Image, int | None]:
    """Decode an opened picture, turn it by its EXIF orientation, and return both (the orientation is 1 to 8 or None)."""
    tiff_orientation = _orientation(getattr(image, "tag_v2", {}))  # Pillow turns a TIFF while loading it, and drops the tag
    if tiff_orientation is not None and isinstance(image, ImageFile.ImageFile):
        image.filename = ""  # else Pillow maps the file into memory with its sides already swapped, which garbles the rows
    image.load()
    exif_orientation = None
    with contextlib.suppress(Exception):  # a damaged EXIF block does not affect the pixels
        exif_orientation = _orientation(image.getexif())
    return _upright(image), tiff_orientation or exif_orientation


def _orientation(tags: Mapping[int, object]) -> int | None:
    value = tags.get(ORIENTATION)
    return value if isinstance(value, int) and 1 <= value <= 8 else None


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a damaged EXIF block does not affect the pixels, which are already decoded
        return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        background = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(background, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _eight_bits(grey: np.ndarray) -> np.ndarray:
    """Scale greyscale [y, x] to 8 bits: 16 bits by their full range, other types from the lowest to the highest value."""
    low, high = float(grey.min()), float(grey.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ImageError("holds NaN or infinity")
    if low >= 0 and high <= 65535 and grey.dtype.kind in "iu":
        low, high = 0.0, 65535.0
    elif low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    scaled = (grey.astype(np.float64) - low) * (255 / max(high - low, 1e-30))  # (y, x) in [0, 255]
    return scaled.round().astype(np.uint8)


def header(source: str) -> tuple[int, int, int | None] | None:
    """Return a picture's width and height as displayed and its EXIF orientation, without decoding it; None if unreadable."""
    try:
        with quiet_pillow(), _open(source) as image:
            orientation = _orientation(getattr(image, "tag_v2", {}))
            swapped = orientation is None  # Pillow gives a TIFF's size as displayed, any other size as stored
            if orientation is None and (image.format != "PNG" or "exif" in image.info):  # else Pillow decodes a PNG for it
                orientation = _orientation(image.getexif())
            width, height = image.size
    except Exception:  # the error is reported when the picture is decoded
        return None
    return (height, width, orientation) if swapped and (orientation or 1) > 4 else (width, height, orientation)


def _unidentified(source: str | BytesIO) -> str:
    size = Path(source).stat().st_size if isinstance(source, str) else source.seek(0, os.SEEK_END)
    if not size:
        return "empty"
    head = _head(source, KIND_BYTES)
    if head[8:10] == b'{"':
        return "a safetensors file, not an image (bundles are named by --bundle)"
    if (kind := kind_of(head)) is not None and not kind.endswith("picture"):
        return f"{kind}, not an image"
    return "text, not an image" if is_text(head) else "not an image of a kind that can be read here"


def _head(source: str | BytesIO, size: int = HEAD) -> bytes:
    """Return the first bytes of a file or stream."""
    with Path(source).open("rb") if isinstance(source, str) else contextlib.nullcontext(source) as stream:
        stream.seek(0)
        return stream.read(size)


def _too_large(size: tuple[int, int], prefix: str = "") -> str:
    width, height = size
    limit = most_pixels() or 0
    remedy = f"; if it is no decompression bomb, --max-pixels {width * height} reads it" if width else " (a decompression bomb?)"
    return f"{prefix}{width} × {height} pixels, at most {limit} are decoded{remedy}"


def _size(source: str | BytesIO) -> tuple[int, int]:
    """Return width and height of a picture that Pillow rejects for its number of pixels; zeros if the size is unknown."""
    head = _head(source)
    with Path(source).open("rb") if isinstance(source, str) else contextlib.nullcontext(source) as stream:
        for name in _formats():
            reader, accepts = Image.OPEN[name]
            stream.seek(0)
            with contextlib.suppress(Exception):
                if accepts is None or accepts(head) is True:
                    return reader(stream, "").size
    return 0, 0


def small_jpeg(picture: Image.Image, side: int) -> bytes:
    """Return the picture as JPEG, shrunk in place to at most `side` pixels wide and high."""
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    stream = BytesIO()
    picture.save(stream, "JPEG", quality=QUALITY)
    return stream.getvalue()


def thumbnail_bytes(thumbnails: np.ndarray, offsets: Sequence[int] | np.ndarray, index: int) -> bytes | None:
    """Return the JPEG of thumbnail number `index`, or None if it has none.

    Raises:
        ImageError: the bytes are no JPEG.
    """
    if index + 1 >= len(offsets):
        return None
    data = thumbnails[int(offsets[index]) : int(offsets[index + 1])].tobytes()
    if data and not data.startswith(JPEG):
        raise ImageError(f"thumbnail {index} of the bundle is damaged (no JPEG)")
    return data or None


def thumbnail(thumbnails: np.ndarray, offsets: Sequence[int] | np.ndarray, index: int) -> Image.Image | None:
    """Return thumbnail number `index` as an image, or None if it has none.

    Raises:
        ImageError: the bytes are no picture.
    """
    data = thumbnails[int(offsets[index]) : int(offsets[index + 1])].tobytes()
    if not data:
        return None
    try:
        with quiet_pillow():
            return Image.open(BytesIO(data)).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"thumbnail {index} of the bundle is damaged ({error})") from None
