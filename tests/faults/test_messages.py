"""Every message of the suite, by an input that raises it: messages.txt, and what an input cannot raise here."""

import ast
import importlib
import io
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from helpers import ROOT
from helpers.elsewhere import ELSEWHERE
from helpers.message_inputs import make_bundles, make_damaged, make_parts, make_pictures, make_texts
from helpers.streams import partial_bytes

from cliptools.errors import CliptoolsError, ModelError
from cliptools.models.load import load_model
from cliptools.towers.kinds import supported_tower
from cliptools.unit_effects.resnet_pooling import supported_resnet

PACKAGE = ROOT / "cliptools"
CLASSES = {"CliptoolsError", "UsageError", "ModelError", "StreamError", "ImageError", "TextError"}
LIST = Path(__file__).with_name("messages.txt")


class Entry(NamedTuple):
    """A command line, and what becomes of it."""

    line: str
    status: int
    key_words: tuple[str, ...]


class Site(NamedTuple):
    """Where an error is made."""

    file: str
    first: int
    last: int
    function: str


def entries() -> list[Entry]:
    """Those of messages.txt."""
    lines = [line for line in LIST.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    listed = [(command, *words.partition(" ")[::2]) for command, words in zip(lines[::2], lines[1::2], strict=True)]
    return [Entry(command[2:], int(status), tuple(words.split(" | "))) for command, status, words in listed]


def sites() -> Iterator[Site]:
    """Each place in the code that makes one of CLASSES."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        yield from sites_in(ast.parse(path.read_text(encoding="utf-8")), name, "")


def sites_in(node: ast.AST, file: str, function: str) -> Iterator[Site]:
    """Those below a node, which lies in this function (its qualified name)."""
    for child in ast.iter_child_nodes(node):
        named = isinstance(child, ast.FunctionDef | ast.ClassDef)
        if isinstance(child, ast.Call) and isinstance(child.func, ast.Name) and child.func.id in CLASSES:
            yield Site(file, child.lineno, child.end_lineno or child.lineno, function)
        yield from sites_in(child, file, f"{function}.{child.name}".lstrip(".") if named else function)


@pytest.fixture(scope="module")
def raised() -> Iterator[set[tuple[str, int]]]:
    """File and line of every error that is made while these tests run."""
    seen: set[tuple[str, int]] = set()

    def record(self: CliptoolsError, *arguments: Any) -> None:
        Exception.__init__(self, *arguments)
        caller = sys._getframe(1)
        path = Path(caller.f_code.co_filename)
        if path.is_relative_to(PACKAGE):
            seen.add((path.relative_to(PACKAGE).as_posix(), caller.f_lineno))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CliptoolsError, "__init__", record)
        yield seen


@pytest.fixture(scope="module")
def tried() -> set[str]:
    """Lines of the entries that were tried already, in whatever order the tests run."""
    return set()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("inputs")
    model, resnet = (load_model(name, device="cpu").identity for name in ("emoji-vit2", "emoji-rn2"))
    make_bundles(made, model, resnet)
    make_damaged(made)
    make_parts(made, partial_bytes)
    make_texts(made, model)
    make_pictures(made)
    return made


def ended(command: str, stdin: bytes) -> tuple[int, bytes, list[str]]:
    """Status, stdout and the lines of stderr of a command within this process."""
    name, *arguments = shlex.split(command)
    main = importlib.import_module(f"cliptools.cli.{name.removeprefix('clip-').replace('-', '_')}").main
    streams = [io.TextIOWrapper(io.BytesIO(data), "utf-8", write_through=True) for data in (stdin, b"", b"")]
    with pytest.MonkeyPatch.context() as patch:
        for each, stream in zip(("stdin", "stdout", "stderr"), streams, strict=True):
            patch.setattr(sys, each, stream)
        with pytest.raises(SystemExit) as stop:
            main.main(arguments)
    out, said = (stream.buffer.getvalue() for stream in streams[1:])
    return int(stop.value.code or 0), out, said.decode().splitlines()


def ran(entry: Entry, folder: Path, tried: set[str]) -> tuple[int, bytes, list[str], str]:
    """What `ended` says of an entry's command, and the command; the current folder is that of the inputs."""
    tried.add(entry.line)
    command, _, file = entry.line.replace("{texts}", " ".join(f"--text t{number}" for number in range(256))).partition(" < ")
    return *ended(command, (folder / file).read_bytes() if file else b""), command


@pytest.mark.parametrize("entry", entries(), ids=lambda entry: entry.line[:80])
def test_a_command_says_what_is_listed(
    entry: Entry, folder: Path, raised: set[tuple[str, int]], tried: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    status, out, lines, command = ran(entry, folder, tried)
    assert status == entry.status and any(all(word in line for word in entry.key_words) for line in lines), lines
    if status:
        assert not [line for line in lines[:-1] if not line.startswith(("clip-", "warning: ", "classes "))], lines
        assert all(word in lines[-1] for word in entry.key_words), lines
        assert out == b"" or "--check" in command
        assert {path: path.stat().st_mtime_ns for path in folder.iterdir() if path in before} == before
        assert not [path for path in folder.iterdir() if path not in before], "something is left"


def test_towers_without_the_effects_that_are_asked_for(raised: set[tuple[str, int]]) -> None:
    """No command comes so far: choose_effects looks at the tower first."""
    with pytest.raises(ModelError, match="this image tower is a ModifiedResNet; supported are"):
        supported_tower(load_model("emoji-rn2", device="cpu").clip)
    with pytest.raises(ModelError, match=r"neuron-head pairs need open_clip's ModifiedResNet, .* is a VisionTransformer"):
        supported_resnet(load_model("emoji-vit2", device="cpu").clip)


def test_every_message_is_listed(
    folder: Path, raised: set[tuple[str, int]], tried: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each place that makes an error has made one, once all entries are tried, or stands in ELSEWHERE with a test or a reason."""
    monkeypatch.chdir(folder)
    for entry in entries():
        if entry.line not in tried:
            ran(entry, folder, tried)
    test_towers_without_the_effects_that_are_asked_for(raised)
    unseen = [site for site in sites() if not any(file == site.file and site.first <= line <= site.last for file, line in raised)]
    missing = [site for site in unseen if (site.file, site.function) not in ELSEWHERE]
    assert not missing, "\n".join(f"{site.file}:{site.first}: in {site.function}" for site in missing)


def test_the_exceptions_are_such() -> None:
    """None is there twice, or of a message that there is no more; a test that is named speaks of it."""
    known = {(site.file, site.function) for site in sites()}
    assert not set(ELSEWHERE) - known, "no error is made there"
    for place, reasons in ELSEWHERE.items():
        for reason in reasons:
            if reason.startswith("tests/"):
                path, _, words = reason.partition(": ")
                assert words in (ROOT / path).read_text(encoding="utf-8"), place
