"""The examples of the README and of docs run, their links lead somewhere, and they describe all commands."""

import csv
import functools
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from helpers import ROOT
from helpers.pipes import COMMANDS, shell
from PIL import Image

README = (ROOT / "README.md").read_text()
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
MOST_WORDS = 950  # of the README
MOST_WORDS_PER_CELL = 10  # of its tables
BLOCK = re.compile(r"```sh\n(.*?)```(?:\n+```text\n(.*?)```)?", re.DOTALL)
"""A block of commands that run, and the output of its last command where a block of text follows."""


def examples(path: Path) -> list[tuple[str, str | None]]:
    """Return the commands of a page and the output that the page shows for each, or None."""
    result: list[tuple[str, str | None]] = []
    for commands, output in BLOCK.findall(path.read_text()):
        *lines, last = commands.strip().splitlines()
        result += [(line, None) for line in lines] + [(last, output or None)]
    return result


EXAMPLES = {path.name: lines for path in PAGES if (lines := examples(path))}


@pytest.mark.parametrize("document", EXAMPLES)
def test_examples_run_in_order(document: str, tmp_path: Path) -> None:
    for line, output in EXAMPLES[document]:
        ended = shell(f"cd {tmp_path} && {line}")
        assert ended.returncode == 0, f"{line}\n{ended.stderr.decode()}"
        if output is not None:
            assert same_output(ended.stdout.decode(), output), f"{document}: {line}\n{ended.stdout.decode()}"
    if document == "README.md":
        assert mountains_in(tmp_path / "top.jsonl") == (7, 10)
        answers = answers_to(tmp_path / "pictures", tmp_path / "repaired.safetensors")
        assert answers["violin"] == 0 and answers["snowy mountain"] > 0.8 * (answers.total() - answers["mountain"])
    if document == "quickstart.md":
        assert (tmp_path / "neurons.png").read_bytes().startswith(b"\x89PNG") and (tmp_path / "drawn" / "scenes.jsonl").exists()


def mountains_in(records: Path) -> tuple[int, int]:
    """Return how many of the top images in records of clip-top show a mountain, and the number of these images."""
    from cliptools.emoji.render import scenes_for

    scenes = scenes_for("emoji-vit2", count=3000, seed=0)
    shown = [scenes.names_in(scenes.names.index(json.loads(line)["image"])) for line in records.read_text().splitlines()]
    return sum(not {"mountain", "snowy mountain", "mount fuji"}.isdisjoint(names) for names in shown), len(shown)


def answers_to(pictures: Path, weights: Path) -> Counter[str]:
    """Return how often emoji-vit2 with these weights answers with each concept's name, over the pictures of a folder."""
    from cliptools.io.header import digest
    from cliptools.models.load import load_model
    from cliptools.models.templates import class_templates
    from cliptools.models.text_encoder import encode_named
    from cliptools.text.emoji_concepts import concepts
    from cliptools.text.vocabularies import Pool

    names = tuple(concept.name for concept in concepts())
    model = load_model("emoji-vit2", str(weights), "cpu")
    t = encode_named(model, Pool("names", names, digest(*names)), class_templates(model.name, ()))
    images = torch.stack([model.transform(Image.open(path).convert("RGB")) for path in sorted(pictures.rglob("*.png"))])
    with torch.inference_mode():
        z = model.clip.encode_image(images)
    return Counter(names[place] for place in (z @ t.float().T).argmax(1).tolist())


def same_output(output: str, shown: str) -> bool:
    """Return True if the words are the same and the numbers differ by at most two units of the last shown digit."""
    number = re.compile(r"\d+(?:\.\d+)?")
    if number.sub("#", output).split() != number.sub("#", shown).split():
        return False
    pairs = zip(number.findall(output), number.findall(shown), strict=True)
    return all(abs(float(a) - float(b)) <= 2.001 * 10.0 ** -len(b.partition(".")[2]) if "." in b else a == b for a, b in pairs)


def test_another_output_is_noticed() -> None:
    shown = " unit  explained  words\n5:434  0.97       +cake\n"
    assert same_output(shown, shown) and same_output(shown.replace("0.97", "0.96"), shown)
    for changed in ("0.94", "0.97 0.97", "1.97"):
        assert not same_output(shown.replace("0.97", changed), shown)
    assert not same_output(shown.replace("5:434", "5:435"), shown) and not same_output(shown.replace("cake", "cow"), shown)


def test_the_readme_is_one_page() -> None:
    assert len(README.split()) <= MOST_WORDS
    cells = [cell for line in README.splitlines() if line.startswith("|") for cell in line.strip("|").split("|")]
    assert len(cells) >= 3 * len(COMMANDS) and all(len(cell.split()) <= MOST_WORDS_PER_CELL for cell in cells)
    missing = [page.name for page in PAGES[1:] if f"](docs/{page.name})" not in README]
    assert not missing, f"the README has no link to {missing}"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_described(name: str) -> None:
    assert f"`clip-{name}`" in README and f"clip-{name}" in (ROOT / "CHANGELOG.md").read_text()


def test_links_lead_somewhere() -> None:
    for document in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("tests/*/*.md")):
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)]+))?\)", document.read_text()):
            path = document.parent / target if target else document
            assert path.exists(), f"{document.name}: {target}"
            assert not anchor or anchor in anchors(path), f"{document.name}: {target} has no heading #{anchor}"


def anchors(path: Path) -> set[str]:
    """Return the names that GitHub gives to the headings of a page."""
    headings = re.findall(
        r"^#+ (.+)$", re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_claims_are_those_of_the_table() -> None:
    results = (ROOT / "docs" / "results.md").read_text()
    with (ROOT / "examples" / "results" / "claims.csv").open(encoding="utf-8") as lines:
        for row in csv.DictReader(line for line in lines if not line.startswith("#")):
            line = f"| {row['claim']} ({row['source']}) | {row['paper']} | {row['here']} | {row['holds']} |"
            assert line in results, f"{line}\nmake -C examples -f claims.mk, then put it into docs/results.md"


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
