"""Lists of classes from files in many forms.

* One class per line, as `sofa, couch` for a class and its synonyms. An id of WordNet (`n01440764`) or Open Images (`/m/01g317`)
  and a running number may stand before or after the names, as in Kaggle's LOC_synset_mapping.txt, map_clsloc.txt, CUB's
  classes.txt and names of folders.
* CSV and TSV with a header, whose columns `name`, `class_name`, `label` and the like hold names, ids and numbers.
* JSON: arrays of names, rows or records; objects keyed by number, id or name (imagenet_class_index.json, a model's config.json,
  COCO's annotations); one object per line.
* A list or dictionary of Python, printed or assigned, and `names:` of YAML.

`entries` holds the entries and the parsers of trees, `lines` the forms with one class per line, `structures` tables and trees.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from cliptools.errors import TextError
from cliptools.io.text_file import COMMENT, content_lines, read_text
from cliptools.text.class_lists.entries import Entry, ParsedList, ordered_list, parse_tree, refuse_strays
from cliptools.text.class_lists.lines import line_classes, strip_prefixes
from cliptools.text.class_lists.structures import parse_header, record_classes, table_rows, tree_classes

TITLE = "classes"
INVISIBLE = re.compile("[\ufeff\u200b\u2060\u00ad]")
"""Invisible characters in lists copied from web pages or joined from files, which a tokenizer would turn into tokens."""


def read_class_list(path: Path, presets: str) -> ParsedList:
    """Read the classes of a file, in order.

    Args:
        presets: Names accepted instead of a file, for messages.

    Raises:
        TextError: the file cannot be read, has no class, or is ambiguous.
    """
    text, source = INVISIBLE.sub("", read_text(path, TITLE, presets)), f"{TITLE} {path}"
    if not text.strip():
        raise TextError(f"{source}: empty, expected one class per line")
    if (tree := parse_tree(text, path.suffix.lower(), source)) is not None:
        return tree_classes(*tree, source)
    if (table := _table(text, source)) is not None:
        return table
    lines = content_lines(text, source)
    if not lines:
        raise TextError(f"{source}: empty, expected one class per line")
    entries = line_classes([(f"line {number}", line) for number, line in lines], source)
    refuse_strays(entries, source, delimited=False)
    alone = all(entry.id is None and entry.number is None for entry in entries)
    of_table = path.suffix.lower() == ".csv" and alone
    _refuse_columns(entries, of_table, source)
    return ordered_list(entries, "a class a line" + (", the first line among them" if of_table else ""), source)


def folder_classes(names: list[str], source: str) -> ParsedList | None:
    """Parse names of folders with an id or a running number before each, or a sense after it; None without these.

    Raises:
        TextError: only some have an id, or two have the same.
    """
    if not names:
        return None
    entries = line_classes([(f"label {name!r}", name) for name in names], source, delimited=True)
    with_more = entries[0].id is not None or entries[0].number is not None or entries[0].folders
    return ordered_list(entries, "names of folders", source) if with_more and all(entry.name for entry in entries) else None


def _refuse_columns(entries: Sequence[Entry], of_table: bool, source: str) -> None:
    """Refuse lines whose commas may separate synonyms or columns.

    Args:
        of_table: The ending of the file is that of a table, but no known header was found.

    Raises:
        TextError: the commas are ambiguous.
    """
    commas = {len(re.findall("[,;]", entry.name.strip(" ,;"))) for entry in entries}
    if len(entries) == 1 and commas != {0} and entries[0].id is None and entries[0].number is None:
        raise TextError(
            f"{source}: one line with commas, {entries[0].name[:40]!r}: expected a class a line (or, if they are names of one "
            'class, JSON: [["sofa", "couch"]])'
        )
    if of_table and len(commas) == 1 and commas != {0}:
        raise TextError(
            f"{source}: columns without a header that says what they are ({entries[0].place} is {entries[0].name[:40]!r}); "
            "expected one, as in name,synonyms"
        )


def _table(text: str, source: str) -> ParsedList | None:
    """Parse a table with a header, after optional comments; None for other text."""
    lines = text.split("\n")
    start = next((row for row, line in enumerate(lines) if line.strip() and not COMMENT.match(line.strip())), 0)
    if (head := parse_header(lines[start])) is None:
        return None
    rows = table_rows("\n".join([""] * start + lines[start:]), *head, source)
    if not rows:
        return None
    if len(head[1]) == 1:
        entries = line_classes([(place, next(iter(record.values()))) for place, record in rows], source)
        detail = f"below the header {head[1][0]!r}"
    else:
        entries, detail = record_classes(rows, source)
        entries = strip_prefixes(entries, source)
    refuse_strays(entries, source, delimited=False)
    return ordered_list(entries, f"table, {detail}", source)


__all__ = ["Entry", "ParsedList", "folder_classes", "read_class_list"]
