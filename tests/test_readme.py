"""The examples of the README and of docs run, and the README describes all commands."""

import csv
import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT
from helpers.pipes import COMMANDS, shell
from PIL import Image

README = (ROOT / "README.md").read_text()
EXAMPLES = {
    path.name: [
        line for block in re.findall(r"```sh\n(.*?)```", path.read_text(), re.DOTALL) for line in block.strip().splitlines()
    ]
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}


@pytest.mark.parametrize("document", [name for name, lines in EXAMPLES.items() if lines])
def test_examples_run_in_order(document: str, tmp_path: Path) -> None:
    for line in EXAMPLES[document]:
        ended = shell(f"cd {tmp_path} && {line}")
        assert ended.returncode == 0, f"{line}\n{ended.stderr.decode()}"
    if document == "README.md":
        assert (tmp_path / "neurons.png").read_bytes().startswith(b"\x89PNG") and (tmp_path / "drawn" / "scenes.jsonl").exists()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_described(name: str) -> None:
    assert f"`clip-{name}`" in README and f"clip-{name}" in (ROOT / "CHANGELOG.md").read_text()


def test_links_lead_somewhere() -> None:
    for document in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("tests/*/*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_claims_are_those_of_the_table() -> None:
    with (ROOT / "examples" / "results" / "claims.csv").open(encoding="utf-8") as lines:
        for row in csv.DictReader(line for line in lines if not line.startswith("#")):
            said = f"| {row['claim']} ({row['source']}) | {row['paper']} | {row['here']} | {row['holds']} |"
            assert said in README, f"{said}\nmake -C examples -f claims.mk, then put it into the README"


def test_picture_is_one() -> None:
    with Image.open(ROOT / "docs" / "neurons.webp") as picture:
        assert picture.width > 400 and picture.height > 300
    assert sum(path.stat().st_size for path in (ROOT / "docs").iterdir()) < 2_000_000


@functools.cache
def help_of(name: str) -> str:
    words = [sys.executable, "-m", f"cliptools.cli.{name.replace('-', '_')}", "--help"]
    return subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=True).stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_example_of_a_help_text_parses(name: str) -> None:
    """Options named in the examples exist."""
    for line in re.search(r"Examples:(.*?)\nOptions", help_of(name), re.DOTALL)[1].splitlines():
        for part in re.split(r"[|<>]", line.split("#")[0]):
            words = part.split()
            if words and words[0].startswith("clip-"):
                for option in re.findall(r"(?<!\S)--[a-z-]+", part):
                    assert option in help_of(words[0][5:]), f"{words[0]} {option}"
