"""docs/api.md and docs/functions.md: examples run, and the reference is that of the code; examples of docstrings run too."""

import doctest
import importlib
import re
from pathlib import Path
from typing import Any

import pytest
from griffe import Expr, ExprName
from helpers import ROOT
from helpers.page_examples import OPTIONS, TEXTS, page_examples

import cliptools as ct
from tools.manual.api import PAGES, documented, fill_page

API, FUNCTIONS = PAGES

WITH_EXAMPLES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "cliptools").rglob("*.py")
    if re.search(r"^\s+>>> ", path.read_text(encoding="utf-8"), re.MULTILINE)
)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_a_page_is_what_the_code_says(page: Path) -> None:
    assert fill_page(ROOT, page) == TEXTS[page], f"{page}: run make man"


def test_the_examples_of_the_pages_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The examples of docstrings are tested separately."""
    monkeypatch.chdir(tmp_path)
    failures = page_examples()
    assert not failures, failures


def test_every_section_has_an_example() -> None:
    for page, text in TEXTS.items():
        for section in text.split("\n## ")[1:]:
            assert "```pycon" in section or section.startswith("Reference"), (page, section[:30])


def test_every_name_of_the_front_is_documented_with_its_arguments_and_its_results() -> None:
    entries = documented(ROOT, API)
    assert sorted(entry.name for entry in entries) == sorted(ct.__all__)
    results: set[str] = set()
    for entry in entries:
        functions = [entry] if entry.is_function else [member for member in entry.functions.values() if member.is_public]
        results |= {name.canonical_path for function in functions for name in _names(function.returns)}
        if entry.is_function:
            heading = TEXTS[API].split(f"\n### `cliptools.{entry.name}`\n")[1].split("\n### ")[0]
            assert all(f"\n- **{parameter.name}** (`" in heading for parameter in entry.parameters), entry.name
    own = {path for path in results if path.startswith("cliptools.") and not path.endswith(".Same")}  # a variable for types
    assert own and own <= {entry.canonical_path for entry in entries}


def _names(expression: Any) -> list[ExprName]:
    """Return the names of types in an annotation."""
    if isinstance(expression, ExprName):
        return [expression]
    return [part for part in expression.iterate() if isinstance(part, ExprName)] if isinstance(expression, Expr) else []


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_the_examples_of_docstrings_run(module: str) -> None:
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=OPTIONS)
    tests = [test for test in doctest.DocTestFinder().find(importlib.import_module(module)) if test.examples]
    assert tests
    for test in tests:
        runner.run(test, out=said.append)
    assert not runner.failures, "".join(said)
