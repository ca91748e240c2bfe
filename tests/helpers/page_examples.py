"""The examples of docs/api.md and docs/functions.md, run in order."""

import doctest
import re

from helpers import ROOT
from tools.manual.api import PAGES, PART

TEXTS = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
FENCED = re.compile(r"^```pycon\n(.*?)^```$", re.DOTALL | re.MULTILINE)
OPTIONS = doctest.NORMALIZE_WHITESPACE


def page_examples() -> str:
    """Run all examples of each page in order, as a reader would type them, and return a report of the failures."""
    report: list[str] = []
    for page, text in TEXTS.items():
        code = "\n".join(FENCED.findall(PART.sub("", text)))
        test = doctest.DocTestParser().get_doctest(code, {}, str(page), str(page), 0)
        assert len(test.examples) >= 8, page
        doctest.DocTestRunner(optionflags=OPTIONS).run(test, out=report.append)
    return "".join(report)
