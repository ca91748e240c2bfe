"""The examples of docs/api.md, run in order."""

import doctest
import re

from helpers import ROOT
from tools.manual.api import PAGE

TEXT = (ROOT / PAGE).read_text(encoding="utf-8")
FENCED = re.compile(r"^```pycon\n(.*?)^```$", re.DOTALL | re.MULTILINE)
OPTIONS = doctest.NORMALIZE_WHITESPACE


def page_examples() -> str:
    """Run all examples of the page in order, as a reader would type them, and return a report of the failures."""
    by_hand = re.sub(r"<!-- cliptools.*?<!-- end -->", "", TEXT, flags=re.DOTALL)
    text = "\n".join(FENCED.findall(by_hand))
    test = doctest.DocTestParser().get_doctest(text, {}, str(PAGE), str(PAGE), 0)
    assert len(test.examples) > 80
    report: list[str] = []
    doctest.DocTestRunner(optionflags=OPTIONS).run(test, out=report.append)
    return "".join(report)
