"""Draw the worst group of the planted pairs before and after each way of editing: repair_picture.py RESULTS/repair.csv PNG"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from curves import COLOURS, FAINT, rows_of
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

LABELS = {
    ("repair", "null"): "see the cue, write the class (null)",
    ("repair", "zero"): "see the cue, write the class (means)",
    ("random", ""): "random units",
    ("write", ""): "write the class most",
    ("see", ""): "see the cue most",
    ("blind", ""): "write as strongly, do not see (blind)",
    ("heads", ""): "whole heads by text",
    ("none", ""): "direction of the cue removed",
}
"""Names of units and edit in the table, in the order of the picture; a control has the edit of its model."""
Rows = Sequence[dict[str, str]]


def ways_of(rows: Rows) -> dict[tuple[str, str], Rows]:
    """Return the rows of each way of editing, one for each seed, without ways that the table does not have."""
    ways = {way: [row for row in rows if row["units"] == way[0] and way[1] in ("", row["edit"])] for way in LABELS}
    return {way: found for way, found in ways.items() if found}


def draw(axes: Any, rows: Rows) -> None:
    """Draw a line for each way, from the accuracy before, a tick, to that after, a dot, both in the range over the seeds."""
    ways = ways_of(rows)
    for place, (way, found) in enumerate(ways.items()):
        colour = COLOURS[1] if way[0] == "repair" else FAINT
        before, after = ([float(row[column]) for row in found] for column in ("before", "after"))
        start, end = sum(before) / len(before), sum(after) / len(after)
        axes.plot([start, end], [place, place], color=colour, linewidth=1, alpha=0.6)
        axes.plot(start, place, color=colour, marker="|", markersize=11, linestyle="none")
        for values in (before, after):
            axes.plot([min(values), max(values)], [place, place], color=colour, linewidth=8, alpha=0.3, solid_capstyle="butt")
        axes.plot(end, place, color=colour, marker="o", markersize=4, linestyle="none")
        axes.annotate(
            f"{end:.2f}", (max(*after, *before), place), (6, 0), textcoords="offset points", va="center", fontsize=7, color=colour
        )
    axes.set_yticks(range(len(ways)), [LABELS[way] for way in ways], fontsize=8)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="accuracy of the worst group")
    axes.set_title(rows[0]["model"], fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def main(table: Path, picture: Path) -> None:
    """Draw one panel per model."""
    rows = rows_of(table)
    models = list(dict.fromkeys(row["model"] for row in rows))
    figure = Figure(figsize=(5.2 * len(models), 2.9), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, model in zip(figure.subplots(1, len(models), squeeze=False)[0], models, strict=True):
        draw(axes, [row for row in rows if row["model"] == model])
    figure.savefig(picture, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
