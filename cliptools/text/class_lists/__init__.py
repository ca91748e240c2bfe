"""Lists of classes from files in many forms.

* a class a line, `sofa, couch` for a class and its synonyms; in front or behind `n01440764` (WordNet) or `/m/01g317` (Open
  Images), a running number, or both: Kaggle's LOC_synset_mapping.txt, map_clsloc.txt, CUB's classes.txt, names of folders;
* CSV and TSV with a header, of which `name`, `class_name`, `label` and the like hold names, ids and numbers;
* JSON: arrays of names, rows or records, objects by number, id or name (imagenet_class_index.json, a model's config.json,
  COCO's annotations), an object a line;
* a list or dictionary of Python, printed or assigned; `names:` of YAML.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from cliptools.errors import TextError
from cliptools.io.text_file import COMMENT, content_lines, read_text
from cliptools.text.class_lists.entries import Entry, Understood, in_order, refuse_strays, tree_of
from cliptools.text.class_lists.lines import of_folder_names, of_lines
from cliptools.text.class_lists.structures import head_of, of_records, of_tree, table_rows

WHAT = "classes"
INVISIBLE = re.compile("[\ufeff\u200b\u2060\u00ad]")
"""Invisible characters in lists copied from web pages or joined from files, which a tokenizer would turn into tokens."""


def read_class_list(path: Path, presets: str) -> Understood:
    """Read the classes of a file, in order.

    Args:
        presets: Names accepted instead of a file, for messages.

    Raises:
        TextError: the file cannot be read, has no class, or is ambiguous.
    """
    text, source = INVISIBLE.sub("", read_text(path, WHAT, presets)), f"{WHAT} {path}"
    if not text.strip():
        raise TextError(f"{source}: empty, expected one class per line")
    if (tree := tree_of(text, path.suffix.lower(), source)) is not None:
        return of_tree(*tree, source)
    if (table := _table(text, source)) is not None:
        return table
    lines = content_lines(text, source)
    if not lines:
        raise TextError(f"{source}: empty, expected one class per line")
    entries = of_lines([(f"line {number}", line) for number, line in lines], source)
    refuse_strays(entries, source, delimited=False)
    alone = all(entry.id is None and entry.number is None for entry in entries)
    of_table = path.suffix.lower() == ".csv" and alone
    _refuse_columns(entries, of_table, source)
    return in_order(entries, "a class a line" + (", the first line among them" if of_table else ""), source)


def of_folders(names: list[str], source: str) -> Understood | None:
    """Parse names of folders with an id or a running number before each, or a sense after it; None without these.

    Raises:
        TextError: only some have an id, or two have the same.
    """
    if not names:
        return None
    entries = of_lines([(f"label {name!r}", name) for name in names], source, delimited=True)
    with_more = entries[0].id is not None or entries[0].number is not None or entries[0].folders
    return in_order(entries, "names of folders", source) if with_more and all(entry.name for entry in entries) else None


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
            f"{source}: columns without a header that says what they are ({entries[0].where} is {entries[0].name[:40]!r}); "
            "expected one, as in name,synonyms"
        )


def _table(text: str, source: str) -> Understood | None:
    """Parse a table with a header, after optional comments; None for other text."""
    lines = text.split("\n")
    first = next((place for place, line in enumerate(lines) if line.strip() and not COMMENT.match(line.strip())), 0)
    if (head := head_of(lines[first])) is None:
        return None
    rows = table_rows("\n".join([""] * first + lines[first:]), *head, source)
    if not rows:
        return None
    if len(head[1]) == 1:
        entries = of_lines([(where, next(iter(record.values()))) for where, record in rows], source)
        more = f"below the header {head[1][0]!r}"
    else:
        entries, more = of_records(rows, source)
        entries = of_folder_names(entries, source)
    refuse_strays(entries, source, delimited=False)
    return in_order(entries, f"table, {more}", source)


__all__ = ["Entry", "Understood", "of_folders", "read_class_list"]
