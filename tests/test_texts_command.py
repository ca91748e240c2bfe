"""clip-texts: prompts, filter, and the real SmolLM2 in processes that are killed, resumed, and left by their readers."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
from helpers import ROOT
from helpers.advgen_input import inside, parsed

from cliptools.errors import TextError
from cliptools.generate.class_descriptions import (
    QUESTIONS,
    ROUNDS,
    characteristics,
    clean_answer,
    fault_of,
    grammar_of,
    question_messages,
)
from cliptools.text.classes import ClassName, names_pattern, parse_class
from cliptools.text.vocabularies import load_pool

Run = Callable[..., subprocess.CompletedProcess[bytes]]
CLASSES = ("violin", "lighthouse, beacon")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("four strings and a bow", None),
        ("made of wood", None),
        ("found in a violinist's hands", None),
        ("a Violin on a table", "naming the class"),
        ("two violins in a case", "naming the class"),
        ("a big fiddle", "naming the class"),
        ("strings", "too short or too long"),
        ("a b c d e f g h i j k l m", "too short or too long"),
        ("strings, strings and a bow", "repeating a word"),
        ("the top of the neck of the thing", None),
    ],
)
def test_what_passes(text: str, fault: str | None) -> None:
    assert fault_of(text, names_pattern(["violin", "fiddle"])) == fault


def test_what_an_answer_says() -> None:
    has, made = QUESTIONS[0], QUESTIONS[2]
    assert clean_answer("An owl has two  round eyes, and it is a bird.", "owl", has) == "two round eyes"
    assert clean_answer("An owl is made of feathers, ", "owl", made) == "made of feathers"
    assert clean_answer("An owl has a small bit of white.", "owl", has) == "a small bit of white"


def test_what_is_asked() -> None:
    system, *turns = question_messages("violin", QUESTIONS[1])
    assert system["role"] == "system" and turns[-1] == {"role": "user", "content": "What parts has a violin?"}
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * (len(turns) // 2) + ["user"]
    assert turns[:-1] == question_messages("owl", QUESTIONS[5])[1:-1]  # the part that is read once
    assert grammar_of('odd "\\ name', QUESTIONS[2]).startswith(r'root ::= "An odd \"\\ name is made of " [a-z]')


class Scripted:
    """A model that gives the same few answers in turn."""

    def __init__(self, *answers: str) -> None:
        self.answers, self.seeds, self.forgot = answers, list[int](), 0

    def forget(self) -> None:
        """See Chat."""
        self.forgot += 1

    def answer(
        self, messages: list[dict[str, str]], grammar: str, seed: int, *, temperature: float, top_p: float, longest: int
    ) -> str:
        """See Chat."""
        self.seeds.append(seed)
        opening = re.search(r'"(.*?)" \[', grammar)
        assert opening
        return opening[1] + self.answers[(len(self.seeds) - 1) % len(self.answers)]


def test_faults_are_counted_and_others_asked_for() -> None:
    chat = Scripted("four strings.", "violins in a row.", "flour, eggs and sugar.", "four STRINGS.", "a long", ".")
    taken, faults = {"used four strings"}, Counter[str]()
    texts = list(characteristics(chat, parse_class("violin, fiddle"), taken, faults, count=4, seed=0))
    assert texts == ["four strings", "found four STRINGS", "flour, eggs and sugar", "near four strings"]
    dropped = {"naming the class": 2, "copied from the question": 1, "unfinished": 2, "too short or too long": 2}
    assert faults == dropped | {"there already": 2} and len(chat.seeds) == 13
    assert chat.forgot == 1 and len(set(chat.seeds)) == len(chat.seeds) and set(map(str.lower, texts)) < taken


def test_asked_so_often_and_no_more() -> None:
    chat, faults = Scripted("a violin."), Counter[str]()
    assert not list(characteristics(chat, ClassName("violin"), set(), faults, count=5, seed=0))
    assert len(chat.seeds) == 5 * ROUNDS and faults == {"naming the class": 5 * ROUNDS}


def test_a_model_that_only_ever_names_the_class(classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Named(Scripted):
        identity: ClassVar = {"name": "scripted"}

        def close(self) -> None:
            """See ChatModel."""

    monkeypatch.setattr("cliptools.cli.run.texts.open_chat", lambda *_, **__: Named("a violin.", "a beacon and a violin."))
    target = tmp_path / "pool.txt"
    done = inside("texts", "--classes", classes, "--limit", 1, "--per-class", 2, "-o", target)
    last = done.stderr.decode().splitlines()[-1]
    assert done.returncode == 1 and last == f"clip-texts: no usable text for 1 class (dropped: {2 * ROUNDS} naming the class)"
    assert not target.exists()


def test_pools_of_records(tmp_path: Path) -> None:
    (tmp_path / "pool.jsonl").write_text(
        '{"text": "four strings", "n": 1}\n\n{"text": " round eyes "}\n{"text": "four strings"}\n'
    )
    (tmp_path / "pool.txt").write_text("four strings\nround eyes\n")
    records, lines = load_pool(str(tmp_path / "pool.jsonl")), load_pool(str(tmp_path / "pool.txt"))
    assert records.texts == ("four strings", "round eyes") and records.digest == lines.digest
    for line in ("four strings", "[1]", '{"word": "x"}', '{"text": 3}'):
        (tmp_path / "bad.jsonl").write_text(f'{{"text": "a"}}\n{line}\n')
        with pytest.raises(TextError, match=r"records with a `text`.*\(record 2\)"):
            load_pool(str(tmp_path / "bad.jsonl"))


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "classes.txt"
    path.write_text("\n".join(CLASSES) + "\n")
    return path


@pytest.fixture(scope="module")
def spoken(run: Run, classes: Path) -> bytes:
    """Return the lines of the real model in a run without interruption."""
    done = run("texts", "--classes", classes, "--per-class", 2, "-f", "jsonl")
    assert done.returncode == 0, done.stderr
    said = done.stderr.decode().splitlines()[-1]
    assert re.fullmatch(
        r"clip-texts: 2 classes, 4 texts, \d+ answers? dropped \(.*\) \([\d.]+ s, of which .* s over 2 classes, .* GB\)", said
    )
    return done.stdout


def test_smollm2_describes(spoken: bytes) -> None:
    records = parsed(spoken)
    texts = [record["text"].lower() for record in records]
    assert [record["number"] for record in records] == [0, 0, 1, 1] and len(set(texts)) == 4
    for record in records:
        each = parse_class(CLASSES[record["number"]])
        assert (
            list(record) == ["text", "class", "number", "seed", "model"] and record["class"] == each.name and record["seed"] == 0
        )
        assert re.fullmatch(r"[a-z][\w ,'-]+", record["text"]) and not names_pattern(each.names).search(record["text"])
        assert record["model"]["name"].startswith("SmolLM2") and len(record["model"]["sha256"]) == 64


def test_a_killed_run_goes_on_and_the_bytes_are_the_same(run: Run, classes: Path, spoken: bytes, tmp_path: Path) -> None:
    """kill -9 between classes, with half a line after them; also as plain lines, which are a pool."""
    target, left = tmp_path / "pool.txt", tmp_path / "pool.txt.part"
    asked = ("--classes", classes, "--per-class", 2, "-o", target)
    words = [sys.executable, "-m", "cliptools.cli.texts", *map(str, asked)]
    process = subprocess.Popen(words, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    patience = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < patience and not (left.exists() and left.read_bytes().count(b"\n") > 1):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not target.exists()
    with left.open("ab") as stream:
        stream.write(b'{"class": "lightho')
    refused = inside("texts", *asked)
    assert refused.returncode == 1 and b"left by an earlier run; continue it with --resume" in refused.stderr
    other = inside("texts", *asked, "--seed", 1, "--resume")
    assert other.returncode == 1 and b"started with seed 0, now asked for 1" in other.stderr
    others = inside("texts", "--classes", "cifar10", *asked[2:], "--resume")
    assert others.returncode == 1 and b"'violin', expected 'airplane'; use the same --classes or another output" in others.stderr
    done = run("texts", *asked, "--resume")
    assert done.returncode == 0 and b"1 of 2 classes taken from the interrupted run" in done.stderr
    assert target.read_text().splitlines() == [record["text"] for record in parsed(spoken)] and not left.exists()
    assert load_pool(str(target)).texts == tuple(record["text"] for record in parsed(spoken))


def test_a_reader_that_leaves(classes: Path, spoken: bytes) -> None:
    """Lines are written as soon as they exist, so a reader may close the pipe after the first."""
    words = [sys.executable, "-m", "cliptools.cli.texts", "--classes", str(classes), "--per-class", "2", "-f", "jsonl", "-q"]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        first = json.loads(process.stdout.readline())
        process.stdout.close()
        assert process.wait(timeout=120) == 0 and process.stderr.read() == b""
    assert first == parsed(spoken)[0]


def test_the_pool_describes_neurons(spoken: bytes, tmp_path: Path) -> None:
    (tmp_path / "pool.jsonl").write_bytes(spoken)
    effects = inside("effects", "--layers", 6, "--limit", 40, "--top-images", 4, "-o", tmp_path / "e.safetensors")
    assert effects.returncode == 0, effects.stderr
    done = inside("decompose", tmp_path / "e.safetensors", "--pool", tmp_path / "pool.jsonl", "--m", 2, "-f", "jsonl")
    assert done.returncode == 0, done.stderr
    said = {word["word"] for record in parsed(done.stdout) for word in record["words"]}
    assert said == {record["text"] for record in parsed(spoken)}


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ((), 2, "--classes"),
        (("--classes", "nowhere.txt"), 1, "neither a file nor one of cifar10, emoji, imagenet"),
        (("--classes", "cifar10", "--llm", "nowhere.gguf"), 2, "expected smollm2, a GGUF file"),
        (("--classes", "cifar10", "--llm", "template"), 2, "expected smollm2, a GGUF file"),
        (("--classes", "cifar10", "--resume"), 2, "--resume needs -o FILE"),
        (("--classes", "cifar10", "-o", "/nowhere/pool.txt"), 1, "/nowhere/pool.txt.part: cannot write here"),
    ],
)
def test_what_cannot_be(run: Run, arguments: tuple[str, ...], status: int, said: str) -> None:
    done = run("texts", *arguments)
    last = done.stderr.decode().splitlines()[-1]
    assert done.returncode == status and said in last and done.stdout == b"" and b"Traceback" not in done.stderr


def test_help(run: Run) -> None:
    done = run("texts", "--help")
    assert done.returncode == 0 and b"never name them" in done.stdout and b"clip-decompose --pool" in done.stdout
