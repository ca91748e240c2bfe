"""Lists of classes as tables: CSV and TSV with a header, and records of JSON or YAML."""

import csv
import re
from collections.abc import Mapping, Sequence

from cliptools.ground.class_lists.entries import NUMBER, WHOLE_ID, Entry, spelled_id
from cliptools.ground.counted import count_of
from cliptools.ground.errors import TextError

NAMES = (
    frozenset({"name", "names", "classname", "classnames", "displayname", "labelname", "categoryname"}),
    frozenset({"class", "classes", "label", "labels", "category", "categories"}),
    frozenset({"text", "word", "words", "title", "concept", "object"}),
)
"""Columns that may hold the name, the likeliest first."""
NUMBERS = frozenset({"index", "idx", "number", "num", "no", "id", "class", "label", "category", "target"}) | frozenset(
    {"classid", "classidx", "classindex", "categoryid", "catid", "labelid", "trainid"}
)
UNNAMED = frozenset({"", "unnamed:0"})
"""The column of running numbers that pandas writes, and the keys of an object."""
IDS = frozenset({"wnid", "wordnetid", "synset", "synsetid", "mid"})
SYNONYMS = frozenset({"synonym", "synonyms", "alias", "aliases", "othernames"})
FOLDERS = frozenset({"folder", "folders", "directory", "dir"})
IMAGES = frozenset({"image", "images", "imageid", "file", "files", "filename", "filepath", "path", "imagepath"})
HEADS = frozenset().union(*NAMES, NUMBERS, IDS, SYNONYMS, FOLDERS, IMAGES)
WITH_POINT = re.compile(r"\d{1,9}\.0+", re.ASCII)
ALONE = NAMES[0] | NAMES[1]
"""What a header of one column may be."""
KEY = ""
"""The field of a record that is its key in an object."""

Record = Mapping[str, str]


def head_of(first: str) -> tuple[str, list[str]] | None:
    """The delimiter and the columns' names, if a first line is a header."""
    delimiter = next((mark for mark in "\t;," if mark in first), ",")
    try:
        cells = [cell.strip() for cell in next(csv.reader([first], delimiter=delimiter, skipinitialspace=True), [])]
    except csv.Error:  # a cell without end
        return None
    known = [_plain(cell) in HEADS for cell in cells]
    values = any(NUMBER.fullmatch(cell) or WHOLE_ID.fullmatch(cell) for cell in cells)
    if len(cells) == 1:
        return (delimiter, cells) if _plain(cells[0]) in ALONE else None
    return (delimiter, cells) if any(known) and not values else None


def table_rows(text: str, delimiter: str, columns: Sequence[str], source: str) -> list[tuple[str, Record]] | None:
    """The rows below the header, each with its line; None where the first line is no header after all.

    Raises:
        TextError: a row of another length, in what is a table by all its columns' names.
    """
    lines = csv.reader(text.split("\n"), delimiter=delimiter, skipinitialspace=True)
    rows: list[tuple[str, Record]] = []
    try:
        for cells in lines:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(columns):
                if not all(_plain(column) in HEADS | UNNAMED for column in columns):
                    return None
                raise TextError(
                    f"{source}: line {lines.line_num} has {count_of(len(cells), 'cell')}, the header {len(columns)} "
                    f"({', '.join(columns)[:60]}); names with commas stand in double quotes"
                )
            rows.append((f"line {lines.line_num}", dict(zip(columns, (cell.strip() for cell in cells), strict=True))))
    except csv.Error as error:
        raise TextError(f"{source}: line {lines.line_num} is no CSV ({error})") from None
    return rows[1:]


def of_records(rows: Sequence[tuple[str, Record]], source: str) -> tuple[list[Entry], str]:
    """The classes of records, and which column their names are.

    Raises:
        TextError: no column for names or several, numbers that contradict each other, or a table of images.
    """
    columns = list(dict.fromkeys(column for _, record in rows for column in record))
    if images := [column for column in columns if _plain(column) in IMAGES]:
        raise TextError(f"{source}: a table of images (column {images[0]!r}), as --labels takes it; expected a list of classes")
    whole = {column: _whole([record.get(column, "") for _, record in rows]) for column in columns}
    for column in columns:
        if _plain(column) in NUMBERS - NAMES[1] and "" in whole[column] and any(map(NUMBER.fullmatch, whole[column])):
            where = rows[whole[column].index("")][0]
            raise TextError(f"{source}: {where} has nothing in column {column!r}; expected a number, as in other rows")
    ids = [column for column in columns if all(map(WHOLE_ID.fullmatch, whole[column]))]
    number = _number_column(whole, source)
    texts = [each for each in columns if each not in ids and (not _numeric(whole[each]) or _plain(each) in NAMES[0])]
    name = _name_column(texts, ids, source)
    synonyms = [column for column in columns if _plain(column) in SYNONYMS]
    folders = [column for column in columns if _plain(column) in FOLDERS]
    entries = []
    for row, (where, _) in enumerate(rows):
        names = [whole[column][row] for column in (*([name] if name is not None else ()), *synonyms)]
        if name is not None and not names[0]:
            raise TextError(f"{source}: {where} has nothing in column {name!r}; expected the name of a class")
        entries.append(
            Entry(
                ", ".join(filter(None, names)),
                where,
                spelled_id(whole[ids[0]][row]) if ids else None,
                int(whole[number][row]) if number is not None else None,
                tuple(filter(None, (whole[column][row] for column in folders))),
            )
        )
    return entries, f"names in {name!r}" if name else "ids, by WordNet's names" if name is None else "keys as names"


def _number_column(whole: Mapping[str, Sequence[str]], source: str) -> str | None:
    """Raises TextError where two columns of numbers say different things."""
    numeric = [column for column, values in whole.items() if _numeric(values)]
    chosen = [column for column in numeric if _plain(column) in NUMBERS]
    chosen = chosen or [column for column in numeric if _plain(column) in UNNAMED]
    if any(list(map(int, whole[column])) != list(map(int, whole[chosen[0]])) for column in chosen):
        raise TextError(f"{source}: several columns of numbers ({', '.join(chosen)}) that differ; leave the one that labels have")
    return chosen[0] if chosen else None


def _name_column(texts: Sequence[str], ids: Sequence[str], source: str) -> str | None:
    """None where ids alone stand for names.

    Raises:
        TextError: none, or several that may be it.
    """
    for kind in NAMES:
        if columns := [column for column in texts if _plain(column) in kind]:
            if len(columns) == 1:
                return columns[0]
            raise TextError(f"{source}: names may stand in {' or '.join(map(repr, columns))}; leave one of these columns")
    rest = [column for column in texts if _plain(column) not in SYNONYMS | FOLDERS]
    if KEY in rest:
        return KEY
    if len(rest) == 1:
        return rest[0]
    if not rest and ids:
        return None
    found = f"{', '.join(map(repr, rest))[:80]} may be" if rest else "none of its columns is"
    raise TextError(f"{source}: a table without a column of names: {found}; call one of them `name`")


def _whole(values: list[str]) -> list[str]:
    """Numbers of a column without the `.0` that pandas gives them."""
    return [value.partition(".")[0] for value in values] if all(map(WITH_POINT.fullmatch, values)) else values


def _numeric(values: Sequence[str]) -> bool:
    return all(map(NUMBER.fullmatch, values))


def _plain(column: str) -> str:
    """A column's name in one case, without what stands between its words."""
    return re.sub(r"[\s_.-]+", "", column.casefold())
