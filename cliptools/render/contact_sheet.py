"""Contact sheets and pictures of masks, drawn with Pillow.

`contact_sheet` draws one row per unit, with its name, words, shares and pictures, in Pillow's built-in font. `overlay` and
`label_overlay` draw heat maps, masks and label maps over a picture.
"""

import colorsys
import functools
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO

import numpy as np
from jaxtyping import Bool, Float, Int
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont, ImageOps

CELL = 96  # side of a picture's cell in pixels
GAP = 6
MARGIN = 20
TEXT_WIDTH = 400
WORD_COLUMNS = 2
NUMBER_WIDTH = 46  # width of a coefficient before its word
TITLE_HEIGHT = 28
LINE = 17
SIZES = {"heading": 22, "title": 17, "text": 13, "small": 12}
PAPER, RULE, EMPTY = "#ffffff", "#e3e3e3", "#f1f1f1"
INK, FAINT, POSITIVE, NEGATIVE = "#1c1c1c", "#767676", "#1d6f42", "#b02a30"
ELLIPSIS = "…"
MOST_PIXELS = 100_000_000


@dataclass(frozen=True)
class SheetRow:
    """The row of one unit in a contact sheet."""

    title: str
    facts: str
    words: Sequence[tuple[str, float]] = field(default=())
    """Words that the unit writes, with signed coefficients: positive ones first."""
    images: Sequence[Image.Image | None] = field(default=())
    """The pictures; None for a missing picture."""
    inner: bool = False
    """True if the row belongs to the row above it, without a line between them."""
    seen: Sequence[tuple[str, float]] = field(default=())
    """Words that the unit sees, with correlations, largest first; if there are any, they stand beside the others."""
    seen_title: str = "sees"


def contact_sheet(heading: str, notes: str, rows: Sequence[SheetRow]) -> Image.Image:
    """Draw the rows under a heading and a smaller line of notes."""
    across = max((len(row.images) for row in rows), default=0)
    width = 2 * MARGIN + TEXT_WIDTH + across * (CELL + GAP)
    top = MARGIN + SIZES["heading"] + LINE + 2 * GAP
    height = top + len(rows) * _row_height() + MARGIN
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    room = width - 2 * MARGIN
    draw.text((MARGIN, MARGIN), shorten_to_width(heading, "heading", room), INK, _font("heading"))
    draw.text((MARGIN, MARGIN + SIZES["heading"] + GAP), shorten_to_width(notes, "small", room), FAINT, _font("small"))
    for number, row in enumerate(rows):
        y = top + number * _row_height()
        if not row.inner:
            draw.line((MARGIN, y, width - MARGIN, y), RULE)
        _draw_text(draw, row, y + 2 * GAP)
        for place, image in enumerate(row.images):
            _paste(sheet, image, MARGIN + TEXT_WIDTH + GAP + place * (CELL + GAP), y + 2 * GAP)
    return sheet


def most_rows(across: int) -> int:
    """Return the most rows, with this many pictures each, of a sheet that other programs can still open."""
    return max(1, MOST_PIXELS // ((2 * MARGIN + TEXT_WIDTH + across * (CELL + GAP)) * _row_height()))


def words_in_row(with_seen: bool = False) -> int:
    """Return the number of written words that fit a row, which words that the unit sees leave one column without its head."""
    lines = (CELL - TITLE_HEIGHT) // LINE
    return lines - 1 if with_seen else WORD_COLUMNS * lines


def shorten_to_width(text: str, size: str, width: int) -> str:
    """Return the text in characters of the built-in font, cut to a width with `…` if it is too long."""
    text, font = to_font_characters(text), _font(size)
    if font.getlength(text) <= width:
        return text
    low, high = 0, len(text)  # the longest beginning that fits
    while low < high:
        middle = (low + high + 1) // 2
        if font.getlength(text[:middle].rstrip() + ELLIPSIS) <= width:
            low = middle
        else:
            high = middle - 1
    return text[:low].rstrip() + ELLIPSIS


def to_font_characters(text: str) -> str:
    """Return the text in characters of the built-in font: accents are removed, other characters become `?`."""
    decomposed = unicodedata.normalize("NFKD", text.replace("−", "-").replace("–", "-"))
    base_characters = (character for character in decomposed if not unicodedata.combining(character))
    return "".join(c if c in "…·’“”" or (c.isascii() and c.isprintable()) else "?" for c in base_characters)


def _row_height() -> int:
    return CELL + 4 * GAP


def _draw_text(draw: ImageDraw.ImageDraw, row: SheetRow, y: int) -> None:
    """Draw title and facts in a line, and below them the words in columns, strongest first from top to bottom."""
    room, base = TEXT_WIDTH - 2 * GAP, y + SIZES["title"]
    facts = shorten_to_width(row.facts, "small", room // 2)
    draw.text((MARGIN + room, base), facts, FAINT, _font("small"), anchor="rs")
    title = shorten_to_width(row.title, "title", room - 2 * GAP - int(_font("small").getlength(facts)))
    draw.text((MARGIN, base), title, INK, _font("title"), anchor="ls")
    y += TITLE_HEIGHT
    lines, column = words_in_row() // WORD_COLUMNS, TEXT_WIDTH // WORD_COLUMNS
    if not row.seen:
        for start in range(0, words_in_row(), lines):
            _draw_words(draw, row.words[start : start + lines], MARGIN + start // lines * column, y, column)
        return
    for x, title, words in ((MARGIN, "writes", row.words), (MARGIN + column, row.seen_title, row.seen)):
        head = shorten_to_width(title, "small", column - GAP)
        left = min(x + NUMBER_WIDTH, x + column - GAP - int(_font("small").getlength(head)))  # a long one begins further left
        draw.text((left, y), head, FAINT, _font("small"), anchor="la")
        _draw_words(draw, words[: lines - 1], x, y + LINE, column)


def _draw_words(draw: ImageDraw.ImageDraw, words: Sequence[tuple[str, float]], x: int, y: int, width: int) -> None:
    """Draw words with their numbers, one below the other."""
    for number, (word, value) in enumerate(words):
        line = y + number * LINE
        draw.text(
            (x + NUMBER_WIDTH - GAP, line), f"{value:+.2f}", POSITIVE if value > 0 else NEGATIVE, _font("text"), anchor="ra"
        )
        text = shorten_to_width(word, "text", width - NUMBER_WIDTH - GAP)
        draw.text((x + NUMBER_WIDTH, line), text, INK, _font("text"), anchor="la")


def _paste(sheet: Image.Image, image: Image.Image | None, x: int, y: int) -> None:
    """Paste the whole picture into the middle of its cell; a missing picture leaves a grey cell."""
    if image is None:
        sheet.paste(EMPTY, (x, y, x + CELL, y + CELL))
        return
    small = ImageOps.contain(image.convert("RGB"), (CELL, CELL), Image.Resampling.LANCZOS)
    sheet.paste(small, (x + (CELL - small.width) // 2, y + (CELL - small.height) // 2))


@functools.cache
def _font(size: str) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(SIZES[size])


COLD, WARM, HOT = "#10104a", "#d0342c", "#ffe66d"  # colours of heat 0, 0.5 and 1
BLEND = 0.55  # share of the heat map's colours in an overlay
OUTLINE = "#ffffff"


def mask_picture(mask: Bool[np.ndarray, "y x"]) -> Image.Image:
    """Return the mask as a picture, white on black."""
    return Image.fromarray(np.where(mask, 255, 0).astype(np.uint8))


def heat_picture(heat: Float[np.ndarray, "y x"]) -> Image.Image:
    """Return a heat map in [0, 1] in colours."""
    grey = Image.fromarray((heat * 255).round().astype(np.uint8))
    return ImageOps.colorize(grey, COLD, HOT, WARM)


def overlay(picture: Image.Image, heat: Float[np.ndarray, "y x"], mask: Bool[np.ndarray, "y x"]) -> Image.Image:
    """Return the picture under its heat map, with the outline of the mask."""
    blended = Image.blend(picture.convert("RGB"), heat_picture(heat), BLEND)
    solid = mask_picture(mask)
    edge = ImageChops.difference(solid, solid.filter(ImageFilter.MinFilter(3)))
    blended.paste(OUTLINE, mask=edge)
    return blended


TOWARDS, AGAINST = (192, 57, 43), (33, 102, 172)  # colours of positive and negative shares


def signed_overlay(picture: Image.Image, heat: Float[np.ndarray, "row column"]) -> Image.Image:
    """Return the picture in pale grey under a signed map: red where positive, blue where negative, by the largest absolute value.

    Args:
        heat: Values of the map, coarser than the picture; interpolated between the centres of its cells.
    """
    largest = float(np.abs(heat).max())
    scaled = Image.fromarray((heat / largest if largest > 0 else heat).astype(np.float32))
    strength = np.array(scaled.resize(picture.size, Image.Resampling.BICUBIC)).clip(-1, 1)[..., None]  # (y, x, 1)
    grey = 64 + 0.75 * np.array(picture.convert("L"), dtype=np.float32)[..., None]
    colour = np.where(strength > 0, TOWARDS, AGAINST)  # (y, x, 3)
    alpha = 0.85 * np.abs(strength)
    return Image.fromarray((grey * (1 - alpha) + colour * alpha).clip(0, 255).round().astype(np.uint8))


def label_picture(labels: Int[np.ndarray, "y x"], largest: int = 255) -> Image.Image:
    """Return a palette picture whose values are the labels: 0 is black, the others have well-separated colours.

    Args:
        largest: The highest possible label; above 255 the picture is greyscale of 16 bits.
    """
    if largest > 255:
        return Image.fromarray(labels.astype(np.uint16))
    image = Image.fromarray(labels.astype(np.uint8))
    image.putpalette(_palette())
    return image


def label_overlay(picture: Image.Image, labels: Int[np.ndarray, "y x"]) -> Image.Image:
    """Return the picture under the colours of the labels, which repeat after 255; pixels with label 0 are unchanged."""
    coloured = label_picture(np.where(labels > 0, (labels - 1) % 255 + 1, 0)).convert("RGB")
    return Image.composite(Image.blend(picture.convert("RGB"), coloured, BLEND), picture.convert("RGB"), mask_picture(labels > 0))


def png(image: Image.Image) -> bytes:
    """Return the picture as the bytes of a PNG."""
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _palette() -> list[int]:
    golden = 0.618033988749895  # the fractional parts of its multiples spread any number of hues evenly
    colours = [colorsys.hsv_to_rgb(i * golden % 1, 0.75 if i % 2 else 0.55, 0.95) for i in range(255)]
    return [0, 0, 0] + [round(255 * part) for colour in colours for part in colour]
