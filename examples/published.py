"""Hold the tables of a run on a published model against the figures of the papers: published.py RESULTS 1|2 > published.csv

Each line is `reproduced` if the published figure lies within one point of the measured one or within its interval, `off by` so
many points up to ten, else `not`; `too few images` if the interval is wider than ten points and so decides nothing. Without an
accuracy of the untouched model within three points of the published one every line is `not`: the weights, the images or the
classes are others, or the model is at chance, where clip-ablate fails. Words are reproduced if the four of largest coefficient
are the published ones with their signs, in any order; with fewer, the line says how many. Else a figure that no table has is
`not measured`.
"""

import csv
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from result_tables import MissingTableError, Share, TableError, Tables, points

UNTOUCHED = {"1": 0.632, "2": 0.707}
"""Zero-shot accuracy on ImageNet of OpenAI's ViT-B-32 (CLIP, arXiv 2103.00020, Table 11) and of RN50x16 (paper 2, Fig. 1)."""
SAME, CLOSE, OFF, WIDE = 0.03, 0.01, 0.1, 0.1
LATE = {"8", "9", "10"}
WORDS = {
    "4": ("+snowy", "+frost", "-closings", "+advent"),
    "391": ("+woodworking", "-swelling", "+cedar", "+heirloom"),
    "2137": ("+refreshments", "+gelatin", "-sour", "+cosmopolitan"),
    "2914": ("+motorhome", "+yacht", "+cirrus", "+cabriolet"),
}
"""The words of four neurons of layer 9 of ViT-B-32 (paper 1, Table 2)."""
LAYER = "9"
REPRODUCED, NOT, MISSING, FEW = "reproduced", "not", "not measured", "too few images"


class Line(NamedTuple):
    """One line of the table."""

    figure: str
    source: str
    published: str
    measured: str
    verdict: str


class Figure(NamedTuple):
    """A published share and how it is measured."""

    name: str
    source: str
    published: float
    measure: Callable[[Tables], Share]
    difference: bool = False
    """True for a difference from the untouched model."""


def verdict(published: float, measured: Share) -> str:
    """Return how far a measured figure is from the published one."""
    gap = measured.value - published
    if measured.high - measured.low > WIDE:
        return FEW
    if abs(gap) <= CLOSE or measured.low <= published <= measured.high:
        return REPRODUCED
    return f"off by {100 * gap:+.1f} points" if abs(gap) <= OFF else NOT


def line(figure: Figure, tables: Tables) -> Line:
    """Return the line of one figure."""
    shown = f"{100 * figure.published:+.1f} points" if figure.difference else f"{100 * figure.published:.1f} %"
    try:
        measured = figure.measure(tables)
    except TableError as error:
        return Line(figure.name, figure.source, shown, str(error), MISSING)
    text = points(measured) if figure.difference else str(measured)
    return Line(figure.name, figure.source, shown, text, verdict(figure.published, measured))


def explained(effect: str) -> Callable[[Tables], Share]:
    """Return the measure of the share of variance that PC 1 explains, of which no interval is known."""

    def measure(tables: Tables) -> Share:
        value = tables.row("indirect", effect=effect, change="all" if effect == "second" else "joint").number("explained")
        return Share(value, value, value)

    return measure


def late_layers(tables: Tables) -> Line:
    """Return the line of the three layers that cost most."""
    name, source, published = "the three layers that cost most if mean-ablated", "paper 1, Fig. 3", "8, 9, 10"
    if not tables.has("ablation"):
        return Line(name, source, published, "no such table", MISSING)
    gains = {
        row.text("layers"): tables.gain("ablation", change="all", layers=row.text("layers")).value
        for row in tables.rows("ablation", change="all")
        if row.text("layers").isdigit()
    }
    worst = sorted(gains, key=gains.__getitem__)[:3]
    right = len(LATE & set(worst))
    measured = ", ".join(f"{layer}: {100 * gains[layer]:+.1f} points" for layer in sorted(worst, key=int))
    return Line(name, source, published, measured, REPRODUCED if right == 3 else f"{right} of 3" if right else NOT)


def words(tables: Tables) -> Iterator[Line]:
    """Yield the line of each neuron whose words are published."""
    rows = tables.rows("neurons") if tables.has("neurons") else []
    found = {row.text("neuron"): row.text("words") for row in rows if row.text("layer") == LAYER}
    for neuron, published in WORDS.items():
        mine = found.get(neuron)
        right = sum(f" {word} " in f" {mine} " for word in published)
        state = MISSING if mine is None else REPRODUCED if right == len(published) else f"{right} of 4" if right else NOT
        yield Line(f"words of neuron {LAYER}:{neuron}", "paper 1, Table 2", " ".join(published), mine or "no such row", state)


def default_layers(tables: Tables) -> str:
    """Return the layers that were changed together."""
    return next(row.text("layers") for row in tables.rows("ablation", change="pc") if " " in row.text("layers"))


FIGURES = {
    "1": (
        Figure("ablated second-order effects of layer 9", "paper 1, Table 1", 0.296,
               lambda tables: tables.top1("indirect", effect="second")),
        Figure("ablated indirect effects of layer 9", "paper 1, Table 1", 0.523,
               lambda tables: tables.top1("indirect", effect="indirect")),
        Figure("variance explained by PC 1, second order", "paper 1, Table 1", 0.482, explained("second")),
        Figure("variance explained by PC 1, indirect", "paper 1, Table 1", 0.110, explained("indirect")),
        Figure("small effects ablated", "paper 1, Fig. 3", 0.0,
               lambda tables: tables.gain("ablation", change="small", layers=default_layers(tables)), difference=True),
        Figure("effects replaced by PC 1", "paper 1, Fig. 3", 0.0,
               lambda tables: tables.gain("ablation", change="pc", layers=default_layers(tables)), difference=True),
    ),
    "2": (
        Figure("pairs replaced by one PC", "paper 2, Fig. 1", 0.707,
               lambda tables: tables.top1("pcs", change="pc", units="pairs")),
        *(
            Figure(f"neurons replaced by {count} PC", "paper 2, Fig. 1", value,
                   lambda tables, count=count: tables.top1("pcs", change="pc", units="neurons", components=count))
            for count, value in (("1", 0.669), ("2", 0.690), ("4", 0.700))
        ),
        *(
            Figure(f"a fifth of the {units} kept", "paper 2, Sec. 3", value,
                   lambda tables, units=units: tables.gain("sparsity", change="rest", units=units, keep="0.2"), difference=True)
            for units, value in (("pairs", -0.05), ("neurons", -0.25))
        ),
    ),
}  # fmt: skip
TABLES = {"1": ("ablation", "indirect", "neurons"), "2": ("pcs", "sparsity")}
"""The tables of each paper; the first has the untouched accuracy."""


def untouched(tables: Tables, paper: str) -> Line:
    """Return the line of the accuracy of the untouched model.

    Raises:
        TableError: the run has made no table at all.
    """
    published, table = UNTOUCHED[paper], TABLES[paper][0]
    if not any(tables.has(name) for name in TABLES[paper]):
        raise TableError(f"{tables.folder}: none of the tables {', '.join(TABLES[paper])}; make -C examples published makes them")
    try:
        accuracy = tables.top1(table, change="untouched")
    except MissingTableError as error:
        measured, state = str(error), NOT
    else:
        measured, state = str(accuracy), REPRODUCED if abs(accuracy.value - published) <= SAME else NOT
    return Line("zero-shot accuracy of the untouched model", "see published.py", f"{100 * published:.1f} %", measured, state)


def lines(tables: Tables, paper: str) -> Iterator[Line]:
    """Yield all lines of one paper, the accuracy of the untouched model first."""
    first = untouched(tables, paper)
    rest = [line(figure, tables) for figure in FIGURES[paper]]
    if paper == "1":
        rest += [late_layers(tables), *words(tables)]
    yield first
    yield from rest if first.verdict == REPRODUCED else (each._replace(verdict=NOT) for each in rest)


def main(folder: Path, paper: str) -> None:
    """Write one line per figure to stdout."""
    found = list(lines(Tables(folder), paper))
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(Line._fields)
    writer.writerows(found)


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[2] not in UNTOUCHED:
        sys.exit("usage: published.py RESULTS 1|2")
    try:
        main(Path(sys.argv[1]), sys.argv[2])
    except TableError as error:
        sys.exit(str(error))
