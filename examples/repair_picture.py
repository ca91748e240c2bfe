"""Draw the worst group of the planted pairs before and after each way of editing: repair_picture.py RESULTS/repair.csv PNG"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from curves import COLOURS, FAINT, draw_change, save_panels

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
        end = sum(after) / len(after)
        draw_change(axes, place, before, after, colour)
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
    save_panels(table, picture, draw, height=2.9)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
