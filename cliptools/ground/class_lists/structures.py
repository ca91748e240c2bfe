"""The classes in a tree: an array of names, rows or records, an object by number, id or name, or one of these in another."""

from collections.abc import Iterator, Sequence
from typing import Any

from cliptools.ground.class_lists.entries import NUMBER, WHOLE_ID, Entry, Understood, in_order, of_atoms, refuse_strays, text_of
from cliptools.ground.class_lists.lines import of_folder_names, of_lines
from cliptools.ground.class_lists.tables import ALONE, KEY, NAMES, of_records
from cliptools.ground.class_lists.trees import Pairs
from cliptools.ground.errors import TextError

HOLDERS = (
    "id2label", "label2id", "class_to_idx", "idx_to_class", "idx2label", "label_map", "class_names", "classnames", "names",
    "classes", "categories", "labels",
)  # fmt: skip
"""Keys of objects under which others keep a list of classes, the best first."""
DEEPEST = 8  # objects in objects
INVERSE = {"label2id": "id2label", "class_to_idx": "idx_to_class"}
WITHIN = ("names", "class_names", "classnames", "classes", "id2label")
"""The same of objects in objects, as in the descriptions of Hugging Face's data sets."""


def of_tree(tree: Any, form: str, source: str) -> Understood:
    """The classes of a tree.

    Raises:
        TextError: what holds no classes, several lists of them, or may be understood in two ways.
    """
    key = ""
    if isinstance(tree, Pairs) and (held := _held(tree, source)) is not None:
        key, tree = held
        form = f"{form}, {key!r}"
    if isinstance(tree, Pairs):
        entries, more = _of_object(tree, source, key.casefold() in INVERSE)
    elif isinstance(tree, list) and tree:
        entries, more = _of_array(tree, source)
    else:
        raise TextError(f"{source}: {form} without classes, expected a list of names")
    entries = of_folder_names(entries, source)
    refuse_strays(entries, source, delimited=True)
    return in_order(entries, ", ".join(filter(None, (form, more))), source)


def _held(tree: Pairs, source: str) -> tuple[str, Any] | None:
    """The list within an object, and its key; None where the object itself is the list."""
    within = {str(key): value for key, value in tree if isinstance(value, list) and value}
    known = {key: value for key, value in within.items() if key.casefold() in HOLDERS}
    named = all(isinstance(value, Pairs) and _is_record(Pairs(p for p in value if isinstance(p[1], str))) for _, value in tree)
    if not known and not named and len(deep := list(_deep(tree))) == 1:
        return deep[0]
    if not known:
        several = all(
            isinstance(value, list)
            and not isinstance(value, Pairs)
            and not NUMBER.fullmatch(str(key))
            and not WHOLE_ID.fullmatch(str(key))
            and not any(isinstance(item, list) or WHOLE_ID.fullmatch(str(item)) or NUMBER.fullmatch(str(item)) for item in value)
            for key, value in tree
        )
        known = within if several and within else {}
    lower = {key.casefold() for key in known}
    keys = [key for key in known if INVERSE.get(key.casefold(), "") not in lower]
    if len(keys) > 1:
        sizes = ", ".join(f"{key!r} ({len(known[key])})" for key in keys[:6])
        raise TextError(f"{source}: several lists: {sizes}; expected one, in a file of its own")
    return (keys[0], known[keys[0]]) if keys else None


def _deep(tree: Any, keys: tuple[str, ...] = (), depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Lists that objects within objects hold under keys of WITHIN."""
    if depth > DEEPEST:
        return
    for key, value in tree if isinstance(tree, Pairs) else [("", item) for item in tree]:
        path = (*keys, str(key)) if key != "" else keys
        if depth and str(key).casefold() in WITHIN and isinstance(value, list) and value:
            yield ".".join(path), value
        elif isinstance(value, list):
            yield from _deep(value, path, depth + 1)


def _of_object(tree: Pairs, source: str, inverse: bool) -> tuple[list[Entry], str]:
    """Number, id or name against the rest.

    Args:
        inverse: By its own name an object of numbers by name, where both may look like numbers.
    """
    if any(isinstance(value, Pairs) for _, value in tree):
        if not all(isinstance(value, Pairs) for _, value in tree):
            raise TextError(f"{source}: an object of objects and other things, expected one kind")
        rows = [
            (f"key {key!r}", {KEY: text_of(key, "a key", source)} | _fields(value, f"key {key!r}", source)) for key, value in tree
        ]
        if all(len(record) == 1 for _, record in rows):
            raise TextError(f"{source}: objects within objects, none with a name; expected the list of classes alone")
        return of_records(rows, source)
    numbered = inverse or all(isinstance(key, str) and isinstance(value, int | float) for key, value in tree)
    entries = []
    for key, value in tree:
        where = f"key {str(key)[:40]!r}"
        first = text_of(key, "a key", source)
        rest = [text_of(each, where, source) for each in (value if isinstance(value, list) else [value])]
        atoms = [first, *rest]
        if numbered and len(rest) == 1 and NUMBER.fullmatch(rest[0]) and not WHOLE_ID.fullmatch(first):
            entries.append(Entry(first, where, None, int(rest[0])))
            continue
        if not any(NUMBER.fullmatch(atom) or WHOLE_ID.fullmatch(atom) for atom in atoms):
            raise TextError(
                f"{source}: {where} and its value {', '.join(rest)[:40]!r} are both names; expected a number or an id for one"
            )
        entries.append(of_atoms(atoms, where, source))
    return entries, ""


def _of_array(tree: Sequence[Any], source: str) -> tuple[list[Entry], str]:
    """Names, rows of names with ids and numbers, or records."""
    places = [f"entry {place}" for place in range(1, len(tree) + 1)]
    if all(isinstance(item, Pairs) for item in tree):
        if all(len(item) == 1 and isinstance(item[0][1], str | int) for item in tree) and not _is_record(tree[0]):
            return _of_object(Pairs(pair for item in tree for pair in item), source, False)
        return of_records([(place, _fields(item, place, source)) for place, item in zip(places, tree, strict=True)], source)
    if any(isinstance(item, Pairs) for item in tree):
        raise TextError(f"{source}: objects and other things in one array, expected one kind")
    if all(isinstance(item, list) for item in tree):
        rows = [[text_of(each, place, source) for each in item] for place, item in zip(places, tree, strict=True)]
        return [of_atoms(row, place, source) for row, place in zip(rows, places, strict=True)], "rows"
    texts = [text_of(item, place, source) for place, item in zip(places, tree, strict=True)]
    return of_lines(list(zip(places, texts, strict=True)), source, delimited=True), ""


def _is_record(item: Pairs) -> bool:
    return any(str(key).replace("_", "").casefold() in ALONE | NAMES[2] for key, _ in item)


def _fields(record: Pairs, where: str, source: str) -> dict[str, str]:
    """Texts and numbers of a record by field; lists of texts, as of synonyms, with commas; all else is left out."""
    fields: dict[str, str] = {}
    for key, value in record:
        if str(key) in fields:
            raise TextError(f"{source}: {where} has {str(key)[:40]!r} twice, expected one")
        if isinstance(value, list) and not isinstance(value, Pairs) and all(isinstance(each, str) for each in value):
            fields[str(key)] = ", ".join(value)
        elif isinstance(value, str | int) and not isinstance(value, bool):
            fields[str(key)] = str(value).strip()
    return fields
