"""Records of clip-spurious and clip-advgen, and the output folder of clip-advgen.

`read_word_lists` reads the words of clip-spurious by task, `read_descriptions` the descriptions of clip-advgen or of another
generator. A `PictureFolder` is a folder of pictures with a line each, which a run fills and a later run may continue.
Types of fields are checked by hand, because msgspec's messages do not quote the value found.
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
"""The type of each field in any record; `null` counts as a missing field."""

ORDERS = {"first": "first-order", "second": "second-order"}
LINES = "images.jsonl"
DESCRIPTIONS = "descriptions.jsonl"


@dataclass(frozen=True)
class Task:
    """One search for one pair of classes: pictures that show `depict` and are classified as `predict`."""

    pair: str
    depict: str
    predict: str
    by: str
    """The method that found the words: effect, random, similar…"""
    effect: str | None
    """The effect of the neurons: second-order, indirect…"""
    seed: int
    """Random seed of the search for words, not of the pictures."""
    model: dict[str, Any]
    """name, pretrained, sha256; architecture and preprocessing if these do not determine them."""
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
        """A text that identifies the task."""
        return canonical([self.fields, self.source])

    @property
    def fields(self) -> dict[str, Any]:
        """The first fields of every record of the task."""
        classes = {"pair": self.pair, "depict": self.depict, "predict": self.predict}
        return classes | {"by": self.by, "effect": self.effect, "seed": self.seed}

    @property
    def source(self) -> dict[str, Any]:
        """The last fields of every record of the task."""
        return {"model": self.model, "bundle": self.bundle}


@dataclass(frozen=True)
class WordList:
    """A task with its words, strongest first."""

    task: Task
    words: tuple[str, ...]
    forbidden: tuple[str, ...] = ()
    """Texts that the search had to leave out: the predicted class's synonyms, and others."""


@dataclass(frozen=True)
class Description:
    """The content of a picture that is to be painted, or that exists already."""

    task: Task
    number: int
    """Index within the task, from 0."""
    text: str
    words: tuple[str, ...] = ()
    """The words of the task that the text names."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of the writer."""
    file: str | None = None
    """The picture, if it exists already."""


def read_records(stream: BufferedIOBase, name: str, *required: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a JSONL stream with their line numbers; blank lines are skipped.

    Raises:
        StreamError: a line is no JSON object, lacks one of the `required` fields, or has a field of the wrong type.
    """
    for number, line in objects(stream, name):
        record = {key: _as_integer(value) if KINDS.get(key) is int else value for key, value in line.items() if value is not None}
        for key in required:
            if key not in record:
                raise StreamError(f"{name}, line {number}: expected `{key}`, found {', '.join(record) or 'an empty object'}")
        for key, kind in KINDS.items():
            if key in record and not _has_type(record[key], kind):
                expected = {str: "a text", int: "a whole number", dict: "an object", list: "a list of texts"}[kind]
                raise StreamError(f"{name}, line {number}: `{key}` should be {expected}, found {str(record[key])[:40]!r}")
        yield number, record


def read_word_lists(stream: BufferedIOBase, name: str) -> list[WordList]:
    """Read the lines of clip-spurious as one word list per task, in the order in which tasks first appear.

    Raises:
        StreamError: the stream is empty, or has lines of another kind.
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
    """Read the lines of `clip-advgen --captions-only`, or of another generator that has added a `file` to them.

    Raises:
        StreamError: the stream is empty, or a line has neither `description` nor `file`.
    """
    descriptions: list[Description] = []
    counts: dict[str, int] = {}
    for number, record in read_records(stream, name, "depict", "predict", "model"):
        if "description" not in record and "file" not in record:
            raise StreamError(f"{name}, line {number}: expected `description` (to paint) or `file` (to judge)")
        task = _task(record, f"{name}, line {number}")
        place = counts[task.key] = counts.get(task.key, -1) + 1
        descriptions.append(
            Description(
                task,
                record.get("caption", place),
                record.get("description", ""),
                tuple(map(str, record.get("words", ()))),
                record.get("settings", {}),
                record.get("file"),
            )
        )
    if not descriptions:
        raise StreamError(f"{name}: empty, expected lines of clip-advgen --captions-only")
    return descriptions


def _ranked(words: list[tuple[int, str]]) -> tuple[str, ...]:
    """Return each word once, sorted by rank."""
    return tuple(dict.fromkeys(word for _, word in sorted(words, key=lambda ranked: ranked[0])))


def _task(record: dict[str, Any], source: str) -> Task:
    model = record["model"]
    if not isinstance(model.get("name"), str) or not isinstance(model.get("sha256"), str):
        raise StreamError(f"{source}: `model` should hold name, pretrained and sha256, found {', '.join(model) or 'nothing'}")
    depict, predict = record["depict"], record["predict"]
    if not isinstance(model.get("architecture", ""), str) or not all(
        isinstance(model.get(key, {}), dict) for key in ("preprocessing", "sources", "parent")
    ):
        raise StreamError(f"{source}: `model` should hold a text as architecture, objects as preprocessing, sources and parent")
    model_fields = {key: model.get(key) for key in NAMED} | {key: model[key] for key in SETTLED if key in model}
    pair, by, seed = record.get("pair", f"{depict}->{predict}"), record.get("by", "given"), record.get("seed", 0)
    return Task(pair, depict, predict, by, record.get("effect"), seed, model_fields, record.get("bundle"))


def _as_integer(value: Any) -> Any:
    """Return `0.0` as 0, since tables may store whole numbers as floats; any other value is unchanged."""
    return value if isinstance(value, str) or (number := whole_number(value)) is None else number


def _has_type(value: Any, kind: type) -> bool:
    """Return True if the value has this type; texts must not be empty, numbers no booleans, and lists only have texts."""
    if kind is list:
        return isinstance(value, list) and all(isinstance(text, str) for text in value)
    return isinstance(value, kind) and not isinstance(value, bool) and value != ""


class PictureFolder:
    """A folder of pictures with a line each in images.jsonl, and their descriptions in descriptions.jsonl.

    A line is written after its picture is complete, so that the lines are the finished pictures however a run ends.

    Args:
        folder: The folder; created if necessary.
        resume: True to continue an earlier run in this folder.

    Raises:
        CliptoolsError: the folder is not empty (without `resume`), cannot be written, or has a damaged list.
    """

    def __init__(self, folder: Path, resume: bool) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not resume and any(folder.iterdir()):
                raise CliptoolsError(f"{folder}: the folder is not empty; continue it with --resume, or name a new folder")
        except OSError as error:
            raise CliptoolsError(f"{folder}: cannot write here ({error.strerror})") from None
        records = self._lines(LINES, file=str)
        present = [record for record in records if (folder / record["file"]).is_file()]
        if len(present) < len(records):  # pictures that were deleted are made again
            with whole_file(folder / LINES) as stream:
                for record in present:
                    write_record(stream, record)
        self.finished_pictures = {record["file"]: record for record in present}
        self.described = {
            record["key"]: record for record in self._lines(DESCRIPTIONS, key=str, descriptions=list, settings=dict)
        }

    def path(self, name: str) -> str:
        """Return the path that a record has for the picture of this name."""
        return str(self.folder / name)

    def finished(self, name: str, expected: dict[str, Any]) -> dict[str, Any] | None:
        """Return the record of a picture that an earlier run has finished, or None.

        Raises:
            CliptoolsError: a field differs from the expected value, because the picture was made with other settings.
        """
        record = self.finished_pictures.get(name)
        if record is None:
            return None
        for key, value in expected.items():
            check_same(self.folder, key, record.get(key), value)
        return record | {"file": self.path(name)}

    def descriptions(self, key: str, settings: dict[str, Any]) -> list[str] | None:
        """Return the descriptions that an earlier run has written for a task, or None.

        Raises:
            CliptoolsError: they were written with other settings.
        """
        record = self.described.get(key)
        if record is None:
            return None
        check_same(self.folder, "settings", record["settings"], settings)
        return [str(text) for text in record["descriptions"]]

    def add(self, name: str, image: Image.Image, record: dict[str, Any]) -> None:
        """Write a picture and then its line, in which the file is relative to the folder, so that the folder may be moved."""
        self.put(name, image)
        self._append(LINES, record | {"file": name})

    def add_descriptions(self, key: str, texts: list[str], settings: dict[str, Any]) -> None:
        """Write all descriptions of a task."""
        self._append(DESCRIPTIONS, {"key": key, "descriptions": texts, "settings": settings})

    def put(self, name: str, image: Image.Image) -> None:
        """Write the picture as PNG without metadata; the file appears only when it is complete."""
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

    def _lines(self, name: str, **required: type) -> list[dict[str, Any]]:
        path = self.folder / name
        records = list(whole_lines(path)) if path.exists() else []
        for number, record in enumerate(records, 1):
            if field_name := next((key for key, kind in required.items() if not isinstance(record.get(key), kind)), None):
                raise CliptoolsError(f"{path}: damaged (line {number} has no `{field_name}`); remove it, or name a new folder")
        return records


def slug(text: str) -> str:
    """Return a text as a part of a path."""
    return re.sub(r"[\W_]+", "-", text.lower().replace("->", " to ")).strip("-") or "pair"
