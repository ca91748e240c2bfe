"""Reports of clip-shift: comparison of groups with a baseline, warnings about unreliable figures, and the table."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from rich.table import Table
from rich.text import Text

from cliptools.analysis.shift_statistics import (
    LEAST_SURE,
    Sample,
    chance_of_comparison,
    chance_of_run,
    compare,
    limit,
    pooled_sample,
)
from cliptools.cli.run.shift_units import DIGITS, Record
from cliptools.console import count_of, verb_form
from cliptools.errors import CliptoolsError
from cliptools.front.tables import rendered
from cliptools.io.jsonl import rounded, unit_name
from cliptools.io.shift_baseline import Baseline

NUMBERS = ("mean", "spread", "skewness")
FIGURES = ("mean", "spread", "standard_error", "skewness", "kurtosis")
NARROW = 0.4  # largest interval that can tell whether units follow a concept: about 100 images of all kinds
ALIKE = 0.1  # correlation of neighbours; it raises the chance of an alarm at 3 from 0.27 to 0.7 %
SURE = 3.0  # number of standard errors by which this correlation must exceed 0
NAMED = 5  # groups or concepts that a warning names


class Alarm(NamedTuple):
    """Options of the comparison with a baseline."""

    sigmas: float | None
    """--alarm; None to compare without an alarm."""
    each: bool
    """Apply --alarm to every comparison separately."""
    match: bool
    """Compare every group with the baseline's group of the same name, not with the whole baseline."""


def check_baseline(baseline: Baseline, concepts: Sequence[str], source: Record) -> None:
    """Check that the baseline was measured with this run's model and settings, before any image is read.

    Args:
        source: Model and settings of this run, as its records have them.

    Raises:
        StreamError: the baseline has no record of a concept, or one with another model or other settings.
    """
    for concept in concepts:
        units = baseline.any_record(concept).get("units", [])
        baseline.comparable(concept, None, {"units": units} | source)


def add_drift(records: Sequence[Record], baseline: Baseline, alarm: Alarm) -> None:
    """Compare every group with the baseline, and add the result to its record as `drift`.

    Raises:
        StreamError: the baseline has no record to compare with.
        CliptoolsError: no group is large enough.
    """
    comparisons = []
    for record in records:
        earlier = baseline.comparable(record["concept"], record["group"] if alarm.match else None, record)
        before, now = (pooled_sample([_sample(group) for group in groups]) for groups in (earlier, [record]))
        if (comparison := compare(now, before)) is not None:
            comparisons.append((record, earlier, before, comparison))
    if not comparisons:
        unit = "blocks of images" if any("blocks" in record for record in records) else "images"
        raise CliptoolsError(f"nothing to compare: a mean needs at least two {unit}, here and in the baseline")
    for record, earlier, before, comparison in comparisons:
        figures = sample_record(before)
        drift: Record = {"before": {"images": sum(group["images"] for group in earlier)}}
        drift["before"] |= {"blocks": before.size} if "blocks" in record else {}
        drift["before"] |= {key: figures[key] for key in ("mean", "standard_error")}
        if (follows := baseline.any_record(record["concept"]).get("follows")) is not None:
            drift["before"]["follows"] = follows
        drift["z"] = rounded(comparison.z) if math.isfinite(comparison.z) else None
        if alarm.sigmas is not None:
            beyond = limit(comparison, chance_of_comparison(alarm.sigmas, len(comparisons), alarm.each))
            drift |= {"limit": rounded(beyond), "alarm": abs(comparison.z) > beyond, "asked": alarm.sigmas}
            drift |= {
                "comparisons": len(comparisons),
                "chance": rounded(chance_of_run(alarm.sigmas, len(comparisons), alarm.each)),
            }
            drift |= {"few": True} if min(before.size, size_of(record)) < LEAST_SURE else {}
        record["drift"] = drift


def sample_record(sample: Sample) -> Record:
    """Return the figures of a sample, with as many digits as a later run needs for its comparison."""
    figures = ((name, getattr(sample, name)) for name in FIGURES)
    return {name: None if value is None else rounded(value, DIGITS) for name, value in figures}


def error_cell(record: Record) -> str:
    """Return the table's cell for a standard error, a dash if a single image has none."""
    error = record["standard_error"]
    return "–" if error is None else f"{error:.4f}"


def size_of(record: Record) -> int:
    """Return the number of independent observations of a group: its blocks, or its images."""
    size: int = record["blocks"] if "blocks" in record else record["images"]
    return size


def _sample(record: Record) -> Sample:
    mean, spread, skewness = (record[key] for key in NUMBERS)
    return Sample(size_of(record), mean, spread, skewness, record.get("kurtosis", 0.0))


def alarmed(records: Sequence[Record]) -> list[Record]:
    """Return the records of the groups that have drifted, those of largest distance first."""
    drifted = [record for record in records if record.get("drift", {}).get("alarm")]
    return sorted(drifted, key=lambda record: -abs(record["drift"]["z"] or math.inf))


def drift_text(record: Record) -> str:
    """Return the drift of a group as a text: `spring, cat: 4.1 standard errors up`; of a word also the measure."""
    z, name = record["drift"]["z"], record["concept"] if "concept" in record else f"{record['word']} by {record['by']}"
    distance = "a different constant" if z is None else f"{abs(z):.1f} standard errors {'up' if z > 0 else 'down'}"
    return f"{record['group']}, {name}: {distance}"


def shift_warnings(records: Sequence[Record], block: str | None) -> Iterator[str]:
    """Yield a line for everything that makes figures less reliable than they seem.

    Args:
        block: The value of --block.
    """
    concepts = list({record["concept"]: record for record in records}.values())
    yield from filter(None, map(_stray_warning, concepts))
    if alike := [record for record in concepts if are_alike(record)]:
        yield alike_warning({record["concept"]: record for record in alike[:NAMED]}, block)
    yield from group_warnings(records, LEAST_SURE)


def group_warnings(records: Sequence[Record], least: int) -> Iterator[str]:
    """Yield a line about groups that are too small, for an alarm or to be compared.

    Args:
        least: Number of images or blocks that an alarm needs.
    """
    if few := [record for record in records if record.get("drift", {}).get("few")]:
        yield (
            f"fewer than {least} {_observations(few)} here or in the baseline, so --alarm may go off more often than"
            f" promised: {_group_names(few)}"
        )
    if any("drift" in record for record in records) and (alone := [record for record in records if "drift" not in record]):
        yield (
            f"not compared with the baseline, since a mean needs at least two {_observations(alone)}, here and there:"
            f" {_group_names(alone)}"
        )


def baseline_warnings(baseline: Baseline, concepts: Sequence[str], alarm: float | None) -> Iterator[str]:
    """Yield a line if a baseline of an earlier version lacks a figure on which the limits of an alarm depend."""
    records = (record for concept in concepts for record in baseline.records.get(concept, {}).values())
    if alarm and any("kurtosis" not in record for record in records):
        yield (
            f"--baseline {baseline.source}: made by an earlier version, without `kurtosis`, so limits do not allow for heavy"
            " tails and --alarm may go off more often than promised in small groups; run the baseline again"
        )


def strays(record: Record) -> bool:
    """Return True if a concept's units follow it no better than random units do, as far as these images can tell.

    Images that all show a concept cannot tell this. Units that follow the concept over the baseline's images are therefore not
    strays here.
    """
    before = record.get("drift", {}).get("before", {}).get("follows")
    follows = [figures for figures in (record.get("follows"), before) if figures is not None]
    return any(map(_is_low, follows)) and not any(map(_is_high, follows))


def _is_low(follows: Record) -> bool:
    """Return True if the correlation is not better than chance, and its interval is narrow enough to tell."""
    low, high = follows["low"], follows["high"]
    return low is not None and high - low <= NARROW and not _is_high(follows)


def _is_high(follows: Record) -> bool:
    return bool(follows["value"] > (follows.get("chance") or 0.0))


def _stray_warning(record: Record) -> str | None:
    if not strays(record):
        return None
    follows, units = record["follows"], count_of(len(record["units"]), "unit")
    interval = "" if follows["low"] is None else f" ({follows['low']:.2f} to {follows['high']:.2f})"
    chance = f", and 1 in 40 sets of {units} drawn at random reaches {follows['chance']:.2f}" if "chance" in follows else ""
    option = "" if record["settings"]["choose"] == "seen" else "--choose seen, "
    return (
        f"{record['concept']}: its {units} {verb_form(len(record['units']), 'does', 'do')} not follow the concept: over"
        f" {count_of(follows['count'], 'image')} the correlation of their share with the model's own similarity is"
        f" {follows['value']:.2f}{interval}{chance}; try {option}more --units-per-concept or a bundle of more images (images that"
        " all show the concept, or never show it, cannot tell)"
    )


def are_alike(record: Record) -> bool:
    """Return True if neighbouring images, or blocks, are more alike than chance makes independent ones."""
    neighbours = record.get("neighbours")
    if neighbours is None:
        return False
    return bool(neighbours["correlation"] > max(ALIKE, SURE / neighbours["pairs"] ** 0.5))


def alike_warning(records: Mapping[str, Record], block: str | None) -> str:
    """Return the warning about neighbours that are alike, with the correlation of each record under its name."""
    figures = ", ".join(f"{name} {record['neighbours']['correlation']:.2f}" for name, record in records.items())
    if block is not None:
        return (
            f"blocks next to each other are still alike (correlation of their means: {figures}): alarms are more frequent than"
            " promised; use larger blocks"
        )
    return (
        f"images next to each other are alike (correlation of their shares: {figures}): if they belong together, as frames of"
        " a film do, standard errors and intervals are too small and alarms more frequent than promised; group them by --block"
    )


def _observations(records: Sequence[Record]) -> str:
    return "blocks" if "blocks" in records[0] else "images"


def _group_names(records: Sequence[Record]) -> str:
    names = list(dict.fromkeys(record["group"] for record in records))
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def shift_table(records: Sequence[Record], totals: Sequence[Record]) -> bytes:
    """Return the table with a row per concept and group, and below it a line per concept with its units and labels.

    Args:
        totals: Records of labelled concepts over all groups.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    titles = ["concept", "group", "images"] + ["blocks"] * any("blocks" in record for record in records) + ["share", "± s.e."]
    titles += ["shown"] if any("labelled" in record for record in records) else []
    titles += ["z", "drift"] if any("drift" in record for record in records) else []
    for title in titles:
        table.add_column(title, justify="left" if title in ("concept", "group", "drift") else "right")
    before = None
    for record in records:
        drift, concept = record.get("drift", {}), record["concept"]
        z = drift.get("z")
        cells = {"concept": "" if concept == before else concept, "group": record["group"], "images": str(record["images"])}
        cells |= {"blocks": str(record.get("blocks", ""))}
        cells |= {"share": f"{record['mean']:.4f}", "± s.e.": error_cell(record)}
        cells |= {"shown": f"{record['frequency']:.0%}" if "frequency" in record else "–"}
        cells |= {"z": "–" if z is None else f"{z:+.1f}", "drift": "DRIFT" if drift.get("alarm") else ""}
        table.add_row(*(Text(cells[title]) for title in titles))
        before = concept
    concepts = {record["concept"]: record for record in records}
    labelled = {record["concept"]: record for record in totals}
    lines = [_concept_line(record, labelled.get(concept)) for concept, record in concepts.items()]
    return rendered(table, *(Text(line) for line in lines if line))


def _concept_line(record: Record, labelled: Record | None) -> str | None:
    """Return a line as `cat: units 6:391 5:12, following 0.41 (0.35 to 0.47; chance 0.17); correlation with the labels …`."""
    parts = []
    if record["units"]:
        units = " ".join(unit_name(unit["layer"], unit["neuron"], unit.get("head", -1)) for unit in record["units"])
        parts.append(f"units {units}, {_following_text(record)}")
    if labelled is not None:
        parts.append(_label_text(labelled))
    return f"{record['concept']}: {'; '.join(parts)}" if parts else None


def _following_text(record: Record) -> str:
    """Return the correlation of the share of a concept's units with the concept, as a text for the table."""
    if (follows := record.get("follows")) is None:
        return "following not defined"
    interval = [f"{follows['low']:.2f} to {follows['high']:.2f}"] if follows["low"] is not None else []
    chance = [f"chance {follows['chance']:.2f}"] if "chance" in follows else []
    stray = " NOT THE CONCEPT" if strays(record) else ""
    return f"following {follows['value']:.2f} ({'; '.join(interval + chance)}){stray}".replace(" ()", "")


def _label_text(record: Record) -> str:
    """Return a text as `correlation with the labels 0.62 (0.58 to 0.66) over 480 images, 0.97 (…) over 12 groups`."""
    parts = []
    for key, unit in (("correlation", "images"), ("group_correlation", "groups")):
        if (correlation := record.get(key)) is not None:
            low, high = correlation.get("low"), correlation.get("high")
            interval = correlation["no_interval"] if low is None else f"{low:.2f} to {high:.2f}"
            parts.append(f"{correlation['value']:.2f} ({interval}) over {correlation['count']} {unit}")
    return f"correlation with the labels {', '.join(parts) or 'not defined'}"
