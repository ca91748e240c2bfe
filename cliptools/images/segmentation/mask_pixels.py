"""The pixels of a mask or label picture in any mode of Pillow: where the object is, and the number of each pixel.

* A number is a grey value (of 1, 8, 16 or 32 bits, or a whole real number) or a palette index. 0 is the background, every
  greater number is the object. Real numbers with fractions are a soft mask, from 0 to 1 or to 255, thresholded at half of it.
* In a colour picture black is the background. In a palette picture index 0 is the background, except if index 0 is not black and
  another index is: programs that sort a palette keep the colours, not the indices.
* A transparent pixel is no object. If all pixels that are not transparent are black, or no such pixel is, transparency alone
  is the mask (a cut-out). Numbers do not depend on transparency.
* JPEG smears edges: grey masks are thresholded at half of the range, and have no numbers.
"""

from io import BytesIO
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Num, Shaped, UInt8
from PIL import Image

from cliptools.errors import ImageError, first_line
from cliptools.images.decode import load_upright
from cliptools.images.formats import quiet_pillow

Kind = Literal["mask", "labels"]
"""Kind of picture, as messages name it: the mask of an object, or the numbers of classes."""

FORMATS = ("PNG", "BMP", "TIFF", "GIF", "PPM", "JPEG")
COLOURS = ("RGB", "RGBX", "RGBA", "RGBa", "CMYK", "YCbCr")
LIGHTNESS = {"LAB": 0, "HSV": 2}
"""Modes that Pillow cannot convert to RGB without loss, with the index of the channel that is 0 for black."""
ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
SMEARED = 32  # largest difference between the channels of a JPEG that counts as grey
HALF, FULL = 128, 255

FRAMES = "have several frames or pages: the first is read"
CUT_OUT = "are cut-outs: pixels that are not transparent are the object"
JPEG = "are JPEGs: values from 128 are the object"
SOFT = "have fractions: the object is where they reach half of the range"


class MaskPixels(NamedTuple):
    """The pixels of a mask, turned by the EXIF orientation of its file if it has one."""

    shown: Bool[np.ndarray, "y x"]
    """True where the object is."""
    numbers: Int[np.ndarray, "y x"] | None
    """Grey values or palette indices."""
    numberless: str = ""
    """The kind of values, if these are no numbers."""
    orientation: int | None = None
    """The EXIF orientation of the file; None if it has none."""
    remarks: tuple[str, ...] = ()
    """Assumptions about the mask; each continues a sentence that begins with `N masks`."""


def read_mask(file: Path | BytesIO, kind: Kind = "mask") -> MaskPixels:
    """Read the pixels of the mask or label picture in a file or in bytes.

    Raises:
        ImageError: the picture cannot be read, or its object is ambiguous.
    """
    try:
        with quiet_pillow(), Image.open(file, formats=FORMATS) as image:
            form, layout, frames = image.format, _layout(image), getattr(image, "is_animated", False)
            picture, orientation = load_upright(image)
    except Exception as error:  # Pillow's readers raise nearly any exception on damaged data
        raise ImageError(f"its {kind} cannot be read ({first_line(error)}); expected {', '.join(FORMATS)}") from None
    try:
        pixels = _jpeg_pixels(picture) if form == "JPEG" else mask_pixels(picture, kind)
        if ";16" in layout and layout.startswith(("RGB", "LA")):
            _check_16_bits(picture)
    except ImageError as error:
        raise ImageError(f"its {kind}: {error}") from None
    if pixels.numbers is not None and (reason := _renumbering(form, layout)):
        pixels = pixels._replace(numbers=None, numberless=reason)
    remarks = (FRAMES, *pixels.remarks) if frames else pixels.remarks
    return pixels._replace(orientation=orientation, remarks=remarks)


def mask_pixels(image: Image.Image, kind: Kind = "mask") -> MaskPixels:
    """Return the pixels of a decoded picture of any mode; for labels, `shown` does not depend on transparency.

    Raises:
        ImageError: the object is ambiguous. The message continues after `its mask: `.
    """
    mode = image.mode
    if mode in COLOURS or mode in LIGHTNESS:
        shown, cut_out = _object(image, _not_black(image), kind)
        return MaskPixels(shown, None, f"colours (mode {mode})", remarks=(CUT_OUT,) if cut_out else ())
    values = np.asarray(image)
    pixels = array_pixels(values[..., 0] if values.ndim == 3 else values)  # (y, x): grey or index, without alpha
    if pixels.numbers is None:
        return pixels
    painted = _not_background(image, pixels.numbers) if mode in ("P", "PA") else pixels.shown
    shown, cut_out = _object(image, painted, kind)
    pixels = pixels._replace(shown=shown, remarks=(CUT_OUT,) if cut_out else ())
    if mode == "La" and (values[..., 1] < FULL).any():
        return pixels._replace(numbers=None, numberless="grey values multiplied by transparency (mode La)")
    return pixels


def array_pixels(values: Shaped[np.ndarray, "y x"]) -> MaskPixels:
    """Return the pixels of a grey mask.

    Raises:
        ImageError: values are below 0 or NaN, or fractions have an unknown range.
    """
    if values.dtype.kind == "f" and not all_whole(values):
        return MaskPixels(above_half(values), None, "fractions", remarks=(SOFT,))
    numbers = values.astype(np.int64)
    if (numbers < 0).any():
        raise ImageError(f"number {int(numbers.min())}, expected 0 for the background and greater numbers for the object")
    return MaskPixels(numbers > 0, numbers)


def all_whole(values: Num[np.ndarray, "y x"]) -> bool:
    """Return True if all values are whole numbers."""
    return bool(np.isfinite(values).all() and (values == np.trunc(values)).all())


def above_half(values: Num[np.ndarray, "y x"]) -> Bool[np.ndarray, "y x"]:
    """Return where real numbers, from 0 to 1 or from 0 to 255, reach half of that range.

    Raises:
        ImageError: values are NaN, infinite, or outside both ranges.
    """
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(values).all():
        raise ImageError("NaN or infinity, expected numbers from 0 (the background) to 1 or to 255")
    if low < 0 or high > FULL:
        raise ImageError(f"fractions from {low:g} to {high:g}, expected numbers from 0 (the background) to 1 or to 255")
    return np.asarray(values >= (0.5 if high <= 1 else FULL / 2))


def numbers_of(pixels: MaskPixels, kind: Kind, meaning: str) -> Int[np.ndarray, "y x"]:
    """Return the number of each pixel.

    Args:
        meaning: The meaning of the numbers, for messages.

    Raises:
        ImageError: the picture has no numbers.
    """
    if pixels.numbers is None:
        has = "its labels are" if kind == "labels" else "its mask is of"
        raise ImageError(f"{has} {pixels.numberless}, expected a palette or grey picture whose values are {meaning}")
    return pixels.numbers


def _not_black(image: Image.Image) -> Bool[np.ndarray, "y x"]:
    """Return where a colour picture is not black."""
    if image.mode in LIGHTNESS:
        return np.asarray(np.asarray(image)[..., LIGHTNESS[image.mode]] > 0)
    channels = np.asarray(image if image.mode.startswith("RGB") else image.convert("RGB"))
    return np.asarray(channels[..., :3].any(axis=2))


def _not_background(image: Image.Image, index: Int[np.ndarray, "y x"]) -> Bool[np.ndarray, "y x"]:
    """Return where a palette picture is not background, which is index 0 or black."""
    black, is_first = np.asarray((np.asarray(image.convert("RGBA"))[..., :3] == 0).all(axis=2)), index == 0
    if black.all() or (is_first & black).any():
        return ~is_first
    if black.any() or not is_first.any():
        return ~black
    has_other_colours = any((image.getpalette() or [])[3:])  # colours after index 0 that are not black, though unused
    return ~is_first if has_other_colours else is_first


def _object(image: Image.Image, painted: Bool[np.ndarray, "y x"], kind: Kind) -> tuple[Bool[np.ndarray, "y x"], bool]:
    """Return where the object is, from painted and opaque pixels, and True if opacity alone decides it.

    Raises:
        ImageError: there are transparent, black and coloured pixels, so that the first or the second may be the background.
    """
    if kind == "labels" or not image.has_transparency_data:
        return painted, False
    visible = _alpha(image) > 0
    if visible.all() or not visible.any():
        return painted, False
    inside = painted[visible]
    if inside.all() or not inside.any():
        return visible, not (painted == visible).all()
    kinds = np.asarray(image).reshape(*painted.shape, -1)[visible]  # (pixel, channel)
    colours = np.unique(kinds[:, :-1] if image.mode in ALPHA else kinds, axis=0)
    if len(colours) > 2:
        raise ImageError(
            f"transparent, black and coloured pixels ({len(colours)} colours): the object could be the pixels that are not "
            "transparent or those that are not black; expected a mask without transparency, or one without black"
        )
    return painted & visible, False


def _alpha(image: Image.Image) -> UInt8[np.ndarray, "y x"] | Bool[np.ndarray, "y x"]:
    key = image.info.get("transparency")
    if image.mode in ALPHA:
        return np.asarray(image)[..., -1]
    if image.mode not in ("P", "RGB"):  # grey with one transparent value
        values = np.asarray(image)
        return np.asarray(values * FULL if image.mode == "1" else values) != key
    return np.asarray(image.convert("RGBA"))[..., 3]


def _jpeg_pixels(image: Image.Image) -> MaskPixels:
    """Return the pixels of a grey JPEG, thresholded at half of the range.

    Raises:
        ImageError: the JPEG is coloured.
    """
    channels = np.asarray(image.convert("RGB")).astype(np.int16)
    if np.ptp(channels, axis=2).max() > SMEARED:
        raise ImageError("a coloured JPEG, whose colours are smeared; expected a grey one, or PNG")
    return MaskPixels(np.asarray(image.convert("L")) >= HALF, None, "smeared (JPEG)", remarks=(JPEG,))


def _layout(image: Image.Image) -> str:
    """Return Pillow's name of the pixel layout in the file: `L`, `L;4`, `RGB;16B`; `ppm` for a scaled PNM."""
    if not (tiles := getattr(image, "tile", None)):
        return ""
    decoder, arguments = tiles[0][0], tiles[0][3]
    name = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return decoder if decoder.startswith("ppm") else name if isinstance(name, str) else ""


def _renumbering(form: str | None, layout: str) -> str:
    """Return the reason why Pillow's values differ from those in the file; empty if they are the same."""
    if form == "GIF":
        return "the colours of a GIF, which renumbers them (PNG does not)"
    if layout.startswith("ppm") or layout.startswith(("L;2", "L;4")):
        return "grey of another range than 8 or 16 bits, which is scaled to 8 bits"
    return ""


def _check_16_bits(image: Image.Image) -> None:
    """Check a picture with 16-bit colours, of which Pillow reads the upper 8 bits: they must be all 0 or all 1.

    Raises:
        ImageError: other values would lose their lower bits.
    """
    colours = np.asarray(image)[..., :3]
    if not (np.isin(colours, (0, FULL)).all() and colours.any()):
        raise ImageError("colours, or grey with alpha, of 16 bits; expected 8 bits, or 16 bits of grey alone")
