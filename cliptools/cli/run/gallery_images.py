"""What clip-gallery shows: units, images, and records of other commands.

The images that a gallery shows: each once, however many neurons and records speak of it.
"""

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from PIL import Image

from cliptools.console import count_of, warn
from cliptools.errors import ImageError, UsageError
from cliptools.images.decode import decode
from cliptools.images.loader import open_images
from cliptools.images.relocate import place_by_name, small_jpeg, thumbnail_bytes
from cliptools.io.bundle import Bundle

if TYPE_CHECKING:
    Fetch = Callable[[str], bytes | None]
    """Of an image's name its picture, as JPEG."""

NONE = -1


class Shelf:
    """Names of images and their pictures, numbered in the order in which they are asked for.

    Args:
        bundle: Whose thumbnails are taken where no paths are given.
        paths: Where the images lie.
        pixels: The longer side of pictures that are read from paths or files.

    Raises:
        UsageError: paths that hold no images.
    """

    def __init__(self, bundle: Bundle, paths: tuple[str, ...], pixels: int) -> None:
        self.names: list[str] = []
        self.picture_of: list[int] = []
        self.pictures: list[bytes] = []
        self.pixels, self.paths = pixels, paths
        self._number: dict[str, int] = {}
        self._picture_number: dict[bytes, int] = {}
        self._fetch = self._from_paths(paths) if paths else _from_thumbnails(bundle)

    def image(self, name: str) -> int:
        """The number of the image of this name, its picture put beside it."""
        if name not in self._number:
            self._number[name] = len(self.names)
            self.names.append(name)
            self.picture_of.append(self._keep(self._fetch(name)))
        return self._number[name]

    def picture(self, path: str) -> int:
        """The number of a picture that lies in a file, or NONE, and a warning, where it cannot be read."""

        try:
            return self._keep(self._small(decode(path)))
        except ImageError as error:
            warn(f"{path}: {error}")
            return NONE

    def report(self) -> None:
        """Say how many images have no picture.

        Raises:
            UsageError: paths were given, and none of the images is there.
        """
        missing = [name for name, number in zip(self.names, self.picture_of, strict=True) if number == NONE]
        if not missing:
            return
        if self.paths and len(missing) == len(self.names):
            raise UsageError(f"--images-from: none of the images is there (looked for {', '.join(missing[:3])} …)")
        remedy = "" if self.paths else "; clip-effects --thumbnails 96 keeps them in the bundle, --images-from PATH reads them"
        warn(f"{len(missing)} of {count_of(len(self.names), 'image')} without a picture{remedy}")

    def said(self) -> dict[str, Any]:
        """For the page: names, and numbers of pictures."""
        return {"images": self.names, "picture": self.picture_of}

    def _keep(self, jpeg: bytes | None) -> int:
        if not jpeg:
            return NONE
        known = hashlib.sha256(jpeg).digest()
        if known not in self._picture_number:
            self._picture_number[known] = len(self.pictures)
            self.pictures.append(jpeg)
        return self._picture_number[known]

    def _small(self, picture: Image.Image) -> bytes:

        return small_jpeg(picture, self.pixels)

    def _from_paths(self, paths: tuple[str, ...]) -> "Fetch":

        source = open_images(paths)
        place_of = place_by_name(source)

        def fetch(name: str) -> bytes | None:
            place = place_of(name)
            try:
                return self._small(source.load(place)) if place is not None else None
            except ImageError as error:
                warn(f"{name}: {error}")
                return None

        return fetch


def _from_thumbnails(bundle: Bundle) -> "Fetch":
    if "thumbnails" not in bundle:
        return lambda name: None

    listed = {str(name): i for i, name in enumerate(bundle.text_list("images"))}

    def fetch(name: str) -> bytes | None:
        return thumbnail_bytes(bundle["thumbnails"], bundle["thumbnail_offsets"], listed[name]) if name in listed else None

    return fetch
