"""What a manual page consists of, and how its parts look as man(7) macros."""

from collections.abc import Sequence
from dataclasses import dataclass

from tools.manual.roff import filled, guarded, inline, literal, quoted


@dataclass(frozen=True)
class Paragraph:
    """Prose, marked as roff.inline reads it."""

    text: str

    def roff(self, first: bool) -> str:
        return f"{'' if first else '.PP' + chr(10)}{filled(inline(self.text))}\n"


@dataclass(frozen=True)
class Definition:
    """A term and what it means."""

    term: str
    """As roff: terms differ in what of them is bold."""
    text: str

    def roff(self, first: bool) -> str:
        return f".TP\n{guarded(self.term)}\n{filled(inline(self.text))}\n"


@dataclass(frozen=True)
class Verbatim:
    """Lines that are shown as they are."""

    lines: tuple[str, ...]

    def roff(self, first: bool) -> str:
        lines = "".join(f"{guarded(literal(line))}\n" for line in self.lines)
        return f"{'' if first else '.PP' + chr(10)}.EX\n{lines}.EE\n"


@dataclass(frozen=True)
class Subsection:
    """A heading within a section."""

    title: str

    def roff(self, first: bool) -> str:
        return f".SS {quoted(self.title)}\n"


@dataclass(frozen=True)
class Raw:
    """Roff as it is."""

    text: str

    def roff(self, first: bool) -> str:
        return self.text


Block = Paragraph | Definition | Verbatim | Subsection | Raw


def section(title: str, blocks: Sequence[Block]) -> str:
    """A section; nothing, where it has no blocks."""
    if not blocks:
        return ""
    parts = [f".SH {quoted(title)}\n"]
    for block, before in zip(blocks, (None, *blocks), strict=False):
        parts.append(block.roff(first=before is None or isinstance(before, Subsection)))
    return "".join(parts)
