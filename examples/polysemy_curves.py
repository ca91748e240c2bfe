"""Records of clip-top on stdin, a line a unit: for each kind of units, the share whose inertia is below a threshold."""

import json
import sys
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

KINDS = {"pairs": "#1d6f42", "neurons": "#b02a30", "heads": "#767676"}
THRESHOLDS = np.arange(1, 51) / 50


def main(table: Path, picture: Path) -> None:
    """Of the units that act: a column a kind in the table, a curve in the picture."""
    records = [record for record in map(json.loads, sys.stdin) if record["inertia"] is not None]
    found = {kind: np.array([record["inertia"] for record in records if record["units"] == kind]) for kind in KINDS}
    share = {kind: (inertia[None] < THRESHOLDS[:, None]).mean(1) for kind, inertia in found.items()}
    counts = ", ".join(f"{len(inertia)} {kind} (median {np.median(inertia):.3f})" for kind, inertia in found.items())
    lines = [f"# make -C examples -f polysemy.mk: of {counts}", ",".join(["inertia_below", *KINDS])]
    lines += [
        ",".join([f"{threshold:.2f}", *(f"{share[kind][row]:.4f}" for kind in KINDS)]) for row, threshold in enumerate(THRESHOLDS)
    ]
    table.write_text("\n".join(lines) + "\n")
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for kind, colour in KINDS.items():
        axes.plot(THRESHOLDS, share[kind], color=colour, label=f"{len(found[kind]):,} {kind}")
    axes.set(
        xlabel="inertia of the ten scenes on which a unit acts most", ylabel="share of units below", xlim=(0, 1), ylim=(0, 1)
    )
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
