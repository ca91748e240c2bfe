"""Rules of the package: imports go down only, no unsafe calls, and documents that match the code."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

PACKAGE = ROOT / "cliptools"
RANKS = {
    "io": 1, "text": 2, "emoji": 3, "models": 4, "images": 5, "generate": 6, "render": 6, "towers": 7,
    "unit_effects": 7, "streaming": 8, "analysis": 9, "segmentation": 9, "front": 10, "cli/app": 11,
    "cli/completion": 11, "cli/surroundings": 11, "cli/run": 12, "cli": 13, "__init__": 13,
}  # fmt: skip
"""A file imports files of its own rank or below; what stands directly in the package is the lowest."""
MODULES = sorted(PACKAGE.rglob("*.py"))
FILES_AT_MOST, LONGEST, SHORTEST = 270, 400, 25


def rank(name: str) -> int:
    """Return the rank of a module by its dotted or slashed name below the package."""
    parts = name.replace(".", "/").split("/")
    places = ("/".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((RANKS[place] for place in places if place in RANKS), 0)


def imported(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    return names | {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down_only(path: Path) -> None:
    own = rank(str(path.relative_to(PACKAGE).with_suffix("")))
    names = [name.removeprefix("cliptools.") for name in imported(path) if name.startswith("cliptools.")]
    main = own == RANKS["cli"]  # loads the file that does its work once options are parsed
    assert not [name for name in names if rank(name) > own or (rank(name) == RANKS["cli"] and not main)]


def test_files_are_few_and_of_a_size_to_read() -> None:
    lines = {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in MODULES}
    assert len(lines) <= FILES_AT_MOST
    assert not {name: count for name, count in lines.items() if count > LONGEST}
    assert not {name: count for name, count in lines.items() if count < SHORTEST and Path(name).name != "__init__.py"}


def test_imports_inside_functions_are_rare() -> None:
    """They are for optional packages, for open_clip in commands that can run without it, and for the work of each command."""
    inner = 0
    for path in MODULES:
        functions = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef))
        inner += len(
            {node for function in functions for node in ast.walk(function) if isinstance(node, ast.Import | ast.ImportFrom)}
        )
    assert inner <= 39


def test_the_equation_of_each_command_is_two_hops_away() -> None:
    """CONTRIBUTING names both hops.

    The first hop is the file that the command loads, or a file that this one imports; the second is imported by the first.
    """
    rows = re.findall(r"(?m)^\| `clip-([a-z-]+)` \| `([\w/.]+)` \| `([\w/.]+)` \|", (ROOT / "CONTRIBUTING.md").read_text())
    assert {name for name, *_ in rows} == {path.name.removeprefix("clip-") for path in (ROOT / "bin").iterdir()}
    for name, first, second in rows:
        module = "cliptools." + second.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        names = imported(PACKAGE / first)
        assert module in names, (name, first, second)
        loaded = imported(PACKAGE / "cli" / f"{name.replace('-', '_')}.py")
        hop = "cliptools." + first.removesuffix(".py").replace("/", ".")
        run = next(name for name in loaded if name.startswith("cliptools.cli.run."))
        assert hop in loaded | imported(PACKAGE / f"{run.removeprefix('cliptools.').replace('.', '/')}.py"), (name, first)


def test_no_circles() -> None:
    graph = {"cliptools." + ".".join(p.relative_to(PACKAGE).with_suffix("").parts): imported(p) for p in MODULES}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name not in done:
            for other in graph.get(name, set()) & set(graph):
                visit(other, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_is_unpickled_unsafely(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"\bpickle\b.*import|import pickle|allow_pickle=True|weights_only=False", text)
    assert all("weights_only=True" in call for call in re.findall(r"torch\.load\([^\n]*", text))


def test_files_are_small_and_licences_kept() -> None:
    files = [p for p in PACKAGE.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    assert max(p.stat().st_size for p in files) < 25_000_000
    assert sum(p.stat().st_size for p in files if p.suffix in (".webp", ".safetensors")) < 60_000_000
    for owner in ("Microsoft", "Google", "Twitter", "unicode-emoji-json", "CC-BY 4.0", "Apache"):
        assert owner in (PACKAGE / "data/artwork/ATTRIBUTION.md").read_text()


def test_changelog_has_this_version() -> None:
    import cliptools

    assert f"## {cliptools.__version__}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize(
    "code", ["analysis.selection; assert 'torch' not in __import__('sys').modules", "unit_effects.vit_second_order"]
)
def test_libraries_that_take_seconds_come_when_they_are_needed(code: str) -> None:
    ended = subprocess.run([sys.executable, "-c", f"import cliptools.{code}"], capture_output=True, cwd=ROOT, check=False)
    assert ended.returncode == 0, ended.stderr.decode()
