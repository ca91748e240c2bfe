"""The images that a bundle names, found again: among files by their names, or rendered once more.

Small JPEGs inside a bundle, so that sheets and galleries can be made from a stream.
"""

import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from cliptools.console import warn
from cliptools.embedded_models import EMBEDDED
from cliptools.emoji.render import scene_key, scenes_for
from cliptools.errors import ImageError, UsageError
from cliptools.images.formats import quiet_pillow
from cliptools.images.loader import ImageSource, list_digest, open_images
from cliptools.io.bundle import Bundle

MOST_SCENES = 10_000_000  # whose names are written out to know them by their digest


def found_again(bundle: Bundle, source: ImageSource, wanted: Iterable[int], option: str) -> dict[int, int]:
    """Where images of the bundle's list are in a source: by their names, or without the archive's where only that differs.

    Args:
        wanted: Indices into the bundle's `images`.
        option: How the source was named, for messages.

    Returns:
        The source's number by the bundle's; without those that are not there, of which a warning tells.

    Raises:
        UsageError: none of them is there.
    """
    listed: list[str] = bundle.text_list("images")
    place_of = place_by_name(source)
    places = {i: place_of(listed[i]) for i in dict.fromkeys(wanted)}
    missing = [listed[i] for i, place in places.items() if place is None]
    if missing and len(missing) == len(places):
        raise UsageError(f"{option}: none of the bundle's top images is there (looked for {', '.join(missing[:3])} …)")
    if missing:
        warn(f"{len(missing)} of {len(places)} top images are not there, the first: {missing[0]}")
    return {i: place for i, place in places.items() if place is not None}


def place_by_name(source: ImageSource) -> Callable[[str], int | None]:
    """Of a name its number in the source, None where it is not there; without the archive's name where only that differs."""
    known = {_inside(name): i for i, name in enumerate(source.names)} | {name: i for i, name in enumerate(source.names)}
    return lambda name: known.get(name, known.get(_inside(name)))


def recorded_source(bundle: Bundle, paths: tuple[str, ...]) -> ImageSource:
    """What PATH names, or without a PATH the scenes that clip-effects rendered for this bundle.

    Raises:
        UsageError: no PATH, and the bundle was not made of rendered scenes.
    """
    if paths:
        return open_images(paths)
    header = bundle.header
    count, seed = header.images.get("count") or 0, _recorded_seed(header.history)
    possible = header.model.get("name") in EMBEDDED and seed is not None and count <= MOST_SCENES
    # Names of files have endings, those of rendered scenes have none.
    if not possible or header.images.get("digest") != list_digest([scene_key(i) for i in range(count)]):
        raise UsageError(
            "where are the images of this bundle? Name their folder or tar as PATH (a bundle keeps only their names)"
        )
    return scenes_for(header.model["name"], count, seed or 0)


def _recorded_seed(history: list[dict[str, Any]]) -> int | None:
    """Of the first command, if it says one."""
    seed = (history[0].get("arguments") or {}).get("seed") if history else None
    return seed if type(seed) is int and seed >= 0 else None


def from_source(bundle: Bundle, source: ImageSource, places: dict[int, int]) -> Callable[[int], Image.Image | None]:
    """Pictures by their number in the bundle, None where there is none; of one that cannot be read, a warning tells."""
    listed: list[str] = bundle.text_list("images")

    def fetch(index: int) -> Image.Image | None:
        try:
            return source.load(places[index]) if index in places else None
        except ImageError as error:
            warn(f"{listed[index]}: {error}")
            return None

    return fetch


def _inside(name: str) -> str:
    """A member's name without its archive: a tar that came on standard input has none."""
    archive, dot, member = name.partition(".tar/")
    return member if dot else archive


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
