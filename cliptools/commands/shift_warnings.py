"""Warnings of clip-shift: units that do not follow their concept, images that are alike, groups too small for an alarm."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cliptools.ground.baseline import Baseline

from cliptools.ground.counted import agreeing, count_of

Record = dict[str, Any]
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


def earlier_warnings(baseline: "Baseline", options: Record) -> Iterator[str]:
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
    from cliptools.methods.drift import LEAST_SURE

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
