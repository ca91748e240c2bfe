"""Reference parts of docs/api.md and docs/functions.md, which griffe2md writes from signatures and docstrings.

In a page, a part is between two comments, the first of which lists a module and names in it, or `__all__` for all its names:

<!-- cliptools.text.vocabularies: load_pool Pool -->
<!-- end -->
"""

import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

from griffe import GriffeLoader, Module, Object, Parser
from griffe2md import ConfigDict, prepare_context, prepare_env
from jinja2 import ChoiceLoader, DictLoader, pass_context

PAGES = (Path("docs") / "api.md", Path("docs") / "functions.md")
PART = re.compile(r"<!-- (?P<module>cliptools[\w.]*): (?P<names>[\w ]+) -->\n.*?<!-- end -->", re.DOTALL)
OPTIONS: ConfigDict = {
    "filters": ["!^_(?!_(call|getitem)__)"],
    "heading_level": 3,
    "line_length": 100,
    "members_order": "source",
    "show_bases": False,
    "show_object_full_path": False,
    "show_root_members_full_path": False,
    "show_signature_annotations": True,
    "summary": {"attributes": True},
}
TEMPLATES = {
    "attribute.md.jinja": "",
    "docstring/attributes.md.jinja": "**Attributes:**\n{% for attribute in section.value %}\n- **{{ attribute.name }}** "
    "(`{{ attribute.annotation }}`){% if attribute.description %} – {{ attribute.description }}{% endif %}{% endfor %}",
    "expression.md.jinja": "{{ expression }}",
}
"""In place of the library's templates: attributes as one list, and types without links, whose targets GitHub does not have."""


def fill_page(root: Path, page: Path) -> str:
    """Return a page with its reference parts written from the sources of the checkout at `root`.

    Raises:
        ValueError: a module does not define a name, or its definition has no docstring.
    """
    text = (root / page).read_text(encoding="utf-8")
    return PART.sub(lambda match: _part(root, page, match["module"], match["names"]), text)


def documented(root: Path, page: Path) -> list[Object]:
    """Return all definitions that a page documents, in its order.

    Raises:
        ValueError: a module does not define a name, or its definition has no docstring.
    """
    text = (root / page).read_text(encoding="utf-8")
    return [entry for match in PART.finditer(text) for entry in _entries(root, page, match["module"], match["names"])]


@cache
def _package(root: Path) -> Module:
    loader = GriffeLoader(docstring_parser=Parser.google, search_paths=[root], allow_inspection=False)
    package = loader.load("cliptools", try_relative_path=False)
    loader.resolve_aliases()
    assert isinstance(package, Module)
    return package


def _entries(root: Path, page: Path, module: str, names: str) -> list[Any]:
    """Return definitions of a module; for `__all__` first its functions, then its classes, then its errors."""
    home = _package(root)[module.removeprefix("cliptools.")] if "." in module else _package(root)
    listed = [str(name) for name in home.exports or ()] if names == "__all__" else names.split()
    for name in listed:
        if name not in home.members or not home[name].has_docstring:
            raise ValueError(f"{page}: {module} defines no {name} with a docstring")
    entries = [home[name] for name in listed]
    return sorted(entries, key=lambda entry: (entry.is_class, entry.name.endswith("Error"))) if names == "__all__" else entries


def _part(root: Path, page: Path, module: str, names: str) -> str:
    environment = prepare_env()
    environment.loader = ChoiceLoader([DictLoader(TEMPLATES), *([environment.loader] if environment.loader else [])])
    environment.filters["format_signature"] = _signature
    parts = [f"<!-- {module}: {names} -->"]
    for entry in _entries(root, page, module, names):
        text = environment.get_template(f"{entry.kind.value}.md.jinja").render(prepare_context(entry, OPTIONS))
        text = re.sub(r"</?code>", "`", re.sub(r"\n{3,}", "\n\n", text)).strip()
        parts.append(re.sub(r"(?<=\n\n)(>>> .*(?:\n.+)*)", r"```pycon\n\1\n```", text))
    return "\n\n".join([*parts, "<!-- end -->"])


@pass_context
def _signature(_: Any, name: str, function: Any, line_length: int, **__: Any) -> str:
    """Return a signature, wrapped by ruff: the library's own filter needs black."""
    function = function.final_target if function.is_alias else function
    code = f"def {function.signature(return_type=function.name != '__init__', name=name.strip())}: ..."
    command = [sys.executable, "-m", "ruff", "format", "--isolated", f"--line-length={line_length}", "-"]
    wrapped = subprocess.run(command, input=code, capture_output=True, text=True, check=True).stdout
    return wrapped.removeprefix("def ").removesuffix(": ...\n")
