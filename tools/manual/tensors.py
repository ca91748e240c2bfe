"""The tables of tensors and header fields, made from the schema of bundles: for the manual page and for Markdown documents.

A document has a table between two comments, the first of which names it, `tensors` or `header`:

<!-- tensors -->
<!-- end -->
"""

import re
from collections.abc import Iterator
from pathlib import Path

from cliptools.io.bundle_schema import HEADER, TENSORS, HeaderField, TensorField
from tools.manual.blocks import Block, Definition
from tools.manual.roff import bold, escape

PART = re.compile(r"<!-- (?P<table>tensors|header) -->\n.*?<!-- end -->", re.DOTALL)


def documents(root: Path) -> list[Path]:
    """Return the documents of a checkout that have such a table.

    Raises:
        ValueError: no document has the table of tensors.
    """
    pages = [root / "README.md", *sorted((root / "docs").glob("*.md"))]
    tables = {page: {match["table"] for match in PART.finditer(page.read_text(encoding="utf-8"))} for page in pages}
    if not any("tensors" in names for names in tables.values()):
        raise ValueError(f"{root}: README.md or a page of docs needs a part <!-- tensors --> ... <!-- end -->")
    return [page for page, names in tables.items() if names]


def fill_tables(text: str) -> str:
    """Return a document with its tables written."""
    return PART.sub(lambda match: "\n".join((f"<!-- {match['table']} -->", *TABLES[match["table"]](), "<!-- end -->")), text)


def tensor_blocks() -> list[Block]:
    """Return a definition of each tensor of a bundle."""
    return [
        Definition(
            f"{bold(field.name)}   {escape(_type(field))}",
            _meaning(field) + (f". Values: {field.values}" if field.values else ""),
        )
        for field in TENSORS.values()
    ]


def header_blocks() -> list[Block]:
    """Return a definition of each field of a header."""
    return [Definition(f"{bold(name)}   {escape(field.type)}", _field_meaning(field)) for name, field in _fields()]


def _tensor_table() -> Iterator[str]:
    yield "| tensor | shape, type | meaning | values |"
    yield "|---|---|---|---|"
    for field in TENSORS.values():
        yield f"| `{field.name}` | {_type(field)} | {_meaning(field)} | {field.values} |"


def _header_table() -> Iterator[str]:
    yield "| field | type | meaning |"
    yield "|---|---|---|"
    for name, field in _fields():
        yield f"| `{name}` | {field.type} | {_field_meaning(field)} |"


TABLES = {"tensors": _tensor_table, "header": _header_table}


def _type(field: TensorField) -> str:
    return f"[{', '.join(field.axes.split())}] {field.dtype}"


def _meaning(field: TensorField) -> str:
    return f"{field.meaning}; {field.when}" if field.when else field.meaning


def _fields() -> Iterator[tuple[str, HeaderField]]:
    """Yield the fields with their paths in the header, as jq writes them: `model.name`, `history[].command`."""
    paths = {"words": "settings.words.", "history": "history[]."}
    for part, fields in HEADER.items():
        for field in fields:
            yield f"{paths.get(part, f'{part}.')}{field.name}", field


def _field_meaning(field: HeaderField) -> str:
    values = ", ".join(f"`{value}`" for value in field.allowed)
    return f"{field.meaning}: {values}" if values else field.meaning
