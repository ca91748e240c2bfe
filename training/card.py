"""The model card: a description in words with tables of figures.

The figures are in `figures.json` beside the weights, an object from a section's title to its rows (objects with the same keys).
`merge` adds new measurements as a section; this command then writes the card again:

    python -m training.card emoji-vit2
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import click

from cliptools.embedded_models import EMBEDDED_DIR
from cliptools.io.files import whole_file
from training.card_text import TEXTS

FIGURES, CARD = "figures.json", "README.md"
Value = str | float | int | bool | None
Row = Mapping[str, Value]
Sections = dict[str, list[Row]]


def read_sections(folder: Path) -> Sections:
    """Read the existing figures; the result is empty if there is no file."""
    file = folder / FIGURES
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def merge(folder: Path, sections: Mapping[str, Sequence[Row]]) -> Sections:
    """Add sections to the figures, replacing those of the same title, and write the file."""
    merged = read_sections(folder) | {title: list(rows) for title, rows in sections.items()}
    with whole_file(folder / FIGURES) as file:
        file.write((json.dumps(merged, indent=1, ensure_ascii=False) + "\n").encode())
    return merged


def shown(value: Value) -> str:
    """Return a figure as the card prints it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else value


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the lines of the rows as a Markdown table."""
    columns = list(rows[0])
    yield "| " + " | ".join(column.replace("_", " ") for column in columns) + " |"
    yield "|" + " --- |" * len(columns)
    for row in rows:
        yield "| " + " | ".join(shown(row[column]) for column in columns) + " |"


def card(name: str, sections: Mapping[str, Sequence[Row]]) -> str:
    """Return the text of the card."""
    text = TEXTS[name]
    lines = [text.opening.strip(), ""]
    for title, rows in sections.items():
        lines += [f"## {title}", ""]
        if title in text.notes:
            lines += [text.notes[title].strip(), ""]
        lines += [*table(rows), ""]
    return "\n".join([*lines, text.closing.strip(), ""])


def write_card(name: str, folder: Path) -> None:
    """Write the card from the figures in the folder."""
    with whole_file(folder / CARD) as file:
        file.write(card(name, read_sections(folder)).encode())


@click.command()
@click.argument("name", type=click.Choice(list(TEXTS)))
def main(name: str) -> None:
    """Write the card again from its figures."""
    write_card(name, EMBEDDED_DIR / name)


if __name__ == "__main__":
    main()
