"""The comparison of clip-shift's groups with an earlier run's.

Warnings of clip-shift: units that do not follow their concept, images that are alike, groups too small for an alarm.

The table of clip-shift.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from rich.table import Table
from rich.text import Text

from cliptools.analysis.shift_statistics import LEAST_SURE, Sample, chance_each, chance_of_run, compare, limit, pooled
from cliptools.cli.run.bundle_output import rendered
from cliptools.cli.run.shift import sample_record
from cliptools.console import agreeing, count_of
from cliptools.errors import CliptoolsError
from cliptools.io.jsonl import rounded, unit_name
from cliptools.io.shift_baseline import Baseline

NUMBERS = ("mean", "spread", "skewness")
Record = dict[str, Any]


class Alarm(NamedTuple):
    """What an alarm was asked for."""

    sigmas: float | None
    """None: compare, alarm never."""
    each: bool
    match: bool


def check_baseline(baseline: Baseline, concepts: Sequence[str], source: Record) -> None:
    """Compare the earlier run's model and settings with this one's, before a unit is chosen or an image looked at.

    Args:
        source: The model and settings of this run, as its records have them.

    Raises:
        StreamError: a concept that the earlier run has not measured, or not so.
    """
    for concept in concepts:
        units = baseline.first(concept).get("units", [])
        baseline.of(concept, None, {"units": units} | source)


def add_drift(records: Sequence[Record], baseline: Baseline, asked: Alarm) -> None:
    """Compare each group with the earlier run, and say so in its record.

    Raises:
        StreamError: nothing to compare with.
        CliptoolsError: no group that is large enough.
    """

    compared = []
    for record in records:
        earlier = baseline.of(record["concept"], record["group"] if asked.match else None, record)
        before, now = (pooled([_sample(one) for one in some]) for some in (earlier, [record]))
        if (comparison := compare(now, before)) is not None:
            compared.append((record, earlier, before, comparison))
    if not compared:
        blocks = any("blocks" in record for record in records)
        what = "two blocks of images" if blocks else "two images"
        raise CliptoolsError(f"nothing to compare: a mean needs {what} at least, here and in the baseline")
    for record, earlier, before, comparison in compared:
        figures = sample_record(before)
        drift: Record = {"before": {"images": sum(one["images"] for one in earlier)}}
        drift["before"] |= {"blocks": before.size} if "blocks" in record else {}
        drift["before"] |= {key: figures[key] for key in ("mean", "standard_error")}
        if (follows := baseline.first(record["concept"]).get("follows")) is not None:
            drift["before"]["follows"] = follows
        drift["z"] = rounded(comparison.z) if math.isfinite(comparison.z) else None
        if asked.sigmas is not None:
            tail = chance_each(asked.sigmas, len(compared), asked.each)
            beyond = limit(comparison, tail)
            drift |= {"limit": rounded(beyond), "alarm": abs(comparison.z) > beyond, "asked": asked.sigmas}
            drift |= {"comparisons": len(compared), "chance": rounded(chance_of_run(asked.sigmas, len(compared), asked.each))}
            drift |= {"few": True} if min(before.size, _size(record)) < LEAST_SURE else {}
        record["drift"] = drift


def _size(record: Record) -> int:
    """Independent observations of a group: its blocks, or its images."""
    size: int = record["blocks"] if "blocks" in record else record["images"]
    return size


def _sample(record: Record) -> Sample:

    mean, spread, skewness = (record[key] for key in NUMBERS)
    return Sample(_size(record), mean, spread, skewness, record.get("kurtosis", 0.0))


def alarmed(records: Sequence[Record]) -> list[Record]:
    """Records of groups that have drifted, the furthest first."""
    those = [record for record in records if record.get("drift", {}).get("alarm")]
    return sorted(those, key=lambda record: -abs(record["drift"]["z"] or math.inf))


def in_words(record: Record) -> str:
    """`spring, cat: 4.1 standard errors up`."""
    z = record["drift"]["z"]
    how = "another constant" if z is None else f"{abs(z):.1f} standard errors {'up' if z > 0 else 'down'}"
    return f"{record['group']}, {record['concept']}: {how}"


NARROW = 0.4  # length of an interval that tells how units follow: 100 images of all kinds
ALIKE = 0.1  # correlation of neighbours that raises the chance of an alarm at 3 from 0.27 to 0.7 %
SURE = 3.0  # standard errors of it
NAMED = 5  # groups or concepts in a line


def shift_warnings(records: Sequence[Record], options: Record) -> Iterator[str]:
    """A line for each thing that makes figures say less than they seem to."""
    concepts = list({record["concept"]: record for record in records}.values())
    yield from filter(None, map(_astray, concepts))
    if alike := [record for record in concepts if _are_alike(record)]:
        yield _alike(alike, options["block"])
    if few := [record for record in records if record.get("drift", {}).get("few")]:
        yield _few(few)
    if any("drift" in record for record in records) and (alone := [record for record in records if "drift" not in record]):
        yield _alone(alone)


def earlier_warnings(baseline: Baseline, options: Record) -> Iterator[str]:
    """A line where a baseline of an earlier version lacks what limits of an alarm depend on."""
    of = (record for concept in options["concepts"] for record in baseline.records.get(concept, {}).values())
    if options["alarm"] and any("kurtosis" not in record for record in of):
        yield (
            f"--baseline {baseline.source}: made by an earlier version, without `kurtosis`, so limits do not allow for heavy"
            " tails and --alarm may go off more often than promised in small groups; make it anew"
        )


def strays(record: Record) -> bool:
    """True where a concept's units follow it no better than units drawn at random do, as far as these images can tell.

    Images that all show a concept cannot tell; so units that follow it over the baseline's images are not strays here.
    """
    before = record.get("drift", {}).get("before", {}).get("follows")
    follows = [figures for figures in (record.get("follows"), before) if figures is not None]
    return any(map(_is_low, follows)) and not any(map(_is_high, follows))


def _is_low(follows: Record) -> bool:
    """No better than chance, where an interval is narrow enough to say so."""
    low, high = follows["low"], follows["high"]
    return low is not None and high - low <= NARROW and not _is_high(follows)


def _is_high(follows: Record) -> bool:
    return bool(follows["value"] > (follows.get("chance") or 0.0))


def _astray(record: Record) -> str | None:
    if not strays(record):
        return None
    follows, units = record["follows"], len(record["units"])
    interval = "" if follows["low"] is None else f" ({follows['low']:.2f} to {follows['high']:.2f})"
    chance = (
        f", and 1 in 40 sets of {count_of(units, 'unit')} drawn at random reaches {follows['chance']:.2f}"
        if "chance" in follows
        else ""
    )
    seen = "" if record["settings"]["choose"] == "seen" else "--choose seen, "
    return (
        f"{record['concept']}: its {count_of(units, 'unit')} {agreeing(units, 'does', 'do')} not follow the concept: over "
        f"{count_of(follows['count'], 'image')} the correlation of"
        f" their share with the model's own similarity is {follows['value']:.2f}{interval}{chance};"
        f" see whether {seen}more --units-per-concept or a bundle of more images does better (images that all show it, or"
        " none, cannot tell)"
    )


def _are_alike(record: Record) -> bool:
    neighbours = record.get("neighbours")
    if neighbours is None:
        return False
    return bool(neighbours["correlation"] > max(ALIKE, SURE / neighbours["pairs"] ** 0.5))


def _alike(records: Sequence[Record], block: str | None) -> str:
    figures = ", ".join(f"{record['concept']} {record['neighbours']['correlation']:.2f}" for record in records[:NAMED])
    if block is not None:
        return (
            f"blocks next to each other are still alike (correlation of their means: {figures}): alarms are more often than"
            " promised; larger blocks mend it"
        )
    return (
        f"images next to each other are alike (correlation of their shares: {figures}): if they belong together, as frames of"
        " a film do, standard errors and intervals are too small and alarms more often than promised; --block says what"
        " belongs together"
    )


def _few(records: Sequence[Record]) -> str:

    return (
        f"fewer than {LEAST_SURE} {_unit(records)} here or in the baseline, so --alarm may go off more often than promised:"
        f" {_groups(records)}"
    )


def _alone(records: Sequence[Record]) -> str:
    return f"not compared with the baseline, since a mean needs two {_unit(records)} at least, here and there: {_groups(records)}"


def _unit(records: Sequence[Record]) -> str:
    return "blocks" if "blocks" in records[0] else "images"


def _groups(records: Sequence[Record]) -> str:
    names = list(dict.fromkeys(record["group"] for record in records))
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def shift_table(records: Sequence[Record], over: Sequence[Record]) -> bytes:
    """Concepts and groups, a row each, and below each concept's units, how far they follow it, and what labels say."""

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
        cells |= {"share": f"{record['mean']:.4f}", "± s.e.": f"{record['standard_error']:.4f}"}
        cells |= {"shown": f"{record['frequency']:.0%}" if "frequency" in record else "–"}
        cells |= {"z": "–" if z is None else f"{z:+.1f}", "drift": "DRIFT" if drift.get("alarm") else ""}
        table.add_row(*(Text(cells[title]) for title in titles))
        before = concept
    concepts = {record["concept"]: record for record in records}
    labelled = {record["concept"]: record for record in over}
    lines = [_of_concept(record, labelled.get(concept)) for concept, record in concepts.items()]
    return rendered(table, *(Text(line) for line in lines if line))


def _of_concept(record: Record, labelled: Record | None) -> str | None:
    """`cat: units 6:391 5:12, following 0.41 (0.35 to 0.47; chance 0.17); correlation with the labels …`."""
    parts = []
    if record["units"]:
        units = " ".join(unit_name(unit["layer"], unit["neuron"], unit.get("head", -1)) for unit in record["units"])
        parts.append(f"units {units}, {_followed(record)}")
    if labelled is not None:
        parts.append(_labelled(labelled))
    return f"{record['concept']}: {'; '.join(parts)}" if parts else None


def _followed(record: Record) -> str:
    """How far a concept's units follow it."""
    if (follows := record.get("follows")) is None:
        return "following not defined"
    interval = [f"{follows['low']:.2f} to {follows['high']:.2f}"] if follows["low"] is not None else []
    chance = [f"chance {follows['chance']:.2f}"] if "chance" in follows else []
    stray = " NOT THE CONCEPT" if strays(record) else ""
    return f"following {follows['value']:.2f} ({'; '.join(interval + chance)}){stray}".replace(" ()", "")


def _labelled(record: Record) -> str:
    """`correlation with the labels 0.62 (0.58 to 0.66) over 480 images, 0.97 (0.90 to 0.99) over 12 groups`."""
    parts = []
    for key, of in (("correlation", "images"), ("group_correlation", "groups")):
        if (correlation := record.get(key)) is not None:
            low, high = correlation.get("low"), correlation.get("high")
            interval = correlation["no_interval"] if low is None else f"{low:.2f} to {high:.2f}"
            parts.append(f"{correlation['value']:.2f} ({interval}) over {correlation['count']} {of}")
    return f"correlation with the labels {', '.join(parts) or 'not defined'}"
