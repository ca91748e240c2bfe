"""Draw the main figures of benchmarks/results in one picture: docs/speed.png.

    python benchmarks/chart.py
    python benchmarks/chart.py --results FOLDER --out PNG

The numbers are read from turns.json (or effects.json and resnet.json), decompose.json, consumers.json and memory.json. A panel
whose file is missing is left out. Thin lines show the range of the rounds. Equal results give equal bytes.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from machine import RESULTS
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator
from PIL import Image
from runs import ROOT, Row

PICTURE = ROOT / "docs" / "speed.png"
COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#444444",
)  # by Okabe and Ito: distinguishable with most kinds of colour vision
INK, FAINT = "#222222", "#bbbbbb"
STYLE = {
    "font.size": 7,
    "axes.edgecolor": FAINT,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
WIDTH, DPI = 8.0, 150  # inches; at 800 pixels wide, a letter of 7 points is 10 pixels high
PALETTE = 96  # number of colours, which reduces the file to a third
ABOUT, EACH = 0.85, 0.14  # inches for the frame of a panel, and for each of its dots
SERIES = {"default": "as it is by default", "all layers": "all layers", "second order": "second order"}
Results = dict[str, Any]
"""Contents of the files, by their names."""


class Dot(NamedTuple):
    """One figure of a panel."""

    line: str
    series: str
    value: float
    least: float
    most: float
    goal: float | None = None


class Panel(NamedTuple):
    """The drawing function of a panel, and its height."""

    height: float
    draw: Callable[[Any], None]


def read(folder: Path) -> Results:
    """Return the results whose files exist."""
    names = ("turns", "effects", "resnet", "decompose", "consumers", "memory")
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in names if (folder / f"{name}.json").exists()}


def case_of(row: Row, batch: int) -> str:
    """Return model, batch size and, if it is not float32, precision."""
    precision = row.get("precision", "fp32")
    return f"{row['model']}, batch {batch}" + (f", {precision}" if precision != "fp32" else "")


def in_turns(results: Results) -> list[Dot]:
    """Return the cost per image as a multiple of the plain forward pass, measured batch by batch in turns.

    It is that of processor time where this was measured, else of elapsed time.
    """
    rows = results.get("turns", {}).get("in turns", [])
    ratios = [row.get("cpu ratio", row["ratio"]) for row in rows]
    return [
        Dot(case_of(row, row["batch"]), SERIES[row["setting"]], *[ratio] * 3, row["goal"])
        for row, ratio in zip(rows, ratios, strict=True)
    ]


def cost(results: Results) -> list[Dot]:
    """Return the same from long runs of both; if a case has several runs, the run with most images counts."""
    longest: dict[tuple[str, str], Row] = {}
    for name in ("effects", "resnet"):
        for row in results.get(name, {}).get("speed", []):
            if row.get("setting", "plain") == "plain" or row["ratio of ms"] is None:
                continue
            batch = row.get("batch") or results[name]["settings"]["batch"]
            case = case_of(row, batch), row["setting"]
            if case not in longest or row.get("images", 0) >= longest[case].get("images", 0):
                longest[case] = row
    dots = []
    for (line, setting), row in longest.items():
        rounds = [ratio for ratio in row["ratios of ms"] if ratio is not None]
        dots.append(Dot(line, setting, row["ratio of ms"], min(rounds), max(rounds), row.get("goal")))
    return dots


def pursuit(results: Results) -> list[Dot]:
    """Return milliseconds per unit of clip-decompose, batched-omp's faster algorithm, and scikit-learn's fastest modes."""
    tables = [rows for title, rows in results.get("decompose", {}).items() if title.startswith("pursuit")]
    fastest: dict[tuple[int, str], Row] = {}
    for row in (row for rows in tables for row in rows):
        name, _, rank = row["what"].partition(": ")
        name = name.partition(",")[0]
        if name == "scikit-learn":
            if not rank:
                continue
            name += f", {rank}"
        key = row["m"], name
        if key not in fastest or row["ms a unit"] < fastest[key]["ms a unit"]:
            fastest[key] = row
    dots = []
    for (m, name), row in fastest.items():
        goal = None
        if name == "clip-decompose":
            beside = fastest.get((m, "scikit-learn, the fastest"), {})
            goal = beside["ms a unit"] / beside["goal"] if beside.get("goal") else None
        dots.append(Dot(f"m = {m}", name, row["ms a unit"], row["ms a unit"], row["ms a unit"], goal))
    return sorted(dots, key=lambda dot: int(dot.line.split()[-1]))


def consumers(results: Results) -> list[Dot]:
    """Return images per second of the commands and of the plain loop."""
    dots = []
    for row in results.get("consumers", {}).get("speed", []):
        speed = row["images a second"]
        if speed is not None:
            line = "plain forward pass" if row["setting"] == "plain" else f"clip-{row['setting']}"
            dots.append(Dot(line, f"{row['model']}, batch {row['batch']}", speed, speed, speed))
    return dots


def dotted(title: str, dots: Sequence[Dot], number: str, one: bool = False, below: str = "") -> Panel | None:
    """Return a panel with dots in lines, one colour per series, and their numbers in a column at the right.

    Args:
        one: Draw a line at 1 on a linear scale; otherwise the scale is logarithmic.
        below: Label of the axis.
    """
    if not dots:
        return None
    lines, series = list(dict.fromkeys(dot.line for dot in dots)), list(dict.fromkeys(dot.series for dot in dots))
    places: dict[str, float] = {}
    rules, end = [], 0.0
    for line in lines:
        of = [dot for dot in dots if dot.line == line]
        places[line] = end + (len(of) - 1) / 2
        end += len(of) + 0.6
        rules.append(end - 0.8)

    def draw(axis: Any) -> None:
        for line in lines:
            of = sorted((dot for dot in dots if dot.line == line), key=lambda dot: series.index(dot.series))
            for i, dot in enumerate(of):
                y, colour = places[line] + i - (len(of) - 1) / 2, COLOURS[series.index(dot.series) % len(COLOURS)]
                axis.hlines(y, dot.least, dot.most, colors=colour, linewidth=1.2, alpha=0.5)
                axis.plot(dot.value, y, "o", color=colour, markersize=4)
                if dot.goal is not None:
                    axis.plot(dot.goal, y, "|", color=INK, markersize=7, markeredgewidth=1.2)
                where = axis.get_yaxis_transform()
                axis.text(1.02, y, number.format(dot.value), color=colour, transform=where, va="center", fontsize=6.5)
        for rule in rules[:-1]:
            axis.axhline(rule, color=FAINT, linewidth=0.4)
        if one:
            axis.axvline(1, color=INK, linewidth=0.8)
            axis.set_xlim(min(0.9, *(dot.least for dot in dots)) - 0.05)
        else:
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_major_formatter("{x:g}")
            axis.xaxis.set_minor_locator(NullLocator())
        axis.grid(axis="x", color=FAINT, linewidth=0.3)
        axis.set_ylim(end - 0.8, -0.8)
        axis.set_xlabel(below)
        axis.set_yticks([places[line] for line in lines], lines)
        legend(axis, title, series, any(dot.goal is not None for dot in dots))

    return Panel(ABOUT + EACH * (len(dots) + 0.6 * len(lines) + len(series) / 2), draw)


def legend(axis: Any, title: str, series: Sequence[str], goals: bool) -> None:
    """Draw the title with the colours of the series below it."""
    marks = [Line2D([], [], marker="o", linestyle="", markersize=4, color=COLOURS[i % len(COLOURS)]) for i in range(len(series))]
    names = list(series)
    if goals:
        marks.append(Line2D([], [], marker="|", linestyle="", markersize=7, markeredgewidth=1.2, color=INK))
        names.append("goal: at most")
    columns = 2 if max(map(len, names)) > 18 else 4
    rows = -(-len(names) // columns)
    where = {"loc": "lower left", "bbox_to_anchor": (-0.02, 1.0), "borderaxespad": 0.2}
    axis.legend(marks, names, ncols=columns, fontsize=6.5, frameon=False, handletextpad=0.1, columnspacing=1, **where)
    axis.set_title(title, loc="left", fontsize=8, fontweight="bold", pad=5 + 10.5 * rows)


def memory(results: Results) -> Panel | None:
    """Return a panel with peak memory over the number of images."""
    rows = results.get("memory", {}).get("peak by number of images", [])
    if not rows:
        return None
    curves = {row["what"]: {_count(key): row[key] for key in row if key.startswith("GB, ")} for row in rows}
    top = 1.15 * max(max(curve.values()) for curve in curves.values())

    def draw(axis: Any) -> None:
        ends = {what: curve[max(curve)] for what, curve in curves.items()}
        at = apart(ends, top / (len(curves) + 1.5), top)
        last = max(max(curve) for curve in curves.values())
        for i, (what, curve) in enumerate(curves.items()):
            colour, style = COLOURS[i % len(COLOURS)], ("-", "--", ":")[i // len(COLOURS) % 3]
            counts = sorted(curve)
            axis.plot(counts, [curve[count] for count in counts], style, marker="o", markersize=3, linewidth=1, color=colour)
            place = {"xy": (last, ends[what]), "xytext": (1.05, at[what]), "textcoords": axis.get_yaxis_transform()}
            # without a patch at the end and without shrinking, which matplotlib computes by bisection to a hundredth of a pixel
            joint = {
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.4,
                "shrinkA": 0,
                "shrinkB": 0,
                "patchA": None,
                "relpos": (-0.015, 0.5),
            }
            axis.annotate(what, **place, color=colour, va="center", fontsize=6.5, arrowprops=joint, annotation_clip=False)
        axis.set_xscale("log")
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xticks(sorted({count for curve in curves.values() for count in curve}))
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.set_ylim(0, top)
        axis.set_xlabel("images")
        axis.grid(axis="y", color=FAINT, linewidth=0.3)
        axis.set_title("Peak memory, GB (emoji-vit2 unless named)", loc="left", fontsize=8, fontweight="bold")

    return Panel(ABOUT + EACH * max(len(curves) + 1.5, 8), draw)


def _count(key: str) -> int:
    return int(key.removeprefix("GB, ").replace(",", ""))


def apart(ends: dict[str, float], gap: float, top: float) -> dict[str, float]:
    """Return positions for labels close to the ends of their curves, at least `gap` apart and below `top`."""
    order = sorted(ends, key=lambda what: ends[what])
    places: dict[str, float] = {}
    below = 0.0
    for what in order:
        places[what] = below = max(ends[what], below + gap)
    above = top
    for what in reversed(order):
        places[what] = above = min(places[what], above - gap)
    return places


def machines(results: Results) -> str:
    """Return a caption with the machines of the measurements."""
    captions = [f"{each['machine']['processor']}, torch {each['machine']['torch']}" for each in results.values()]
    return f"Measured on {'; '.join(dict.fromkeys(captions))}. Random weights but for the embedded models."


def picture(results: Results) -> bytes:
    """Return the bytes of the PNG, or no bytes without results."""
    titles = ", ".join(title for title in results.get("decompose", {}) if title.startswith("pursuit"))
    candidates = (
        dotted("clip-effects: time an image (plain pass = 1)", in_turns(results) or cost(results), "{:.2f}", one=True),
        dotted("clip-decompose: ms a unit, logarithmic", pursuit(results), "{:.3g}", below=titles),
        dotted("Images a second, logarithmic", consumers(results), "{:.3g}"),
        memory(results),
    )
    panels = [panel for panel in candidates if panel is not None]
    if not panels:
        return b""
    columns: list[list[Panel]] = [[], []]
    for panel in panels:
        min(columns, key=lambda column: sum(each.height for each in column)).append(panel)
    columns = [column for column in columns if column]
    height, buffer = max(sum(each.height for each in column) for column in columns), BytesIO()
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH * len(columns) / 2, height + 0.25), layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        above, caption = figure.subfigures(2, 1, height_ratios=[height, 0.25])
        for part, column in zip(above.subfigures(1, len(columns), squeeze=False)[0], columns, strict=True):
            ratios = [each.height for each in column]
            for place, panel in zip(
                part.subfigures(len(column), 1, squeeze=False, height_ratios=ratios)[:, 0], column, strict=True
            ):
                axis = place.subplots()
                panel.draw(axis)
                axis.tick_params(length=2, which="both", colors=INK)
                axis.spines[["top", "right"]].set_visible(False)
        caption.text(0.01, 0.5, machines(results), va="center", fontsize=6.5, color="#666666")
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    smaller = BytesIO()
    Image.open(buffer).convert("RGB").quantize(PALETTE).save(smaller, "png", optimize=True)
    return smaller.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER", help="[default: benchmarks/results]")
    parser.add_argument("--out", type=Path, default=PICTURE, metavar="PNG", help="[default: docs/speed.png]")
    options = parser.parse_args()
    drawn = picture(read(options.results))
    if not drawn:
        sys.exit(f"{options.results}: no results to draw; `python benchmarks` names the scripts that write them")
    options.out.write_bytes(drawn)


if __name__ == "__main__":
    main()
