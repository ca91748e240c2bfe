"""Classes as a list gives them: names, and the ids and numbers that stand beside these."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cliptools.ground.counted import agreeing
from cliptools.ground.errors import TextError

ID = r"n\d{8}|/[mgt]/\w+|\d{8}-n"
"""Ids of WordNet, in two spellings, and of Open Images."""
WHOLE_ID = re.compile(ID, re.ASCII)
NUMBER = re.compile(r"\d{1,9}", re.ASCII)
STRAY = re.compile(
    r"[\[\]{}<>|\t]|^['\"`“„«]|\.[nvars]\.\d\d\b|^\.{1,2}(?:/|$)|(?<![0-9A-Za-z])n\d{8}(?![0-9A-Za-z])|[\x00-\x1f\x7f]"
)
"""What a name does not hold: left over from a form that is not understood."""
INSIDE = re.compile(r"(?<![0-9A-Za-z])n\d{8}(?![0-9A-Za-z])|[\x00-\x1f\x7f]")
"""The same of a name that quotes delimit."""


@dataclass(frozen=True)
class Entry:
    """One class of a list."""

    name: str
    """With its synonyms, after commas."""
    where: str
    """For messages: `line 3`."""
    id: str | None = None
    number: int | None = None
    folders: tuple[str, ...] = ()
    """As whole texts with an id or a number in front call it, which may be names of folders."""


@dataclass(frozen=True)
class Understood:
    """The classes of a list in order, and in a few words the form they have there."""

    entries: tuple[Entry, ...]
    form: str


def spelled_id(text: str) -> str:
    """An id as folders and files have it: `n01440764` for `01440764-n`."""
    return f"n{text[:8]}" if text.endswith("-n") else text


def of_atoms(atoms: Sequence[str], where: str, source: str) -> Entry:
    """The class of a row of texts: an id, a number, and the rest, which are its names.

    Raises:
        TextError: several ids or numbers, or neither a name nor an id.
    """
    ids = [spelled_id(text) for text in atoms if WHOLE_ID.fullmatch(text)]
    numbers = [text for text in atoms if NUMBER.fullmatch(text)]
    names = [text for text in atoms if not WHOLE_ID.fullmatch(text) and not NUMBER.fullmatch(text)]
    if not names and len(numbers) == 2 and not ids:  # digits may be names: {0: "zero"} and {0: "0"}
        names = [numbers.pop()]
    if len(ids) > 1 or len(numbers) > 1 or not (names or ids):
        raise TextError(f"{source}: {where} is {', '.join(atoms)[:60]!r}; expected a name, and at most one id and one number")
    return Entry(", ".join(names), where, ids[0] if ids else None, int(numbers[0]) if numbers else None)


def text_of(value: Any, where: str, source: str) -> str:
    """A name, an id or a number as text.

    Raises:
        TextError: nothing, a truth value, a fraction, or a list.
    """
    if isinstance(value, float) and value.is_integer():  # as pandas writes numbers of a column with gaps
        value = int(value)
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return str(value).strip()
    raise TextError(f"{source}: {where} holds {str(value)[:40]!r}; expected a name, a number or an id")


def in_order(entries: Iterable[Entry], form: str, source: str) -> Understood:
    """Classes in the order of their numbers where they have some, with names as prompts are to say them.

    Raises:
        TextError: a number or an id for two classes, numbers or ids for some only, or a class without a name.
    """
    entries = list(entries)
    parts = [form]
    for kind in ("id", "number"):
        values = [getattr(entry, kind) for entry in entries]
        with_value = [entry for entry, value in zip(entries, values, strict=True) if value is not None]
        if with_value and len(with_value) < len(entries):
            other = next(entry for entry, value in zip(entries, values, strict=True) if value is None)
            raise TextError(
                f"{source}: {len(with_value)} of {len(entries)} classes "
                f"{agreeing(len(with_value), 'has', 'have')} a{'n id' if kind == 'id' else ' number'}, "
                f"{other.where} {other.name[:40]!r} has none; expected one for every class, or for none"
            )
        first: dict[Any, Entry] = {}
        for entry, value in zip(entries, values, strict=True):
            if value is not None and first.setdefault(value, entry) is not entry:
                both = f"{first[value].name[:40]!r} ({first[value].where}) and {entry.name[:40]!r} ({entry.where})"
                raise TextError(f"{source}: {kind} {value} stands for both {both}; expected one class")
    if entries and entries[0].id is not None:
        parts.append("with ids")
    if entries and entries[0].number is not None:
        entries.sort(key=lambda entry: entry.number or 0)
        numbers = [entry.number or 0 for entry in entries]
        gaps = "" if numbers[-1] - numbers[0] + 1 == len(numbers) else ", with gaps"
        parts.append(f"by their numbers from {numbers[0]} to {numbers[-1]}{gaps}")
    if any("_" in entry.name for entry in entries):
        parts.append("underscores read as spaces")
    return Understood(tuple(_named(entry, source) for entry in entries), ", ".join(parts))


def _named(entry: Entry, source: str) -> Entry:
    """The same with spaces for underscores, and with WordNet's name where a list has but the id."""
    name = re.sub(r"\s*;\s*", ", ", entry.name)
    name = re.sub(r"[ _]*_[ _]*", " ", name).strip() or name
    if not name and entry.id is not None:
        from cliptools.ground.imagenet import name_of_id

        if (known := name_of_id(entry.id)) is None:
            raise TextError(f"{source}: {entry.where} is the id {entry.id} alone, none of ImageNet's; expected a name behind it")
        name = known
    return replace(entry, name=name)


def refuse_strays(entries: Iterable[Entry], source: str, delimited: bool) -> None:
    """
    Args:
        delimited: The names stood in quotes, so that they may hold whatever these delimit.

    Raises:
        TextError: a name with what belongs to no name: the form of the list is not understood.
    """
    for entry in entries:
        if (stray := (INSIDE if delimited else STRAY).search(entry.name)) is not None:
            raise TextError(
                f"{source}: {entry.where} is {entry.name[:60]!r}, with {stray[0]!r}; expected a class a line, `number: name`, "
                "`id name`, a table with a header, or JSON (in whose quotes a name may hold anything)"
            )
