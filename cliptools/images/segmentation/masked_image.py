"""A picture with its masks, aligned with each other.

The file of a picture may have an EXIF orientation, by which its stored pixels are turned for display. A mask with an EXIF
orientation of its own (1 included) is turned by it and then matches the picture as displayed. Any other mask belongs to the
pixels as stored or as displayed. Its size tells which, if the orientation swaps the sides of a picture that is not square. If the
size cannot tell (180 degrees, mirrored, square), the mask is treated like the other masks of its folder whose size tells, if all
of these agree; else it is taken for a mask of the stored pixels, which is what programs without support for EXIF see.

`read_pair` reads a picture and its mask; `read_masked` and `single_mask` return them as a `MaskedImage`. `Alignment` decides by
which orientation a mask is turned.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Shaped
from PIL import Image

from cliptools.errors import ImageError
from cliptools.images.decode import decode_turned, header
from cliptools.images.segmentation.mask_pixels import FULL, Kind, MaskPixels, numbers_of, read_mask

MaskBasis = Literal["stored", "upright"]
"""The pixels that a mask belongs to: as stored in the picture's file, or as displayed."""

SWAPPED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
BY_SIZE = "are masks of their pictures' stored pixels, by their size, and turned with these by EXIF orientation"
STORED = (
    "are taken for masks of their pictures' stored pixels and turned with these by EXIF orientation, for their size cannot tell; "
    "--mask-pixels upright if they are of the pictures as shown"
)
UPRIGHT = (
    "are taken for masks of their pictures as shown, as others of the folder are, for their size cannot tell; "
    "--mask-pixels stored if they are of the pictures' stored pixels"
)
VOID_HELD = f"have {FULL} beside other numbers, all of them the object; if {FULL} marks pixels to ignore, give --ignore {FULL}"
EDGES = "have grey edges: every value above 0 is the object"
EMPTY = "show no object"
FILLED = "show no background: no pixel is 0 or black, though the values differ; are they numbers of classes?"
MOST_NUMBERS = 16  # a mask with more different numbers is taken to have soft edges


class DisplayedSize(NamedTuple):
    """The size of a picture as displayed, and the EXIF orientation of its file."""

    width: int
    height: int
    orientation: int | None

    @property
    def turned(self) -> bool:
        """True if the stored pixels differ from those displayed."""
        return self.orientation not in (None, 1)

    @property
    def stored(self) -> tuple[int, int]:
        """Width and height of the stored pixels."""
        return (self.height, self.width) if self.orientation in SWAPPED else (self.width, self.height)

    @property
    def size_decides(self) -> bool:
        """True if the size of a mask tells which pixels it belongs to."""
        return self.stored != (self.width, self.height)


@dataclass(frozen=True)
class FolderPairs:
    """Pictures and masks of a folder; the sizes of some of them tell which pixels all masks belong to.

    >>> FolderPairs(()).basis is None
    True
    """

    pairs: Sequence[tuple[Path, Path]]

    @cached_property
    def basis(self) -> MaskBasis | None:
        """The basis of the masks whose size tells; None if there is no such mask, or if these masks differ."""
        bases: set[MaskBasis] = set()
        for picture, mask in self.pairs:
            picture_size = _displayed_size(picture)
            if picture_size is None or not picture_size.size_decides:
                continue
            mask_size = _displayed_size(mask)
            if mask_size is None or mask_size.orientation is not None:
                continue
            size = mask_size.width, mask_size.height
            if size in (picture_size.stored, (picture_size.width, picture_size.height)):
                bases.add("stored" if size == picture_size.stored else "upright")
        return bases.pop() if len(bases) == 1 else None


@dataclass(frozen=True)
class Alignment:
    """Rule by which masks are aligned with their pictures."""

    option: MaskBasis | None = None
    """The value of --mask-pixels."""
    folder_basis: Callable[[], MaskBasis | None] = lambda: None
    """Returns the pixels that other masks of the folder belong to."""

    def turn(self, width: int, height: int, own_orientation: int | None, picture: DisplayedSize) -> tuple[int, str | None]:
        """Return the EXIF orientation to turn a mask by, and a remark about it.

        Args:
            width: Width of the mask, after turning it by its own orientation.
            height: Height of the mask, after the same turn.
            own_orientation: The mask's own orientation.
            picture: Size and orientation of the picture.
        """
        if own_orientation is not None or not picture.turned:
            return 1, None
        orientation = picture.orientation or 1
        if self.option is not None:
            return (orientation if self.option == "stored" else 1), None
        if picture.size_decides:
            return (orientation, BY_SIZE) if (width, height) == picture.stored else (1, None)
        return (1, UPRIGHT) if self.folder_basis() == "upright" else (orientation, STORED)


def turned(pixels: Shaped[np.ndarray, "y x"], orientation: int) -> Shaped[np.ndarray, "row column"]:
    """Turn stored pixels by an EXIF orientation."""
    if orientation in SWAPPED:
        pixels = pixels.T  # (x, y)
    down, across = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return pixels[:: -1 if down else 1, :: -1 if across else 1]


def _displayed_size(path: Path) -> DisplayedSize | None:
    """Return a picture's size and orientation from the header of its file; None if it cannot be read."""
    size_and_orientation = header(str(path))
    return size_and_orientation and DisplayedSize(*size_and_orientation)


class MaskedImage(NamedTuple):
    """A picture, and a mask for each of its texts."""

    name: str
    picture: Image.Image
    texts: tuple[str, ...]
    """The names of the objects in the masks; empty if the source has no names, with a single mask."""
    masks: Bool[np.ndarray, "mask y x"]
    void: Bool[np.ndarray, "y x"] | None = None
    """Pixels that do not count; None if all count."""
    remarks: tuple[str, ...] = ()
    """Assumptions about the masks; each continues a sentence that begins with `N masks`."""


Reading = MaskedImage | ImageError
"""A picture, or the error that names an unreadable picture."""


@dataclass(frozen=True)
class Rules:
    """Settings for reading mask pictures."""

    ignored: tuple[int, ...] = ()
    """Mask values of pixels that do not count."""
    alignment: Alignment = field(default_factory=Alignment)


class AlignedPair(NamedTuple):
    """A picture and the aligned pixels of its mask."""

    picture: Image.Image
    pixels: MaskPixels


def read_pair(image: Path | BytesIO, mask: Path | BytesIO, alignment: Alignment, kind: Kind = "mask") -> AlignedPair:
    """Read a picture and its mask or label picture, both upright.

    Raises:
        ImageError: one of them cannot be read, or their sizes differ.
    """
    pixels = read_mask(mask, kind)
    picture, orientation = decode_turned(image if isinstance(image, BytesIO) else str(image))
    size = DisplayedSize(picture.width, picture.height, orientation)
    height, width = pixels.shown.shape
    turn, remark = alignment.turn(width, height, pixels.orientation, size)
    numbers = None if pixels.numbers is None else turned(pixels.numbers, turn)
    aligned = pixels._replace(shown=turned(pixels.shown, turn), numbers=numbers)
    if aligned.shown.shape != (size.height, size.width):
        raise ImageError(
            f"the image has {size.width} × {size.height} pixels{_turn_text(size.orientation)}, its {kind} "
            f"{aligned.shown.shape[1]} × {aligned.shown.shape[0]}{_turn_text(pixels.orientation or turn)}"
        )
    return AlignedPair(picture, aligned._replace(remarks=(*aligned.remarks, remark)) if remark else aligned)


def read_masked(name: str, image: Path | BytesIO, mask: Path | BytesIO, rules: Rules) -> MaskedImage:
    """Read a picture with one mask of an unnamed object.

    Raises:
        ImageError: as `read_pair`; or no pixel counts, or the mask has no numbers while some are to be ignored.
    """
    picture, pixels = read_pair(image, mask, rules.alignment)
    return single_mask(name, picture, pixels, rules)


def single_mask(name: str, picture: Image.Image, pixels: MaskPixels, rules: Rules) -> MaskedImage:
    """Return a picture with everything in its mask as one object.

    Raises:
        ImageError: no pixel counts, or the mask has no numbers while some are to be ignored.
    """
    remarks = list(pixels.remarks)
    void, shown = ignored_pixels(pixels, rules.ignored), pixels.shown
    if void is not None:
        shown = shown & ~void
    elif pixels.numbers is not None and not rules.ignored and (remark := _remark_on(pixels.numbers)):
        remarks.append(remark)
    if not shown.any():
        remarks.append(EMPTY)
    elif (shown if void is None else shown[~void]).all() and _numbers_differ(pixels, void):
        remarks.append(FILLED)
    return MaskedImage(name, picture, (), shown[None], void, tuple(remarks))


def ignored_pixels(pixels: MaskPixels, ignored: tuple[int, ...]) -> Bool[np.ndarray, "y x"] | None:
    """Return the pixels whose numbers are ignored; None if there is none.

    Raises:
        ImageError: all pixels are ignored, or the mask has no numbers.
    """
    if not ignored:
        return None
    void = np.isin(numbers_of(pixels, "mask", "numbers, of which --ignore leaves some out"), ignored)
    if void.all():
        numbers = ", ".join(map(str, ignored))
        raise ImageError(f"no pixel of its mask counts: all are {numbers} (--ignore), expected numbers of background and object")
    return void if void.any() else None


def read_or_error(name: str, read: Callable[[], MaskedImage]) -> Reading:
    """Return the result of `read`, or its error with the picture's name before the message."""
    try:
        return read()
    except ImageError as error:
        return ImageError(f"{name}: {error}")


def _numbers_differ(pixels: MaskPixels, void: Bool[np.ndarray, "y x"] | None) -> bool:
    """Return True if the pixels that count have several numbers; colours have no numbers and may differ."""
    if pixels.numbers is None:
        return True
    return len(np.unique(pixels.numbers if void is None else pixels.numbers[~void])) > 1


def _remark_on(numbers: Int[np.ndarray, "y x"]) -> str | None:
    """Return a remark about a mask with 255, which some data sets use for void pixels, beside lower numbers above 0."""
    if numbers.max() != FULL or not ((numbers > 0) & (numbers < FULL)).any():
        return None
    return VOID_HELD if len(np.unique(numbers)) <= MOST_NUMBERS else EDGES


def _turn_text(orientation: int | None) -> str:
    return "" if orientation in (None, 1) else f" (turned by EXIF orientation {orientation})"
