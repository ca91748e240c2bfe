"""Figure of an explained margin: the picture, the parts of the margin, deletion, and the units with their maps."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from PIL import Image

from cliptools.render.figure_file import DARK, DPI, LIGHT, WIDTH, Theme, figure_bytes, figure_style, load_matplotlib, shortened

UPPER, TITLE, ROW = 2.3, 0.25, 1.9  # inches: picture and curves, title of the units, a row of units
ACROSS = 5  # units side by side
LONGEST = 25  # characters of a line of words
STYLES = {"explanation": ("-", 1.6), "activity": ("--", 1.1), "random": (":", 1.1)}
"""Lines of the curves of deletion."""
LEGEND = {"explanation": "by explanation", "activity": "by activity", "random": "at random"}


class DrawnUnit(NamedTuple):
    """A unit in the figure."""

    name: str
    share: float
    sees: str
    writes: str
    overlay: Image.Image


class Drawing(NamedTuple):
    """All that the figure shows."""

    image: str
    a: str
    b: str | None
    margin: float
    parts: Sequence[tuple[str, float]]
    units: Sequence[DrawnUnit]
    picture: Image.Image
    counts: Sequence[int]
    curves: Mapping[str, Sequence[float]]
    deviation: Sequence[float] | None
    """Standard deviation of the random curves."""
    unit_count: int


def draw_explanation(drawing: Drawing, kind: str, dark: bool = False) -> bytes:
    """Return the figure as the bytes of a file; equal values give equal bytes.

    Args:
        kind: png, svg or pdf.
    """
    matplotlib = load_matplotlib()
    theme = DARK if dark else LIGHT
    rows = math.ceil(len(drawing.units) / ACROSS)
    heights = [UPPER, TITLE + ROW * rows] if rows else [UPPER]
    with matplotlib.rc_context(figure_style(theme)):
        canvas = matplotlib.figure.Figure(figsize=(WIDTH, sum(heights)), layout="constrained", facecolor=theme.ground)
        upper, *lower = canvas.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        for part in (upper, *lower):
            part.set_facecolor(theme.ground)
        title = f"{shortened(drawing.a, 40)} − {shortened(other_text(drawing), 40)}: margin {signed(drawing.margin, 2)}"
        upper.suptitle(title, fontsize=9.5, fontweight="bold")
        picture, parts, curves = upper.subplots(1, 3, width_ratios=[1, 1.3, 1.3])
        picture.imshow(drawing.picture)
        picture.set_axis_off()
        _draw_parts(parts, drawing, theme)
        _draw_deletion(curves, drawing, theme)
        if lower:
            _draw_units(lower[0], drawing, rows, theme)
        return figure_bytes(canvas, kind, DPI, facecolor=theme.ground)


def _draw_parts(axis: Any, drawing: Drawing, theme: Theme) -> None:
    """Draw the parts of the margin as a waterfall: each bar begins where the one above it ends."""
    rows, begin, ends = [*drawing.parts, ("margin", drawing.margin)], 0.0, []
    for row, (name, value) in enumerate(rows):
        start = 0.0 if name == "margin" else begin
        colour = theme.towards if value >= 0 else theme.against
        axis.barh(row, value, left=start, height=0.62, color=colour, alpha=1 if name == "margin" else 0.75, linewidth=0)
        begin = start + value
        ends.append((start, begin))
        if row + 1 < len(drawing.parts):
            axis.plot([begin, begin], [row - 0.31, row + 1.31], color=theme.rule, linewidth=0.6, zorder=0)
    lowest, highest = min(map(min, ends)), max(map(max, ends))
    room = 0.32 * (highest - lowest or 1.0)
    for row, ((_, value), end) in enumerate(zip(rows, ends, strict=True)):
        axis.text(max(end) + 0.06 * room, row, signed(value, 2), va="center", ha="left", fontsize=7)
    axis.axvline(0, color=theme.rule, linewidth=0.6, zorder=0)
    axis.set_xlim(lowest - 0.1 * room, highest + room)
    axis.set_yticks(range(len(rows)), [name for name, _ in rows])
    axis.invert_yaxis()
    axis.tick_params(length=0)
    axis.set_title("parts of the margin", fontsize=8)
    axis.set_xlabel("logits")
    axis.spines[["top", "right", "left"]].set_visible(False)


def _draw_deletion(axis: Any, drawing: Drawing, theme: Theme) -> None:
    """Draw the margin over the number of units that are replaced by their means."""
    axis.axhline(0, color=theme.rule, linewidth=0.6, zorder=0)
    for name, margins in drawing.curves.items():
        line, width = STYLES[name]
        colour = theme.towards if name == "explanation" else theme.ink
        axis.plot(drawing.counts, margins, line, color=colour, linewidth=width, label=LEGEND[name])
    if drawing.deviation is not None:
        middle = drawing.curves["random"]
        low, high = ([m + sign * d for m, d in zip(middle, drawing.deviation, strict=True)] for sign in (-1, 1))
        axis.fill_between(drawing.counts, low, high, color=theme.ink, alpha=0.12, linewidth=0, label="random ± 1 deviation")
    axis.set_xlim(0, max(drawing.counts[-1], 1))
    axis.set_xlabel(f"units replaced by their means, of {drawing.unit_count:,}")
    axis.set_title("margin under deletion", fontsize=8)
    axis.legend(frameon=False, fontsize=6.5, handlelength=2.2, labelspacing=0.25)
    axis.tick_params(length=2)
    axis.spines[["top", "right"]].set_visible(False)


def _draw_units(part: Any, drawing: Drawing, rows: int, theme: Theme) -> None:
    """Draw the map of each unit with its share and words."""
    a, b = shortened(drawing.a, 30), shortened(other_text(drawing), 30)
    part.suptitle(f"units with their shares, and where they act: red towards {a}, blue towards {b}", fontsize=8)
    axes = part.subplots(rows, ACROSS, squeeze=False)
    for number, axis in enumerate(axes.flat):
        axis.set_axis_off()
        if number >= len(drawing.units):
            continue
        unit = drawing.units[number]
        axis.imshow(unit.overlay)
        share = signed(unit.share, 2)
        colour = theme.faint if not float(share.replace("−", "-")) else theme.towards if unit.share > 0 else theme.against
        axis.set_title(f"{unit.name}  {share}", fontsize=8, color=colour, pad=3)
        lines = [f"sees {shortened(unit.sees, LONGEST)}"] if unit.sees else []
        lines += [f"writes {shortened(unit.writes, LONGEST)}"] if unit.writes else []
        axis.text(0.5, -0.04, "\n".join(lines), transform=axis.transAxes, ha="center", va="top", fontsize=6.3, linespacing=1.25)


def other_text(drawing: Drawing) -> str:
    """Return text B, or the name of the mean in its place."""
    return drawing.b or "mean of vocabulary"


def signed(value: float, digits: int) -> str:
    """Return a number with its sign, as `+1.20` or `−0.35`."""
    return f"{value:+.{digits}f}".replace("-", "−")
