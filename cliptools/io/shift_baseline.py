"""An earlier run of clip-shift, to be compared with."""

from pathlib import Path
from typing import Any

from cliptools.errors import StreamError
from cliptools.io.header import model_difference, reason_of
from cliptools.io.jsonl import file_objects, whole_number

NUMBERS = ("images", "mean", "spread", "skewness")
ASSUMED = {"choose": "overlap", "block": None}  # what records leave out: those of other ways, and of earlier versions
PARTS = ("layer", "neuron", "head")


class Baseline:
    """Records of groups by concept and group."""

    def __init__(self, records: dict[str, dict[str, dict[str, Any]]], source: str) -> None:
        self.records, self.source = records, source

    def first(self, concept: str) -> dict[str, Any]:
        """A record of the concept, for what all of them say alike.

        Raises:
            StreamError: there is none.
        """
        if not (known := self.records.get(concept)):
            raise StreamError(f"--baseline {self.source}: nothing about concept {concept!r}")
        return next(iter(known.values()))

    def of(self, concept: str, group: str | None, like: dict[str, Any]) -> list[dict[str, Any]]:
        """Records of a concept: of the one group, or of all groups.

        Args:
            like: A record to be compared with them.

        Raises:
            StreamError: there are none, or they were measured otherwise.
        """
        self.first(concept)
        known = self.records[concept]
        if group is not None and group not in known:
            raise StreamError(f"--baseline {self.source}: nothing about concept {concept!r} in a group {group!r} (--match)")
        chosen = list(known.values()) if group is None else [known[group]]
        for record in chosen:
            if other := _difference(record, like):
                raise StreamError(
                    f"--baseline {self.source}: {concept!r} was measured with {other}; take that run's options and bundle"
                )
        return chosen


def read_baseline(path: Path) -> Baseline:
    """The JSON lines of clip-shift; lines about single images, or about no group, are passed over.

    Raises:
        StreamError: no such file, a line that is no such record, one group twice, or no group at all.
    """
    records: dict[str, dict[str, dict[str, Any]]] = {}
    for number, record in file_objects(path, f"--baseline {path}"):
        if "group" not in record or "image" in record:
            continue
        if not _is_of_group(record):
            raise StreamError(f"--baseline {path}: line {number} is no record of a group, as clip-shift -f jsonl writes them")
        if records.setdefault(record["concept"], {}).setdefault(record["group"], record) is not record:
            raise StreamError(
                f"--baseline {path}: line {number} has {record['concept']!r} in group {record['group']!r} a second time"
            )
    if not records:
        raise StreamError(f"--baseline {path}: no record of a group in it, expected the lines of clip-shift -f jsonl")
    return Baseline(records, str(path))


def _is_of_group(record: dict[str, Any]) -> bool:
    """Whether all is there, and of the right type, that a comparison reads."""
    good = all(isinstance(record.get(key), str) for key in ("concept", "group")) and isinstance(record.get("model", {}), dict)
    good &= all(isinstance(record.get(key), int | float) and not isinstance(record[key], bool) for key in NUMBERS)
    good &= isinstance(record.get("settings", {}), dict) and _is_number_or_nothing(record.get("blocks", 1))
    good &= isinstance(record.get("kurtosis", 0.0), int | float)
    units = record.get("units", [])
    good &= isinstance(units, list) and all(isinstance(unit, dict) for unit in units)
    good = good and all(_is_number_or_nothing(unit.get(part)) for unit in units for part in PARTS)
    good = good and _is_following(record.get("follows"))
    return good and record["images"] >= 1 and record.get("blocks", 1) >= 1 and record["spread"] >= 0


def _is_number_or_nothing(value: Any) -> bool:
    return value is None or (not isinstance(value, str) and whole_number(value) is not None)


def _is_following(follows: Any) -> bool:
    """Right as far as it is there."""
    if follows is None:
        return True
    if not isinstance(follows, dict) or not isinstance(follows.get("value"), int | float):
        return False
    return all(isinstance(follows.get(key), int | float | None) for key in ("low", "high", "chance")) and {"low", "high"} <= {
        *follows
    }


def _difference(record: dict[str, Any], other: dict[str, Any]) -> str | None:
    """What makes two shares of a concept no thing to compare, if anything."""

    def units(of: dict[str, Any]) -> list[tuple[Any, ...]]:
        return [tuple(unit.get(part) for part in PARTS) for unit in of.get("units", [])]

    if difference := model_difference(record.get("model", {}), other["model"]):
        return f"another model{reason_of(difference)}"
    before, now = record.get("settings", {}), other["settings"]
    pairs = {name: [settings.get(name, ASSUMED.get(name)) for settings in (before, now)] for name in before | now}
    if others := [f"{name} {then}, here {here}" for name, (then, here) in pairs.items() if then != here]:
        return f"other settings ({', '.join(others)})"
    return "other units" if units(record) != units(other) else None
