"""Draw accuracy under typographic attacks before and after each edit: typographic_picture.py RESULTS/typographic.csv PNG"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from curves import COLOURS, FAINT, draw_change, save_panels

LABELS = {
    ("sees", "zero"): "see a written word, write a name (means)",
    ("sees", "null"): "see a written word, write a name (null)",
    ("explain", "zero"): "carry the margin (means)",
    ("explain", "null"): "carry the margin (null)",
    ("heads", "zero"): "heads that carry the margin",
    ("random heads", "zero"): "random heads",
    ("random", "zero"): "random units (means)",
    ("random", "null"): "random units (null)",
    ("write", "zero"): "write names most (means)",
    ("write", "null"): "write names most (null)",
}
"""Names of units and edit in the table, in the order of the picture."""
CONTROLS = ("random", "write", "random heads")
Rows = Sequence[dict[str, str]]


def accuracies(rows: Rows, units: str, edit: str, picture: str) -> list[float]:
    """Return the accuracies of one way of editing on one kind of picture, one for each seed."""
    return [float(row["accuracy"]) for row in rows if (row["units"], row["edit"], row["picture"]) == (units, edit, picture)]


def draw(axes: Any, rows: Rows) -> None:
    """Draw a line for each way, from the accuracy with a word before, a tick, to that after, a dot, in the ranges over seeds."""
    before = accuracies(rows, "none", "none", "other")
    for picture, style in (("none", "-"), ("blank", ":")):
        values = accuracies(rows, "none", "none", picture)
        axes.axvline(sum(values) / len(values), color=FAINT, linewidth=0.8, linestyle=style)
    ways = [way for way in LABELS if accuracies(rows, *way, "other")]
    for place, way in enumerate(ways):
        colour, after = FAINT if way[0] in CONTROLS else COLOURS[1], accuracies(rows, *way, "other")
        end = sum(after) / len(after)
        draw_change(axes, place, before, after, colour)
        axes.annotate(f"{end:.2f}", (end, place), (0, 6), textcoords="offset points", ha="center", fontsize=7, color=colour)
    axes.set_yticks(range(len(ways)), [LABELS[way] for way in ways], fontsize=8)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1))
    axes.set_xlabel("accuracy with the name of another thing written", fontsize=8)
    axes.set_title(rows[0]["model"], fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def main(table: Path, picture: Path) -> None:
    """Draw one panel per model."""
    save_panels(table, picture, draw, height=3.4)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
