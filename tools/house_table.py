"""Print properties of the code as a table: sizes of files and functions, comments, inner imports, first words of docstrings.

    python tools/house_table.py [PACKAGE ...]     # default: the package of this checkout; its parent folder has the README

The table has one column per package, so that this package can be compared with other code bases.
"""

import ast
import io
import re
import statistics
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OPENINGS = {"what", "whether", "how", "of", "by"}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.Module) -> list[Function]:
    """Return all functions and methods of a module."""
    return [node for node in ast.walk(tree) if isinstance(node, Function)]


def length(node: Function) -> int:
    """Return the number of lines of a function, without its decorators and its docstring."""
    documented = isinstance(node.body[0], ast.Expr) and ast.get_docstring(node) is not None
    docstring = (node.body[0].end_lineno or 0) - node.body[0].lineno + 1 if documented else 0
    return (node.end_lineno or 0) - node.lineno + 1 - docstring


def annotated(node: Function) -> bool:
    """Return whether every argument but self and cls, and the result, have a type."""
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    named = [argument for argument in arguments if argument.arg not in ("self", "cls")]
    return all(argument.annotation for argument in named) and (node.returns is not None or node.name == "__init__")


def inner_imports(tree: ast.Module) -> set[ast.AST]:
    """Return the imports inside functions."""
    nodes = {node for function in functions(tree) for node in ast.walk(function)}
    return {node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)}


def typing_imports(tree: ast.Module) -> int:
    """Return the number of imports that only type checkers read."""
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    return sum(isinstance(node, ast.Import | ast.ImportFrom) for block in blocks for node in ast.walk(block))


def docstrings(tree: ast.Module) -> list[str]:
    """Return all docstrings of a module, its own first."""
    nodes = [tree, *(node for node in ast.walk(tree) if isinstance(node, Function | ast.ClassDef))]
    return [text for node in nodes if (text := ast.get_docstring(node))]


def comment_and_code_lines(source: str, tree: ast.Module) -> tuple[int, int]:
    """Return the numbers of lines with a comment and of lines of code (without docstrings, blank lines and pure comments)."""
    comments, code = set[int](), set[int]()
    silent = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER, tokenize.ENCODING}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments.add(token.start[0])
        elif token.type not in silent:
            code.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            code -= set(range(node.lineno, (node.end_lineno or 0) + 1))
    return len(comments), len(code)


def column(package: Path, readme: Path) -> dict[str, str]:
    """Return the numbers of one package by row."""
    sources = [path.read_text() for path in sorted(package.rglob("*.py"))]
    trees = [ast.parse(source) for source in sources]
    sizes = [len(source.splitlines()) for source in sources]
    nodes = [node for tree in trees for node in functions(tree)]
    lengths = sorted(map(length, nodes))
    comments, code = map(sum, zip(*map(comment_and_code_lines, sources, trees), strict=True))
    openings = [re.findall(r"\w+", text)[:1] for tree in trees for text in docstrings(tree)]
    riddles = sum(word[0].lower() in OPENINGS for word in openings if word)
    inner, typing = sum(len(inner_imports(tree)) for tree in trees), sum(map(typing_imports, trees))
    return {
        "files / lines": f"{len(sources)} / {sum(sizes):,}",
        "median / longest file": f"{statistics.median(sizes):.0f} / {max(sizes)}",
        "files of 60 lines or less": f"{sum(size <= 60 for size in sizes)}",
        "function p90 / longest": f"{lengths[int(0.9 * len(lengths))]} / {lengths[-1]}",
        "fully annotated": f"{sum(map(annotated, nodes)) / len(nodes):.1%}",
        "comment lines per code line": f"{comments / code:.1%}",
        "imports inside functions (+ TYPE_CHECKING)": f"{inner} (+{typing})",
        "docstrings that open with what/whether/how/of/by": f"{riddles / len(openings):.1%}",
        "README words": f"{len(readme.read_text().split()):,}" if readme.exists() else "-",
    }


def main(arguments: list[str]) -> None:
    """Print the table in Markdown."""
    packages = [Path(argument) for argument in arguments] or [ROOT / "cliptools"]
    columns = {package.name: column(package, package.parent / "README.md") for package in packages}
    print("| | " + " | ".join(columns) + " |\n" + "|---" * (len(columns) + 1) + "|")
    for row in next(iter(columns.values())):
        print(f"| {row} | " + " | ".join(numbers[row] for numbers in columns.values()) + " |")


if __name__ == "__main__":
    main(sys.argv[1:])
