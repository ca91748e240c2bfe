"""Class lists as tables (CSV and TSV with a header, records) and as trees of JSON, YAML or Python literals.

A tree is an array of names, rows or records, an object keyed by number, id or name, or one of these within another object.
"""

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cliptools.console import count_of
from cliptools.errors import TextError
from cliptools.text.class_lists.entries import (
    NUMBER,
    WHOLE_ID,
    Entry,
    Pairs,
    ParsedList,
    atom_text,
    ordered_list,
    refuse_strays,
    row_class,
    spelled_id,
)
from cliptools.text.class_lists.lines import line_classes, strip_prefixes

NAMES = (
    frozenset({"name", "names", "classname", "classnames", "displayname", "labelname", "categoryname"}),
    frozenset({"class", "classes", "label", "labels", "category", "categories"}),
    frozenset({"text", "word", "words", "title", "concept", "object"}),
)
"""Columns that may hold the name, the most likely first."""
NUMBERS = frozenset({"index", "idx", "number", "num", "no", "id", "class", "label", "category", "target"}) | frozenset(
    {"classid", "classidx", "classindex", "categoryid", "catid", "labelid", "trainid"}
)
UNNAMED = frozenset({"", "unnamed:0"})
"""Names of the column of running numbers that pandas writes, and of the keys of an object."""
IDS = frozenset({"wnid", "wordnetid", "synset", "synsetid", "mid"})
SYNONYMS = frozenset({"synonym", "synonyms", "alias", "aliases", "othernames"})
FOLDERS = frozenset({"folder", "folders", "directory", "dir"})
IMAGES = frozenset({"image", "images", "imageid", "file", "files", "filename", "filepath", "path", "imagepath"})
HEADS = frozenset().union(*NAMES, NUMBERS, IDS, SYNONYMS, FOLDERS, IMAGES)
WITH_POINT = re.compile(r"\d{1,9}\.0+", re.ASCII)
ALONE = NAMES[0] | NAMES[1]
"""Names of the column in a header of one column."""
KEY = ""
"""Field of a record for its key in an object."""

Record = Mapping[str, str]


def parse_header(line: str) -> tuple[str, list[str]] | None:
    """Return the delimiter and the names of the columns if a first line is a header, else None."""
    delimiter = next((mark for mark in "\t;," if mark in line), ",")
    try:
        cells = [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])]
    except csv.Error:  # a cell without end
        return None
    are_names = [_normalised(cell) in HEADS for cell in cells]
    values = any(NUMBER.fullmatch(cell) or WHOLE_ID.fullmatch(cell) for cell in cells)
    if len(cells) == 1:
        return (delimiter, cells) if _normalised(cells[0]) in ALONE else None
    return (delimiter, cells) if any(are_names) and not values else None


def table_rows(text: str, delimiter: str, columns: Sequence[str], source: str) -> list[tuple[str, Record]] | None:
    """Return the rows below the header with their lines; None if the first line is not a header after all.

    Raises:
        TextError: a row has another length than a header that is certainly one.
    """
    lines = csv.reader(text.split("\n"), delimiter=delimiter, skipinitialspace=True)
    rows: list[tuple[str, Record]] = []
    try:
        for cells in lines:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(columns):
                if not all(_normalised(column) in HEADS | UNNAMED for column in columns):
                    return None
                raise TextError(
                    f"{source}: line {lines.line_num} has {count_of(len(cells), 'cell')}, the header {len(columns)} "
                    f"({', '.join(columns)[:60]}); names with commas stand in double quotes"
                )
            rows.append((f"line {lines.line_num}", dict(zip(columns, (cell.strip() for cell in cells), strict=True))))
    except csv.Error as error:
        raise TextError(f"{source}: line {lines.line_num} is not CSV ({error})") from None
    return rows[1:]


def record_classes(rows: Sequence[tuple[str, Record]], source: str) -> tuple[list[Entry], str]:
    """Return the classes of records, and a note on the column of their names.

    Raises:
        TextError: there is no column of names or several, numbers contradict each other, or it is a table of images.
    """
    columns = list(dict.fromkeys(column for _, record in rows for column in record))
    if images := [column for column in columns if _normalised(column) in IMAGES]:
        raise TextError(f"{source}: a table of images (column {images[0]!r}), as --labels takes it; expected a list of classes")
    table = {column: _without_points([record.get(column, "") for _, record in rows]) for column in columns}
    for column in columns:
        if _normalised(column) in NUMBERS - NAMES[1] and "" in table[column] and any(map(NUMBER.fullmatch, table[column])):
            place = rows[table[column].index("")][0]
            raise TextError(f"{source}: {place} has nothing in column {column!r}; expected a number, as in other rows")
    ids = [column for column in columns if all(map(WHOLE_ID.fullmatch, table[column]))]
    number = _number_column(table, source)
    texts = [key for key in columns if key not in ids and (not _are_numbers(table[key]) or _normalised(key) in NAMES[0])]
    name = _name_column(texts, ids, source)
    synonyms = [column for column in columns if _normalised(column) in SYNONYMS]
    folders = [column for column in columns if _normalised(column) in FOLDERS]
    entries = []
    for row, (place, _) in enumerate(rows):
        names = [table[column][row] for column in (*([name] if name is not None else ()), *synonyms)]
        if name is not None and not names[0]:
            raise TextError(f"{source}: {place} has nothing in column {name!r}; expected the name of a class")
        entries.append(
            Entry(
                ", ".join(filter(None, names)),
                place,
                spelled_id(table[ids[0]][row]) if ids else None,
                int(table[number][row]) if number is not None else None,
                tuple(filter(None, (table[column][row] for column in folders))),
            )
        )
    return entries, f"names in {name!r}" if name else "ids, by WordNet's names" if name is None else "keys as names"


def _number_column(table: Mapping[str, Sequence[str]], source: str) -> str | None:
    """Return the column of numbers; None without one.

    Raises:
        TextError: two columns of numbers differ.
    """
    numeric = [column for column, values in table.items() if _are_numbers(values)]
    number_columns = [column for column in numeric if _normalised(column) in NUMBERS]
    number_columns = number_columns or [column for column in numeric if _normalised(column) in UNNAMED]
    if any(list(map(int, table[column])) != list(map(int, table[number_columns[0]])) for column in number_columns):
        raise TextError(
            f"{source}: several columns of numbers ({', '.join(number_columns)}) that differ; leave the one that labels have"
        )
    return number_columns[0] if number_columns else None


def _name_column(texts: Sequence[str], ids: Sequence[str], source: str) -> str | None:
    """Return the column of names; None if ids take their place.

    Raises:
        TextError: no column or several may be it.
    """
    for kind in NAMES:
        if columns := [column for column in texts if _normalised(column) in kind]:
            if len(columns) == 1:
                return columns[0]
            raise TextError(f"{source}: names may stand in {' or '.join(map(repr, columns))}; leave one of these columns")
    other_columns = [column for column in texts if _normalised(column) not in SYNONYMS | FOLDERS]
    if KEY in other_columns:
        return KEY
    if len(other_columns) == 1:
        return other_columns[0]
    if not other_columns and ids:
        return None
    candidates = f"{', '.join(map(repr, other_columns))[:80]} may be" if other_columns else "none of its columns is"
    raise TextError(f"{source}: a table without a column of names: {candidates}; call one of them `name`")


def _without_points(values: list[str]) -> list[str]:
    """Return the values of a column without the `.0` that pandas adds to numbers."""
    return [value.partition(".")[0] for value in values] if all(map(WITH_POINT.fullmatch, values)) else values


def _are_numbers(values: Sequence[str]) -> bool:
    return all(map(NUMBER.fullmatch, values))


def _normalised(column: str) -> str:
    """Return a column's name in lower case, without separators of words."""
    return re.sub(r"[\s_.-]+", "", column.casefold())


HOLDERS = (
    "id2label", "label2id", "class_to_idx", "idx_to_class", "idx2label", "label_map", "class_names", "classnames", "names",
    "classes", "categories", "labels",
)  # fmt: skip
"""Keys of a list of classes in an object, the best first."""
DEEPEST = 8  # objects in objects
INVERSE = {"label2id": "id2label", "class_to_idx": "idx_to_class"}
WITHIN = ("names", "class_names", "classnames", "classes", "id2label")
"""Keys of a list of classes in nested objects, as in descriptions of Hugging Face's data sets."""


def tree_classes(tree: Any, form: str, source: str) -> ParsedList:
    """Return the classes of a tree.

    Raises:
        TextError: the tree has no classes or several lists of them, or is ambiguous.
    """
    key = ""
    if isinstance(tree, Pairs) and (named_list := _find_list(tree, source)) is not None:
        key, tree = named_list
        form = f"{form}, {key!r}"
    if isinstance(tree, Pairs):
        entries, detail = _object_classes(tree, source, key.casefold() in INVERSE)
    elif isinstance(tree, list) and tree:
        entries, detail = _array_classes(tree, source)
    else:
        raise TextError(f"{source}: {form} without classes, expected a list of names")
    entries = strip_prefixes(entries, source)
    refuse_strays(entries, source, delimited=True)
    return ordered_list(entries, ", ".join(filter(None, (form, detail))), source)


def _find_list(tree: Pairs, source: str) -> tuple[str, Any] | None:
    """Return the list in an object with its key; None if the object itself is the list."""
    within = {str(key): value for key, value in tree if isinstance(value, list) and value}
    lists = {key: value for key, value in within.items() if key.casefold() in HOLDERS}
    are_records = all(
        isinstance(value, Pairs) and _is_record(Pairs(p for p in value if isinstance(p[1], str))) for _, value in tree
    )
    if not lists and not are_records and len(nested := list(_nested_lists(tree))) == 1:
        return nested[0]
    if not lists:
        are_names = all(
            isinstance(value, list)
            and not isinstance(value, Pairs)
            and not NUMBER.fullmatch(str(key))
            and not WHOLE_ID.fullmatch(str(key))
            and not any(isinstance(item, list) or WHOLE_ID.fullmatch(str(item)) or NUMBER.fullmatch(str(item)) for item in value)
            for key, value in tree
        )
        lists = within if are_names and within else {}
    lower = {key.casefold() for key in lists}
    keys = [key for key in lists if INVERSE.get(key.casefold(), "") not in lower]
    if len(keys) > 1:
        sizes = ", ".join(f"{key!r} ({len(lists[key])})" for key in keys[:6])
        raise TextError(f"{source}: several lists: {sizes}; expected one, in a file of its own")
    return (keys[0], lists[keys[0]]) if keys else None


def _nested_lists(tree: Any, keys: tuple[str, ...] = (), depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield the lists under keys of WITHIN in nested objects."""
    if depth > DEEPEST:
        return
    for key, value in tree if isinstance(tree, Pairs) else [("", item) for item in tree]:
        path = (*keys, str(key)) if key != "" else keys
        if depth and str(key).casefold() in WITHIN and isinstance(value, list) and value:
            yield ".".join(path), value
        elif isinstance(value, list):
            yield from _nested_lists(value, path, depth + 1)


def _object_classes(tree: Pairs, source: str, inverse: bool) -> tuple[list[Entry], str]:
    """Return the classes of an object keyed by number, id or name.

    Args:
        inverse: The object maps names to numbers, according to its own key.
    """
    if any(isinstance(value, Pairs) for _, value in tree):
        if not all(isinstance(value, Pairs) for _, value in tree):
            raise TextError(f"{source}: an object of objects and other things, expected one kind")
        rows = [
            (f"key {key!r}", {KEY: atom_text(key, "a key", source)} | _fields(value, f"key {key!r}", source))
            for key, value in tree
        ]
        if all(len(record) == 1 for _, record in rows):
            raise TextError(f"{source}: objects within objects, none with a name; expected the list of classes alone")
        return record_classes(rows, source)
    numbered = inverse or all(isinstance(key, str) and isinstance(value, int | float) for key, value in tree)
    entries = []
    for key, value in tree:
        place = f"key {str(key)[:40]!r}"
        key_text = atom_text(key, "a key", source)
        value_texts = [atom_text(item, place, source) for item in (value if isinstance(value, list) else [value])]
        atoms = [key_text, *value_texts]
        if numbered and len(value_texts) == 1 and NUMBER.fullmatch(value_texts[0]) and not WHOLE_ID.fullmatch(key_text):
            entries.append(Entry(key_text, place, None, int(value_texts[0])))
            continue
        if not any(NUMBER.fullmatch(atom) or WHOLE_ID.fullmatch(atom) for atom in atoms):
            raise TextError(
                f"{source}: {place} and its value {', '.join(value_texts)[:40]!r} are both names; expected a number or an id for "
                "one"
            )
        entries.append(row_class(atoms, place, source))
    return entries, ""


def _array_classes(tree: Sequence[Any], source: str) -> tuple[list[Entry], str]:
    """Return the classes of an array of names, of rows with ids and numbers, or of records."""
    places = [f"entry {place}" for place in range(1, len(tree) + 1)]
    if all(isinstance(item, Pairs) for item in tree):
        if all(len(item) == 1 and isinstance(item[0][1], str | int) for item in tree) and not _is_record(tree[0]):
            return _object_classes(Pairs(pair for item in tree for pair in item), source, False)
        return record_classes([(place, _fields(item, place, source)) for place, item in zip(places, tree, strict=True)], source)
    if any(isinstance(item, Pairs) for item in tree):
        raise TextError(f"{source}: objects and other things in one array, expected one kind")
    if all(isinstance(item, list) for item in tree):
        rows = [[atom_text(cell, place, source) for cell in item] for place, item in zip(places, tree, strict=True)]
        return [row_class(row, place, source) for row, place in zip(rows, places, strict=True)], "rows"
    texts = [atom_text(item, place, source) for place, item in zip(places, tree, strict=True)]
    return line_classes(list(zip(places, texts, strict=True)), source, delimited=True), ""


def _is_record(item: Pairs) -> bool:
    return any(str(key).replace("_", "").casefold() in ALONE | NAMES[2] for key, _ in item)


def _fields(record: Pairs, place: str, source: str) -> dict[str, str]:
    """Return texts and numbers of a record by field, and lists of texts joined with commas; leave out everything else."""
    fields: dict[str, str] = {}
    for key, value in record:
        if str(key) in fields:
            raise TextError(f"{source}: {place} has {str(key)[:40]!r} twice, expected one")
        if isinstance(value, list) and not isinstance(value, Pairs) and all(isinstance(item, str) for item in value):
            fields[str(key)] = ", ".join(value)
        elif isinstance(value, str | int) and not isinstance(value, bool):
            fields[str(key)] = str(value).strip()
    return fields
