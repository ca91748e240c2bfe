"""Class lists with one class per line: names, each with an optional id or running number before or after it."""

import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from cliptools.console import verb_form
from cliptools.errors import TextError
from cliptools.text.class_lists.entries import ID, Entry, spelled_id

LONGEST = 4096  # characters of a line in which an id or a number is looked for
STRONG = ":=,;|\t"
"""Characters that separate a number from a name for certain; spaces, dots and dashes may belong to a name."""
ID_FIRST = re.compile(rf"({ID})(?:(?:[\s:=,;|-]+|_)(.*))?", re.ASCII)
ID_LAST = re.compile(rf"(.+?)[\s:=,;|]+({ID})", re.ASCII)
NUMBER_FIRST = re.compile(r"\(?(\d{1,9})(?:\.0+(?=[:=,;|\t]))?([\s:=,;|.)_-]+)(\S.*)", re.ASCII)
NUMBER_LAST = re.compile(r"(.*[^\s:=,;|])([\s:=,;|]+)(\d{1,9})", re.ASCII)
NUMBER_AGAIN = re.compile(r"(\d+)[._-](\D.*)", re.ASCII)
"""`001.Black_footed_Albatross` behind the same number, as in CUB's classes.txt."""
PLACE = re.compile(r"/([a-z])/(\1\S*)")
"""`/a/airfield`, as the sets of places call their classes."""
SENSE = re.compile(r"(\D\S*)\.[nvars]\.\d\d")
SINGLE_QUOTED = re.compile(r"'(.*)'\s*,?")
BULLET = re.compile(r"[-*•]\s+(\S.*)")
Lines = list[Entry]


def line_classes(lines: Sequence[tuple[str, str]], source: str, delimited: bool = False) -> Lines:
    """Parse the classes of lines.

    Args:
        lines: Lines with their places, for messages.
        delimited: The texts were in quotes, so that an ambiguous number belongs to the name.

    Raises:
        TextError: the lines are ambiguous, or only some have an id.
    """
    entries = [Entry(text, place) for place, text in lines]
    for step in FIRST_STEPS:
        entries = step(entries, source) or entries
    entries = _split_number_before(entries, source, delimited) or entries
    for step in LATER_STEPS:
        entries = step(entries, source) or entries
    if not delimited:
        entries = _split_number_after(entries, source) or entries
    entries = _strip_place_paths(entries, source) or entries
    _refuse_partial_numbering(entries, source, delimited)
    return entries


def _strip_quotes(entries: Lines, source: str) -> Lines | None:
    """Remove the quotes of CSV or of a list in a program."""
    if entries and all(SINGLE_QUOTED.fullmatch(entry.name) for entry in entries):
        return [replace(entry, name=SINGLE_QUOTED.sub(r"\1", entry.name).replace("\\'", "'")) for entry in entries]
    if not any('"' in entry.name for entry in entries):
        return None
    unquoted = []
    for entry in entries:
        try:
            cells = next(csv.reader([entry.name], skipinitialspace=True, strict=True)) if '"' in entry.name else [entry.name]
        except csv.Error as error:
            raise TextError(f"{source}: {entry.place} is {entry.name[:40]!r}, with quotes that do not pair ({error})") from None
        unquoted.append(replace(entry, name=", ".join(filter(None, (cell.strip() for cell in cells)))))
    return unquoted if unquoted != entries else None


def _strip_bullets(entries: Lines, source: str) -> Lines | None:
    """Remove the bullets of a list."""
    if (matches := _match_all(BULLET, entries)) is None:
        return None
    return [replace(entry, name=match[1]) for entry, match in zip(entries, matches, strict=True)]


def _split_id_before(entries: Lines, source: str) -> Lines | None:
    if entries[0].id is not None or (matches := _match_all(ID_FIRST, entries)) is None:
        return None
    return [
        replace(_with_folder(entry), name=(match[2] or "").strip(), id=spelled_id(match[1]))
        for entry, match in zip(entries, matches, strict=True)
    ]


def _split_id_after(entries: Lines, source: str) -> Lines | None:
    if entries[0].id is not None or (matches := _match_all(ID_LAST, entries)) is None:
        return None
    return [replace(entry, name=match[1].strip(), id=spelled_id(match[2])) for entry, match in zip(entries, matches, strict=True)]


def _split_number_before(entries: Lines, source: str, delimited: bool) -> Lines | None:
    """Split off numbers before all names, if they run from 0 or 1 or are clearly separated.

    Raises:
        TextError: the numbers may be part of the names.
    """
    if entries[0].number is not None or (matches := _match_all(NUMBER_FIRST, entries)) is None:
        return None
    numbers = [int(match[1]) for match in matches]
    apart = all(set(match[2]) & set(STRONG) for match in matches)
    if not apart and _is_running(numbers) and (_are_fractions(matches) or _only_numbers_differ([match[3] for match in matches])):
        return None
    if not (apart or _is_running(numbers)):
        if delimited or len(set(numbers)) < len(numbers) or any(match[2] in "-_." and match[3][0].isdigit() for match in matches):
            return None  # as in `707-320`, or `2 door car` and `2 seat sofa`
        raise TextError(
            f"{source}: numbers before all names, which do not run from 0 or 1 ({', '.join(map(str, numbers[:4]))}): "
            "write `number: name` if they are numbers of classes, or a JSON array if they belong to the names"
        )
    return [
        replace(_with_folder(entry), name=match[3].strip(), number=number)
        for entry, match, number in zip(entries, matches, numbers, strict=True)
    ]


def _split_number_again(entries: Lines, source: str) -> Lines | None:
    matches = _match_all(NUMBER_AGAIN, entries)
    if matches is None or entries[0].number is None:
        return None
    offsets = {int(match[1]) - (entry.number or 0) for entry, match in zip(entries, matches, strict=True)}
    are_names = offsets != {0} and _only_numbers_differ([match[2] for match in matches])
    # Offsets of 1 are allowed: class_to_idx has folders from 1 beside numbers from 0.
    if len(offsets) > 1 or not offsets <= {-1, 0, 1} or are_names:
        return None
    return [replace(_with_folder(entry), name=match[2].strip()) for entry, match in zip(entries, matches, strict=True)]


def _are_fractions(matches: Sequence[re.Match[str]]) -> bool:
    """Return whether numbers continue after the dot or dash, as in `0.5 litres`; numbers of folders have leading zeros."""
    padded = any(len(match[1]) > 1 and match[1][0] == "0" for match in matches)
    return not padded and any(match[2] in (".", "-", "_") and match[3][0].isdigit() for match in matches)


def _only_numbers_differ(names: Sequence[str]) -> bool:
    """Return whether only numbers distinguish names, as in `1 dollar` and `2 dollars`.

    Args:
        names: The names without the numbers.
    """
    return len(names) > 1 and 2 * len({name.casefold().rstrip("s") for name in names}) <= len(names)


def _split_number_after(entries: Lines, source: str) -> Lines | None:
    """Split off numbers after all names, if they run from 0 or 1.

    Raises:
        TextError: the numbers may be part of the names, or number something else.
    """
    if entries[0].number is not None or len(entries) < 2 or (matches := _match_all(NUMBER_LAST, entries)) is None:
        return None
    numbers = [int(match[3]) for match in matches]
    apart = all(set(match[2]) & set(STRONG) for match in matches) or all(PLACE.fullmatch(match[1]) for match in matches)
    if not apart and (not _is_running(numbers) or len({match[1] for match in matches}) < len(matches)):
        return None  # as in `level 1` and `level 2`, or `Boeing 707`
    if not (apart and _is_running(numbers)):
        fault = "may belong to them" if not apart else f"do not run from 0 or 1 ({', '.join(map(str, numbers[:4]))})"
        raise TextError(
            f"{source}: numbers after all names, which {fault}: write `number: name` if they are numbers of classes, "
            "or a JSON array if they belong to the names"
        )
    return [
        replace(entry, name=match[1].strip(), number=number)
        for entry, match, number in zip(entries, matches, numbers, strict=True)
    ]


def _strip_place_paths(entries: Lines, source: str) -> Lines | None:
    if (matches := _match_all(PLACE, entries)) is None:
        return None
    return [
        replace(_with_folder(entry), name=match[2].replace("/", " ").strip())
        for entry, match in zip(entries, matches, strict=True)
    ]


def _strip_folders(entries: Lines, source: str) -> Lines | None:
    """Remove the parent folder and the slash that `ls -d`, `ls -F` and `find` put around names of folders."""
    parents = {entry.name.rstrip("/").rpartition("/")[0] for entry in entries}
    parent = next(iter(parents)) if len(parents) == 1 else ""
    if not all(entry.name.endswith("/") for entry in entries):
        ids = any(_match_all(pattern, entries) is not None for pattern in (PLACE, ID_FIRST))
        if ids or not (parent == "." or re.fullmatch(r"\.{0,2}(?:/\S+)+", parent)):
            return None
    return [replace(entry, name=entry.name.rstrip("/").removeprefix(f"{parent}/")) for entry in entries]


def _strip_senses(entries: Lines, source: str) -> Lines | None:
    """Extract names from WordNet's synsets: `great_white_shark.n.01`."""
    if (matches := _match_all(SENSE, entries)) is None:
        return None
    return [replace(_with_folder(entry), name=match[1]) for entry, match in zip(entries, matches, strict=True)]


def strip_prefixes(entries: Lines, source: str) -> Lines:
    """Remove ids and running numbers before all names, in lists that have numbers or ids in separate fields."""
    for step in (_split_id_before, partial(_split_number_before, delimited=True), _split_number_again, _strip_senses):
        entries = step(entries, source) or entries
    return entries


Step = Callable[[Lines, str], Lines | None]
FIRST_STEPS: tuple[Step, ...] = (_strip_bullets, _strip_quotes, _strip_folders, _split_id_before)
LATER_STEPS: tuple[Step, ...] = (_split_number_again, _split_id_before, _strip_quotes, _split_id_after, _strip_senses)
"""An id and a number may stand in any order."""


def _match_all(pattern: re.Pattern[str], entries: Lines) -> list[re.Match[str]] | None:
    """Return a match for every entry; None unless all match."""
    if max(len(entry.name) for entry in entries) > LONGEST:
        return None
    matches = [match for entry in entries if (match := pattern.fullmatch(entry.name))]
    return matches if len(matches) == len(entries) else None


def _with_folder(entry: Entry) -> Entry:
    """Keep a name without spaces as a possible name of the class's folder."""
    return replace(entry, folders=(*entry.folders, entry.name)) if not re.search(r"\s", entry.name) else entry


def _is_running(numbers: Sequence[int]) -> bool:
    """Return whether the numbers are consecutive from 0 or 1, in any order."""
    return len(set(numbers)) == len(numbers) and min(numbers) in (0, 1) and max(numbers) - min(numbers) == len(numbers) - 1


def _refuse_partial_numbering(entries: Lines, source: str, delimited: bool) -> None:
    """Refuse lists in which only some names have an id or number.

    Raises:
        TextError: an id or a running number is before some names only.
    """
    if not entries or entries[0].number is not None or entries[0].id is not None:
        return
    with_id = [bool(re.match(rf"(?:{ID})(?![0-9A-Za-z])", entry.name)) for entry in entries]
    matches = [NUMBER_FIRST.fullmatch(entry.name) for entry in entries]
    running = [match is not None and abs(int(match[1]) - row) < 2 for row, match in enumerate(matches)]
    enough_running = len(entries) if delimited else max(2, len(entries) / 2)
    for kind, having, enough in (("an id", with_id, 1), ("its running number", running, enough_running)):
        if enough <= sum(having) < len(entries):
            lacking = entries[having.index(False)]
            raise TextError(
                f"{source}: {sum(having)} of {len(entries)} lines "
                f"{verb_form(sum(having), 'begins', 'begin')} with {kind}, {lacking.place} does not "
                f"({lacking.name[:40]!r}); expected all or none (a header has its columns apart by commas or tabs)"
            )
