"""The page of results: the template with the tables, the models and the comparisons that it may use."""

import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cliptools.embedded_models import EMBEDDED
from cliptools.text.emoji_concepts import concepts
from cliptools.text.vocabularies import load_pool
from examples.result_tables import Share, Tables, difference, points
from tools.results_page import comparison
from tools.results_page.models import Model

PAGE, SOURCE, RESULTS, MODELS = "docs/results.md", "docs/source", "examples/results", "cliptools/data/models"
NUMBERS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
STICKY = "\0"  # stands for a space at which no line ends
WIDTH = 140  # columns of a line of prose
COMPARISONS: tuple[Callable[..., Any], ...] = (
    comparison.ascending, comparison.better, comparison.better_at, comparison.compare, comparison.containing,
    comparison.counts_in, comparison.distinct, comparison.first_even, comparison.first_within, comparison.larger,
    comparison.leader, comparison.listed, comparison.mean, comparison.numbers, comparison.paired, comparison.say,
    comparison.shown, comparison.sign, comparison.span, comparison.texts_of, comparison.wilson, difference,
)  # fmt: skip


def render(root: Path, results: Path | None = None, names: tuple[str, str] = EMBEDDED) -> str:
    """Return the page of a checkout.

    Args:
        root: Folder of the checkout.
        results: Folder of the tables. None: that of the checkout.
        names: Names of the ViT and of the ResNet.

    Raises:
        TableError: a table or figures.json lacks something that the template asks for.
        jinja2.TemplateError: the template is faulty.
    """
    tables = Tables(results or root / RESULTS)
    vit, rn = (Model(root / MODELS / name) for name in names)
    template = _environment(root / SOURCE).get_template(Path(PAGE).name)
    text = template.render(tables=tables, vit=vit, rn=rn, concepts=len(concepts()), texts=len(load_pool("emoji").texts))
    return "\n\n".join(_blocks(text)) + "\n"


def _environment(folder: Path) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(folder, encoding="utf-8"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )
    environment.globals |= {function.__name__: function for function in COMPARISONS}
    environment.filters |= {"percent": percent, "fixed": fixed, "points": plain_points, "signed_points": points}
    environment.filters |= {"plain": plain, "count": count, "in_words": in_words, "listed": comparison.listed}
    return environment


def percent(value: float | Share, digits: int = 1) -> str:
    """Return a share in percent, without its interval."""
    return f"{100 * (value.value if isinstance(value, Share) else value):.{digits}f} %"


def fixed(value: float | Share, digits: int = 2) -> str:
    """Return a figure with its decimals, without its interval."""
    return f"{round(value.value if isinstance(value, Share) else value, digits) + 0.0:.{digits}f}"


def plain_points(d: Share) -> str:
    """Return a difference in points without a plus sign, with its interval."""
    value, low, high = (round(100 * x, 1) + 0.0 for x in d)
    return f"{value:.1f} points ({low:.1f} to {high:.1f})"


def plain(value: float) -> str:
    """Return a figure without zeros at its end."""
    return f"{value:g}"


def count(value: float | str) -> str:
    """Return a whole number with commas between thousands."""
    return f"{round(float(value)):,}"


def in_words(value: float) -> str:
    """Return a number from 0 to 12 in words, where 0 is `none`, and a larger one in digits."""
    return NUMBERS[round(value)] if 0 <= round(value) < len(NUMBERS) else count(value)


def _blocks(text: str) -> Iterator[str]:
    """Yield the blocks between empty lines, with the lines of prose filled."""
    code = False
    for block in re.split(r"\n\s*\n", text.strip()):
        lines = [line.rstrip() for line in block.splitlines()]
        code ^= sum(line.startswith("```") for line in lines) % 2 == 1
        if code or lines[0].startswith(("|", "![", "#", "<!--", "```")):
            yield "\n".join(lines)
        elif lines[0].startswith("* "):
            items = re.split(r"(?m)^\* ", "\n".join(lines))[1:]
            yield "\n".join(_fill(item, "* ", "  ") for item in items)
        else:
            yield _fill(" ".join(lines))


def _fill(text: str, first: str = "", other: str = "") -> str:
    """Return a paragraph in lines, without a break before % and beside an equals sign."""
    words = re.sub(r" (?=%|= )|(?<= =) ", STICKY, " ".join(text.split()))
    filled = textwrap.fill(
        words, WIDTH, initial_indent=first, subsequent_indent=other, break_long_words=False, break_on_hyphens=False
    )
    return filled.replace(STICKY, " ")
