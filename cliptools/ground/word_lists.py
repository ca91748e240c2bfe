"""Records that pass between clip-spurious, clip-advgen and other generators: words a pair, descriptions, and pictures of them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BufferedIOBase
from typing import Any

from cliptools.ground.errors import StreamError
from cliptools.ground.model_identity import NAMED, SETTLED
from cliptools.ground.provenance import canonical
from cliptools.ground.records import objects
from cliptools.ground.whole_numbers import whole_number

KINDS: dict[str, type] = {
    "depict": str, "predict": str, "word": str, "description": str, "file": str, "by": str, "seed": int, "rank": int,
    "caption": int, "model": dict, "words": list, "effect": str, "pair": str, "bundle": str, "exclusions": dict, "settings": dict,
}  # fmt: skip
"""What a field must be wherever it stands; `null` is taken for a field that is not there."""

ORDERS = {"first": "first-order", "second": "second-order"}


@dataclass(frozen=True)
class Task:
    """One run of a search for one pair: a picture that shows `depict` and is taken for `predict`."""

    pair: str
    depict: str
    predict: str
    by: str
    """How the words were found: effect, random, similar…"""
    effect: str | None
    """Which effect of the neurons: second-order, indirect…"""
    seed: int
    """Of the words' search, not of the pictures."""
    model: dict[str, Any]
    """name, pretrained, sha256; architecture and preprocessing where these do not settle them."""
    bundle: str | None

    @property
    def title(self) -> str:
        """`cat->dog by second-order effect, seed 0`."""
        return f"{self.pair} by {self.kind}, seed {self.seed}"

    @property
    def kind(self) -> str:
        """`second-order effect`, `indirect effect`, `random`…"""
        if self.by != "effect" or self.effect is None:
            return self.by
        return f"{ORDERS.get(self.effect, self.effect)} effect"

    @property
    def key(self) -> str:
        """What tells it from others."""
        return canonical([self.fields, self.source])

    @property
    def fields(self) -> dict[str, Any]:
        """What every record of it begins with."""
        named = {"pair": self.pair, "depict": self.depict, "predict": self.predict}
        return named | {"by": self.by, "effect": self.effect, "seed": self.seed}

    @property
    def source(self) -> dict[str, Any]:
        """What every record of it ends with."""
        return {"model": self.model, "bundle": self.bundle}


@dataclass(frozen=True)
class WordList:
    """A task and its words, the strongest first."""

    task: Task
    words: tuple[str, ...]
    forbidden: tuple[str, ...] = ()
    """Texts that the search was told to leave out: the predicted class' synonyms, and others."""


@dataclass(frozen=True)
class Description:
    """What a picture is to show or, made elsewhere, shows."""

    task: Task
    number: int
    """Within its task, from 0."""
    text: str
    words: tuple[str, ...] = ()
    """Those of the task's words that the text names."""
    settings: dict[str, Any] = field(default_factory=dict)
    """How it was written."""
    file: str | None = None
    """A picture of it that is already there."""


def read_records(stream: BufferedIOBase, name: str, *needed: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSONL stream with their line numbers; blank lines are passed over.

    Raises:
        StreamError: a line that is no JSON object, lacks one of `needed`, or has a field of the wrong type.
    """
    for number, said in objects(stream, name):
        record = {key: _whole(value) if KINDS.get(key) is int else value for key, value in said.items() if value is not None}
        for key in needed:
            if key not in record:
                raise StreamError(f"{name}, line {number}: expected `{key}`, found {', '.join(record) or 'an empty object'}")
        for key, kind in KINDS.items():
            if key in record and not _is(record[key], kind):
                expected = {str: "a text", int: "a whole number", dict: "an object", list: "a list of texts"}[kind]
                raise StreamError(f"{name}, line {number}: `{key}` should be {expected}, found {str(record[key])[:40]!r}")
        yield number, record


def read_word_lists(stream: BufferedIOBase, name: str) -> list[WordList]:
    """clip-spurious's lines, a list a task, in the order in which tasks first appear.

    Raises:
        StreamError: nothing there, or lines of another kind.
    """
    tasks: dict[str, Task] = {}
    words: dict[str, list[tuple[int, str]]] = {}
    forbidden: dict[str, dict[str, None]] = {}
    for number, record in read_records(stream, name, "depict", "predict", "word", "model"):
        task = _task(record, f"{name}, line {number}")
        tasks.setdefault(task.key, task)
        ranked = words.setdefault(task.key, [])
        ranked.append((record.get("rank", len(ranked) + 1), record["word"]))
        names = record.get("exclusions", {}).get("names", ())
        forbidden.setdefault(task.key, {}).update(dict.fromkeys(map(str, names if isinstance(names, list) else ())))
    if not tasks:
        raise StreamError(f"{name}: empty, expected words of clip-spurious, one JSON object a line")
    return [WordList(task, _ranked(words[key]), tuple(forbidden[key])) for key, task in tasks.items()]


def read_descriptions(stream: BufferedIOBase, name: str) -> list[Description]:
    """Lines of `clip-advgen --captions-only`, or of another generator that has added a `file` to them.

    Raises:
        StreamError: nothing there, or a line without `description` or `file`.
    """
    found: list[Description] = []
    counts: dict[str, int] = {}
    for number, record in read_records(stream, name, "depict", "predict", "model"):
        if "description" not in record and "file" not in record:
            raise StreamError(f"{name}, line {number}: expected `description` (to paint) or `file` (to judge)")
        task = _task(record, f"{name}, line {number}")
        place = counts[task.key] = counts.get(task.key, -1) + 1
        found.append(
            Description(
                task,
                record.get("caption", place),
                record.get("description", ""),
                tuple(map(str, record.get("words", ()))),
                record.get("settings", {}),
                record.get("file"),
            )
        )
    if not found:
        raise StreamError(f"{name}: empty, expected lines of clip-advgen --captions-only")
    return found


def _ranked(words: list[tuple[int, str]]) -> tuple[str, ...]:
    """Each word once, by rank."""
    return tuple(dict.fromkeys(word for _, word in sorted(words, key=lambda ranked: ranked[0])))


def _task(record: dict[str, Any], where: str) -> Task:
    model = record["model"]
    if not isinstance(model.get("name"), str) or not isinstance(model.get("sha256"), str):
        raise StreamError(f"{where}: `model` should hold name, pretrained and sha256, found {', '.join(model) or 'nothing'}")
    depict, predict = record["depict"], record["predict"]
    if not isinstance(model.get("architecture", ""), str) or not all(
        isinstance(model.get(key, {}), dict) for key in ("preprocessing", "sources")
    ):
        raise StreamError(f"{where}: `model` should hold a text as architecture, and objects as preprocessing and sources")
    named = {key: model.get(key) for key in NAMED} | {key: model[key] for key in SETTLED if key in model}
    pair, by, seed = record.get("pair", f"{depict}->{predict}"), record.get("by", "given"), record.get("seed", 0)
    return Task(pair, depict, predict, by, record.get("effect"), seed, named, record.get("bundle"))


def _whole(value: Any) -> Any:
    """`0.0` as 0, as tables write whole numbers that have gone through floating point; anything else as it is."""
    return value if isinstance(value, str) or (number := whole_number(value)) is None else number


def _is(value: Any, kind: type) -> bool:
    """Of this type; no empty text, no truth value for a number, and in a list texts only."""
    if kind is list:
        return isinstance(value, list) and all(isinstance(each, str) for each in value)
    return isinstance(value, kind) and not isinstance(value, bool) and value != ""
