"""What images show, as the records of clip-scenes tell it, and which of it a list of words names.

Which images show which concepts: by columns of a table, by the truth of scenes, or by the names of cars.
"""

import functools
import io
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Float32

from cliptools.errors import StreamError
from cliptools.images.groups import Groups, ImageTable, full_name, without_ending
from cliptools.images.listing import Found
from cliptools.images.tar import Span
from cliptools.io.jsonl import file_objects, parse_foreign
from cliptools.io.text_file import decoded
from cliptools.text.classes import names_pattern, parse_class


class Truth:
    """Names by image."""

    def __init__(self, names: dict[str, tuple[str, ...]], source: str) -> None:
        """
        Args:
            names: By key: an image's name without folder in front and ending behind, as far as they are not part of the key.
            source: What to call it in messages: the option and its value.
        """
        self._names, self._source = names, source

    def of(self, image: str) -> tuple[str, ...]:
        """What an image shows. Its name may have folders or an archive in front of the key.

        Raises:
            StreamError: nothing is said of this image.
        """
        parts = PurePosixPath(without_ending(image)).parts
        for start in range(len(parts)):
            if (key := "/".join(parts[start:])) in self._names:
                return self._names[key]
        raise StreamError(f"{self._source}: says nothing of {image} (expected a line whose `key` is its name without ending)")


def read_truth(path: Path, option: str = "--truth") -> Truth:
    """Lines with `key` and `names`, as the scenes.jsonl of clip-scenes.

    Args:
        option: What asked for it, for messages.

    Raises:
        StreamError: no such file, a line that is no such record, or two that contradict each other.
    """
    names: dict[str, tuple[str, ...]] = {}
    for number, record in file_objects(path, f"{option} {path}"):
        key, shown = record.get("key"), record.get("names")
        if not (isinstance(key, str) and isinstance(shown, list) and shown and all(isinstance(each, str) for each in shown)):
            raise StreamError(
                f"{option} {path}: line {number} has no `key` with a list of `names`, as scenes.jsonl of clip-scenes has"
            )
        distinct = tuple(dict.fromkeys(shown))  # of two dogs a scene has the name twice
        if names.setdefault(key, distinct) != distinct:
            raise StreamError(f"{option} {path}: line {number} says something else of {key!r} than a line before")
    return Truth(names, f"{option} {path}")


def found_names(names: Sequence[str], words: Iterable[str]) -> list[str]:
    """The names that are among the words, by themselves or by a synonym; case does not count."""
    said = {word.casefold() for word in words}
    return [name for name in names if said & {form.casefold() for form in parse_class(name).names}]


SAID = {"1": 1.0, "1.0": 1.0, "true": 1.0, "yes": 1.0, "0": 0.0, "0.0": 0.0, "false": 0.0, "no": 0.0, "": np.nan}
SCENES = "scenes.jsonl"

Labels = Float32[np.ndarray, "image concept"]
"""1 where an image shows a concept, 0 where it does not, NaN where nobody says."""


def by_columns(groups: Groups, table: ImageTable, concepts: Sequence[str]) -> Labels:
    """A column for each concept, by its name whatever the case; concepts without one stay unknown.

    Raises:
        StreamError: no column for any concept, an image the table does not know, or a field that is neither yes nor no.
    """
    columns = {column.strip().casefold(): column for column in table.columns}
    labels = np.full((len(groups.found), len(concepts)), np.nan, np.float32)
    asked = [(c, columns[name.casefold()]) for c, name in enumerate(concepts) if name.casefold() in columns]
    if not asked:
        raise StreamError(f"--labels {table.source}: no column is called like a concept; it has {', '.join(table.columns)}")
    for index, image in enumerate(map(full_name, groups.found)):
        row = table.of(image)
        for c, column in asked:
            if (said := SAID.get(row[column].strip().lower())) is None:
                raise StreamError(
                    f"--labels {table.source}: {image} has {column} {row[column]!r}, expected 1, 0, yes, no or nothing"
                )
            labels[index, c] = said
    return labels


def by_truth(groups: Groups, path: Path, concepts: Sequence[str]) -> Labels:
    """Lines with `key` and `names`, as the scenes.jsonl of clip-scenes; a synonym will do.

    Raises:
        StreamError: as read_truth, or an image of which nothing is said.
    """
    truth = read_truth(path)
    return _named((truth.of(full_name(one)) for one in groups.found), concepts)


def by_scenes(groups: Groups, concepts: Sequence[str]) -> Labels:
    """What clip-scenes wrote beside each image: scenes.jsonl in a folder above it, or KEY.json behind it in its archive.

    Raises:
        StreamError: an image that has neither.
    """
    truths: dict[Path, Truth | None] = {}
    return _named((scene_names(found, truths, "--truth scenes") for found in groups.found), concepts)


def by_class(names: Sequence[str], concepts: Sequence[str]) -> Labels:
    """Whether the name of each image's class says the concept's word; concepts that no class names stay unknown."""
    labels = np.full((len(names), len(concepts)), np.nan, np.float32)
    for c, concept in enumerate(concepts):
        pattern = names_pattern([concept])
        said = {name: bool(pattern.search(name)) for name in set(names)}
        if any(said.values()):
            labels[:, c] = [said[name] for name in names]
    return labels


def scene_names(found: Found, truths: dict[Path, Truth | None], option: str) -> Sequence[str]:
    """What clip-scenes wrote beside an image.

    Args:
        truths: What was read before, by folder; added to.
        option: What asked for it, for messages.

    Raises:
        StreamError: nothing is there.
    """
    if isinstance(found.place, Span):
        return _member_names(found.name, found.place, option)
    for folder in Path(found.place).parents:
        if folder not in truths:
            truths[folder] = read_truth(folder / SCENES, option) if (folder / SCENES).is_file() else None
        if (truth := truths[folder]) is not None:
            return truth.of(full_name(found))
    raise StreamError(f"{option}: {found.name} has no {SCENES} in a folder above it, as clip-scenes --out-dir writes it")


def _named(truths: Iterable[Sequence[str]], concepts: Sequence[str]) -> Labels:
    wanted = [_forms(concept) for concept in concepts]
    rows = []
    for names in truths:
        shown = frozenset().union(*map(_forms, names))
        rows.append([bool(forms & shown) for forms in wanted])
    return np.array(rows, np.float32)


@functools.cache
def _forms(name: str) -> frozenset[str]:
    """A name and its synonyms, in one case."""
    return frozenset(form.casefold() for form in parse_class(name).names)


def _member_names(name: str, span: Span, option: str) -> Sequence[str]:
    """From the JSON member of the same key, which follows the picture."""
    key = PurePosixPath(name).with_suffix("").name
    for member, data in _following(span):
        stem, _, ending = PurePosixPath(member).name.partition(".")
        if stem != key:
            break
        if ending == "json":
            try:
                names = parse_foreign(decoded(data))["names"]
            except (ValueError, KeyError, TypeError):
                break
            if isinstance(names, list) and all(isinstance(each, str) for each in names):
                return list(dict.fromkeys(names))  # of two dogs a scene has the name twice
    raise StreamError(f"{option}: {name} is not followed by {key}.json with a list of `names`, as clip-scenes writes it")


def _following(span: Span) -> Iterator[tuple[str, bytes]]:
    """Members of an archive behind a span of it, names and contents."""
    descriptor = os.open(span.container, os.O_RDONLY) if isinstance(span.container, str) else os.dup(span.container.descriptor)
    with io.FileIO(descriptor) as file:
        file.seek(-(-(span.offset + span.size) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)
        try:
            archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115  # nothing of its own to close
            while (member := archive.next()) is not None and member.isreg():
                content = archive.extractfile(member)
                yield member.name, content.read() if content is not None else b""
        except tarfile.TarError:
            return
