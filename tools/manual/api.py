"""The reference parts of docs/api.md: signatures and docstrings from the code.

In the page, a part is between two comments, the first of which lists a module and names in it:

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


def fill_page(root: Path) -> str:
    """Return the page with its reference parts written from the sources of the checkout at `root`.

    Raises:
        ValueError: a module does not define a name, or its definition has no docstring.
    """
    text = (root / PAGE).read_text(encoding="utf-8")
    return PART.sub(lambda match: _part(root, match["module"], match["names"].split()), text)


def documented_names(root: Path) -> list[tuple[str, str]]:
    """Return module and name of all definitions on the page, in its order."""
    text = (root / PAGE).read_text(encoding="utf-8")
    return [(match["module"], name) for match in PART.finditer(text) for name in match["names"].split()]


def _part(root: Path, module: str, names: list[str]) -> str:
    path = root.joinpath(*module.split(".")).with_suffix(".py")
    source = path.read_text(encoding="utf-8")
    definitions = {node.name: node for node in ast.parse(source).body if isinstance(node, Documented)}
    entries = []
    for name in names:
        if name not in definitions or not ast.get_docstring(definitions[name]):
            raise ValueError(f"{PAGE}: {path} defines no {name} with a docstring")
        entries.append(_entry(module, definitions[name], source.splitlines()))
    return f"<!-- {module}: {' '.join(names)} -->\n\n" + "".join(entries) + "<!-- end -->"


def _entry(module: str, node: Documented, lines: list[str]) -> str:
    """Return a heading, the signature, and the docstring as Markdown."""
    if isinstance(node, ast.FunctionDef):
        parts = [_code([f"from {module} import {node.name}", "", *_signature(node, lines)]), *_prose(node)]
    else:
        fields = [statement for statement in node.body if isinstance(statement, ast.AnnAssign)]
        field_lines = [line for field in fields for line in lines[field.lineno - 1 : field.end_lineno]]
        head = [*_decorators(node, lines), lines[node.lineno - 1], *field_lines]
        parts = [_code([f"from {module} import {node.name}", "", "", *head]), *_prose(node)]
        parts += ["\n".join(items)] if (items := list(_fields(node))) else []
        parts += ["\n".join(items)] if (items := list(_methods(node, lines))) else []
    return f"### {node.name}\n\n" + "\n\n".join(part.rstrip() for part in parts) + "\n\n"


def _signature(node: ast.FunctionDef, lines: list[str]) -> list[str]:
    """Return the lines of `def`, as in the source."""
    end = node.body[0].lineno - 1
    source = textwrap.dedent("\n".join([*_decorators(node, lines), *lines[node.lineno - 1 : end]])).rstrip()
    return source.removesuffix(":").splitlines()


def _decorators(node: Documented, lines: list[str]) -> list[str]:
    """Return the decorators that change the use of a definition."""
    return [line for decorator in node.decorator_list if "torch" not in (line := lines[decorator.lineno - 1])]


def _prose(node: Documented) -> list[str]:
    """Return a docstring's blocks: paragraphs, sections such as Args as lists, examples as code."""
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
    """Yield list items for entries `name: meaning`, whose further lines are indented."""
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
    name, _, meaning = text.partition(": ")
    return f"* `{name}`: {meaning}"


def _fields(node: ast.ClassDef) -> Iterator[str]:
    """Yield the fields with a docstring, which is the string after the field."""
    for field, after in zip(node.body, node.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            yield f"* `{ast.unparse(field.target)}`: {' '.join(str(after.value.value).split())}"


def _methods(node: ast.ClassDef, lines: list[str]) -> Iterator[str]:
    """Yield the constructor, the properties and the methods with their docstrings."""
    for method in node.body:
        if not isinstance(method, ast.FunctionDef) or (
            method.name.startswith("_") and method.name not in ("__init__", "__call__")
        ):
            continue
        docstring = ast.get_docstring(method)
        if docstring is None and method.name != "__init__":
            continue
        blocks = [] if docstring is None else _prose(method)
        is_property = any("property" in ast.unparse(decorator) for decorator in method.decorator_list)
        shown = f".{method.name}" if is_property else f"{ast.unparse(method.args).removeprefix('self').removeprefix(', ')}"
        name = node.name if method.name == "__init__" else f".{method.name}".replace(".__call__", f"{node.name}(…)")
        returns = f" → {ast.unparse(method.returns)}" if method.returns is not None and method.name != "__init__" else ""
        title = f"{shown}{returns}" if is_property else f"{name}({shown}){returns}"
        yield f"* `{title}`" + "".join(f"\n\n{textwrap.indent(block, '  ')}" for block in blocks) + "\n"


def _code(lines: list[str]) -> str:
    return "```python\n" + "\n".join(lines) + "\n```"
