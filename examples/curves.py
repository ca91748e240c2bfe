"""Plot the lines of a table with their 95 % intervals: curves.py TABLE.csv PICTURE --x COLUMN --by COLUMN"""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLOURS = ("#b02a30", "#1d6f42", "#1f5a94", "#c98a00", "#6b4c9a", "#5b5b5b")
FAINT = "#767676"


class Plot(NamedTuple):
    """The columns of a plot and its scale."""

    x: str
    by: str
    order: Sequence[str] = ()
    """Curves to show, by their value of `by`; if empty, all in the order of the table."""
    label: str = ""
    log: bool = False


def rows_of(path: Path) -> list[dict[str, str]]:
    """Return the lines of the table without the comment with its command."""
    with path.open(encoding="utf-8") as lines:
        return list(csv.DictReader(line for line in lines if not line.startswith("#")))


def draw(axes: Any, rows: Sequence[dict[str, str]], plot: Plot) -> None:
    """Draw top-1 accuracy over one column, with a curve per value of another; the unchanged model is a dashed line."""
    untouched = next(float(row["top1"]) for row in rows if row["change"] == "untouched")
    axes.axhline(100 * untouched, color=FAINT, linewidth=0.8, linestyle="--", label="untouched")
    shown = [row for row in rows if row[plot.x].replace(".", "", 1).isdigit()]
    ticks = sorted({float(row[plot.x]) for row in shown})
    for name, colour in zip(plot.order or dict.fromkeys(row[plot.by] for row in shown), COLOURS, strict=False):
        curve = sorted(
            (float(row[plot.x]), *(100 * float(row[key]) for key in ("top1", "low", "high")))
            for row in shown
            if row[plot.by] == name
        )
        place, top1, low, high = zip(*curve, strict=True)
        axes.fill_between(place, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(place, top1, color=colour, marker="o", markersize=3, label=name)
    if plot.log:
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [f"{each:g}" for each in ticks])
    axes.set(xlabel=plot.label or plot.x, ylim=(0, 100))
    axes.legend(frameon=False, fontsize=8, loc="best")
    axes.spines[["top", "right"]].set_visible(False)


def draw_change(axes: Any, place: int, before: Sequence[float], after: Sequence[float], colour: str) -> None:
    """Draw a line from the mean before, a tick, to that after, a dot, both in the range over the seeds."""
    start, end = sum(before) / len(before), sum(after) / len(after)
    axes.plot([start, end], [place, place], color=colour, linewidth=1, alpha=0.6)
    axes.plot(start, place, color=colour, marker="|", markersize=11, linestyle="none")
    for values in (before, after):
        axes.plot([min(values), max(values)], [place, place], color=colour, linewidth=8, alpha=0.3, solid_capstyle="butt")
    axes.plot(end, place, color=colour, marker="o", markersize=4, linestyle="none")


def save_panels(table: Path, picture: Path, draw_panel: Callable[[Any, Sequence[dict[str, str]]], None], height: float) -> None:
    """Draw the rows of each model of a table in a panel of its own, side by side."""
    rows = rows_of(table)
    models = list(dict.fromkeys(row["model"] for row in rows))
    figure = Figure(figsize=(5.2 * len(models), height), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, model in zip(figure.subplots(1, len(models), squeeze=False)[0], models, strict=True):
        draw_panel(axes, [row for row in rows if row["model"] == model])
    figure.savefig(picture, dpi=110, metadata={"Software": None})


@click.command()
@click.argument("table", type=click.Path(exists=True, path_type=Path))
@click.argument("picture", type=click.Path(path_type=Path))
@click.option("--x", required=True, help="Column of the x axis; lines without a number in it are left out.")
@click.option("--by", required=True, help="Column with the name of the curve.")
@click.option("--order", default="", help="Names of the curves to show, in this order.")
@click.option("--label", default="", help="Label of the x axis [default: name of the column].")
@click.option("--log", is_flag=True, help="Logarithmic x axis, in powers of two.")
def main(table: Path, picture: Path, order: str, **how: Any) -> None:
    """Draw one table."""
    figure = Figure(figsize=(5.2, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    draw(axes, rows_of(table), Plot(order=order.split(",") if order else (), **how))
    axes.set_ylabel("zero-shot top-1, %")
    figure.savefig(picture, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
