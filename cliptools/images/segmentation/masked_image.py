"""How a mask lies on a picture whose file says by EXIF orientation that its stored pixels are to be turned.

A mask with an EXIF orientation of its own (1 among them) is turned by that, and then lies on the picture as shown. Any other mask
is of the pixels as stored or as shown, and its size says of which where the orientation swaps the sides of a picture that is no
square. Where the size cannot tell (180 degrees, mirrored, square), the mask lies as those of the same folder whose size tells, if
all of these agree; else it is taken for one of the stored pixels, as readers that know nothing of EXIF see them.

One picture with its masks, whichever way it is kept. Read one by one, so that memory stays small.
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

Lie = Literal["stored", "upright"]
"""Of which pixels a mask is: as the picture's file has them, or as it is shown."""

SWAPPED = (5, 6, 7, 8)  # EXIF orientations that make a wide picture tall
BY_SIZE = "are of their pictures' stored pixels, by their size, and turned with these by EXIF orientation"
STORED = (
    "are taken for masks of their pictures' stored pixels and turned with these by EXIF orientation, for their size cannot tell; "
    "--mask-pixels upright if they are of the pictures as shown"
)
UPRIGHT = (
    "are taken for masks of their pictures as shown, as others of the folder are, for their size cannot tell; "
    "--mask-pixels stored if they are of the pictures' stored pixels"
)


class Shown(NamedTuple):
    """A picture as it is shown, and how its file wants it turned."""

    width: int
    height: int
    orientation: int | None

    @property
    def turned(self) -> bool:
        """Whether the stored pixels are others than those shown."""
        return self.orientation not in (None, 1)

    @property
    def stored(self) -> tuple[int, int]:
        """Width and height of the stored pixels."""
        return (self.height, self.width) if self.orientation in SWAPPED else (self.width, self.height)

    @property
    def tells(self) -> bool:
        """Whether the size of a mask says of which pixels it is."""
        return self.stored != (self.width, self.height)


@dataclass(frozen=True)
class Folders:
    """Pictures and their masks, whose sizes together say how the masks lie.

    >>> Folders(()).lie is None
    True
    """

    pairs: Sequence[tuple[Path, Path]]

    @cached_property
    def lie(self) -> Lie | None:
        """How the masks lie whose size tells; None where there is none, or where they differ."""
        lies: set[Lie] = set()
        for picture, mask in self.pairs:
            shown = _shown(picture)
            if shown is None or not shown.tells or (beside := _shown(mask)) is None or beside.orientation is not None:
                continue
            size = beside.width, beside.height
            if size in (shown.stored, (shown.width, shown.height)):
                lies.add("stored" if size == shown.stored else "upright")
        return lies.pop() if len(lies) == 1 else None


@dataclass(frozen=True)
class Placing:
    """How masks are laid on their pictures."""

    asked: Lie | None = None
    """What --mask-pixels says."""
    others: Callable[[], Lie | None] = lambda: None
    """How other masks of the folder lie."""

    def turn(self, width: int, height: int, own: int | None, shown: Shown) -> tuple[int, str | None]:
        """The EXIF orientation that a mask is to be turned by, and what is to be said of it.

        Args:
            width: Of the mask, which has been turned by its own orientation.
            height: Likewise.
            own: The mask's own orientation.
            shown: The picture.
        """
        if own is not None or not shown.turned:
            return 1, None
        orientation = shown.orientation or 1
        if self.asked is not None:
            return (orientation if self.asked == "stored" else 1), None
        if shown.tells:
            return (orientation, BY_SIZE) if (width, height) == shown.stored else (1, None)
        return (1, UPRIGHT) if self.others() == "upright" else (orientation, STORED)


def turned(pixels: Shaped[np.ndarray, "y x"], orientation: int) -> Shaped[np.ndarray, "row column"]:
    """Stored pixels as they are shown by an EXIF orientation."""
    if orientation in SWAPPED:
        pixels = pixels.T
    down, across = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return pixels[:: -1 if down else 1, :: -1 if across else 1]


def _shown(path: Path) -> Shown | None:
    """A picture's size and orientation, from the first bytes of its file; None where it cannot be read."""
    read = header(str(path))
    return read and Shown(*read)


VOID_HELD = f"hold {FULL} beside other numbers, all of them the object; where it marks pixels that do not count, --ignore {FULL}"
EDGES = "have grey edges: every value above 0 is the object"
EMPTY = "show no object"
FILLED = "show no ground: no pixel that counts is 0, or black, though they differ; are their numbers those of classes?"
FEW = 16  # numbers of a mask: those with more have edges that fade


class MaskedImage(NamedTuple):
    """A picture, and for each of its texts the pixels that show it."""

    name: str
    picture: Image.Image
    texts: tuple[str, ...]
    """What the masks are of; empty where the source does not say, and there is one mask."""
    masks: Bool[np.ndarray, "mask y x"]
    void: Bool[np.ndarray, "y x"] | None = None
    """Pixels that do not count, where there are such."""
    remarks: tuple[str, ...] = ()
    """What was assumed of the masks; each goes on after `N masks`."""


Reading = MaskedImage | ImageError
"""A picture, or why there is none: an error that names it."""


@dataclass(frozen=True)
class Rules:
    """How mask pictures are to be read."""

    ignored: tuple[int, ...] = ()
    """Numbers of pixels that do not count."""
    placing: Placing = field(default_factory=Placing)


class Read(NamedTuple):
    """A picture and the pixels of its mask, one on the other."""

    picture: Image.Image
    pixels: MaskPixels


def read_pair(image: Path | BytesIO, mask: Path | BytesIO, placing: Placing, kind: Kind = "mask") -> Read:
    """A picture and its mask or label picture, both upright.

    Raises:
        ImageError: one cannot be read, or they are not of one size: the mask would not lie where it should.
    """
    pixels = read_mask(mask, kind)
    picture, orientation = decode_turned(image if isinstance(image, BytesIO) else str(image))
    shown = Shown(picture.width, picture.height, orientation)
    height, width = pixels.shown.shape
    turn, remark = placing.turn(width, height, pixels.orientation, shown)
    numbers = None if pixels.numbers is None else turned(pixels.numbers, turn)
    laid = pixels._replace(shown=turned(pixels.shown, turn), numbers=numbers)
    if laid.shown.shape != (shown.height, shown.width):
        raise ImageError(
            f"the image has {shown.width} × {shown.height} pixels{_turned_by(shown.orientation)}, its {kind} "
            f"{laid.shown.shape[1]} × {laid.shown.shape[0]}{_turned_by(pixels.orientation or turn)}"
        )
    return Read(picture, laid._replace(remarks=(*laid.remarks, remark)) if remark else laid)


def masked(name: str, image: Path | BytesIO, mask: Path | BytesIO, rules: Rules) -> MaskedImage:
    """A picture with one mask, of which nobody says what it is of.

    Raises:
        ImageError: as `read_pair`; or no pixel counts, or the mask has no numbers and some are to be left out.
    """
    picture, pixels = read_pair(image, mask, rules.placing)
    return whole_mask(name, picture, pixels, rules)


def whole_mask(name: str, picture: Image.Image, pixels: MaskPixels, rules: Rules) -> MaskedImage:
    """A picture with all that its mask shows as one object.

    Raises:
        ImageError: no pixel counts, or the mask has no numbers and some are to be left out.
    """
    remarks = list(pixels.remarks)
    void, shown = left_out(pixels, rules.ignored), pixels.shown
    if void is not None:
        shown = shown & ~void
    elif pixels.numbers is not None and not rules.ignored and (remark := _remark_on(pixels.numbers)):
        remarks.append(remark)
    if not shown.any():
        remarks.append(EMPTY)
    elif (shown if void is None else shown[~void]).all() and _differ(pixels, void):
        remarks.append(FILLED)
    return MaskedImage(name, picture, (), shown[None], void, tuple(remarks))


def left_out(pixels: MaskPixels, ignored: tuple[int, ...]) -> Bool[np.ndarray, "y x"] | None:
    """Pixels whose numbers are left out; None where there is none.

    Raises:
        ImageError: none counts, or the mask has no numbers.
    """
    if not ignored:
        return None
    void = np.isin(numbers_of(pixels, "mask", "numbers, of which --ignore leaves some out"), ignored)
    if void.all():
        numbers = ", ".join(map(str, ignored))
        raise ImageError(f"no pixel of its mask counts: all are {numbers} (--ignore), expected numbers of ground and object")
    return void if void.any() else None


def guarded(name: str, read: Callable[[], MaskedImage]) -> Reading:
    """What `read` gives, or its error with the picture's name before it."""
    try:
        return read()
    except ImageError as error:
        return ImageError(f"{name}: {error}")


def _differ(pixels: MaskPixels, void: Bool[np.ndarray, "y x"] | None) -> bool:
    """Whether a mask has several numbers where pixels count; of colours nobody knows, so that they may."""
    if pixels.numbers is None:
        return True
    return len(np.unique(pixels.numbers if void is None else pixels.numbers[~void])) > 1


def _remark_on(numbers: Int[np.ndarray, "y x"]) -> str | None:
    """A word on a mask with numbers between 0 and 255 and with 255, which is void in some data sets."""
    if numbers.max() != FULL or not ((numbers > 0) & (numbers < FULL)).any():
        return None
    return VOID_HELD if len(np.unique(numbers)) <= FEW else EDGES


def _turned_by(orientation: int | None) -> str:
    return "" if orientation in (None, 1) else f" (turned by EXIF orientation {orientation})"
