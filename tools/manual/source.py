"""Sections of pages that are written by hand, in man/source, with a few marks that resemble Markdown:

# SECTION
## Subsection
?device,llm          the next block is only for commands with one of these parameters
A paragraph, with `what is typed` in bold.

`TERM`
:   Its meaning; further lines are indented, too.

    a line that is copied unchanged

@commands            replaced by generated blocks
"""

import re
from collections.abc import Callable, Collection
from pathlib import Path

from tools.manual.blocks import Block, Definition, Paragraph, Subsection, Verbatim
from tools.manual.roff import inline

Sections = dict[str, list[Block]]


def read_sections(path: Path, parameters: Collection[str] = (), generate: Callable[[str], list[Block]] | None = None) -> Sections:
    """Read the sections of a source, in its order.

    Args:
        parameters: The names of the command and of its parameters, for blocks of some commands only.
        generate: Returns the blocks for an `@name`.

    Raises:
        ValueError: there is text before the first section, or an `@name` without `generate`.
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
            if generate is None:
                raise ValueError(f"{path}: nothing to place at {first}")
            blocks += generate(first[1:])
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
