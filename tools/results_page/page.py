"""The page of results and generated parts of other pages: templates with the tables, the models and comparisons.

A part stands in a page between two comments, the first of which names its template in docs/source/parts:

<!-- part: speed-judge -->
<!-- end -->
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cliptools.embedded_models import EMBEDDED
from cliptools.text.emoji_concepts import concepts
from cliptools.text.vocabularies import load_pool
from examples.result_tables import Tables, counts_in, difference, points, wilson
from tools.results_page import comparison, formats, repairs, typographic
from tools.results_page.models import Model, Sections

PAGE, SOURCE = "docs/results.md", "docs/source"
RESULTS, BENCHMARKS, MODELS = "examples/results", "benchmarks/results", "cliptools/data/models"
PART = re.compile(r"<!-- part: (?P<name>[a-z0-9-]+) -->(?P<line_end>\n?).*?<!-- end -->", re.DOTALL)
COMPARISONS: tuple[Callable[..., Any], ...] = (
    comparison.ascending, comparison.better, comparison.better_at, comparison.compare, comparison.containing,
    counts_in, comparison.distinct, comparison.first_even, comparison.first_within, comparison.larger,
    comparison.leader, comparison.listed, comparison.mean, comparison.numbers, comparison.over_runs,
    comparison.paired, comparison.say, comparison.shares,
    comparison.shown, comparison.sign, comparison.span, comparison.texts_of, wilson, difference,
    repairs.blind_repairs, repairs.planted_kinds, repairs.repaired,
    typographic.attacked, typographic.carriers, typographic.part_change, typographic.told_by_chance,
)  # fmt: skip
FORMATS: tuple[Callable[..., str], ...] = (
    comparison.listed, formats.count, formats.fixed, formats.in_words, formats.percent, formats.plain, formats.signed,
    formats.three,
)  # fmt: skip


def render(root: Path, results: Path | None = None, names: tuple[str, str] = EMBEDDED, template: str = "results.md") -> str:
    """Return the page of results of a checkout, or a part of another page.

    Args:
        root: Folder of the checkout.
        results: Folder of the tables. None: that of the checkout.
        names: Names of the ViT and of the ResNet.
        template: Path of the template, from docs/source.

    Raises:
        TableError: a table or a JSON file lacks something that the template asks for.
        jinja2.TemplateError: the template is faulty.
    """
    vit, rn = (Model(root / MODELS / name) for name in names)
    text = _environment(root / SOURCE).get_template(template).render(
        tables=Tables(results or root / RESULTS), benchmark=lambda name: Sections(root / BENCHMARKS / f"{name}.json"),
        vit=vit, rn=rn, concepts=len(concepts()), texts=len(load_pool("emoji").texts),
    )  # fmt: skip
    return formats.laid_out(text) + "\n"


def fill_parts(root: Path, text: str) -> str:
    """Return a page with its parts made from their templates."""

    def part(match: re.Match[str]) -> str:
        name, line_end = match["name"], match["line_end"]
        text = render(root, template=f"parts/{name}.md").strip()
        return f"<!-- part: {name} -->{line_end}{text}{line_end}<!-- end -->"

    return PART.sub(part, text)


def pages_with_parts(root: Path) -> list[Path]:
    """Return the pages of a checkout that have generated parts."""
    pages = [root / "README.md", *sorted((root / "docs").glob("*.md"))]
    return [page for page in pages if PART.search(page.read_text(encoding="utf-8"))]


def _environment(folder: Path) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(folder, encoding="utf-8"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )
    environment.globals |= {function.__name__: function for function in COMPARISONS}
    environment.filters |= {function.__name__: function for function in FORMATS}
    environment.filters |= {"points": formats.plain_points, "signed_points": points}
    return environment
