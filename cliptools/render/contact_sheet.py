"""Contact sheets and pictures of masks, drawn with Pillow.

`lay_out` places one row per unit, with its name, words, shares and pictures. `contact_sheet` draws it in Pillow's built-in font,
`vector_sheet` as SVG or PDF, whose text stays text. `overlay` and `label_overlay` draw heat maps, masks and label maps over a
picture.
"""

import colorsys
import functools
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont, ImageOps

from cliptools.console import warn_once
from cliptools.render.figure_file import LIGHT, figure_bytes, figure_style, load_matplotlib

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
VECTOR_FONT = "fonts/ttf/DejaVuSans.ttf"  # in matplotlib's folder of data; wider than the built-in font, so drawn smaller
VECTOR_SIZE, MEASURED_SIZE = 0.85, 0.88  # drawn and measured size, as shares of that of the built-in font
INCH = 100  # pixels of a sheet
FIRST_COLOURS = 12  # classes whose colours differ in hue only
SHARPNESS = 3  # pixels of a picture in a vector sheet, in each direction, per pixel of the sheet


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


class Lettering:
    """A font in the sizes of a sheet: the built-in one, which has few characters, or that of a file, which has its own.

    Args:
        path: The file of the font; None for the built-in font.
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = path

    def length(self, text: str, size: str) -> float:
        """Return the width of a text in pixels."""
        return _font(size, self.path).getlength(text)

    def shortened(self, text: str, size: str, width: int) -> str:
        """Return the text in characters of the font, cut to a width with `…` if it is too long."""
        text = to_font_characters(text) if self.path is None else text
        if self.length(text, size) <= width:
            return text
        low, high = 0, len(text)  # the longest beginning that fits
        while low < high:
            middle = (low + high + 1) // 2
            if self.length(text[:middle].rstrip() + ELLIPSIS, size) <= width:
                low = middle
            else:
                high = middle - 1
        return text[:low].rstrip() + ELLIPSIS


class SheetText(NamedTuple):
    """A text of a sheet, in pixels from the top left."""

    x: float
    y: float
    text: str
    colour: str
    size: str
    anchor: str = "la"
    """Pillow's anchor: left or right, and ascender or baseline."""


class Sheet(NamedTuple):
    """A sheet that is laid out: all that there is to draw."""

    width: int
    height: int
    texts: list[SheetText]
    rules: list[int]
    """Heights of the lines between units."""
    pictures: list[tuple[int, int, Image.Image | None]]
    """Left and top of each cell, and its picture."""


def contact_sheet(heading: str, notes: str, rows: Sequence[SheetRow]) -> Image.Image:
    """Draw the rows under a heading and a smaller line of notes."""
    sheet = lay_out(heading, notes, rows, Lettering())
    drawn = Image.new("RGB", (sheet.width, sheet.height), PAPER)
    draw = ImageDraw.Draw(drawn)
    for y in sheet.rules:
        draw.line((MARGIN, y, sheet.width - MARGIN, y), RULE)
    for text in sheet.texts:
        draw.text((text.x, text.y), text.text, text.colour, _font(text.size), anchor=text.anchor)
    for x, y, image in sheet.pictures:
        _paste(drawn, image, x, y)
    return drawn


def vector_sheet(heading: str, notes: str, rows: Sequence[SheetRow], kind: str, source: str = "") -> bytes:
    """Return the same sheet as the bytes of a file in which text is text and pictures are embedded.

    Args:
        kind: svg or pdf.
        source: Description of the source, which the file holds.
    """
    matplotlib = load_matplotlib()
    lettering = Lettering(str(Path(matplotlib.get_data_path()) / VECTOR_FONT))
    sheet = lay_out(heading, notes, rows, lettering)
    with matplotlib.rc_context(figure_style(LIGHT) | {"image.composite_image": False, "font.family": "DejaVu Sans"}):
        canvas = matplotlib.figure.Figure(figsize=(sheet.width / INCH, sheet.height / INCH), facecolor=PAPER)
        axis = canvas.add_axes((0, 0, 1, 1))
        axis.set_axis_off()
        axis.hlines(sheet.rules, MARGIN, sheet.width - MARGIN, colors=RULE, linewidth=72 / INCH)
        for text in sheet.texts:
            ascent = 0 if text.anchor.endswith("s") else _font(text.size).getmetrics()[0]  # type: ignore[union-attr]
            settings = {"ha": "right" if text.anchor.startswith("r") else "left", "va": "baseline", "color": text.colour}
            points = VECTOR_SIZE * SIZES[text.size] * 72 / INCH
            axis.text(text.x, text.y + ascent, text.text.replace("$", r"\$"), fontsize=points, **settings)
        for x, y, image in sheet.pictures:
            small = Image.new("RGB", (CELL, CELL), EMPTY) if image is None else _contained(image, SHARPNESS * CELL)
            width, height = (CELL * side / max(small.size) for side in small.size)
            left, top = x + (CELL - width) / 2, y + (CELL - height) / 2
            axis.imshow(small, extent=(left, left + width, top + height, top), aspect="auto", interpolation="none")
        axis.set(xlim=(0, sheet.width), ylim=(sheet.height, 0))
        return figure_bytes(canvas, kind, INCH, source)


def lay_out(heading: str, notes: str, rows: Sequence[SheetRow], lettering: Lettering) -> Sheet:
    """Place the rows under a heading and a smaller line of notes."""
    across = max((len(row.images) for row in rows), default=0)
    width = 2 * MARGIN + TEXT_WIDTH + across * (CELL + GAP)
    top = MARGIN + SIZES["heading"] + LINE + 2 * GAP
    sheet = Sheet(width, top + len(rows) * _row_height() + MARGIN, [], [], [])
    room = width - 2 * MARGIN
    for y, line, colour, size in ((MARGIN, heading, INK, "heading"), (MARGIN + SIZES["heading"] + GAP, notes, FAINT, "small")):
        sheet.texts.append(SheetText(MARGIN, y, lettering.shortened(line, size, room), colour, size))
    with_seen = any(row.seen for row in rows)
    for number, row in enumerate(rows):
        y = top + number * _row_height()
        if not row.inner:
            sheet.rules.append(y)
        _place_text(sheet.texts, row, y + 2 * GAP, lettering, with_seen)
        for place, image in enumerate(row.images):
            sheet.pictures.append((MARGIN + TEXT_WIDTH + GAP + place * (CELL + GAP), y + 2 * GAP, image))
    return sheet


def most_rows(across: int) -> int:
    """Return the most rows, with this many pictures each, of a sheet that other programs can still open."""
    return max(1, MOST_PIXELS // ((2 * MARGIN + TEXT_WIDTH + across * (CELL + GAP)) * _row_height()))


def words_in_row(with_seen: bool = False) -> int:
    """Return the number of written words that fit a row, which words that the unit sees leave one column without its head."""
    lines = (CELL - TITLE_HEIGHT) // LINE
    return lines - 1 if with_seen else WORD_COLUMNS * lines


def to_font_characters(text: str) -> str:
    """Return the text in characters of the built-in font: accents are removed, other characters become `?`."""
    decomposed = unicodedata.normalize("NFKD", text.replace("−", "-").replace("–", "-"))
    base_characters = (character for character in decomposed if not unicodedata.combining(character))
    shown = "".join(c if c in "…·’“”" or (c.isascii() and c.isprintable()) else "?" for c in base_characters)
    if shown.count("?") > text.count("?"):
        warn_once("characters", f"PNG sheets lack letters of {text!r} and show ? in their place; .svg and .pdf have them")
    return shown


def _row_height() -> int:
    return CELL + 4 * GAP


def _place_text(texts: list[SheetText], row: SheetRow, y: int, lettering: Lettering, with_seen: bool) -> None:
    """Place title and facts in a line, and below them the words in columns, strongest first from top to bottom.

    Args:
        with_seen: Some row has words that its unit sees, so that every column says of what kind its words are.
    """
    room, base = TEXT_WIDTH - 2 * GAP, y + SIZES["title"]
    facts = lettering.shortened(row.facts, "small", room // 2)
    texts.append(SheetText(MARGIN + room, base, facts, FAINT, "small", "rs"))
    title = lettering.shortened(row.title, "title", room - 2 * GAP - int(lettering.length(facts, "small")))
    texts.append(SheetText(MARGIN, base, title, INK, "title", "ls"))
    y += TITLE_HEIGHT
    lines, column = words_in_row() // WORD_COLUMNS, TEXT_WIDTH // WORD_COLUMNS
    if not with_seen:
        for start in range(0, words_in_row(), lines):
            _place_words(texts, row.words[start : start + lines], MARGIN + start // lines * column, y, lettering)
        return
    second = (row.seen_title, row.seen) if row.seen else ("writes", row.words[lines - 1 :])
    for x, title, words in ((MARGIN, "writes", row.words), (MARGIN + column, *second)):
        if not words:
            continue
        head = lettering.shortened(title, "small", column - GAP)
        left = min(x + NUMBER_WIDTH, x + column - GAP - int(lettering.length(head, "small")))  # a long one begins further left
        texts.append(SheetText(left, y, head, FAINT, "small"))
        _place_words(texts, words[: lines - 1], x, y + LINE, lettering)


def _place_words(texts: list[SheetText], words: Sequence[tuple[str, float]], x: int, y: int, lettering: Lettering) -> None:
    """Place words of a column with their numbers, one below the other."""
    for number, (word, value) in enumerate(words):
        line, colour = y + number * LINE, POSITIVE if value > 0 else NEGATIVE
        texts.append(SheetText(x + NUMBER_WIDTH - GAP, line, f"{value:+.2f}", colour, "text", "ra"))
        text = lettering.shortened(word, "text", TEXT_WIDTH // WORD_COLUMNS - NUMBER_WIDTH - GAP)
        texts.append(SheetText(x + NUMBER_WIDTH, line, text, INK, "text"))


def _contained(image: Image.Image, side: int) -> Image.Image:
    """Return the picture in a square of this side, made smaller if it is larger."""
    image = image.convert("RGB")
    return ImageOps.contain(image, (side, side), Image.Resampling.LANCZOS) if max(image.size) > side else image


def _paste(sheet: Image.Image, image: Image.Image | None, x: int, y: int) -> None:
    """Paste the whole picture into the middle of its cell; a missing picture leaves a grey cell."""
    if image is None:
        sheet.paste(EMPTY, (x, y, x + CELL, y + CELL))
        return
    small = ImageOps.contain(image.convert("RGB"), (CELL, CELL), Image.Resampling.LANCZOS)
    sheet.paste(small, (x + (CELL - small.width) // 2, y + (CELL - small.height) // 2))


@functools.cache
def _font(size: str, path: str | None = None) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(SIZES[size]) if path is None else ImageFont.truetype(path, MEASURED_SIZE * SIZES[size])


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


OUTLINE_SIDE = SHARPNESS * CELL
OUTLINE_WIDTH, HALO_WIDTH = 3, 2  # pixels, in a picture of OUTLINE_SIDE
HALO = "#000000"


def outlined(picture: Image.Image, heat: Float[np.ndarray, "row column"], share: float) -> Image.Image:
    """Return the picture, of OUTLINE_SIDE, with an outline of where its map reaches a share of its largest value.

    White lies inside, where the map reaches it, and a dark line just outside. A map without a positive value has no outline.

    Args:
        heat: Values of the map, coarser than the picture; interpolated between the centres of its cells.
    """
    factor = OUTLINE_SIDE / max(picture.size)
    size = max(1, round(picture.width * factor)), max(1, round(picture.height * factor))
    drawn = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    values = np.array(Image.fromarray(heat.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))  # (y, x)
    if values.max() <= 0:
        return drawn
    solid = mask_picture(values >= share * values.max())
    drawn.paste(HALO, mask=ImageChops.difference(solid, solid.filter(ImageFilter.MaxFilter(2 * HALO_WIDTH + 1))))
    drawn.paste(OUTLINE, mask=ImageChops.difference(solid, solid.filter(ImageFilter.MinFilter(2 * OUTLINE_WIDTH + 1))))
    return drawn


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


@functools.cache
def _palette() -> list[int]:
    """Return black and 255 colours: hues far from each other, then each time the colour farthest from all before it."""
    golden = 0.618033988749895  # the fractional parts of its multiples spread any number of hues evenly
    hues = [colorsys.hsv_to_rgb(i * golden % 1, 0.75 if i % 2 else 0.55, 0.95) for i in range(FIRST_COLOURS)]
    chosen = [(0.0, 0.0, 0.0), *hues]
    grid = np.stack(np.meshgrid(*[np.linspace(0.1, 1, 10)] * 3), -1).reshape(-1, 3)  # (candidate, 3)
    distance = np.min([np.linalg.norm(grid - colour, axis=1) for colour in (*chosen, (1.0, 1.0, 1.0))], 0)  # (candidate)
    while len(chosen) < 256:
        farthest = grid[distance.argmax()]
        chosen.append(tuple(farthest.tolist()))
        distance = np.minimum(distance, np.linalg.norm(grid - farthest, axis=1))
    return [round(255 * part) for colour in chosen for part in colour]
