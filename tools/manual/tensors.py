"""The table of tensors in docs/format.md as definitions, so that the meaning of a tensor is written only once."""

from pathlib import Path

from tools.manual.blocks import Block, Definition
from tools.manual.roff import bold, escape

HEADING = "| tensor | shape, type | meaning |"


def tensor_blocks(page: Path) -> list[Block]:
    """Return a definition for each row of the table, which lies between `<!-- tensors -->` and `<!-- end -->`.

    Raises:
        ValueError: the page has no such table.
    """
    table = page.read_text(encoding="utf-8").partition("<!-- tensors -->\n")[2].partition("<!-- end -->")[0]
    heading, *rows = [line for line in table.splitlines() if line.startswith("|")] or [""]
    if heading != HEADING or len(rows) < 2:
        raise ValueError(f"{page}: expected a table with the heading {HEADING} between <!-- tensors --> and <!-- end -->")
    blocks: list[Block] = []
    for row in rows[1:]:
        names, shape, meaning = (cell.strip() for cell in row.strip("|").split("|"))
        bolded = ", ".join(bold(name.strip("` ")) for name in names.split(","))
        blocks.append(Definition(f"{bolded}   {escape(shape)}", meaning))
    return blocks
