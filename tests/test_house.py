"""The house's own rules: imports go down only, nothing unsafe, documents that speak of what there is."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "cliptools"
FLOORS = {"ground": 0, "methods": 1, "commands": 2, "training": 2, "manual": 2}
MODULES = sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    return names | {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down_only(path: Path) -> None:
    floor = FLOORS.get(path.relative_to(PACKAGE).parts[0], -1)
    above = [name for name in imported(path) if name.startswith("cliptools.") and FLOORS.get(name.split(".")[1], 0) > floor]
    assert floor < 0 or not above


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


@pytest.mark.parametrize("code", ["selection; assert 'torch' not in __import__('sys').modules", "vit_paths"])
def test_libraries_that_take_seconds_come_when_they_are_needed(code: str) -> None:
    ended = subprocess.run([sys.executable, "-c", f"import cliptools.methods.{code}"], capture_output=True, cwd=ROOT, check=False)
    assert ended.returncode == 0, ended.stderr.decode()
