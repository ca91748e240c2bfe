"""Which images show which concepts: by columns of a table, by the truth of scenes, or by the names of cars."""

import functools
import io
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Float32

from cliptools.ground.class_names import names_pattern, parse_class
from cliptools.ground.errors import StreamError
from cliptools.ground.groups import Groups, full_name
from cliptools.ground.image_table import ImageTable
from cliptools.ground.listing import Found
from cliptools.ground.strict_json import parse_foreign
from cliptools.ground.tar_images import Span
from cliptools.ground.text_lines import decoded
from cliptools.ground.truth import Truth, read_truth

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
