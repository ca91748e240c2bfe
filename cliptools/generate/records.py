"""Records that pass between clip-spurious, clip-advgen and other generators: words a pair, descriptions, and pictures of them.

A folder of pictures that a run fills and a later run may go on with.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BufferedIOBase, BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from cliptools.errors import CliptoolsError, StreamError
from cliptools.io.cache import check_same, whole_lines
from cliptools.io.files import put_whole, whole_file
from cliptools.io.header import NAMED, SETTLED, canonical
from cliptools.io.jsonl import objects, whole_number, write_record

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


LINES = "images.jsonl"
DESCRIPTIONS = "descriptions.jsonl"


class Gallery:
    """Pictures with a line each in images.jsonl, and the descriptions they were made of in descriptions.jsonl.

    A line is written when its picture is whole, so that whatever ends a run, the lines tell what is done.

    Args:
        folder: Made if need be.
        resume: Whether to go on with what is there.

    Raises:
        CliptoolsError: a folder that is not empty, without `resume`; one that cannot be written; or a damaged list in it.
    """

    def __init__(self, folder: Path, resume: bool) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not resume and any(folder.iterdir()):
                raise CliptoolsError(f"{folder}: not empty; go on with what is there (--resume), or name a new folder")
        except OSError as error:
            raise CliptoolsError(f"{folder}: cannot write here ({error.strerror})") from None
        listed = self._lines(LINES, file=str)
        there = [record for record in listed if (folder / record["file"]).is_file()]
        if len(there) < len(listed):  # pictures that somebody has removed are made again
            with whole_file(folder / LINES) as stream:
                for record in there:
                    write_record(stream, record)
        self.done = {record["file"]: record for record in there}
        self.described = {
            record["key"]: record for record in self._lines(DESCRIPTIONS, key=str, descriptions=list, settings=dict)
        }

    def path(self, name: str) -> str:
        """What a record calls the picture of this name."""
        return str(self.folder / name)

    def finished(self, name: str, wanted: dict[str, Any]) -> dict[str, Any] | None:
        """The record of a picture that an earlier run has finished.

        Raises:
            CliptoolsError: a field of it is not as wanted: it was made with other settings.
        """
        record = self.done.get(name)
        if record is None:
            return None
        for key, value in wanted.items():
            check_same(self.folder, key, record.get(key), value)
        return record | {"file": self.path(name)}

    def descriptions(self, key: str, settings: dict[str, Any]) -> list[str] | None:
        """What an earlier run has written for a task.

        Raises:
            CliptoolsError: written with other settings.
        """
        record = self.described.get(key)
        if record is None:
            return None
        check_same(self.folder, "settings", record["settings"], settings)
        return [str(text) for text in record["descriptions"]]

    def add(self, name: str, image: Image.Image, record: dict[str, Any]) -> None:
        """A picture, then its line; there it is called by its place in the folder, which may be moved."""
        self.put(name, image)
        self._append(LINES, record | {"file": name})

    def add_descriptions(self, key: str, texts: list[str], settings: dict[str, Any]) -> None:
        """All descriptions of a task."""
        self._append(DESCRIPTIONS, {"key": key, "descriptions": texts, "settings": settings})

    def put(self, name: str, image: Image.Image) -> None:
        """The picture as PNG, whole or not at all, with nothing in it but pixels."""
        path = self.folder / name
        buffer = BytesIO()
        Image.frombytes("RGB", image.size, image.convert("RGB").tobytes()).save(buffer, "PNG")
        try:
            put_whole(path, buffer.getvalue())
        except OSError as error:
            raise CliptoolsError(f"{path}: could not be written ({error.strerror})") from None

    def _append(self, name: str, record: dict[str, Any]) -> None:
        path = self.folder / name
        try:
            with path.open("ab") as stream:
                write_record(stream, record)
        except OSError as error:
            raise CliptoolsError(f"{path}: could not be written ({error.strerror})") from None

    def _lines(self, name: str, **needed: type) -> list[dict[str, Any]]:
        path = self.folder / name
        found = list(whole_lines(path)) if path.exists() else []
        for number, record in enumerate(found, 1):
            if missing := next((key for key, kind in needed.items() if not isinstance(record.get(key), kind)), None):
                raise CliptoolsError(f"{path}: damaged (line {number} has no `{missing}`); remove it, or name a new folder")
        return found


def slug(text: str) -> str:
    """A text as a part of a path."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower().replace("->", " to ")).strip("-") or "pair"
