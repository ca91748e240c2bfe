"""The blocks of a manual page, and their form as man(7) macros."""

from collections.abc import Sequence
from dataclasses import dataclass

from tools.manual.roff import fill, guard, inline, literal, quote


@dataclass(frozen=True)
class Paragraph:
    """Prose with the marks that roff.inline reads."""

    text: str

    def roff(self, first: bool) -> str:
        return f"{'' if first else '.PP' + chr(10)}{fill(inline(self.text))}\n"


@dataclass(frozen=True)
class Definition:
    """A term and its meaning."""

    term: str
    """The term as roff, since the bold parts differ between terms."""
    text: str

    def roff(self, first: bool) -> str:
        return f".TP\n{guard(self.term)}\n{fill(inline(self.text))}\n"


@dataclass(frozen=True)
class Verbatim:
    """Lines that are shown unchanged."""

    lines: tuple[str, ...]

    def roff(self, first: bool) -> str:
        lines = "".join(f"{guard(literal(line))}\n" for line in self.lines)
        return f"{'' if first else '.PP' + chr(10)}.EX\n{lines}.EE\n"


@dataclass(frozen=True)
class Subsection:
    """A heading within a section."""

    title: str

    def roff(self, first: bool) -> str:
        return f".SS {quote(self.title)}\n"


@dataclass(frozen=True)
class Raw:
    """Roff that is copied unchanged."""

    text: str

    def roff(self, first: bool) -> str:
        return self.text


Block = Paragraph | Definition | Verbatim | Subsection | Raw


def section(title: str, blocks: Sequence[Block]) -> str:
    """Return a section; empty if it has no blocks."""
    if not blocks:
        return ""
    parts = [f".SH {quote(title)}\n"]
    for block, before in zip(blocks, (None, *blocks), strict=False):
        parts.append(block.roff(first=before is None or isinstance(before, Subsection)))
    return "".join(parts)
