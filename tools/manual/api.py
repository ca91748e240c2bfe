"""The reference parts of docs/api.md: signatures as the code has them, and what the docstrings say.

In the page, a part stands between two comments, the first of which names a module and what of it is to be shown:

<!-- cliptools.text.vocabularies: load_pool Pool -->
<!-- end -->
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

PAGE = Path("docs") / "api.md"
PART = re.compile(r"<!-- (?P<module>cliptools[\w.]*): (?P<names>[\w ]+) -->\n.*?<!-- end -->", re.DOTALL)
SECTIONS = ("Args", "Returns", "Raises", "Yields")
Documented = ast.FunctionDef | ast.ClassDef


def filled_page(root: Path) -> str:
    """The page with its reference parts made anew from the sources of the checkout at `root`.

    Raises:
        ValueError: a name that its module does not define, or that says nothing of itself.
    """
    text = (root / PAGE).read_text(encoding="utf-8")
    return PART.sub(lambda found: _part(root, found["module"], found["names"].split()), text)


def named(root: Path) -> list[tuple[str, str]]:
    """Module and name of all that the page shows, in its order."""
    text = (root / PAGE).read_text(encoding="utf-8")
    return [(found["module"], name) for found in PART.finditer(text) for name in found["names"].split()]


def _part(root: Path, module: str, names: list[str]) -> str:
    path = root.joinpath(*module.split(".")).with_suffix(".py")
    source = path.read_text(encoding="utf-8")
    known = {node.name: node for node in ast.parse(source).body if isinstance(node, Documented)}
    entries = []
    for name in names:
        if name not in known or not ast.get_docstring(known[name]):
            raise ValueError(f"{PAGE}: {path} defines no {name} with a docstring")
        entries.append(_entry(module, known[name], source.splitlines()))
    return f"<!-- {module}: {' '.join(names)} -->\n\n" + "".join(entries) + "<!-- end -->"


def _entry(module: str, node: Documented, lines: list[str]) -> str:
    """A heading, the signature, and the docstring as Markdown."""
    if isinstance(node, ast.FunctionDef):
        parts = [_code([f"from {module} import {node.name}", "", *_signature(node, lines)]), *_prose(node)]
    else:
        fields = [each for each in node.body if isinstance(each, ast.AnnAssign)]
        written = [line for field in fields for line in lines[field.lineno - 1 : field.end_lineno]]
        head = [*_decorators(node, lines), lines[node.lineno - 1], *written]
        parts = [_code([f"from {module} import {node.name}", "", "", *head]), *_prose(node)]
        parts += ["\n".join(said)] if (said := list(_fields(node))) else []
        parts += ["\n".join(said)] if (said := list(_methods(node, lines))) else []
    return f"### {node.name}\n\n" + "\n\n".join(part.rstrip() for part in parts) + "\n\n"


def _signature(node: ast.FunctionDef, lines: list[str]) -> list[str]:
    """The lines of `def`, as they are written."""
    end = node.body[0].lineno - 1
    written = textwrap.dedent("\n".join([*_decorators(node, lines), *lines[node.lineno - 1 : end]])).rstrip()
    return written.removesuffix(":").splitlines()


def _decorators(node: Documented, lines: list[str]) -> list[str]:
    """Those that change how it is used."""
    return [line for each in node.decorator_list if "torch" not in (line := lines[each.lineno - 1])]


def _prose(node: Documented) -> list[str]:
    """A docstring's blocks: paragraphs, arguments and the like as lists, examples as code."""
    blocks = re.split(r"\n{2,}", inspect.cleandoc(ast.get_docstring(node) or ""))
    return [_block(block) for block in blocks]


def _block(block: str) -> str:
    first, _, rest = block.partition("\n")
    if first.rstrip(":") in SECTIONS and first.endswith(":"):
        title = first.rstrip(":")
        title = {"Args": "Arguments"}.get(title, title)
        return f"*{title}*\n\n" + (textwrap.dedent(rest) if title in ("Returns", "Yields") else "\n".join(_items(rest)))
    if first.startswith(">>>"):
        return f"```pycon\n{block}\n```"
    if first.startswith("    "):
        return f"```text\n{textwrap.dedent(block)}\n```"
    return block


def _items(text: str) -> Iterator[str]:
    """`name: what it is`, whose further lines are indented, as a list."""
    item = ""
    for line in textwrap.dedent(text).splitlines():
        if line.startswith(" "):
            item += f" {line.strip()}"
        else:
            if item:
                yield _item(item)
            item = line
    yield _item(item)


def _item(text: str) -> str:
    name, _, said = text.partition(": ")
    return f"* `{name}`: {said}"


def _fields(node: ast.ClassDef) -> Iterator[str]:
    """Fields that say more than their types: the string that follows each."""
    for field, after in zip(node.body, node.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            yield f"* `{ast.unparse(field.target)}`: {' '.join(str(after.value.value).split())}"


def _methods(node: ast.ClassDef, lines: list[str]) -> Iterator[str]:
    """How it is made, and what it can do."""
    for each in node.body:
        if not isinstance(each, ast.FunctionDef) or (each.name.startswith("_") and each.name not in ("__init__", "__call__")):
            continue
        said = ast.get_docstring(each)
        if said is None and each.name != "__init__":
            continue
        blocks = [] if said is None else _prose(each)
        property_of = any("property" in ast.unparse(one) for one in each.decorator_list)
        shown = f".{each.name}" if property_of else f"{ast.unparse(each.args).removeprefix('self').removeprefix(', ')}"
        name = node.name if each.name == "__init__" else f".{each.name}".replace(".__call__", f"{node.name}(…)")
        returns = f" → {ast.unparse(each.returns)}" if each.returns is not None and each.name != "__init__" else ""
        title = f"{shown}{returns}" if property_of else f"{name}({shown}){returns}"
        yield f"* `{title}`" + "".join(f"\n\n{textwrap.indent(block, '  ')}" for block in blocks) + "\n"


def _code(lines: list[str]) -> str:
    return "```python\n" + "\n".join(lines) + "\n```"
