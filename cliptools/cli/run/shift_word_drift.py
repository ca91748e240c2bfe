"""clip-shift without a concept: words of a vocabulary that moved since an earlier run, as records, a table and warnings.

shift_words.py measures the words; the comparison and its false discoveries are in analysis/shift_statistics.py.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int
from rich.table import Table
from rich.text import Text

from cliptools.analysis.shift_statistics import (
    LEAST_SURE,
    Comparisons,
    EffectSizes,
    GroupMoments,
    chance,
    chances,
    compare_all,
    effect_sizes,
    false_discovery,
    moments_of,
    pooled_groups,
)
from cliptools.analysis.word_shares import WordSums
from cliptools.cli.run.shift_drift import alarmed, alike_warning, are_alike, error_cell, group_warnings, sample_record, size_of
from cliptools.cli.run.shift_units import Images, Record
from cliptools.cli.run.shift_words import UNITS, WordOptions, WordPlan, make_plan, measure_words, word_records
from cliptools.console import count_of, warn
from cliptools.errors import CliptoolsError, StreamError
from cliptools.front.tables import rendered
from cliptools.front.unit_records import ENOUGH_IMAGES
from cliptools.images.groups import Groups
from cliptools.io.bundle import Bundle
from cliptools.io.files import text_output
from cliptools.io.jsonl import rounded, unit_name, write_record
from cliptools.io.shift_baseline import Baseline, read_word_baseline
from cliptools.models.load import load_recorded_model

MOMENTS = ("mean", "spread", "skewness", "kurtosis")
KEYS = ("layer", "neuron", "head")
QUOTED = 100  # largest number of characters of a list of groups that a message quotes
TABLE_ROWS = 20
TABLE_UNITS = 3


def run_words(neurons: Bundle, named: Record, groups: Groups, options: WordOptions, output_format: str) -> list[Record]:
    """Measure all words, write records or a table, print warnings, and return the records of words that moved.

    Raises:
        StreamError: the baseline does not match, or the bundle has no read directions and --choose seen is given.
        CliptoolsError: no image can be read, or no group is large enough to be compared.
    """
    baseline = read_word_baseline(options.baseline) if options.baseline else None
    model = load_recorded_model(neurons.header.model, options.device)
    plan = make_plan(neurons, named, model, options)
    earlier = None if baseline is None else earlier_words(baseline, plan)
    sums = measure_words(Images(groups, model, options), groups, plan)
    records = list(word_records(sums, groups, plan))
    if earlier is not None:
        records = with_drift(records, sums, groups, plan, earlier, options)
    with text_output(options.output) as stream:
        if output_format == "jsonl":
            for record in records:
                write_record(stream, record)
        else:
            stream.write(words_table(records, all_rows=options.output is not None))
    for line in _warnings(records, neurons, options):
        warn(line)
    return alarmed(records)


class EarlierWords(NamedTuple):
    """The words of an earlier run in each of its groups."""

    groups: Sequence[str]
    images: Int[np.ndarray, " g"]
    moments: GroupMoments
    """Moments of all columns."""
    parts: Float64[np.ndarray, "g wn"]
    """Means of the units' parts."""

    def pooled(self, rows: Sequence[int]) -> "EarlierWords":
        """Return some of the groups, their moments and parts as those of one group."""
        parts = np.average(self.parts[rows], axis=0, weights=self.moments.count[rows])[None]
        return EarlierWords([self.groups[g] for g in rows], self.images[rows], pooled_groups(self.moments, rows), parts)


def earlier_words(baseline: dict[str, Baseline], plan: WordPlan) -> EarlierWords:
    """Return the figures of the baseline, which has every word, measured with this run's model, units and settings.

    Raises:
        StreamError: a measure, a word or a group of a word is missing, or a word was measured otherwise.
    """
    any_words = next(iter(baseline.values()))
    if missing := next((by for by in plan.by if by not in baseline), None):
        raise StreamError(f"--baseline {any_words.source}: no record of a word by {missing}; give the --by of that run")
    groups = list(next(iter(any_words.records.values())))
    columns = []  # for each column a record a group
    for by, w in plan.columns:
        like = {"units": plan.units[w] if by == UNITS else []} | plan.source[by]
        records = {record["group"]: record for record in baseline[by].comparable(plan.words[w], None, like)}
        if records.keys() != set(groups):
            raise StreamError(
                f"--baseline {any_words.source}: {plan.words[w]!r} by {by} has the groups {', '.join(records)[:QUOTED]}, other"
                f" lines {', '.join(groups)[:QUOTED]}"
            )
        columns.append([records[group] for group in groups])
    images = np.array([record["images"] for record in columns[0]], np.int64)
    sizes = np.array([size_of(record) for record in columns[0]], np.int64)
    figures = [np.array([[record[name] for record in column] for column in columns], np.float64).T for name in MOMENTS]  # (g, c)
    means = [[unit["mean"] for column in columns for unit in column[g].get("units", [])] for g in range(len(groups))]
    return EarlierWords(groups, images, moments_of(sizes, *figures), np.array(means, np.float64).reshape(len(groups), -1))


class Compared(NamedTuple):
    """A group of now with the earlier groups that it is compared with."""

    group: int
    before: EarlierWords
    """These groups, with their moments and parts as one group."""
    comparisons: Comparisons
    """One for each column."""
    effects: EffectSizes
    """One for each column."""
    moved: Float64[np.ndarray, " wn"]
    """Differences of the means of the units' parts from the earlier ones."""


def with_drift(
    records: Sequence[Record], sums: WordSums, groups: Groups, plan: WordPlan, earlier: EarlierWords, options: WordOptions
) -> list[Record]:
    """Compare every group with the baseline; return the records with their `drift`, those of smallest p first.

    Groups that are too small to be compared come last, without drift.

    Args:
        records: Records of every group that has an image, with all columns.

    Raises:
        StreamError: with --match, the baseline lacks a group.
        CliptoolsError: no group is large enough.
    """
    present, count = [g for g in range(len(groups.names)) if sums.images[g]], len(plan.columns)
    compared = list(_compare(present, sums, groups, earlier, options))
    if not compared:
        unit = "images" if groups.block is None else "blocks of images"
        raise CliptoolsError(f"nothing to compare: a mean needs at least two {unit}, here and in the baseline")
    p, z = (
        np.concatenate(parts) for parts in zip(*((chances(it.comparisons), it.comparisons.z) for it in compared), strict=True)
    )
    q, ordered = false_discovery(p), []
    for rank, number in enumerate(np.lexsort((-np.abs(z), p)).tolist(), 1):
        i, c = divmod(number, count)
        drift: Record = {"rank": rank} | _figures(compared[i], c, groups)
        drift |= {"p": rounded(p[number]), "q": rounded(q[number]), "comparisons": len(p)}
        drift |= {} if options.alarm is None else _alarm(options.alarm, q[number], compared[i].comparisons)
        drift["units"] = _carrying(plan, plan.columns[c][1], compared[i].moved)
        ordered.append(records[present.index(compared[i].group) * count + c] | {"drift": drift})
    done = {it.group for it in compared}
    return ordered + [record for k, g in enumerate(present) if g not in done for record in records[k * count : (k + 1) * count]]


def _compare(
    present: Sequence[int], sums: WordSums, groups: Groups, earlier: EarlierWords, options: WordOptions
) -> Iterator[Compared]:
    """Yield the comparison of every group that is large enough.

    Raises:
        StreamError: with --match, the baseline lacks a group.
    """
    means = sums.part_means()
    for g in present:
        name = groups.names[g]
        if options.match and name not in earlier.groups:
            raise StreamError(f"--baseline {options.baseline}: no record of a word in a group {name!r} (--match)")
        before = earlier.pooled([earlier.groups.index(name)] if options.match else range(len(earlier.groups)))
        if (comparisons := compare_all(pooled_groups(sums.moments, [g]), before.moments)) is not None:
            yield Compared(g, before, comparisons, effect_sizes(comparisons), means[g] - before.parts[0])


def _figures(compared: Compared, c: int, groups: Groups) -> Record:
    """Return the earlier figures of a column, and the distance of those of now."""
    before, z = compared.before, compared.comparisons.z[c]
    record: Record = {"groups": len(before.groups)} | ({"group": before.groups[0]} if len(before.groups) == 1 else {})
    record["images"] = int(before.images.sum())
    record |= {} if groups.block is None else {"blocks": int(before.moments.count[0])}
    figures = sample_record(before.moments.sample(0, c))
    return {
        "before": record | {key: figures[key] for key in ("mean", "standard_error")},
        "z": rounded(z),
        "direction": "up" if z > 0 else "down" if z < 0 else "none",
        "effect": {name: rounded(values[c]) for name, values in compared.effects._asdict().items()},
    }


def _alarm(sigmas: float, q: float, comparisons: Comparisons) -> Record:
    """Return the fields of an alarm at so many standard errors."""
    record: Record = {"alarm": bool(q <= chance(sigmas)), "asked": sigmas, "chance": rounded(chance(sigmas))}
    return record | ({"few": True} if min(comparisons.now, comparisons.before) < LEAST_SURE else {})


def _carrying(plan: WordPlan, w: int, moved: Float64[np.ndarray, " wn"]) -> list[Record]:
    """Return the units of a word with the difference of the mean of each unit's part, the largest first."""
    units, parts = plan.units[w], moved.reshape(len(plan.words), -1)[w]
    order = np.argsort(-np.abs(parts), kind="stable").tolist()
    return [{key: units[n][key] for key in KEYS if key in units[n]} | {"moved": rounded(parts[n])} for n in order]


def _warnings(records: Sequence[Record], neurons: Bundle, options: WordOptions) -> Iterator[str]:
    """Yield a line for everything that makes the figures less reliable than they seem."""
    count = neurons.header.images.get("count", ENOUGH_IMAGES)
    if count < ENOUGH_IMAGES and any(record["settings"].get("choose") == "seen" for record in records):
        yield f"{count_of(count, 'image')} only in the bundle: what units see is uncertain with fewer than {ENOUGH_IMAGES}"
    of_measure = {record["by"]: record for record in records}
    if alike := {by: record for by, record in of_measure.items() if are_alike(record)}:
        yield alike_warning(alike, options.block)
    yield from group_warnings(records, LEAST_SURE)


def words_table(records: Sequence[Record], all_rows: bool) -> bytes:
    """Return the table of the first records, or with `all_rows` of all of them: those that moved most, else the largest means."""
    compared = any("drift" in record for record in records)
    if not compared:
        records = sorted(records, key=lambda record: (record["by"] != UNITS, -record["mean"]))
    rows = len(records) if all_rows else min(len(records), TABLE_ROWS)
    table = Table(box=None, pad_edge=False, header_style="bold")
    titles = ["word", "by", "group", "images"] + ["blocks"] * any("blocks" in record for record in records) + ["mean"]
    titles += ["effect (95 %)", "z", "q", "drift"] if compared else ["± s.e."]
    titles += ["units"]
    for title in titles:
        table.add_column(
            title, justify="left" if title in ("word", "by", "group", "drift", "units") else "right", overflow="fold"
        )
    for record in records[:rows]:
        cells = _cells(record)
        table.add_row(*(Text(cells[title]) for title in titles))
    remainder = Text(f"… {count_of(len(records) - rows, 'more line')} (-f jsonl for all)", style="dim")
    return rendered(table, *([remainder] if rows < len(records) else []))


def _cells(record: Record) -> dict[str, str]:
    """Return the cells of a record by the titles of their columns."""
    drift = record.get("drift")
    units = record.get("units", []) if drift is None else drift["units"]
    names = [unit_name(unit["layer"], unit.get("neuron", -1), unit.get("head", -1)) for unit in units[:TABLE_UNITS]]
    cells = {name: str(record.get(name, "")) for name in ("word", "by", "group", "images", "blocks")}
    cells |= {"mean": f"{record['mean']:.4f}", "± s.e.": error_cell(record), "units": "  ".join(names)}
    if drift is None:
        return cells | dict.fromkeys(("effect (95 %)", "z", "q"), "–") | {"drift": ""}
    effect = drift["effect"]
    cells["effect (95 %)"] = f"{effect['value']:+.2f} ({effect['low']:+.2f} to {effect['high']:+.2f})"
    return cells | {"z": f"{drift['z']:+.1f}", "q": f"{drift['q']:.2g}", "drift": "DRIFT" if drift.get("alarm") else ""}
