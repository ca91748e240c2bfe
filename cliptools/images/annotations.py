"""Annotations: the concepts that images show, from records of clip-scenes, columns of a table, or class names.

`read_annotations` reads names by image; `by_columns`, `by_annotations`, `by_scenes` and `by_class` label images for
a list of concepts, as clip-shift needs them.
"""

import functools
import io
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Float32

from cliptools.errors import StreamError
from cliptools.images.groups import Groups, ImageTable, without_ending
from cliptools.images.listing import ListedImage, full_name
from cliptools.images.tar import Span
from cliptools.io.jsonl import file_objects, parse_foreign
from cliptools.io.text_file import decode_text
from cliptools.text.classes import names_pattern, parse_class

LABEL_OF_FIELD = {"1": 1.0, "1.0": 1.0, "true": 1.0, "yes": 1.0, "0": 0.0, "0.0": 0.0, "false": 0.0, "no": 0.0, "": np.nan}
SCENES = "scenes.jsonl"

Labels = Float32[np.ndarray, "image concept"]
"""1 where an image shows a concept, 0 where it does not, NaN where unknown."""


class Annotations:
    """The names of the objects that images show."""

    def __init__(self, names: dict[str, tuple[str, ...]], source: str) -> None:
        """
        Args:
            names: Names by key. A key is an image's name without its ending, with or without some of its folders.
            source: Option and value, for messages.
        """
        self._names, self._source = names, source

    def of(self, image: str) -> tuple[str, ...]:
        """Return the names of the objects in an image, whose name may have folders or an archive before the key.

        Raises:
            StreamError: there is no annotation for the image.
        """
        parts = PurePosixPath(without_ending(image)).parts
        for start in range(len(parts)):
            if (key := "/".join(parts[start:])) in self._names:
                return self._names[key]
        raise StreamError(f"{self._source}: no line for {image} (expected a line whose `key` is its name without ending)")


def read_annotations(path: Path, option: str = "--truth", *, attributes: bool = False) -> Annotations:
    """Read lines with `key` and `names`, such as the scenes.jsonl of clip-scenes.

    Args:
        option: Option that named the file, for messages.
        attributes: Take the attributes of scenes for names too.

    Raises:
        StreamError: the file does not exist, a line is no such record, or two lines contradict each other.
    """
    names: dict[str, tuple[str, ...]] = {}
    for number, record in file_objects(path, f"{option} {path}"):
        key, objects = record.get("key"), record.get("names")
        if not (isinstance(key, str) and isinstance(objects, list) and all(isinstance(name, str) for name in objects)):
            raise StreamError(
                f"{option} {path}: line {number} has no `key` with a list of `names`, as scenes.jsonl of clip-scenes has"
            )
        distinct = tuple(dict.fromkeys((*objects, *_attributes(record, attributes))))  # two dogs have one name
        if names.setdefault(key, distinct) != distinct:
            raise StreamError(f"{option} {path}: line {number} contradicts an earlier line for {key!r}")
    return Annotations(names, f"{option} {path}")


def matching_names(names: Sequence[str], words: Iterable[str]) -> list[str]:
    """Return the names that are among the words, directly or by a synonym, in any case."""
    folded = {word.casefold() for word in words}
    return [name for name in names if folded & {form.casefold() for form in parse_class(name).names}]


def by_columns(groups: Groups, table: ImageTable, concepts: Sequence[str]) -> Labels:
    """Read the labels of each concept from the column of its name, in any case; concepts without a column stay unknown.

    Raises:
        StreamError: no concept has a column, the table has no row for an image, or a field is neither yes nor no.
    """
    columns = {column.strip().casefold(): column for column in table.columns}
    labels = np.full((len(groups.images), len(concepts)), np.nan, np.float32)  # (image, concept)
    known_columns = [(c, columns[name.casefold()]) for c, name in enumerate(concepts) if name.casefold() in columns]
    if not known_columns:
        raise StreamError(f"--labels {table.source}: no column has the name of a concept; it has {', '.join(table.columns)}")
    for index, image in enumerate(map(full_name, groups.images)):
        row = table.of(image)
        for c, column in known_columns:
            if (label := LABEL_OF_FIELD.get(row[column].strip().lower())) is None:
                raise StreamError(
                    f"--labels {table.source}: {image} has {column} {row[column]!r}, expected 1, 0, yes, no or nothing"
                )
            labels[index, c] = label
    return labels


def by_annotations(groups: Groups, path: Path, concepts: Sequence[str]) -> Labels:
    """Return labels from lines with `key` and `names`, such as the scenes.jsonl of clip-scenes; synonyms count.

    Raises:
        StreamError: as read_annotations, or an image has no annotation.
    """
    annotations = read_annotations(path)
    return _labels((annotations.of(full_name(image)) for image in groups.images), concepts)


def by_scenes(groups: Groups, concepts: Sequence[str]) -> Labels:
    """Return labels from records of clip-scenes: scenes.jsonl in a folder above an image, or KEY.json after it in its archive.

    Raises:
        StreamError: an image has neither of them.
    """
    by_folder: dict[Path, Annotations | None] = {}
    return _labels((scene_names(image, by_folder, "--truth scenes") for image in groups.images), concepts)


def by_class(names: Sequence[str], concepts: Sequence[str]) -> Labels:
    """Return labels by class name: 1 if the name of an image's class has the concept's word. Concepts in no name stay unknown."""
    labels = np.full((len(names), len(concepts)), np.nan, np.float32)  # (image, concept)
    for c, concept in enumerate(concepts):
        pattern = names_pattern([concept])
        matches = {name: bool(pattern.search(name)) for name in set(names)}
        if any(matches.values()):
            labels[:, c] = [matches[name] for name in names]
    return labels


def scene_names(
    image: ListedImage, by_folder: dict[Path, Annotations | None], option: str, *, attributes: bool = False
) -> Sequence[str]:
    """Return the names that clip-scenes recorded for an image.

    Args:
        by_folder: Annotations read so far, by folder; new ones are added.
        option: Option that asked for them, for messages.
        attributes: Take the attributes of scenes for names too.

    Raises:
        StreamError: the image has no record.
    """
    if isinstance(image.place, Span):
        return _member_names(image.name, image.place, option, attributes)
    for folder in Path(image.place).parents:
        if folder not in by_folder:
            file = folder / SCENES
            by_folder[folder] = read_annotations(file, option, attributes=attributes) if file.is_file() else None
        if (annotations := by_folder[folder]) is not None:
            return annotations.of(full_name(image))
    raise StreamError(f"{option}: {image.name} has no {SCENES} in a folder above it, as clip-scenes --out-dir writes it")


def _labels(names_by_image: Iterable[Sequence[str]], concepts: Sequence[str]) -> Labels:
    concept_forms = [_forms(concept) for concept in concepts]
    rows = []
    for names in names_by_image:
        names_shown = frozenset().union(*map(_forms, names))
        rows.append([bool(forms & names_shown) for forms in concept_forms])
    return np.array(rows, np.float32)  # (image, concept)


@functools.cache
def _forms(name: str) -> frozenset[str]:
    """Return a name and its synonyms, case-folded."""
    return frozenset(form.casefold() for form in parse_class(name).names)


def _member_names(name: str, span: Span, option: str, attributes: bool) -> Sequence[str]:
    """Return the names in the JSON member of the same key, which follows the picture in its archive.

    Raises:
        StreamError: no such member follows, or the one that follows has no list of names.
    """
    record = member_record(name, span) or {}
    names = record.get("names")
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        return list(dict.fromkeys((*names, *_attributes(record, attributes))))
    key = PurePosixPath(name).with_suffix("").name
    raise StreamError(f"{option}: {name} is not followed by {key}.json with a list of `names`, as clip-scenes writes it")


def _attributes(record: Mapping[str, Any], asked: bool) -> Sequence[str]:
    """Return the attributes of a scene's record, if they are asked for."""
    words = record.get("attributes", ()) if asked else ()
    return words if isinstance(words, list) and all(isinstance(word, str) for word in words) else ()


def member_record(name: str, span: Span) -> dict[str, Any] | None:
    """Return the JSON object of the same key that follows a picture in its archive."""
    key = PurePosixPath(name).with_suffix("").name
    for member, data in _members_after(span):
        stem, _, ending = PurePosixPath(member).name.partition(".")
        if stem != key:
            break
        if ending == "json":
            try:
                record = parse_foreign(decode_text(data))
            except ValueError:
                break
            return record if isinstance(record, dict) else None
    return None


def _members_after(span: Span) -> Iterator[tuple[str, bytes]]:
    """Yield names and contents of the archive members after a span."""
    descriptor = os.open(span.container, os.O_RDONLY) if isinstance(span.container, str) else os.dup(span.container.descriptor)
    with io.FileIO(descriptor) as file:
        file.seek(-(-(span.offset + span.size) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)
        try:
            archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115  # it owns no file that must be closed
            while (member := archive.next()) is not None and member.isreg():
                content = archive.extractfile(member)
                yield member.name, content.read() if content is not None else b""
        except tarfile.TarError:
            return
