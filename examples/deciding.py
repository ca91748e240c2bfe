"""Experiments that decide whether a finding of the papers fails on the embedded models because of the finding or of the models.

    deciding.py RESULTS > deciding.csv

Every row varies one thing, with all else as it is: `a` is the figure of the embedded models as claims.csv tells it, `b` the same
figure in the other setting, and `moves` says whether the interval of b − a excludes 0 (yes, no), or, for figures without an
interval, whether the sign changes (sign, no sign). A finding that moves with the sparsity depends on the training.
"""

import csv
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from claims import BASELINES
from result_tables import Row, Share, TableError, Tables, counts_in, difference, wilson

from cliptools.embedded_models import EMBEDDED

CONTROL = "dense"
"""Folder of the tables of the control, which was trained without the terms for sparsity."""


class Experiment(NamedTuple):
    """One line of the table."""

    claim: str
    figure: str
    varied: str
    a_setting: str
    a: str
    b_setting: str
    b: str
    difference: str
    moves: str


Figure = Callable[[Tables], Share]


class Finding(NamedTuple):
    """The figure by which a finding stands or falls."""

    claim: str
    figure: str
    of: Figure


def exact(value: float) -> Share:
    """Return a figure without an interval."""
    return Share(value, value, value)


def small(tables: Tables, name: str = "ablation", layers: str | None = None) -> Share:
    """Return the change of accuracy once the small effects of layers are at their means."""
    return tables.gain(name, change="small", layers=layers or tables.layers_together(name))


def late(tables: Tables, place: int = 1) -> Share:
    """Return what a late layer costs beyond the costliest of the first half, if ablated.

    Args:
        place: Place among the late layers, the costliest first.
    """
    names = {row.text("layers") for row in tables.rows("ablation", change="all")}
    layers = sorted((name for name in names if name.isdigit()), key=int)
    gain = {layer: tables.gain("ablation", change="all", layers=layer) for layer in layers}
    early = min((gain[layer] for layer in layers[: len(layers) // 2]), key=lambda share: share.value)
    ranked = sorted((gain[layer] for layer in tables.layers_together("ablation").split()), key=lambda share: share.value)
    return difference(early, ranked[place])


def component(tables: Tables, name: str = "pcs", units: str = "neurons", components: str = "1") -> Share:
    """Return the change of accuracy once units act along their first components only."""
    return tables.gain(name, change="pc", units=units, components=components)


def kept(tables: Tables, name: str = "sparsity", units: str = "pairs", share: str = "0.2") -> Share:
    """Return the change of accuracy once all but the strongest units are at their means."""
    return tables.gain(name, change="rest", units=units, keep=share)


def words(tables: Tables, name: str = "pair-words", m: str = "64") -> Share:
    """Return the accuracy of pairs in words less that of neurons in words."""
    pairs, neurons = (tables.top1(name, change="words", units=units, m=m) for units in ("pairs", "neurons"))
    return difference(pairs, neurons)


def polysemy(tables: Tables, column: str = "pairs") -> Share:
    """Return the share of pairs of inertia below 0.5 less that of neurons."""
    number = counts_in(tables.comment("polysemy"))
    row = tables.row("polysemy", inertia_below="0.50")
    return difference(*(wilson(row.number(kind), number[kind]) for kind in (column, "neurons")))


def fooled(tables: Tables, other: str = "similar") -> Share:
    """Return the fooling rate of the neurons' words less that of other words, in shares, by the deviation over repeats."""
    rows = {kind: tables.row("adversarial", pair="all", words=kind) for kind in ("second-order", other)}
    a, b = (row.plus_minus("mean", "sd", 1.96 / math.sqrt(row.number("repeats"))) for row in rows.values())
    d = difference(a, b)
    return Share(*(value / 100 for value in d))


def heat_maps(tables: Tables, scenes: str = "one", column: str = "map") -> Share:
    """Return the mAP, or the mIoU, of the neurons' heat maps less that of the best of the papers' baselines."""
    rows = {row.text("method"): row for row in tables.rows("segmentation", scenes=scenes, size="128", threshold="0.5")}
    return exact(rows["neurons"].number(column) - max(rows[name].number(column) for name in BASELINES))


def outlines(tables: Tables, scenes: str = "one") -> Share:
    """Return the mIoU of the neurons' heat maps less that of the best of the papers' baselines."""
    return heat_maps(tables, scenes, "miou")


def label_maps(tables: Tables, scenes: str = "several") -> Share:
    """Return the mIoU of the pairs' label maps less that of the best other method, over the true classes."""
    rows = {row.text("method"): row for row in tables.rows("resnet-segmentation", scenes=scenes, background="left out")}
    best = max(row.number("miou_true") for name, row in rows.items() if name not in ("pairs", "values"))
    return exact(rows["pairs"].number("miou_true") - best)


def follows(tables: Tables, choose: str = "overlap", units: str = "5") -> Share:
    """Return the mean correlation of five pairs with a concept's share, over concepts, with the interval of the mean."""
    rows: list[Row] = tables.rows("shift", model=EMBEDDED[1], by="norm", choose=choose, units=units)
    r = [row.number("correlation") for row in rows]
    mean = sum(r) / len(r)
    half = 1.96 * math.sqrt(sum((value - mean) ** 2 for value in r) / (len(r) - 1) / len(r))
    return Share(mean, mean - half, mean + half)


FINDINGS = (
    Finding("effects are selective: those below τ do little", "accuracy without small effects, less the untouched", small),
    Finding("a neuron has several directions", "accuracy from PC 1 of neurons, less the untouched", component),
    Finding("few pairs carry the output", "accuracy from a fifth of the pairs, less the untouched", kept),
    Finding("pairs in words beat neurons in words", "accuracy of pairs less neurons, 64 words", words),
    Finding("neurons are polysemantic, their pairs less so", "inertia below 0.5: share of pairs less neurons", polysemy),
    Finding("pictures of the neurons' words fool the model", "fooling rate less that of similar words", fooled),
    Finding("the neurons' heat maps segment best", "mAP less that of the best baseline", heat_maps),
    Finding("the neurons' heat maps segment best", "mIoU less that of the best baseline", outlines),
    Finding("the pairs' label maps segment best", "mIoU less that of the best other method", label_maps),
    Finding("five pairs follow a concept", "mean correlation with the concept's share", follows),
    Finding("late layers matter most", "cost of the weaker of the late layers, less that of the worst early one", late),
)
"""Those that are not confirmed by all three sets of models."""


def others(tables: Tables) -> Iterator[tuple[int, str, str, str, Share]]:
    """Yield for findings, by number: what is varied, the setting of claims.csv, the other one, and the figure there."""
    together = tables.layers_together("ablation")
    layers = sorted({row.text("layers") for row in tables.rows("ablation", change="small")} - {together}, key=len)
    for layer in sorted(name for name in layers if name.isdigit() and name in together.split()):
        yield 0, "depth at which effects are read", f"layers {together}", f"layer {layer}", small(tables, layers=layer)
    few = "every tenth concept"
    yield 0, "number of concepts", "all", few, small(tables, "few-vit")
    yield 1, "number of concepts", "all", few, component(tables, "few-rn")
    yield 2, "number of concepts", "all", few, kept(tables, "few-rn")
    yield 3, "number of concepts", "all", few, words(tables, "few-rn")
    yield 1, "units that sum over more", "neurons", "heads", component(tables, units="heads")
    yield 2, "share of the pairs", "0.2", "0.5", kept(tables, share="0.5")
    yield 3, "words a unit", "64", "1", words(tables, m="1")
    yield 4, "pairs compared", "all pairs", "the strongest of each neuron", polysemy(tables, "strongest_pairs")
    yield 5, "words compared with", "similar", "random", fooled(tables, "random")
    yield 6, "things in a scene", "one", "two", heat_maps(tables, "two")
    yield 7, "things in a scene", "one", "two", outlines(tables, "two")
    yield 8, "things in a scene", "several", "one", label_maps(tables, "one")
    yield 9, "how pairs are chosen", "overlap", "seen", follows(tables, "seen")
    yield 10, "which of the late layers", "the weaker", "the stronger", late(tables, 0)


def experiment(finding: Finding, varied: str, settings: tuple[str, str], a: Share, b: Share) -> Experiment:
    """Return the line of one experiment."""
    d = difference(b, a)
    if d.low == d.high:
        moves = "sign" if (a.value > 0) != (b.value > 0) else "no sign"
    else:
        moves = "yes" if d.low > 0 or d.high < 0 else "no"
    told = [f"{one.value:.3f}" + (f" ({one.low:.3f} to {one.high:.3f})" if one.low < one.high else "") for one in (a, b, d)]
    return Experiment(finding.claim, finding.figure, varied, settings[0], told[0], settings[1], *told[1:], moves)


def experiments(folder: Path) -> Iterator[Experiment]:
    """Yield all experiments, finding by finding, the control first."""
    tables, control = Tables(folder), Tables(folder / CONTROL)
    varied = list(others(tables))
    for number, finding in enumerate(FINDINGS):
        a = finding.of(tables)
        if control.has("claims"):
            settings = ("with its terms", "without them")
            yield experiment(finding, "sparsity of the training", settings, a, finding.of(control))
        for of, thing, setting, other, b in varied:
            if of == number:
                yield experiment(finding, thing, (setting, other), a, b)


def main(folder: Path) -> None:
    """Write the table to stdout."""
    sys.stdout.write("# make -C examples -f deciding.mk\n")
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(Experiment._fields)
    writer.writerows(experiments(folder))


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except TableError as error:
        sys.exit(f"deciding.py: {error}")
