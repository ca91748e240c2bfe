"""CI's own script: the summary of the tests is its last line, and commands that do not start are named."""

import os
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest
from helpers import ROOT
from helpers.environment import this_environment

NAMES = sorted(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"])
SUMMARY = "12 passed in 3.45s"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Return a checkout with CI's script, an environment whose commands start, and a `make` whose tests pass."""
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    venv.create(tmp_path / ".venv")
    for name in NAMES:
        program(tmp_path / ".venv" / "bin" / name, "exit 0")
    (tmp_path / "tools").mkdir()
    program(tmp_path / "tools" / "make", f'echo "$1"; [ "$1" != test ] || echo "{SUMMARY}"')
    return tmp_path


def program(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def ci(clone: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key not in ("VENV", "PYTHONPATH")}
    environment["PATH"] = f"{clone / 'tools'}:{environment['PATH']}"
    return subprocess.run([clone / ".ci" / "run"], capture_output=True, text=True, env=environment, check=False)


def test_the_last_line_is_the_summary_of_the_tests(clone: Path) -> None:
    ended = ci(clone)
    assert ended.returncode == 0 and ended.stderr == "" and ended.stdout.splitlines() == ["bench-guard", "test", SUMMARY]


@pytest.mark.parametrize("body", [None, "echo ImportError: torch >&2; exit 3", "kill -9 $$"])
def test_a_command_that_no_longer_starts_is_named(clone: Path, body: str | None) -> None:
    gone = clone / ".venv" / "bin" / "clip-view"
    gone.unlink()
    if body is not None:
        program(gone, body)
    ended = ci(clone)
    assert ended.returncode == 1 and [line.split()[0] for line in ended.stderr.splitlines()] == ["clip-view"]
    assert body is None or "ImportError: torch" in ended.stderr or "-9" in ended.stderr


def test_tests_that_fail_stay_failed(clone: Path) -> None:
    program(clone / "tools" / "make", '[ "$1" != test ] || exit 2')
    assert ci(clone).returncode == 2


def test_commands_of_this_environment_start() -> None:
    if not all((Path(sys.executable).parent / name).exists() for name in NAMES):
        pytest.skip("the commands are not installed beside this interpreter")
    ended = subprocess.run([sys.executable, ROOT / ".ci" / "commands_start.py"], capture_output=True, text=True, check=False)
    assert ended.returncode == 0 and ended.stdout == ended.stderr == ""


def test_what_an_installer_changes_is_noticed(tmp_path: Path) -> None:
    packages, programs = (tmp_path / name for name in ("site-packages", "bin"))
    packages.mkdir()
    programs.mkdir()
    (packages / "cliptools-1.dist-info").mkdir()
    program(programs / "clip-view", "exit 0")
    before = this_environment([packages], programs)
    assert this_environment([packages], programs).changes_since(before) == []
    (packages / "cliptools-1.dist-info").rename(packages / "cliptools-2.dist-info")
    (programs / "clip-view").unlink()
    changed = this_environment([packages], programs).changes_since(before)
    assert [Path(path).name for path in changed] == ["clip-view", "cliptools-1.dist-info", "cliptools-2.dist-info"]
