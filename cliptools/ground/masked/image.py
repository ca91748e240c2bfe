"""One picture with its masks, whichever way it is kept. Read one by one, so that memory stays small."""

from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int
from PIL import Image

from cliptools.ground.decode import decode_turned
from cliptools.ground.errors import ImageError
from cliptools.ground.masked.mask_pixels import FULL, Kind, MaskPixels, numbers_of, read_mask
from cliptools.ground.masked.turning import Placing, Shown, turned

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
