"""Small JPEGs inside a bundle, so that sheets and galleries can be made from a stream."""

import io
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from cliptools.ground.errors import ImageError
from cliptools.ground.images import ImageSource
from cliptools.ground.quiet_pillow import quiet_pillow

QUALITY = 85
JPEG = b"\xff\xd8\xff"  # how each begins


def thumbnail_tensors(source: ImageSource, indices: Iterable[int], side: int) -> dict[str, np.ndarray]:
    """JPEGs of the images with these numbers, one after the other, at most `side` pixels wide and high.

    Returns:
        `thumbnails` uint8 [bytes] and `thumbnail_offsets` int64 [images + 1]; an image gone since it was measured
        leaves no bytes.
    """
    parts: list[bytes] = []
    for index in indices:
        try:
            picture = source.load(index)
        except ImageError:
            parts.append(b"")
            continue
        parts.append(small_jpeg(picture, side))
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
    return {"thumbnails": np.frombuffer(b"".join(parts), dtype=np.uint8), "thumbnail_offsets": offsets}


def small_jpeg(picture: Image.Image, side: int) -> bytes:
    """The picture, shrunk in place to at most `side` pixels wide and high, as JPEG."""
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=QUALITY)
    return stream.getvalue()


def thumbnail_bytes(thumbnails: np.ndarray, offsets: Sequence[int] | np.ndarray, index: int) -> bytes | None:
    """Picture number `index` as it is kept, or None where there is none.

    Raises:
        ImageError: bytes that do not begin as a JPEG does.
    """
    if index + 1 >= len(offsets):
        return None
    data = thumbnails[int(offsets[index]) : int(offsets[index + 1])].tobytes()
    if data and not data.startswith(JPEG):
        raise ImageError(f"thumbnail {index} of the bundle is damaged (no JPEG)")
    return data or None


def thumbnail(thumbnails: np.ndarray, offsets: Sequence[int] | np.ndarray, index: int) -> Image.Image | None:
    """Picture number `index`, or None where there is none.

    Raises:
        ImageError: bytes that are no picture.
    """
    data = thumbnails[int(offsets[index]) : int(offsets[index + 1])].tobytes()
    if not data:
        return None
    try:
        with quiet_pillow():
            return Image.open(io.BytesIO(data)).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"thumbnail {index} of the bundle is damaged ({error})") from None
