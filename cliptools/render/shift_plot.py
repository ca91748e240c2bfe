"""Plot of the shares of concepts over groups: one panel per concept, means with two standard errors, and label frequencies.

A line joins the means of groups that follow each other in time or in number, as 2021, 2022 and 2023; other groups have no order,
and no line. An axis that does not begin at zero says so.
"""

import datetime
import math
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from cliptools.render.figure_file import LIGHT, figure_bytes, figure_style, kind_of, load_matplotlib, shortened

COLUMNS = 4  # panels side by side, at most
INK, FAINT, ALARM, LABEL, LABEL_INK = "#1c1c1c", "#6b6b6b", "#c0392b", "#9bb7d4", "#44698f"
MOST_TICKS = 8
MOST_NAMES = 16  # names of groups without an order below an axis of the usual width; for more, it is wider
LONGEST_TITLE = 34  # characters
LONGEST_GROUP = 24  # characters of a group below the axis
LEAST_RANGE = 0.25  # an axis begins at zero where the means and intervals cover this share of the way from it
STEP = 1.6  # groups follow each other where their distance is less than this many of the smallest distance
DATE = re.compile(r"(\d{4})-(\d{1,2})(?:-(\d{1,2}))?")
CUT = "axis from {} to {}, without 0"


class Panel(NamedTuple):
    """The panel of one concept: a value per group, None where unknown."""

    title: str
    mean: Sequence[float | None]
    error: Sequence[float | None]
    """Standard errors of the means."""
    frequency: Sequence[float | None]
    """Share of the labelled images that show the concept, 0 to 1."""
    alarm: Sequence[bool]
    note: str = ""
    """A line below the title."""


def draw_shift(groups: Sequence[str], panels: Sequence[Panel], axis_label: str, path: Path) -> bytes:
    """Return the bytes of the plot's file; equal values give equal bytes.

    Args:
        axis_label: The quantity whose means are shown.
        path: The file, whose ending is the format.

    Raises:
        UsageError: the ending is none of .png, .svg and .pdf.
        CliptoolsError: matplotlib is not installed.
    """
    kind = kind_of(path, "--plot")
    matplotlib = load_matplotlib()
    wider = 1.0 if runs_in_order(groups) else max(1.0, len(groups) / MOST_NAMES)
    columns = min(max(1, int(COLUMNS / wider)), len(panels))
    rows = math.ceil(len(panels) / columns)
    with matplotlib.rc_context(figure_style(LIGHT, 8.0)):
        drawing = matplotlib.figure.Figure(
            figsize=(max(2.6 * wider * columns + 0.6, 3.6), 1.8 * rows + 0.9), layout="constrained"
        )
        axes = drawing.subplots(rows, columns, squeeze=False)
        for number, axis in enumerate(axes.flat):
            if number < len(panels):
                _draw_panel(axis, groups, panels[number], below=number + columns >= len(panels))
            else:
                axis.set_visible(False)
        drawing.supylabel(axis_label, color=FAINT, fontsize=8)
        drawing.supxlabel("\n".join(_key(panels, int(26 * wider) * columns)), color=FAINT, fontsize=7)
        return figure_bytes(drawing, kind, 200)


def runs_in_order(groups: Sequence[str]) -> list[list[int]]:
    """Return runs of groups that a line may join: all of them are numbers or dates in rising order, and no step is missing.

    >>> runs_in_order(["2019", "2020", "2022"]), runs_in_order(["beach", "city"])
    ([[0, 1], [2]], [])
    """
    known = [place for place in map(_place_in_order, groups) if place is not None]
    steps = [after - before for (_, before), (_, after) in pairwise(known)]
    if len(known) < len(groups) or len({kind for kind, _ in known}) > 1 or not steps or min(steps) <= 0:
        return []
    runs = [[0]]
    for number, step in enumerate(steps, 1):
        if step < STEP * min(steps):
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs


def _place_in_order(group: str) -> tuple[str, float] | None:
    """Return the kind and the place of a number, a month or a day among its like; None for another name."""
    if not (date := DATE.fullmatch(group)):
        return ("number", float(group)) if re.fullmatch(r"-?\d+(\.\d+)?", group) else None
    year, month, day = (int(part) if part else 0 for part in date.groups())
    try:
        first = datetime.date(year, month, day or 1)
    except ValueError:
        return None
    return ("day", float(first.toordinal())) if day else ("month", 12.0 * year + month)


def axis_range(low: Sequence[float], high: Sequence[float]) -> tuple[float, float]:
    """Return the ends of an axis: 0 and the values with some room; without 0 where these would be too close together.

    Args:
        low: Lower ends of the intervals.
        high: Their upper ends.
    """
    first, last = min(low, default=0.0), max(high, default=1.0)
    room = 0.06 * (last - first) or 0.06 * abs(last) or 1.0
    if first < 0 < last:
        return first - room, last + room
    farthest = max(abs(first), abs(last))
    if (last - first) < LEAST_RANGE * farthest and last > first:
        return first - room, last + room
    return (0.0, last + 0.06 * farthest) if last > 0 else (first - 0.06 * farthest or -1.0, 0.0)


def _draw_panel(axis: Any, groups: Sequence[str], panel: Panel, below: bool) -> None:
    """Draw bars for label frequencies and points for measured shares, red where there is an alarm."""
    places = range(len(groups))
    if any(value is not None for value in panel.frequency):
        frequency_axis = axis.twinx()
        frequency_axis.bar(places, [value or 0.0 for value in panel.frequency], color=LABEL, alpha=0.5, width=0.9)
        frequency_axis.set_ylim(0, 1)
        frequency_axis.tick_params(axis="y", colors=LABEL_INK, length=2)
        frequency_axis.spines[["top", "left", "right"]].set_visible(False)
        axis.set_zorder(frequency_axis.get_zorder() + 1)
        axis.patch.set_visible(False)
    measured = [place for place in places if panel.mean[place] is not None]
    means = {place: panel.mean[place] or 0.0 for place in measured}
    error = {place: 2 * (panel.error[place] or 0.0) for place in measured}
    low, high = ([means[place] + sign * error[place] for place in measured] for sign in (-1, 1))
    colours = [ALARM if panel.alarm[place] else INK for place in measured]
    axis.vlines(measured, low, high, colors=colours, linewidth=1)
    for run in runs_in_order(groups):
        for before, after in pairwise(run):
            if before in means and after in means:
                axis.plot((before, after), (means[before], means[after]), color=INK, linewidth=0.8)
    faces = [colour if panel.error[place] is not None else "white" for place, colour in zip(measured, colours, strict=True)]
    axis.scatter(measured, list(means.values()), color=faces, edgecolors=colours, linewidths=0.8, s=11, zorder=3)
    bottom, top = axis_range(low, high)
    cut = bottom > 0 or top < 0
    axis.set_title(shortened(panel.title, LONGEST_TITLE), fontsize=9, pad=4 + 8 * cut + 8 * bool(panel.note))
    if panel.note:
        axis.text(0, 1.02 + 0.09 * cut, panel.note, transform=axis.transAxes, fontsize=6.5, color=ALARM)
    axis.set_xlim(-0.6, len(groups) - 0.4)
    axis.set_ylim(bottom, top)
    if cut:
        axis.text(0, 1.02, CUT.format(f"{bottom:.3g}", f"{top:.3g}"), transform=axis.transAxes, fontsize=6.5, color=FAINT)
    elif bottom < 0 < top:
        axis.axhline(0, color=LIGHT.rule, linewidth=0.6, zorder=0)
    step = math.ceil(len(groups) / MOST_TICKS) if runs_in_order(groups) else 1
    names = [shortened(name, LONGEST_GROUP) for name in groups]
    slanted = max(map(len, names)) * len(names[::step]) > 16
    turn = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if slanted else {}
    axis.set_xticks(list(places)[::step], names[::step], **turn)
    axis.tick_params(length=2, colors=FAINT, labelcolor=INK, labelbottom=below)
    axis.spines[["top", "right"]].set_visible(False)


def _key(panels: Sequence[Panel], width: int) -> list[str]:
    """Return lines that say what the marks mean that occur."""
    marks = ["points: means", "vertical lines: ± 2 standard errors"]
    if any(error is None and mean is not None for panel in panels for mean, error in zip(panel.mean, panel.error, strict=True)):
        marks.append("hollow: no interval")
    if any(any(panel.alarm) for panel in panels):
        marks.append("red: alarm")
    if any(value is not None for panel in panels for value in panel.frequency):
        marks.append("blue bars: share of labelled images that show the concept (right axis)")
    lines = [""]
    for mark in marks:
        if lines[-1] and len(lines[-1]) + 2 + len(mark) > max(width, 60):
            lines.append("")
        lines[-1] += f"; {mark}" if lines[-1] else mark
    return lines
