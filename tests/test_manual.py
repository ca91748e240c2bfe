"""The manual pages: made from the commands' help texts, shown by man and mandoc, installed by the wheel."""

import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import click
import pytest
from helpers import ROOT
from helpers.bundle import small_bundle

from cliptools.cli.app import NOT_IN_HISTORY
from cliptools.io.bundle_schema import TENSORS
from tools.manual.help_text import example_blocks, fold, help_blocks, table_blocks
from tools.manual.options import range_text
from tools.manual.pages import all_pages, suite
from tools.manual.roff import SIGNS, escape, fill, inline, literal
from tools.manual.source import read_sections
from tools.manual.tensors import documents, fill_tables

PAGES = dict(all_pages(ROOT))
COMMANDS = suite(ROOT)
MACROS = {"TH", "SH", "SS", "PP", "TP", "EX", "EE", "nh", "ad", "nr", "ss", "ie", "el", '\\"'}


def plain(page: str) -> str:
    """Return a page's text without fonts, escapes and line ends."""
    text = re.sub(r"\\f[BIR]", "", page).replace(r"\-", "-").replace(r"\(aq", "'").replace(r"\e", "\\")
    return " ".join(text.split())


def needs(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not installed")
    return found


def shown(name: str, width: int, locale: str) -> str:
    """Return a page as man shows it; warnings are errors."""
    environment = os.environ | {"LC_ALL": locale, "MANWIDTH": str(width), "MANROFFOPT": "", "MANPAGER": "cat"}
    words = [needs("man"), "--warnings", "-l", str(ROOT / "man" / name)]
    ended = subprocess.run(words, capture_output=True, env=environment, check=False)
    assert ended.returncode == 0 and not ended.stderr, ended.stderr.decode()
    return re.sub(r".\x08", "", ended.stdout.decode())


def test_pages_are_those_that_the_commands_make() -> None:
    lying = {f"{path.parent.name}/{path.name}": path.read_text(encoding="ascii") for path in (ROOT / "man").glob("man?/*")}
    stale = {name for name in lying.keys() | PAGES.keys() if lying.get(name) != PAGES.get(name)}
    assert not stale, f"{', '.join(sorted(stale))}: run make man"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_page_says_what_help_says(name: str) -> None:
    command, text = COMMANDS[name], plain(PAGES[f"man1/{name}.1"])
    for option in command.get_params(click.Context(command, info_name=name, **command.context_settings)):
        if isinstance(option, click.Option) and not option.hidden:
            assert all(word in text for word in option.opts), option.opts
            assert not isinstance(option.type, click.Choice) or all(choice in text for choice in option.type.choices)
            assert option.default in (None, False, True, ()) or "Sentinel" in str(option.default) or str(option.default) in text
    for title in ("NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "ENVIRONMENT", "FILES", "EXAMPLES", "SEE ALSO"):
        assert re.search(f'^.SH "?{title}"?$', PAGES[f"man1/{name}.1"], re.MULTILINE), title


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_survive_their_folding(name: str) -> None:
    """Joined by the rules of the shell, the lines of EXAMPLES are those of --help."""
    examples = help_blocks(COMMANDS[name].help or "")[2]
    body = PAGES[f"man1/{name}.1"].split(".SH EXAMPLES\n")[1].split(".SH")[0]
    joined = plain(re.sub(r"^\.\w\w\n", "", body, flags=re.MULTILINE).replace("\\e\n", " "))
    for line in examples:
        command, _, comment = line.partition(" # ")
        assert " ".join(command.split()) in joined
        assert all(word in joined for word in comment.split())


def test_every_page_spoken_of_is_there() -> None:
    for name, text in PAGES.items():
        for other, number in re.findall(r"\b(clip[a-z-]+)\(([1-9])\)", plain(text)):
            assert f"man{number}/{other}.{number}" in PAGES, f"{name}: {other}({number})"
    assert all(f"{name}(1)" in plain(PAGES["man1/cliptools.1"]) for name in COMMANDS)


def test_only_known_macros_and_ascii() -> None:
    for name, text in PAGES.items():
        assert text.isascii() and text.endswith("\n")
        for line in text.splitlines():
            assert not line.startswith("'") and (not line.startswith(".") or line[1:].split(" ")[0] in MACROS), f"{name}: {line}"


def test_the_stream_page_knows_tensors_and_records() -> None:
    from cliptools.front.unit_records import unit_records

    text = PAGES["man5/cliptools-stream.5"]
    assert all(rf"\fB{literal(name)}\fR" in text for name in TENSORS)
    for record in unit_records(small_bundle(units=2, words=True)):
        assert all(rf"\fB{literal(key)}\fR" in text for key in record), record.keys()


def test_tables_of_documents_are_those_of_the_schema(tmp_path: Path) -> None:
    stale = [page.name for page in documents(ROOT) if page.read_text(encoding="utf-8") != fill_tables(page.read_text("utf-8"))]
    assert not stale, f"{', '.join(stale)}: run make man"
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("no table\n")
    with pytest.raises(ValueError, match="needs a part <!-- tensors -->"):
        documents(tmp_path)
    page = tmp_path / "docs" / "format.md"
    page.write_text("a\n<!-- tensors -->\nSTALE\n<!-- end -->\nb\n<!-- header -->\n<!-- end -->\nc\n")
    assert documents(tmp_path) == [page]
    filled = fill_tables(page.read_text())
    assert fill_tables(filled) == filled and "STALE" not in filled and [filled[0], filled[-2]] == ["a", "c"]
    rows = [line.split(" | ") for line in filled.splitlines() if line.startswith("| `")]
    assert [row[0].strip("|` ") for row in rows][: len(TENSORS)] == list(TENSORS)
    assert "| `unit` | [U, 3] int32 | layer, neuron, head; −1 where not applicable |  |" in filled
    assert "| `settings.words.m` | a number from 0 on | largest number of texts per unit |" in filled


def test_the_stream_page_says_what_history_leaves_out() -> None:
    text = PAGES["man5/cliptools-stream.5"].split(".SS History")[1].split(".SS")[0]
    named = {parameter.name: parameter.opts for command in COMMANDS.values() for parameter in command.params}
    inputs = {"paths", "bundle"}
    assert all(literal(named[name][-1]) in text for name in NOT_IN_HISTORY - inputs if name in named)


def test_roff_is_escaped() -> None:
    assert inline("--a-b of `x-'y'`, clip-view(1)") == r"\fB\-\-a\-b\fR of \fBx\-\(aqy\(aq\fR, \fBclip\-view\fR(1)"
    assert inline("neuron-head, a - b") == "neuron-head, a - b" and inline("-o FILE") == r"\fB\-o\fR FILE"
    assert escape(r"a\b ^ ~") == r"a\eb \(ha \(ti" and literal("`") == r"\(ga"
    assert fill(".part 'is'") == r"\&.part 'is'" and fill("'so'") == r"\&'so'"
    assert escape("φ − ‖r̂‖…") == r"\[u03C6] \[u2212] \*(v1r\(ha\*(v1\*(v2"
    with pytest.raises(ValueError, match="☃ needs a replacement"):
        escape("☃")


def test_ranges_and_lines_in_words() -> None:
    said = {
        "x>=1": "at least 1",
        "16<=x<=8192": "16 to 8192",
        "x>0": "above 0",
        "0<x<=1": "above 0, at most 1",
        "0<x<1": "above 0, below 1",
    }
    assert {bounds: range_text(bounds) for bounds in said} == said
    assert fold("a | b # why", 9) == ("# why", "a | b")
    assert fold("aaaa --bb cc | dd --ee ff", 16) == ("aaaa --bb cc |", "    dd --ee ff")
    assert fold("jq '.a | .b' > file", 14) == ("jq '.a | .b' \\", "    > file")
    assert [block.roff(False) for block in example_blocks(["  a", "  b", "Now:", "  c"])] == [
        ".PP\n.EX\na\nb\n.EE\n", ".PP\nNow:\n", ".PP\n.EX\nc\n.EE\n",
    ]  # fmt: skip


def test_tables_of_a_help_text_become_definitions() -> None:
    lines = ["Kinds:", "  a     one        bb   two", "  c, d    three", "  eeeee four", "        and more", "After", "all."]
    assert [block.roff(True) for block in table_blocks(lines)] == [
        "Kinds:\n", ".TP\n\\fBa\\fR\none\n", ".TP\n\\fBbb\\fR\ntwo\n", ".TP\n\\fBc\\fR, \\fBd\\fR\nthree\n",
        ".TP\n\\fBeeeee\\fR\nfour and more\n", "After all.\n",
    ]  # fmt: skip


def test_sources_are_checked(tmp_path: Path) -> None:
    source = tmp_path / "x.md"
    source.write_text("# A\n\n?device,llm\nOnly for some.\n\n`T`\n:   Means\n    this.\n")
    assert len(read_sections(source, {"device"})["A"]) == 2 and len(read_sections(source)["A"]) == 1
    source.write_text("no section\n")
    with pytest.raises(ValueError, match="expected a # SECTION"):
        read_sections(source)
    source.write_text("# A\n\n@tensors\n")
    with pytest.raises(ValueError, match="nothing to place"):
        read_sections(source)


def test_mandoc_finds_nothing() -> None:
    words = [needs("mandoc"), "-T", "lint", "-W", "warning", *(str(ROOT / "man" / name) for name in PAGES)]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ended.returncode == 0 and not ended.stdout, ended.stdout


@pytest.mark.parametrize("name", sorted(PAGES))
def test_man_shows_it_on_a_narrow_page(name: str) -> None:
    text = shown(name, 60, "C")
    assert text.isascii() and "NAME" in text and "SEE ALSO" in text
    wide = [line for line in text.splitlines() if len(line) > 60 and not line.strip().startswith("# ")]
    assert not wide, wide


def test_signs_with_and_without_utf8() -> None:
    wide, ascii_only = shown("man5/cliptools-stream.5", 80, "C.UTF-8"), shown("man5/cliptools-stream.5", 80, "C")
    assert "‖φ − b‖" in wide and "||<phi> - b||" in ascii_only
    assert len(set(SIGNS)) == len({name for name, _ in SIGNS.values()})


def test_whatis_can_read_the_names() -> None:
    words = [needs("lexgrog"), *(str(ROOT / "man" / name) for name in sorted(PAGES))]
    ended = subprocess.run(words, capture_output=True, text=True, check=True)
    assert len(ended.stdout.splitlines()) == len(PAGES) and "unknown" not in ended.stdout


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a new virtual environment with a wheel of this checkout, without the models and artwork.

    The test does not install into the environment of the tests, not even with --prefix: pip would take the editable install there
    for an earlier version and remove it.
    """
    if int(metadata.version("setuptools").split(".")[0]) < 77 if find_spec("setuptools") else True:
        pytest.skip("setuptools 77 or later is not installed")
    place = tmp_path_factory.mktemp("wheel")
    checkout = place / "checkout"
    ignored = shutil.ignore_patterns("*.safetensors", "*.webp", "*.jsonl", "__pycache__")
    for folder in ("cliptools", "man", "completion"):
        if (ROOT / folder).exists():
            shutil.copytree(ROOT / folder, checkout / folder, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    venv.create(place / "venv")
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(place), str(checkout))
    (wheel,) = place.glob("*.whl")
    assert sum("share/man/" in name for name in zipfile.ZipFile(wheel).namelist()) == len(PAGES)
    pip("--python", str(place / "venv"), "install", "--no-deps", "--no-index", "--no-compile", str(wheel))
    return place / "venv"


def pip(*words: str) -> None:
    """Run pip without the user's settings and without the packages of PYTHONPATH."""
    command = [sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check", "--no-cache-dir", "--quiet", *words]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "PYTHON"))}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert ended.returncode == 0, ended.stderr


def test_the_wheel_installs_the_commands(prefix: Path) -> None:
    assert {path.name for path in (prefix / "bin").glob("clip-*")} == set(COMMANDS)
    assert [path.name for path in prefix.glob("lib/python*/site-packages/cliptools-*")]


def test_the_wheel_installs_completion(prefix: Path) -> None:
    places = {
        "bash": "bash-completion/completions", "zsh": "zsh/site-functions", "fish": "fish/vendor_completions.d",
        "fish-functions": "fish/vendor_functions.d",
    }  # fmt: skip
    scripts = [*(ROOT / "completion").glob("*/*")]
    assert len(scripts) == 2 * len(COMMANDS) + 4
    for path in scripts:
        assert (prefix / "share" / places[path.parent.name] / path.name).read_bytes() == path.read_bytes()


def test_the_wheel_installs_them(prefix: Path) -> None:
    for name, text in PAGES.items():
        assert (prefix / "share" / "man" / name).read_text(encoding="ascii") == text
    environment = os.environ | {"MANPATH": str(prefix / "share" / "man"), "MANPAGER": "cat"}
    ended = subprocess.run([needs("man"), "clip-view"], capture_output=True, text=True, env=environment, check=True)
    assert "clip-view" in ended.stdout and "SYNOPSIS" in re.sub(".\x08", "", ended.stdout)
