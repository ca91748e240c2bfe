"""docs/api.md: its examples run, and its signatures are those of the code; examples of docstrings run too."""

import doctest
import importlib
import inspect
import re
from pathlib import Path

import pytest
from helpers import ROOT
from helpers.page_examples import OPTIONS, TEXT, page_examples

from tools.manual.api import PAGE, documented_names, fill_page

WITH_EXAMPLES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "cliptools").rglob("*.py")
    if re.search(r"^\s+>>> ", path.read_text(encoding="utf-8"), re.MULTILINE)
)


def test_the_page_is_what_the_code_says() -> None:
    assert fill_page(ROOT) == TEXT, f"{PAGE}: run make man"


def test_the_examples_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The examples of docstrings are tested separately."""
    monkeypatch.chdir(tmp_path)
    failures = page_examples()
    assert not failures, failures


def test_every_section_has_an_example_and_every_name_is_there() -> None:
    for section in TEXT.split("\n## ")[1:]:
        assert "```pycon" in section or section.startswith("Errors"), section[:30]
    for module, name in documented_names(ROOT):
        shown = getattr(importlib.import_module(module), name)
        assert inspect.isclass(shown) or inspect.isfunction(shown)
        if inspect.isfunction(shown):
            heading = TEXT.split(f"\n### {name}\n")[1].split("\n### ")[0]
            assert all(re.search(rf"\b{parameter}: ", heading) for parameter in inspect.signature(shown).parameters), name


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_the_examples_of_docstrings_run(module: str) -> None:
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=OPTIONS)
    tests = [test for test in doctest.DocTestFinder().find(importlib.import_module(module)) if test.examples]
    assert tests
    for test in tests:
        runner.run(test, out=said.append)
    assert not runner.failures, "".join(said)
