"""The README's table of tensors as definitions, so that the meaning of a tensor is written only once."""

from pathlib import Path

from tools.manual.blocks import Block, Definition
from tools.manual.roff import bold, escape

HEADING = "| tensor | shape, type | meaning |"


def tensor_blocks(readme: Path) -> list[Block]:
    """Return a definition for each row of the table.

    Raises:
        ValueError: the README has no such table.
    """
    _, heading, table = readme.read_text(encoding="utf-8").partition(HEADING + "\n")
    rows = [line for line in table.split("\n\n")[0].splitlines()[1:] if line.startswith("|")]
    if not heading or not rows:
        raise ValueError(f"{readme}: expected a table with the heading {HEADING}")
    blocks: list[Block] = []
    for row in rows:
        names, shape, meaning = (cell.strip() for cell in row.strip("|").split("|"))
        bolded = ", ".join(bold(name.strip("` ")) for name in names.split(","))
        blocks.append(Definition(f"{bolded}   {escape(shape)}", meaning))
    return blocks
