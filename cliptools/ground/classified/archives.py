"""Labels that travel with pictures in archives, as WebDataset has them: KEY.cls, or KEY.json with `label`, `class` or `names`.

CLIP_benchmark's sets are such archives, with the names of their classes in classnames.txt beside the shards or their folder.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from cliptools.ground.classified.class_rows import ClassRows, Label, load_rows, rows_by_line
from cliptools.ground.classified.labelled import Labelled, gather
from cliptools.ground.classified.scenes import only_name
from cliptools.ground.errors import StreamError
from cliptools.ground.listing import Found, named_path
from cliptools.ground.strict_json import parse
from cliptools.ground.tar_images import Span

BESIDE = (CLS, JSON) = (".cls", ".json")
"""Endings of members that say what a picture shows."""
CLASS_NAMES = "classnames.txt"
NUMBER = re.compile(r"[+-]?\d{1,18}", re.ASCII)


class Sample(NamedTuple):
    """A picture, and what the members of its key say."""

    picture: Found
    label: Label | None
    drawn: bool
    """Whether clip-scenes says it, by the names of what is drawn."""


def pictures(found: Iterable[Found]) -> list[Found]:
    """Without the members that are labels."""
    return [one for one in found if not _is_label(one)]


def are_labelled(found: Sequence[Found]) -> bool:
    """Whether the first picture is in an archive that says what it shows."""
    return next((sample.label is not None for sample in _samples(found)), False)


def by_members(found: Sequence[Found]) -> Labelled:
    """The label of each picture, from a member of the same key before or behind it.

    Raises:
        StreamError: a picture without one, a label that cannot be read, or shards with several lists of classes.
    """
    images = pictures(found)
    drawn = next((sample.drawn for sample in _samples(found)), False)
    missing = f"no member of its key ends in {CLS}, or in {JSON} with label, class or names"
    labelled = gather(images, (sample.label for sample in _samples(found)), missing)
    return labelled._replace(classes=load_rows("emoji") if drawn else _classes_beside(images))


def _samples(found: Iterable[Found]) -> Iterator[Sample]:
    """Pictures in order; members of one key follow each other."""
    for _, group in groupby(found, _key):
        members = list(group)
        if shown := pictures(members):
            label, drawn = _label([one for one in members if _is_label(one)], shown[0].name)
            yield from (Sample(one, label, drawn) for one in shown)


def _key(one: Found) -> tuple[str, str]:
    """WebDataset's: all before the first dot of a member's own name."""
    if not isinstance(one.place, Span):
        return one.base, one.name
    folder, slash, own = one.name.rpartition("/")
    return one.base, folder + slash + own.partition(".")[0]


def _is_label(one: Found) -> bool:
    return isinstance(one.place, Span) and one.name.lower().endswith(BESIDE)


def _label(members: Sequence[Found], image: str) -> tuple[Label | None, bool]:
    """What .cls says, else what .json says, and whether that are names of a scene."""
    texts = {ending: _text(one) for one in members for ending in BESIDE if one.name.lower().endswith(ending)}
    if text := texts.get(CLS):
        return int(text) if NUMBER.fullmatch(text) else text, False
    return _recorded(texts[JSON], image) if JSON in texts else (None, False)


def _text(one: Found) -> str:
    assert isinstance(one.place, Span)
    try:
        return one.place.read().read().decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise StreamError(f"{one.name}: expected a label in UTF-8 ({error})") from None


def _recorded(text: str, image: str) -> tuple[Label | None, bool]:
    """The same of a JSON object, in which others keep other things."""
    try:
        record = parse(text)
    except ValueError:
        raise StreamError(f"{image}: the {JSON} of its key is no JSON") from None
    if not isinstance(record, dict):
        return None, False
    for field in ("label", "class"):
        if isinstance(said := record.get(field), int | str) and not isinstance(said, bool) and said != "":
            return said, False
    names = record.get("names")
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        return only_name(image, names), True
    return None, False


def _classes_beside(images: Sequence[Found]) -> ClassRows | None:
    """What CLIP_benchmark keeps with the shards.

    Raises:
        StreamError: shards of sets with other classes each.
    """
    archives = dict.fromkeys(map(named_path, images))
    folders = dict.fromkeys(folder for archive in archives for folder in list(Path(archive).absolute().parents)[:2])
    files = [folder / CLASS_NAMES for folder in folders if (folder / CLASS_NAMES).is_file()]
    lists = [rows_by_line(file) for file in files]
    if any(each.classes != lists[0].classes for each in lists):
        raise StreamError(f"{files[0]} and {files[-1]} name other classes: take shards of one set, or say which by --classes")
    return lists[0] if lists else None
