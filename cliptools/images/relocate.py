"""Pictures of the images that a bundle names.

They are located again in a source by name (`locate_images`, `pictures_by_name`), or rendered again if they are scenes
(`recorded_source`). A bundle may also carry thumbnails, small JPEGs from which contact sheets and galleries can be made without
the images (`thumbnail_tensors`; decode.py reads them).
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from PIL import Image

from cliptools.console import warn
from cliptools.embedded_models import EMBEDDED
from cliptools.emoji.render import scene_key, scenes_for
from cliptools.errors import ImageError, UsageError
from cliptools.images.decode import small_jpeg
from cliptools.images.loader import ImageSource, list_digest, open_images
from cliptools.io.bundle import Bundle

MOST_SCENES = 10_000_000  # at most so many names of scenes are listed to compare their digest


def locate_images(bundle: Bundle, source: ImageSource, indices: Iterable[int], option: str) -> dict[int, int]:
    """Locate images of the bundle's list in a source, by name; the name of the archive may differ.

    Args:
        indices: Indices into the bundle's `images`.
        option: Option that named the source, for messages.

    Returns:
        Index in the source by index in the bundle; images that are not in the source are missing, with a warning.

    Raises:
        UsageError: the source has no such image.
    """
    listed: list[str] = bundle.text_list("images")
    place_of = place_by_name(source)
    places = {i: place_of(listed[i]) for i in dict.fromkeys(indices)}
    missing = [listed[i] for i, place in places.items() if place is None]
    if missing and len(missing) == len(places):
        raise UsageError(f"{option}: contains no top image of the bundle (looked for {', '.join(missing[:3])} …)")
    if missing:
        warn(f"{option}: {len(missing)} of {len(places)} top images not found, the first: {missing[0]}")
    return {i: place for i, place in places.items() if place is not None}


def place_by_name(source: ImageSource) -> Callable[[str], int | None]:
    """Return a function from a name to its index in the source, None if it has no such image; archive names may differ."""
    index_by_member = {member_name(name): i for i, name in enumerate(source.names)}
    index_by_name = index_by_member | {name: i for i, name in enumerate(source.names)}
    return lambda name: index_by_name.get(name, index_by_name.get(member_name(name)))


def recorded_source(bundle: Bundle, paths: tuple[str, ...], option: str = "PATH") -> ImageSource:
    """Open the images of PATH, or without a PATH the scenes that clip-effects rendered for this bundle.

    Args:
        option: Option or argument that names the paths, for messages.

    Raises:
        UsageError: no PATH is given, and the bundle was not made from rendered scenes.
    """
    if paths:
        return open_images(paths)
    header = bundle.header
    count, seed = header.images.get("count") or 0, _recorded_seed(header.history)
    possible = header.model.get("name") in EMBEDDED and seed is not None and count <= MOST_SCENES
    # The digest tells scenes from files: names of files have endings, names of rendered scenes have none.
    if not possible or header.images.get("digest") != list_digest([scene_key(i) for i in range(count)]):
        raise UsageError(
            f"where are the images of this bundle? Name their folder or tar as {option} (a bundle keeps only their names)"
        )
    return scenes_for(header.model["name"], count, seed or 0)


def _recorded_seed(history: list[dict[str, Any]]) -> int | None:
    """Return the seed of the first command in the history, if it has one."""
    seed = (history[0].get("arguments") or {}).get("seed") if history else None
    return seed if type(seed) is int and seed >= 0 else None


def pictures_by_name(source: ImageSource, strict: bool = False) -> Callable[[str], Image.Image | None]:
    """Return a function from a name in a bundle to its picture; None for missing and, with a warning, unreadable images.

    Args:
        strict: An unreadable image is an error, which the function raises: an ImageError that names it.
    """
    place_of = place_by_name(source)

    def fetch(name: str) -> Image.Image | None:
        try:
            return None if (place := place_of(name)) is None else source.load(place)
        except ImageError as error:
            if strict:
                raise ImageError(f"{name}: {error}") from None
            warn(f"{name}: {error}")
            return None

    return fetch


def member_name(name: str) -> str:
    """Return a member's name without its archive, because a tar on standard input has no name."""
    archive, dot, member = name.partition(".tar/")
    return member if dot else archive


def thumbnail_tensors(source: ImageSource, indices: Iterable[int], side: int) -> dict[str, np.ndarray]:
    """Return JPEGs of the images with these indices, concatenated, at most `side` pixels wide and high.

    Returns:
        `thumbnails` uint8 [bytes] and `thumbnail_offsets` int64 [images + 1]; an image that can no longer be read has no bytes.
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
