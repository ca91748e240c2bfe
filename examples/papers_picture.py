"""Draw the curves of both papers on the embedded models side by side: papers_picture.py RESULTS PNG"""

import sys
from pathlib import Path

from curves import Plot, draw, rows_of
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

PANELS = {
    "ablation": ("emoji-vit2: effects of one layer replaced", Plot("layers", "change", ("all", "large", "small", "pc"), "layer")),
    "reconstruction": ("emoji-vit2: layers 5 and 6 in words", Plot("m", "pool", (), "words a neuron", True)),
    "sparsity": ("emoji-rn2: the strongest kept, the rest ablated", Plot("keep", "units", (), "share of the units kept")),
    "pair-words": ("emoji-rn2: in words", Plot("m", "units", (), "words a unit", True)),
}


def main(results: Path, picture: Path) -> None:
    """Draw one panel per table."""
    figure = Figure(figsize=(13, 3), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, (title, plot)) in zip(figure.subplots(1, len(PANELS), sharey=True), PANELS.items(), strict=True):
        draw(axes, rows_of(results / f"{name}.csv"), plot)
        axes.set_title(title, fontsize=9)
    figure.axes[0].set_ylabel("zero-shot top-1, %")
    figure.savefig(picture, dpi=100, metadata={"Software": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
