"""Plot of the shares of concepts over groups: one panel per concept, means with two standard errors, and label frequencies."""

import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cliptools.errors import CliptoolsError, UsageError
from cliptools.render.figure_file import figure_bytes, load_matplotlib

COLUMNS = 4  # panels side by side, at most
INK, FAINT, ALARM, LABEL = "#1c1c1c", "#767676", "#c0392b", "#9bb7d4"
FORMATS = {".png": "png", ".svg": "svg"}
MOST_TICKS = 8


class Panel(NamedTuple):
    """The panel of one concept: a value per group, None where unknown."""

    title: str
    mean: Sequence[float | None]
    error: Sequence[float | None]
    """Standard errors of the means."""
    frequency: Sequence[float | None]
    """Share of the labelled images that show the concept, 0 to 1."""
    alarm: Sequence[bool]


def check_plot(path: Path) -> None:
    """Check, before any work, that the ending is a known format and that matplotlib is installed.

    Raises:
        UsageError: the ending is neither .png nor .svg.
        CliptoolsError: matplotlib is not installed.
    """
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"--plot {path}: expected a name ending in .png or .svg")
    if importlib.util.find_spec("matplotlib") is None:
        raise CliptoolsError(f"--plot {path}: drawing needs matplotlib: pip install 'cliptools[plot]'")


def draw_shift(groups: Sequence[str], panels: Sequence[Panel], axis_label: str, path: Path) -> bytes:
    """Return the bytes of the plot's file; equal values give equal bytes.

    Args:
        axis_label: The quantity whose means are shown.
        path: The file, whose ending is the format.
    """
    matplotlib = load_matplotlib()
    columns = min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    with matplotlib.rc_context({"font.size": 8, "axes.edgecolor": FAINT, "svg.hashsalt": "cliptools"}):
        drawing = matplotlib.figure.Figure(figsize=(2.6 * columns + 0.6, 1.7 * rows + 0.5), layout="constrained")
        axes = drawing.subplots(rows, columns, sharex=True, squeeze=False)
        for number, axis in enumerate(axes.flat):
            if number < len(panels):
                _draw_panel(axis, groups, panels[number], below=number + columns >= len(panels))
            else:
                axis.set_visible(False)
        drawing.supylabel(axis_label, color=FAINT, fontsize=8)
        return figure_bytes(drawing, FORMATS[path.suffix.lower()], 110)


def _draw_panel(axis, groups: Sequence[str], panel: Panel, below: bool) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """Draw bars for label frequencies and points for measured shares, red where there is an alarm."""
    places = range(len(groups))
    if any(value is not None for value in panel.frequency):
        frequency_axis = axis.twinx()
        frequency_axis.bar(places, [value or 0.0 for value in panel.frequency], color=LABEL, alpha=0.5, width=0.9)
        frequency_axis.set_ylim(0, 1)
        frequency_axis.tick_params(axis="y", colors=LABEL, length=2)
        axis.set_zorder(frequency_axis.get_zorder() + 1)
        axis.patch.set_visible(False)
    measured = [place for place in places if panel.mean[place] is not None]
    colours = [ALARM if panel.alarm[place] else INK for place in measured]
    means = [panel.mean[place] or 0.0 for place in measured]
    errors = [2 * (panel.error[place] or 0.0) for place in measured]
    low, high = ([mean + sign * error for mean, error in zip(means, errors, strict=True)] for sign in (-1, 1))
    axis.vlines(measured, low, high, colors=colours, linewidth=1)
    axis.plot(measured, means, color=INK, linewidth=0.8)
    axis.scatter(measured, means, color=colours, s=10, zorder=3)
    axis.set_title(panel.title, fontsize=9)
    axis.set_xlim(-0.6, len(groups) - 0.4)
    step = math.ceil(len(groups) / MOST_TICKS)
    axis.set_xticks(list(places)[::step], list(groups)[::step], rotation=45 if max(map(len, groups)) > 3 else 0)
    axis.tick_params(length=2, colors=FAINT, labelbottom=below)
    axis.spines[["top", "right"]].set_visible(False)
