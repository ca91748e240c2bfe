"""Lines of a table as a plot, with their 95 % intervals: curves.py TABLE.csv PICTURE --x COLUMN --by COLUMN --title TEXT"""

import csv
from pathlib import Path

import click
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLOURS = ("#b02a30", "#1d6f42", "#1f5a94", "#c98a00", "#6b4c9a", "#5b5b5b")
FAINT = "#767676"


def rows_of(path: Path) -> list[dict[str, str]]:
    """The table's lines, without the one that says how it was made."""
    with path.open(encoding="utf-8") as lines:
        return list(csv.DictReader(line for line in lines if not line.startswith("#")))


@click.command()
@click.argument("table", type=click.Path(exists=True, path_type=Path))
@click.argument("picture", type=click.Path(path_type=Path))
@click.option("--x", required=True, help="The column along the axis; lines without a number there are left out.")
@click.option("--by", required=True, help="The column that tells curves apart.")
@click.option("--order", default="", help="Its values to show, in this order; else all, as they come.")
@click.option("--label", default="", help="Of the axis; else the column's name.")
@click.option("--log/--linear", default=False, help="The axis in powers of two.")
def main(table: Path, picture: Path, x: str, by: str, order: str, label: str, log: bool) -> None:
    """Top-1 accuracy over a column, a curve for each value of another; the untouched model as a dashed line."""
    rows = rows_of(table)
    figure = Figure(figsize=(5.2, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    untouched = next(float(row["top1"]) for row in rows if row["change"] == "untouched")
    axes.axhline(100 * untouched, color=FAINT, linewidth=0.8, linestyle="--", label="untouched")
    shown = [row for row in rows if row["change"] != "untouched" and row[x].removesuffix("%").replace(".", "", 1).isdigit()]
    names = order.split(",") if order else list(dict.fromkeys(row[by] for row in shown))
    for name, colour in zip(names, COLOURS, strict=False):
        curve = sorted((float(row[x].removesuffix("%")), row) for row in shown if row[by] == name)
        place = [each for each, _ in curve]
        top1, low, high = ([100 * float(row[key]) for _, row in curve] for key in ("top1", "low", "high"))
        axes.fill_between(place, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(place, top1, color=colour, marker="o", markersize=3, label=name)
    if log:
        axes.set_xscale("log", base=2)
        axes.set_xticks(place, [f"{each:g}" for each in place])
    axes.set(xlabel=label or x, ylabel="zero-shot top-1, %", ylim=(0, 100))
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
