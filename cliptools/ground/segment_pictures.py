"""Masks, overlays and label maps as PNGs."""

from io import BytesIO

import numpy as np
from jaxtyping import Bool, Float, Int
from PIL import Image, ImageChops, ImageFilter, ImageOps

COLD, WARM, HOT = "#10104a", "#d0342c", "#ffe66d"  # of a heat map's 0, half and 1
BLEND = 0.55  # how much of an overlay is heat
OUTLINE = "#ffffff"


def mask_picture(mask: Bool[np.ndarray, "y x"]) -> Image.Image:
    """White where the mask is."""
    return Image.fromarray(np.where(mask, 255, 0).astype(np.uint8))


def heat_picture(heat: Float[np.ndarray, "y x"]) -> Image.Image:
    """A heat map in [0, 1] in colours."""
    grey = Image.fromarray((heat * 255).round().astype(np.uint8))
    return ImageOps.colorize(grey, COLD, HOT, WARM)


def overlay(picture: Image.Image, heat: Float[np.ndarray, "y x"], mask: Bool[np.ndarray, "y x"]) -> Image.Image:
    """The picture under its heat map, the mask's edge drawn in."""
    blended = Image.blend(picture.convert("RGB"), heat_picture(heat), BLEND)
    solid = mask_picture(mask)
    edge = ImageChops.difference(solid, solid.filter(ImageFilter.MinFilter(3)))
    blended.paste(OUTLINE, mask=edge)
    return blended


def label_picture(labels: Int[np.ndarray, "y x"], most: int = 255) -> Image.Image:
    """A palette picture whose values are the labels: 0 black, then colours far from each other.

    Args:
        most: The highest label there may be; above 255 the picture is grey, of 16 bits.
    """
    if most > 255:
        return Image.fromarray(labels.astype(np.uint16))
    image = Image.fromarray(labels.astype(np.uint8))
    image.putpalette(_palette())
    return image


def label_overlay(picture: Image.Image, labels: Int[np.ndarray, "y x"]) -> Image.Image:
    """The picture under the labels' colours, which begin again after 255; bare where the label is 0."""
    coloured = label_picture(np.where(labels > 0, (labels - 1) % 255 + 1, 0)).convert("RGB")
    return Image.composite(Image.blend(picture.convert("RGB"), coloured, BLEND), picture.convert("RGB"), mask_picture(labels > 0))


def png(image: Image.Image) -> bytes:
    """The picture as a PNG."""
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _palette() -> list[int]:
    import colorsys

    golden = 0.618033988749895  # its multiples spread hues as evenly as any number of them can
    colours = [colorsys.hsv_to_rgb(i * golden % 1, 0.75 if i % 2 else 0.55, 0.95) for i in range(255)]
    return [0, 0, 0] + [round(255 * part) for colour in colours for part in colour]
