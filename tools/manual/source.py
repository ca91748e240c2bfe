"""The sections of pages that are written by hand, in man/source: few marks, those of Markdown.

# SECTION
## Subsection
?device,llm          the next block is only for commands with one of these parameters
A paragraph, with `what is typed` in bold.

`TERM`
:   What it means; further lines are indented, too.

    a line as it is

@commands            what the generator puts here
"""

import re
from collections.abc import Callable, Collection
from pathlib import Path

from tools.manual.blocks import Block, Definition, Paragraph, Subsection, Verbatim
from tools.manual.roff import inline

Sections = dict[str, list[Block]]


def read_sections(path: Path, parameters: Collection[str] = (), placed: Callable[[str], list[Block]] | None = None) -> Sections:
    """The sections of a source, in its order.

    Args:
        parameters: The names of the command and its parameters, for blocks that only some commands have.
        placed: The blocks for an `@name`.

    Raises:
        ValueError: something before the first section, or an `@name` where nothing is to be placed.
    """
    sections: Sections = {}
    blocks: list[Block] | None = None
    for text in re.split(r"\n{2,}", path.read_text(encoding="utf-8").strip("\n")):
        first, *rest = text.split("\n")
        if first.startswith("# "):
            blocks = sections.setdefault(first[2:], [])
            if not rest:
                continue
            first, *rest = rest
        if blocks is None:
            raise ValueError(f"{path}: expected a # SECTION first, found {first!r}")
        if first.startswith("?"):
            if not set(first[1:].split(",")) & set(parameters):
                continue
            first, *rest = rest
        if first.startswith("@"):
            if placed is None:
                raise ValueError(f"{path}: nothing to place at {first}")
            blocks += placed(first[1:])
        else:
            blocks += _blocks(first, rest)
    return sections


def _blocks(first: str, rest: list[str]) -> list[Block]:
    if first.startswith("## "):
        return [Subsection(first[3:]), *(_blocks(rest[0], rest[1:]) if rest else [])]
    if first.startswith("    "):
        return [Verbatim(tuple(line[4:] for line in (first, *rest)))]
    if rest and rest[0].startswith(":   "):
        return [Definition(inline(first), " ".join(line[4:] for line in rest))]
    return [Paragraph(" ".join((first, *rest)))]
