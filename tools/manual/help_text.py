"""Conversion of a command's help text to the blocks of a page."""

import inspect
import re
import textwrap

from tools.manual.blocks import Block, Definition, Paragraph, Verbatim
from tools.manual.roff import bold

UNWRAPPED = "\b"  # click's mark for a paragraph whose lines stay as they are
EXAMPLES = "Examples:"
EXAMPLE_WIDTH = 52  # fits a page of 60 columns


def help_blocks(help_text: str) -> tuple[str, list[Block], list[str]]:
    """Return a help text's first sentence, its description, and the lines of its examples with their indentation."""
    first, *paragraphs = inspect.cleandoc(help_text).split("\n\n")
    description: list[Block] = []
    examples: list[str] = []
    for paragraph in paragraphs:
        lines = paragraph.split("\n")
        if lines[0] != UNWRAPPED:
            description.append(Paragraph(" ".join(lines)))
        elif lines[1] == EXAMPLES:
            examples = lines[2:]
        else:
            description += table_blocks(lines[1:])
    return " ".join(first.split()), description, examples


def table_blocks(lines: list[str]) -> list[Block]:
    """Return blocks for lines of prose followed by indented lines of names and meanings, one or several pairs per line."""
    blocks: list[Block] = []
    prose: list[str] = []
    indent = column = 0
    for line in lines:
        text = line.lstrip()
        depth = len(line) - len(text)
        if depth == 0:
            prose.append(text)
            continue
        if prose:
            blocks.append(Paragraph(" ".join(prose)))
            prose, indent = [], depth
            column = depth + len(re.match(r".*?\S {2,}|", text)[0])  # type: ignore[index]
        if depth > indent and isinstance(last := blocks[-1], Definition):
            blocks[-1] = Definition(last.term, f"{last.text} {text}")
            continue
        cells = re.split(r" {2,}", text)
        if len(cells) == 1:
            cells = [line[indent:column].strip(), line[column:]]
        blocks += [Definition(_names(name), meaning) for name, meaning in zip(cells[::2], cells[1::2], strict=True)]
    return [*blocks, Paragraph(" ".join(prose))] if prose else blocks


def _names(cell: str) -> str:
    return ", ".join(map(bold, cell.split(", ")))


def example_blocks(lines: list[str]) -> list[Block]:
    """Return examples that fit a narrow page and can still be copied; lines without indent describe the lines below them."""
    blocks: list[Block] = []
    for line in lines:
        if not line.startswith(" "):
            blocks.append(Paragraph(line))
        elif blocks and isinstance(last := blocks[-1], Verbatim):
            blocks[-1] = Verbatim((*last.lines, *fold(line.strip())))
        else:
            blocks.append(Verbatim(fold(line.strip())))
    return blocks


def fold(line: str, width: int = EXAMPLE_WIDTH) -> tuple[str, ...]:
    r"""Split a shell line over several, after a pipe or before a backslash; a comment that does not fit comes first."""
    if len(line) <= width:
        return (line,)
    command, hash_sign, comment = line.partition(" # ")
    if hash_sign:
        return (*(f"# {part}" for part in textwrap.wrap(comment.strip(), width - 2)), *fold(command.rstrip(), width))
    rows: list[str] = []
    row = ""
    pieces = _pieces(line)
    for index, piece in enumerate(pieces):
        ahead = " ".join(_stage(pieces[index:])) if row.endswith("|") else f"{piece} \\"
        if row and len(f"{row} {ahead}") > width:
            rows.append(row if row.endswith(("|", ";")) else f"{row} \\")
            row = f"    {piece}"
        else:
            row = f"{row} {piece}" if row else piece
    return (*rows, row)


def _stage(pieces: list[str]) -> list[str]:
    """Return the pieces up to the first pipe."""
    end = next((index for index, piece in enumerate(pieces, 1) if piece.endswith("|")), len(pieces))
    return pieces[:end]


def _pieces(line: str) -> list[str]:
    """Split a line into pieces that stay together: option and value, redirection and file, end of a command and its pipe."""
    pieces: list[str] = []
    for word in re.findall(r"""(?:[^\s"']|"[^"]*"|'[^']*')+""", line):
        before = pieces[-1] if pieces else ""
        opens = before in ("<", ">") or (before.startswith("-") and before != "-" and " " not in before)
        if word == "|" or (opens and not word.startswith(("-", "<", ">"))):
            pieces[-1:] = [f"{before} {word}"]
        else:
            pieces.append(word)
    return pieces
