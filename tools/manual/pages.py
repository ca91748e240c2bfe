"""Manual pages, from the help texts of commands and from texts written by hand."""

import importlib
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click

import cliptools
from tools.manual.blocks import Block, Definition, Paragraph, Raw, section
from tools.manual.help_text import example_blocks, help_blocks
from tools.manual.options import option_blocks, synopsis
from tools.manual.roff import bold, definitions_of_signs, escape, literal, quote
from tools.manual.source import Sections, read_sections
from tools.manual.tensors import header_blocks, tensor_blocks

DATE = "2026-11-21"  # date of the text, in each page's footer
ORDER = (
    "NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "ENVIRONMENT", "FILES", "NOTES", "EXAMPLES", "SEE ALSO",
    "AUTHORS",
)  # fmt: skip
SHARED = "shared.md"
DOCUMENTS = {"cliptools": 1, "cliptools-stream": 5}
"""Pages that are not about a single command, with their sections of the manual."""


def all_pages(root: Path) -> Iterator[tuple[str, str]]:
    """Yield name below man/ and text of each page.

    Args:
        root: A checkout with pyproject.toml and man/source.
    """
    commands = suite(root)
    for name, command in commands.items():
        yield f"man1/{name}.1", command_page(command, root / "man" / "source")
    for name, number in DOCUMENTS.items():
        yield f"man{number}/{name}.{number}", document_page(name, number, root, commands)


def suite(root: Path) -> dict[str, click.Command]:
    """Return the commands in pyproject.toml, in its order."""
    scripts = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    commands = {}
    for name, entry in scripts.items():
        module, _, attribute = entry.partition(":")
        commands[name] = getattr(importlib.import_module(module), attribute)
    return commands


def command_page(command: click.Command, sources: Path) -> str:
    """Return the page of a command, from its help text, its options, its own source, and the source shared by all.

    Raises:
        FileNotFoundError: there is no source for this command.
    """
    name = str(command.name)
    context = click.Context(command, info_name=name, **command.context_settings)
    first, description, examples = help_blocks(command.help or "")
    generated: Sections = {
        "NAME": [Raw(f"{name_line(name, first)}\n")],
        "SYNOPSIS": [Raw(f"{synopsis(command, context)}\n")],
        "DESCRIPTION": [Paragraph(first), *description],
        "OPTIONS": option_blocks(command, context),
        "EXAMPLES": example_blocks(examples),
    }
    parameters = {name, *(str(parameter.name) for parameter in command.params)}
    parts = (generated, read_sections(sources / f"{name}.md", parameters), read_sections(sources / SHARED, parameters))
    unknown = {title for part in parts for title in part} - set(ORDER)
    if unknown:
        raise ValueError(f"{name}: sections {', '.join(sorted(unknown))}, expected {', '.join(ORDER)}")
    merged = {title: [block for part in parts for block in part.get(title, [])] for title in ORDER}
    return page(name, 1, merged)


def document_page(name: str, number: int, root: Path, commands: dict[str, click.Command]) -> str:
    """Return a page written by hand, with the lists of commands, header fields and tensors at @commands, @header, @tensors."""

    def generate(mark: str) -> list[Block]:
        if mark == "tensors":
            return tensor_blocks()
        if mark == "header":
            return header_blocks()
        if mark == "commands":
            first_sentences = ((other, help_blocks(command.help or "")[0]) for other, command in commands.items())
            return [Definition(f"{bold(other)}(1)", first) for other, first in first_sentences]
        raise ValueError(f"{name}.md: unknown mark @{mark}, expected @commands, @header or @tensors")

    sections = read_sections(root / "man" / "source" / f"{name}.md", (), generate)
    (title,) = sections["NAME"]
    if not isinstance(title, Paragraph):
        raise ValueError(f"{name}.md: expected one sentence in NAME")
    return page(name, number, sections | {"NAME": [Raw(f"{name_line(name, title.text)}\n")]})


def name_line(name: str, sentence: str) -> str:
    """Return the line `clip-view \\- look at a bundle`, which whatis and apropos read."""
    return rf"{literal(name)} \- {escape(sentence[0].lower() + sentence[1:].rstrip('.'))}"


def page(name: str, number: int, sections: Sections) -> str:
    """Return the roff of a page."""
    body = "".join(section(title, blocks) for title, blocks in sections.items())
    version = f"cliptools {cliptools.__version__}"
    head = f".TH {quote(name.upper())} {number} {quote(DATE)} {quote(version)} {quote('cliptools manual')}\n"
    origin = '.\\" Made by python -m tools.manual from help texts and man/source; make man makes it anew.\n'
    return f"{origin}{definitions_of_signs(body)}{head}.nr HY 0\n.nh\n.ss 12 0\n.ad l\n{body}"
