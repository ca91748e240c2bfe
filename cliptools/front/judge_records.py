"""Records, summary, table and bundle of a judgement of units' words."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text
from scipy.stats import spearmanr

from cliptools.analysis.held_out import HeldOut
from cliptools.analysis.word_judge import METRICS, SHOWN, Judgement
from cliptools.analysis.word_metrics import AUC, MAD, mean_interval
from cliptools.front.bundles import UnitBundle, unit_bundle
from cliptools.front.tables import Records
from cliptools.front.unit_records import record_source, unit_keys
from cliptools.io.bundle import Bundle, json_tensor
from cliptools.io.jsonl import rounded, unit_name
from cliptools.text.vocabularies import Pool

IN_RECORDS = ("written", "seen", "own")
"""Kinds of words that records have; the others are controls, which the summary has."""
Record = dict[str, Any]


class Judged(Records):
    """Records of judged units, with a summary over the units and the judged bundle."""

    def __init__(
        self, records: Iterable[Record], parts: Callable[[int | None], Sequence[RenderableType]], summary: Record,
        bundle: UnitBundle,
    ) -> None:  # fmt: skip
        """
        Args:
            parts: Makes the parts of the table: that of the first units, all if the number is None, and that of the means.
        """
        super().__init__(records, lambda _: parts(None))
        self.parts: Callable[[int | None], Sequence[RenderableType]] = parts
        """Makes the parts of the table, as the argument does."""
        self.summary: Record = summary
        """Means over the units, with their intervals."""
        self.bundle: UnitBundle = bundle
        """The bundle with `seen`, `seen_correlation` and `agreement`."""


class JudgedUnits(NamedTuple):
    """Units with their judgement."""

    bundle: Bundle
    pool: Pool
    """The vocabulary, of which the judgement's words are indices."""
    judgement: Judgement
    judged_by: str
    """own, truth, or the digest of another model."""
    images: Mapping[str, int]
    """Numbers of images by their use."""
    false_discovery: float
    """Rate of false discoveries up to which a unit has a word."""
    settings: Mapping[str, Any]
    held: HeldOut
    """Read directions on the images, for clip-decompose --verify."""
    step: str
    """Name of the step in the bundle's history: of the command or of the function."""
    judge: Mapping[str, Any] | None
    """The other model whose embeddings these are of, as headers record models; None for the units' own model."""

    @property
    def common(self) -> Record:
        """Return the fields that records and the summary share."""
        return {"judged": self.judged_by, "images": dict(self.images), "settings": dict(self.settings)}

    @property
    def has_word(self) -> np.ndarray:
        """Return True for the units whose seen word is no chance."""
        return self.judgement.false_discovery <= self.false_discovery  # False for NaN


def judged_records(units: JudgedUnits) -> Iterator[Record]:
    """Yield a record for each unit; every record can be read alone."""
    source, judgement, texts = record_source(units.bundle), units.judgement, units.pool.texts
    has_word = units.has_word
    for row, unit in enumerate(units.bundle["unit"].tolist()):
        record: Record = unit_keys(*unit)
        for kind in IN_RECORDS:
            if kind in judgement.words:
                record[kind] = _scored_word(units, kind, row)
        if record["seen"] is not None:
            record["seen"] |= {"p": number(judgement.p[row]), "false_discovery": number(judgement.false_discovery[row])}
        record["has_word"] = bool(has_word[row])
        record["agreement"] = number(judgement.agreement[row])
        if units.judged_by != "own":
            record["own_agreement"] = number(judgement.own_agreement[row])
        record["simulation"] = {kind: number(value[row]) for kind, value in judgement.simulation.items()}
        words = zip(judgement.seen[row].tolist(), judgement.seen_correlation[row].tolist(), strict=True)
        record["seen_words"] = [{"word": texts[j], "correlation": number(c)} for j, c in words if j >= 0]
        yield record | units.common | source


def _scored_word(units: JudgedUnits, kind: str, row: int) -> Record | None:
    """Return a unit's word of a kind with its scores; None without a word."""
    text = int(units.judgement.words[kind][row])
    if text < 0:
        return None
    scores = units.judgement.scores[kind]
    found = {metric: number(value[row]) for metric, value in scores.items()}
    if (count := found.get(SHOWN)) is not None:
        found[SHOWN] = int(count)
    return {"word": units.pool.texts[text]} | found


def summary_of(units: JudgedUnits) -> Record:
    """Return the means over the units with their 95 % intervals."""
    judgement = units.judgement
    tested = int(np.isfinite(judgement.p).sum())
    with_word = int(units.has_word.sum())
    summary: Record = {
        "units": units.bundle.units,
        "words": {
            kind: {metric: _over_units(metric, value) for metric, value in scores.items()}
            for kind, scores in judgement.scores.items()
        },
        "simulation": {kind: interval(value) for kind, value in judgement.simulation.items()},
        "agreement": interval(judgement.agreement),
        "with_word": {"units": with_word, "tested": tested, "false_discovery": units.false_discovery},
    }  # fmt: skip
    if units.judged_by != "own":
        summary["own_agreement"] = interval(judgement.own_agreement)
        truth = judgement.scores["written"]["correlation"]
        summary["rank_correlation"] = number(rank_correlation(judgement.own_agreement, truth))
    return summary | units.common | record_source(units.bundle)


def rank_correlation(x: Float64[np.ndarray, " n"], y: Float64[np.ndarray, " n"]) -> float:
    """Return Spearman's correlation over the units where both are finite; NaN for fewer than three or where one is constant."""
    both = np.isfinite(x) & np.isfinite(y)
    x, y = x[both], y[both]
    return float(spearmanr(x, y).statistic) if len(x) > 2 and np.ptp(x) > 0 and np.ptp(y) > 0 else math.nan


def interval(values: Float64[np.ndarray, " n"]) -> Record:
    """Return the mean over the units, the ends of its 95 % interval, and the number of units."""
    mean, low, high = mean_interval(values)
    return {"mean": number(mean), "low": number(low), "high": number(high), "units": int(np.isfinite(values).sum())}


def _over_units(metric: str, values: Float64[np.ndarray, " n"]) -> Record:
    """Return the mean of a metric over the units; of CoSy's MAD the median too, as units that hardly act have huge values."""
    record = interval(values)
    return record | ({"median": number(float(np.nanmedian(values)))} if metric == MAD and record["units"] else {})


def number(value: float) -> float | None:
    """Return a number rounded for a record; None for NaN."""
    return rounded(value) if math.isfinite(value) else None


def judged_bundle(units: JudgedUnits) -> UnitBundle:
    """Return the bundle with `seen`, `seen_correlation`, `agreement` and `judged_…`; its `words` list the seen words too."""
    bundle, judgement, pool = units.bundle, units.judgement, units.pool
    own: list[str] = bundle.text_list("words")["texts"]
    number_of = {text: n for n, text in enumerate(own)}
    for text in (pool.texts[j] for j in np.unique(judgement.seen[judgement.seen >= 0])):
        number_of.setdefault(text, len(number_of))
    index = np.array([*(number_of.get(text, -1) for text in pool.texts), -1], dtype=np.int32)  # the last is for -1
    seen: Int[np.ndarray, "u s"] = index[judgement.seen]
    words = bundle.text_list("words") | {"texts": list(number_of)}
    header = bundle.header.after(units.step, {"judged": units.judged_by, **units.settings})
    kept = {"images": {half: units.images[half] for half in ("choosing", "scored")}}
    kept |= {} if units.judge is None else {"model": dict(units.judge)}
    settings = {"judged": units.judged_by, "judged_images": units.images["choosing"], "judged_read": kept}
    header = replace(header, settings=header.settings | settings)
    return unit_bundle(
        bundle.with_tensors(
            header, words=json_tensor(words), seen=seen, seen_correlation=judgement.seen_correlation.astype(np.float32),
            agreement=np.nan_to_num(judgement.agreement).clip(-1, 1).astype(np.float32),
            **{f"judged_{name}": values.astype(np.float32) for name, values in units.held._asdict().items()},
        )
    )  # fmt: skip


def judged_table(units: JudgedUnits, summary: Record, rows: int | None = None) -> Sequence[RenderableType]:
    """Return a table of the units of largest agreement, all if `rows` is None, and one of the means over all units."""
    judgement = units.judgement
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("unit", "agreement"):
        table.add_column(title, justify="right", no_wrap=True)
    kinds = [kind for kind in IN_RECORDS if kind in judgement.words]
    for kind in (*kinds, "other seen words"):
        table.add_column(kind, overflow="fold")
    order = np.argsort(-np.nan_to_num(judgement.agreement, nan=-2), kind="stable")
    for row in order[:rows]:
        unit = units.bundle["unit"][row].tolist()
        cells = [_cell(units, kind, int(row)) for kind in kinds]
        others = "  ".join(units.pool.texts[j] for j in judgement.seen[row, 1:4] if j >= 0)
        faint = "" if units.has_word[row] else "dim"  # a seen word that may be chance
        table.add_row(unit_name(*unit), shown_number(judgement.agreement[row]), *map(Text, cells), Text(others, style=faint))
    return [table, Text(), means_table(summary)]


def means_table(summary: Record) -> Table:
    """Return the table of the means over all units."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    rows = list(summary["words"].items())
    metrics = [metric for metric in (*METRICS, AUC, MAD) if metric in summary["words"]["written"]]
    titles = [f"median {metric}" if metric == MAD else metric for metric in metrics]
    for column, title in enumerate(("words", *titles, "95 % interval of the correlation")):
        table.add_column(title, justify="right" if column else "left", no_wrap=True)
    rows += (
        [(f"random weights: {kind}", summary["null"]["words"][kind]) for kind in ("written", "seen")] if "null" in summary else []
    )
    for kind, scores in rows:
        means = [shown_number(scores[metric].get("median", scores[metric]["mean"])) for metric in metrics]
        ends = f"{shown_number(scores['correlation']['low'])} to {shown_number(scores['correlation']['high'])}"
        table.add_row(kind, *means, ends)
    return table


def _cell(units: JudgedUnits, kind: str, row: int) -> str:
    """Return a word with its correlation."""
    text = int(units.judgement.words[kind][row])
    return "–" if text < 0 else f"{units.pool.texts[text]} {shown_number(units.judgement.scores[kind]['correlation'][row])}"


def shown_number(value: float | None) -> str:
    """Return a number as tables show it."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.3f}"
