"""Records of an earlier run of clip-shift, for --baseline."""

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from cliptools.errors import StreamError
from cliptools.io.header import model_difference, reason_of
from cliptools.io.jsonl import file_objects

ASSUMED = {"choose": "overlap", "block": None}  # settings that records of earlier versions, or of other ways to choose, lack
Whole = Annotated[float, msgspec.Meta(multiple_of=1)]  # also 3.0, which tables of floats contain


class _Unit(msgspec.Struct):
    layer: Whole | None = None
    neuron: Whole | None = None
    head: Whole | None = None


class _WordUnit(msgspec.Struct):
    layer: Whole
    mean: float
    neuron: Whole | None = None
    head: Whole | None = None


class _Follows(msgspec.Struct):
    value: float
    low: float | None
    high: float | None
    chance: float | None = None


class _GroupRecord(msgspec.Struct):
    """The fields of a group's record that a comparison reads, and their types."""

    concept: str
    group: str
    images: Annotated[float, msgspec.Meta(ge=1)]
    mean: float
    spread: Annotated[float, msgspec.Meta(ge=0)]
    skewness: float
    kurtosis: float = 0.0
    model: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    blocks: Annotated[float, msgspec.Meta(multiple_of=1, ge=1)] = 1
    units: list[_Unit] = []
    follows: _Follows | None = None


class Baseline:
    """Records of clip-shift by concept, or by word, and group."""

    def __init__(self, records: dict[str, dict[str, dict[str, Any]]], source: str, noun: str = "concept") -> None:
        """
        Args:
            noun: Noun for the keys of the records, for messages.
        """
        self.records, self.source, self.noun = records, source, noun

    def any_record(self, concept: str) -> dict[str, Any]:
        """Return a record of the concept, for the fields in which all its records agree.

        Raises:
            StreamError: there is no record of the concept.
        """
        if not (groups := self.records.get(concept)):
            raise StreamError(f"--baseline {self.source}: no record of {self.noun} {concept!r}")
        return next(iter(groups.values()))

    def comparable(self, concept: str, group: str | None, like: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the records of a concept: that of one group, or those of all groups.

        Args:
            like: A record to compare them with.

        Raises:
            StreamError: there are none, or they have other settings.
        """
        self.any_record(concept)
        groups = self.records[concept]
        if group is not None and group not in groups:
            raise StreamError(f"--baseline {self.source}: no record of {self.noun} {concept!r} in a group {group!r} (--match)")
        records = list(groups.values()) if group is None else [groups[group]]
        for record in records:
            if difference := _difference(record, like):
                raise StreamError(
                    f"--baseline {self.source}: {concept!r} was measured with {difference}; use that run's options and bundle"
                )
        return records


def read_baseline(path: Path) -> Baseline:
    """Read the JSON lines of clip-shift; skip records of single images and records without a group.

    Raises:
        StreamError: the file is missing or has no record of a group, a record is invalid, or a group appears twice.
    """
    records: dict[str, dict[str, dict[str, Any]]] = {}
    for number, record in file_objects(path, f"--baseline {path}"):
        if "group" not in record or "image" in record:
            continue
        try:
            msgspec.convert(record, _GroupRecord)
        except msgspec.ValidationError as error:
            raise StreamError(f"--baseline {path}: line {number} is not a record of a group of clip-shift ({error})") from None
        if records.setdefault(record["concept"], {}).setdefault(record["group"], record) is not record:
            raise StreamError(
                f"--baseline {path}: line {number} has {record['concept']!r} in group {record['group']!r} a second time"
            )
    if not records:
        raise StreamError(f"--baseline {path}: no record of a group, expected the lines of clip-shift -f jsonl")
    return Baseline(records, str(path))


class _WordRecord(msgspec.Struct):
    """The fields of a word's record that a comparison reads, and their types."""

    word: str
    by: Literal["units", "similarities"]
    group: str
    images: Annotated[float, msgspec.Meta(multiple_of=1, ge=1)]
    mean: float
    spread: Annotated[float, msgspec.Meta(ge=0)]
    skewness: float
    kurtosis: float
    model: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    blocks: Annotated[float, msgspec.Meta(multiple_of=1, ge=1)] = 1
    units: list[_WordUnit] = []


def read_word_baseline(path: Path) -> dict[str, Baseline]:
    """Read the JSON lines of clip-shift without a concept: a baseline for each measure, with the words as keys.

    Raises:
        StreamError: the file is missing or has no record of a word, a record is invalid, a word of a group appears twice, or
            the words of a group have different numbers of images.
    """
    records: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
    sizes: dict[str, tuple[float, float]] = {}
    for number, record in file_objects(path, f"--baseline {path}"):
        if "word" not in record:
            continue
        place = f"--baseline {path}: line {number}"
        try:
            typed = msgspec.convert(record, _WordRecord)
        except msgspec.ValidationError as error:
            raise StreamError(f"{place} is not a record of a word of clip-shift ({error})") from None
        groups = records.setdefault(typed.by, {}).setdefault(typed.word, {})
        if groups.setdefault(typed.group, record) is not record:
            raise StreamError(f"{place} has {typed.word!r} by {typed.by} in group {typed.group!r} a second time")
        if sizes.setdefault(typed.group, size := (typed.images, typed.blocks)) != size:
            raise StreamError(f"{place} has another number of images or blocks in group {typed.group!r} than lines before it")
    if not records:
        raise StreamError(f"--baseline {path}: no record of a word, expected the lines of clip-shift -f jsonl without --concept")
    return {by: Baseline(words, str(path), f"word (by {by})") for by, words in records.items()}


def _difference(record: dict[str, Any], other: dict[str, Any]) -> str | None:
    """Return why two records of a concept cannot be compared; None if they can."""

    def units(source: dict[str, Any]) -> list[tuple[Any, ...]]:
        return [tuple(unit.get(part) for part in _Unit.__struct_fields__) for unit in source.get("units", [])]

    if difference := model_difference(record.get("model", {}), other["model"]):
        return f"another model{reason_of(difference)}"
    earlier, now = record.get("settings", {}), other["settings"]
    pairs = {name: [settings.get(name, ASSUMED.get(name)) for settings in (earlier, now)] for name in earlier | now}
    if changes := [f"{name} {before}, here {value}" for name, (before, value) in pairs.items() if before != value]:
        return f"other settings ({', '.join(changes)})"
    return "other units" if units(record) != units(other) else None
