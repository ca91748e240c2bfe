"""Figures of heat maps and label maps, for papers: each beside its picture, with a colour bar or a legend.

Maps lie over the picture in grey, so that colours come from the map alone. A colour bar has the map's own lowest and highest
score as its limits, a legend exactly the classes that occur.
"""

import math
import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from PIL import Image

from cliptools.render.contact_sheet import BLEND, heat_picture, label_overlay, overlay
from cliptools.render.figure_file import DARK, DPI, LIGHT, WIDTH, Theme, figure_bytes, figure_style, load_matplotlib, shortened

MARGIN, GAP = 0.12, 0.22  # inches: around the figure, and between pictures
NAME, BAR, LINE = 0.16, 0.42, 0.15  # inches: a line of a title, colour bar with its numbers, a line of small text
TITLE_LINES, TITLE_CHARACTER = 2, 0.075  # most lines of a title; inches of its characters
LONGEST_NAME, CHARACTER = 60, 0.062  # characters of a name in a legend; inches of a character
NOTE_WIDTH = 150  # characters of a line of notes
TALLEST = 1.5  # height of a picture's place, in widths
BAR_STEPS = 256
LEAST_BAR = 1.6  # width in inches below which the numbers of a colour bar would overlap
MIDDLE_GREY = Image.new("L", (1, 1), 128)
BACKGROUND = "background, not coloured"
SCORE_NOTE = (
    "Colours: score of each pixel for the text, from the picture's lowest to its highest; maps of different texts have scales of "
    "their own."
)
MASK_NOTE = "White outline: pixels whose score reaches the mark on the bar."


class DrawnHeat(NamedTuple):
    """The heat map of a text in a figure."""

    text: str
    heat: Float[np.ndarray, "y x"]
    """From 0 to 1."""
    mask: Bool[np.ndarray, "y x"]
    lowest: float
    """Score of the map's zero."""
    highest: float
    """Score of the map's one."""
    cut: float
    """Value of the map that the mask's pixels reach."""


class DrawnLabels(NamedTuple):
    """A label map in a figure."""

    labels: Int[np.ndarray, "y x"]
    names: Sequence[str]
    """Names by label; that of label 0, the background, is not shown if it is empty."""


class LegendEntry(NamedTuple):
    """A class that occurs in a label map."""

    name: str
    share: float
    colour: tuple[int, int, int]


def legend(drawn: DrawnLabels) -> list[LegendEntry]:
    """Return the classes that occur, largest first, in the colours in which their pixels are drawn over middle grey.

    The colour of a class depends on its label alone, so that it is the same in all figures of a list of classes.
    """
    labels, counts = np.unique(drawn.labels, return_counts=True)
    order = np.lexsort((labels, -counts))
    colours = np.asarray(label_overlay(MIDDLE_GREY.resize((len(labels), 1)), labels[None]))[0]  # (class, 3)
    names = [drawn.names[label] if label else BACKGROUND for label in labels]
    return [LegendEntry(names[i], counts[i] / drawn.labels.size, tuple(colours[i].tolist())) for i in order]


class _Page:
    """A figure of pictures in rows, each with a title above it and room below it; lengths are in inches from the top left."""

    def __init__(self, size: tuple[int, int], titles: Sequence[str], below: float, foot: float, theme: Theme) -> None:
        """
        Args:
            size: Width and height of each picture, in any unit.
            titles: A title for each picture.
            below: Room below each picture.
            foot: Room below all pictures.
        """
        self.theme, self.across = theme, 3 if len(titles) % 2 else 2
        self.cell = (WIDTH - 2 * MARGIN - (self.across - 1) * GAP) / self.across
        self.titles = [_title_lines(title, int(self.cell / TITLE_CHARACTER)) for title in titles]
        self.height = min(self.cell * size[1] / size[0], self.cell * TALLEST)
        self.width = self.height * size[0] / size[1]
        self.head = NAME * max(map(len, self.titles)) + 0.08
        self.step = self.head + self.height + below + GAP / 2
        self.rows = math.ceil(len(titles) / self.across)
        self.size = WIDTH, MARGIN + self.rows * self.step + foot + MARGIN
        self.canvas = load_matplotlib().figure.Figure(figsize=self.size, facecolor=theme.ground)

    @property
    def end(self) -> float:
        """Distance of the foot from the top."""
        return MARGIN + self.rows * self.step

    def axes(self, left: float, top: float, width: float, height: float) -> Any:
        """Return axes at a place of the page."""
        across, down = self.size
        return self.canvas.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))

    def text(self, left: float, top: float, text: str, size: float, **settings: Any) -> None:
        """Write a text whose upper left corner, by default, is at this place."""
        settings = {"ha": "left", "va": "top", "color": self.theme.ink} | settings
        self.canvas.text(left / self.size[0], 1 - top / self.size[1], text, fontsize=size, **settings)

    def place(self, number: int) -> tuple[float, float]:
        """Return left and top of a picture."""
        row, column = divmod(number, self.across)
        return MARGIN + column * (self.cell + GAP) + (self.cell - self.width) / 2, MARGIN + row * self.step + self.head

    def picture(self, number: int, picture: Image.Image) -> None:
        """Draw a picture below its title."""
        left, top = self.place(number)
        for line, text in enumerate(reversed(self.titles[number])):
            self.text(left + self.width / 2, top - 0.08 - line * NAME, text, 8.5, ha="center", va="baseline")
        axis = self.axes(left, top, self.width, self.height)
        axis.imshow(picture, aspect="auto", interpolation="lanczos")
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_color(self.theme.rule)


def draw_heat_maps(
    picture: Image.Image, maps: Sequence[DrawnHeat], labels: DrawnLabels | None, kind: str, dark: bool = False
) -> bytes:
    """Return a figure of the picture, the heat map of each text and their label map, if any; equal values give equal bytes.

    Args:
        kind: png, svg or pdf.
    """
    theme = DARK if dark else LIGHT
    with load_matplotlib().rc_context(figure_style(theme)):
        entries = [] if labels is None else legend(labels)
        titles = ["picture", *(drawn.text for drawn in maps), *([] if labels is None else ["label map"])]
        notes = textwrap.wrap(f"{SCORE_NOTE} {MASK_NOTE}", NOTE_WIDTH)
        page = _Page(picture.size, titles, BAR, _legend_height(entries) + LINE * len(notes), theme)
        page.picture(0, picture)
        grey = picture.convert("L")
        for number, drawn in enumerate(maps, 1):
            page.picture(number, overlay(grey, drawn.heat, drawn.mask))
            _draw_bar(page, number, drawn)
        if labels is not None:
            page.picture(len(titles) - 1, label_overlay(grey, labels.labels))
            _draw_legend(page, entries)
        for number, line in enumerate(notes):
            page.text(MARGIN, page.end + _legend_height(entries) + number * LINE, line, 6.5, color=theme.faint)
        return figure_bytes(page.canvas, kind, DPI, facecolor=theme.ground)


def draw_label_map(picture: Image.Image, labels: DrawnLabels, kind: str, dark: bool = False) -> bytes:
    """Return a figure of the picture, its label map and a legend of the classes that occur; equal values give equal bytes.

    Args:
        kind: png, svg or pdf.
    """
    theme = DARK if dark else LIGHT
    with load_matplotlib().rc_context(figure_style(theme)):
        entries = legend(labels)
        page = _Page(picture.size, ["picture", "label map"], 0.0, _legend_height(entries), theme)
        page.picture(0, picture)
        page.picture(1, label_overlay(picture.convert("L"), labels.labels))
        _draw_legend(page, entries)
        return figure_bytes(page.canvas, kind, DPI, facecolor=theme.ground)


def _draw_bar(page: _Page, number: int, drawn: DrawnHeat) -> None:
    """Draw the colours of a heat map over middle grey, with the scores of their ends and a mark at the mask's lowest value."""
    left, top = page.place(number)
    width = min(max(page.width, LEAST_BAR), page.cell)
    axis = page.axes(left + (page.width - width) / 2, top + page.height + 0.08, width, 0.09)
    steps = heat_picture(np.linspace(0, 1, BAR_STEPS)[None])  # (1, BAR_STEPS)
    axis.imshow(Image.blend(MIDDLE_GREY.convert("RGB").resize(steps.size), steps, BLEND), aspect="auto", extent=(0, 1, 0, 1))
    axis.set_yticks([])
    axis.tick_params(length=2, width=0.6, labelsize=6.5, pad=1.5, colors=page.theme.faint, labelcolor=page.theme.ink)
    if drawn.lowest == drawn.highest:
        axis.set_xticks([0.5], [f"{_number(drawn.lowest)} everywhere"])
        return
    axis.set_xticks([0, 1], [_number(drawn.lowest), _number(drawn.highest)])
    for label, side in zip(axis.get_xticklabels(), ("left", "right"), strict=True):
        label.set_horizontalalignment(side)
    if 0 <= drawn.cut <= 1:
        axis.axvline(drawn.cut, color="white", linewidth=1.2)
        share = f"mask {100 * drawn.mask.mean():.0f} %"
        page.text(left + page.width / 2, top + page.height + 0.225, share, 6.5, ha="center", color=page.theme.faint)


def _number(value: float) -> str:
    """Return a score with three significant digits and a true minus sign."""
    return f"{value:.3g}".replace("-", "−")


def _columns(entries: Sequence[LegendEntry]) -> int:
    """Return the number of columns of a legend whose longest name fits."""
    longest = max((len(_entry_text(entry)) for entry in entries), default=1)
    return max(1, min(len(entries), int((WIDTH - 2 * MARGIN) / (0.3 + CHARACTER * longest))))


def _entry_text(entry: LegendEntry) -> str:
    share = 100 * entry.share
    return f"{shortened(entry.name, LONGEST_NAME)}  {'< 0.1' if share < 0.1 else f'{share:.1f}'} %"


def _legend_height(entries: Sequence[LegendEntry]) -> float:
    return LINE * math.ceil(len(entries) / _columns(entries)) + 0.08 if entries else 0.0


def _draw_legend(page: _Page, entries: Sequence[LegendEntry]) -> None:
    """Draw the classes in columns, from left to right and from top to bottom."""
    columns = _columns(entries)
    width = (page.size[0] - 2 * MARGIN) / columns
    for number, entry in enumerate(entries):
        row, column = divmod(number, columns)
        left, top = MARGIN + column * width, page.end + row * LINE
        swatch = page.axes(left, top, 0.14, 0.1)
        swatch.set(xticks=[], yticks=[], facecolor=tuple(part / 255 for part in entry.colour))
        page.text(left + 0.2, top - 0.005, _entry_text(entry), 7.0)


def _title_lines(title: str, width: int) -> list[str]:
    """Return a title in at most TITLE_LINES lines of about this many characters."""
    return textwrap.wrap(shortened(title, TITLE_LINES * width - 4), width) or [""]
