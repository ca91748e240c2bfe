"""The pixels of a mask or label picture, whatever Pillow's mode: where the object is, and the number of each pixel.

* A number is a grey value (of 1, 8, 16 or 32 bits, or a whole real number) or an index of a palette. 0 is the ground, every
  greater number is the object. Real numbers with fractions are a soft mask, from 0 to 1 or to 255, cut at half of its range.
* In a colour picture black is the ground. In a palette picture index 0 is the ground, except where index 0 is not black and
  another index is: a program that sorts a palette anew keeps the colours, not the indices.
* A transparent pixel is no object. Where the pixels that are not transparent are all black, or none of them is, transparency
  alone is the mask (a thing cut out). Numbers do not depend on transparency.
* JPEG smears edges: its grey masks are cut at half of the range, and it has no numbers.
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
"""A picture of where the object is, or of the numbers of classes; errors call it so."""

FORMATS = ("PNG", "BMP", "TIFF", "GIF", "PPM", "JPEG")
COLOURS = ("RGB", "RGBX", "RGBA", "RGBa", "CMYK", "YCbCr")
LIGHTNESS = {"LAB": 0, "HSV": 2}
"""Modes that Pillow cannot turn into RGB without loss: their channel that is 0 where a pixel is black."""
ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
SMEARED = 32  # levels by which the channels of a grey JPEG may differ
HALF, FULL = 128, 255

FRAMES = "have several frames or pages: the first is read"
CUT_OUT = "show a thing cut out: what is not transparent is the object"
JPEG = "are JPEGs: values from 128 are the object"
SOFT = "have fractions: the object is where they reach half of the range"


class MaskPixels(NamedTuple):
    """Each pixel of a mask; where the file has an EXIF orientation of its own, turned by it."""

    shown: Bool[np.ndarray, "y x"]
    """Where the object is."""
    numbers: Int[np.ndarray, "y x"] | None
    """Grey values or palette indices."""
    numberless: str = ""
    """Why there are no numbers: what the values are."""
    orientation: int | None = None
    """The EXIF orientation of the file, None where it has none."""
    remarks: tuple[str, ...] = ()
    """What was assumed; each goes on after `N masks`."""


def read_mask(file: Path | BytesIO, kind: Kind = "mask") -> MaskPixels:
    """The pixels of the mask or label picture in a file or in bytes.

    Raises:
        ImageError: it cannot be read; or a mask that does not say what the object is.
    """
    try:
        with quiet_pillow(), Image.open(file, formats=FORMATS) as image:
            form, layout, frames = image.format, _layout(image), getattr(image, "is_animated", False)
            picture, orientation = load_upright(image)
    except Exception as error:  # Pillow's readers raise nearly anything on damaged data
        raise ImageError(f"its {kind} cannot be read ({first_line(error)}); expected {', '.join(FORMATS)}") from None
    try:
        pixels = _of_jpeg(picture) if form == "JPEG" else mask_pixels(picture, kind)
        if ";16" in layout and layout.startswith(("RGB", "LA")):
            _check_cut(picture)
    except ImageError as error:
        raise ImageError(f"its {kind}: {error}") from None
    if pixels.numbers is not None and (reason := _renumbered(form, layout)):
        pixels = pixels._replace(numbers=None, numberless=reason)
    remarks = (FRAMES, *pixels.remarks) if frames else pixels.remarks
    return pixels._replace(orientation=orientation, remarks=remarks)


def mask_pixels(image: Image.Image, kind: Kind = "mask") -> MaskPixels:
    """The pixels of a decoded picture of any mode; of labels, `shown` does not depend on transparency.

    Raises:
        ImageError: it does not say what the object is. The message goes on after `its mask: `.
    """
    mode = image.mode
    if mode in COLOURS or mode in LIGHTNESS:
        shown, cut_out = _seen(image, _painted(image), kind)
        return MaskPixels(shown, None, f"colours (mode {mode})", remarks=(CUT_OUT,) if cut_out else ())
    values = np.asarray(image)
    pixels = array_pixels(values[..., 0] if values.ndim == 3 else values)  # (y, x): grey or index, without alpha
    if pixels.numbers is None:
        return pixels
    painted = _by_palette(image, pixels.numbers) if mode in ("P", "PA") else pixels.shown
    shown, cut_out = _seen(image, painted, kind)
    pixels = pixels._replace(shown=shown, remarks=(CUT_OUT,) if cut_out else ())
    if mode == "La" and (values[..., 1] < FULL).any():
        return pixels._replace(numbers=None, numberless="grey values multiplied by transparency (mode La)")
    return pixels


def array_pixels(values: Shaped[np.ndarray, "y x"]) -> MaskPixels:
    """The pixels of a grey mask.

    Raises:
        ImageError: values below 0, NaN, or fractions of an unknown range.
    """
    if values.dtype.kind == "f" and not whole(values):
        return MaskPixels(soft(values), None, "fractions", remarks=(SOFT,))
    numbers = values.astype(np.int64)
    if (numbers < 0).any():
        raise ImageError(f"number {int(numbers.min())}, expected 0 for the ground and greater numbers for the object")
    return MaskPixels(numbers > 0, numbers)


def whole(values: Num[np.ndarray, "y x"]) -> bool:
    """Whether all values are whole numbers."""
    return bool(np.isfinite(values).all() and (values == np.trunc(values)).all())


def soft(values: Num[np.ndarray, "y x"]) -> Bool[np.ndarray, "y x"]:
    """Where real numbers, from 0 to 1 or from 0 to 255, reach half of that range.

    Raises:
        ImageError: NaN, infinity, or numbers outside both ranges.
    """
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(values).all():
        raise ImageError("NaN or infinity, expected numbers from 0 (the ground) to 1 or to 255")
    if low < 0 or high > FULL:
        raise ImageError(f"fractions from {low:g} to {high:g}, expected numbers from 0 (the ground) to 1 or to 255")
    return np.asarray(values >= (0.5 if high <= 1 else FULL / 2))


def numbers_of(pixels: MaskPixels, kind: Kind, what: str) -> Int[np.ndarray, "y x"]:
    """The number of each pixel.

    Args:
        what: What the numbers are.

    Raises:
        ImageError: the picture has none.
    """
    if pixels.numbers is None:
        has = "its labels are" if kind == "labels" else "its mask is of"
        raise ImageError(f"{has} {pixels.numberless}, expected a palette or grey picture whose values are {what}")
    return pixels.numbers


def _painted(image: Image.Image) -> Bool[np.ndarray, "y x"]:
    """Where a colour picture is not black."""
    if image.mode in LIGHTNESS:
        return np.asarray(np.asarray(image)[..., LIGHTNESS[image.mode]] > 0)
    channels = np.asarray(image if image.mode.startswith("RGB") else image.convert("RGB"))
    return np.asarray(channels[..., :3].any(axis=2))


def _by_palette(image: Image.Image, index: Int[np.ndarray, "y x"]) -> Bool[np.ndarray, "y x"]:
    """Where a palette picture is not ground, be that index 0 or black."""
    black, first = np.asarray((np.asarray(image.convert("RGBA"))[..., :3] == 0).all(axis=2)), index == 0
    if black.all() or (first & black).any():
        return ~first
    if black.any() or not first.any():
        return ~black
    others = any((image.getpalette() or [])[3:])  # colours beside index 0 that are not black, of which no pixel is
    return ~first if others else first


def _seen(image: Image.Image, painted: Bool[np.ndarray, "y x"], kind: Kind) -> tuple[Bool[np.ndarray, "y x"], bool]:
    """Where the object is, of what is painted and what is not transparent; and whether the latter alone says so.

    Raises:
        ImageError: transparent, black and coloured pixels: either of the first two could be the ground.
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
            f"transparent, black and coloured pixels ({len(colours)} colours): the object could be what is not transparent "
            "or what is not black; expected a mask without transparency, or one without black"
        )
    return painted & visible, False


def _alpha(image: Image.Image) -> UInt8[np.ndarray, "y x"] | Bool[np.ndarray, "y x"]:
    key = image.info.get("transparency")
    if image.mode in ALPHA:
        return np.asarray(image)[..., -1]
    if image.mode not in ("P", "RGB"):  # grey, of which one value is transparent
        values = np.asarray(image)
        return np.asarray(values * FULL if image.mode == "1" else values) != key
    return np.asarray(image.convert("RGBA"))[..., 3]


def _of_jpeg(image: Image.Image) -> MaskPixels:
    """A grey JPEG, cut at half.

    Raises:
        ImageError: it is coloured.
    """
    channels = np.asarray(image.convert("RGB")).astype(np.int16)
    if np.ptp(channels, axis=2).max() > SMEARED:
        raise ImageError("a coloured JPEG, whose colours are smeared; expected a grey one, or PNG")
    return MaskPixels(np.asarray(image.convert("L")) >= HALF, None, "smeared (JPEG)", remarks=(JPEG,))


def _layout(image: Image.Image) -> str:
    """Pillow's name of how the pixels lie in the file: `L`, `L;4`, `RGB;16B`; of a scaled PNM `ppm`."""
    if not (tiles := getattr(image, "tile", None)):
        return ""
    decoder, arguments = tiles[0][0], tiles[0][3]
    name = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return decoder if decoder.startswith("ppm") else name if isinstance(name, str) else ""


def _renumbered(form: str | None, layout: str) -> str:
    """Why the values of the file are other numbers than those that Pillow gives; empty where they are not."""
    if form == "GIF":
        return "the colours of a GIF, which it numbers anew (PNG does not)"
    if layout.startswith("ppm") or layout.startswith(("L;2", "L;4")):
        return "grey of another range than 8 or 16 bits, which is brought to 8 bits"
    return ""


def _check_cut(image: Image.Image) -> None:
    """Of colours of 16 bits Pillow reads the upper 8: enough where they are 0 or all.

    Raises:
        ImageError: they are not, so that the least values would be lost.
    """
    colours = np.asarray(image)[..., :3]
    if not (np.isin(colours, (0, FULL)).all() and colours.any()):
        raise ImageError("colours, or grey with alpha, of 16 bits; expected 8 bits, or 16 bits of grey alone")
