"""The comparison of clip-shift's groups with an earlier run's."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from cliptools.commands.shifting import sample_record
from cliptools.ground.errors import CliptoolsError
from cliptools.ground.records import rounded

if TYPE_CHECKING:
    from cliptools.ground.baseline import Baseline
    from cliptools.methods.running_moments import Sample

NUMBERS = ("mean", "spread", "skewness")
Record = dict[str, Any]


class Alarm(NamedTuple):
    """What an alarm was asked for."""

    sigmas: float | None
    """None: compare, alarm never."""
    each: bool
    match: bool


def check_baseline(baseline: "Baseline", concepts: Sequence[str], source: Record) -> None:
    """Compare the earlier run's model and settings with this one's, before a unit is chosen or an image looked at.

    Args:
        source: The model and settings of this run, as its records have them.

    Raises:
        StreamError: a concept that the earlier run has not measured, or not so.
    """
    for concept in concepts:
        units = baseline.first(concept).get("units", [])
        baseline.of(concept, None, {"units": units} | source)


def add_drift(records: Sequence[Record], baseline: "Baseline", asked: Alarm) -> None:
    """Compare each group with the earlier run, and say so in its record.

    Raises:
        StreamError: nothing to compare with.
        CliptoolsError: no group that is large enough.
    """
    from cliptools.methods.drift import LEAST_SURE, chance_each, chance_of_run, compare, limit
    from cliptools.methods.running_moments import pooled

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


def _sample(record: Record) -> "Sample":
    from cliptools.methods.running_moments import Sample

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
