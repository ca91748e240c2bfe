"""Small JPEGs inside a bundle, so that sheets and galleries can be made from a stream."""

import io
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from cliptools.ground.errors import ImageError
from cliptools.ground.images import ImageSource

QUALITY = 85


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
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=QUALITY)
        parts.append(stream.getvalue())
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
    return {"thumbnails": np.frombuffer(b"".join(parts), dtype=np.uint8), "thumbnail_offsets": offsets}


def thumbnail(thumbnails: np.ndarray, offsets: Sequence[int] | np.ndarray, index: int) -> Image.Image | None:
    """Picture number `index`, or None where there is none.

    Raises:
        ImageError: bytes that are no picture.
    """
    data = thumbnails[int(offsets[index]) : int(offsets[index + 1])].tobytes()
    if not data:
        return None
    try:
        return Image.open(io.BytesIO(data)).convert("RGB")
    except (OSError, Image.DecompressionBombError) as error:
        raise ImageError(f"thumbnail {index} of the bundle is damaged ({error})") from None
