"""Labels of pictures in WebDataset archives: KEY.cls, or KEY.json with `label`, `class` or `names`.

The data sets of CLIP_benchmark are such archives, with the class names in classnames.txt beside the shards or their folder.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from cliptools.console import count_of, warn
from cliptools.errors import StreamError
from cliptools.images.classification.class_rows import (
    ClassRows,
    FurtherLabel,
    Label,
    LabelledImages,
    load_rows,
    number_labels,
    rows_by_line,
)
from cliptools.images.classification.label_files import only_name
from cliptools.images.listing import ListedImage, named_path
from cliptools.images.tar import Span
from cliptools.io.jsonl import check_characters, parse_foreign, whole_number
from cliptools.io.text_file import decode_text

CLS, JSON, TXT = ".cls", ".json", ".txt"
LABEL_ENDINGS = (CLS, JSON, TXT)
"""Endings of members with labels; .txt mostly has captions, so it is no label by itself."""
CLASS_NAMES = "classnames.txt"
LONGEST_NAME = 200  # number of bytes up to which a .txt may be the name of a class
Key = tuple[str, str]


class MemberLabel(NamedTuple):
    """A label and the archive member that has it."""

    label: Label
    member: str
    drawn: bool = False
    """True if clip-scenes wrote it as the name of the emoji drawn."""


class Sample(NamedTuple):
    """A picture and all labels under its key; the first label counts."""

    picture: ListedImage
    labels: Sequence[MemberLabel]


def pictures(members: Iterable[ListedImage]) -> list[ListedImage]:
    """Return the members that are no labels."""
    return [member for member in members if not _is_label(member)]


def are_labelled(members: Sequence[ListedImage]) -> bool:
    """Return True if the first picture is in an archive and has a label there, or if any member is a .cls label.

    Raises:
        StreamError: the label of the first picture cannot be read.
    """
    first = next((member for member in members if not _is_label(member)), None)
    if first is None or not isinstance(first.place, Span):
        return False
    key = _key(first)
    labels = _labels([member for member in members if _is_label(member) and _key(member) == key], first.name)
    return bool(labels) or any(isinstance(member.place, Span) and member.name.lower().endswith(CLS) for member in members)


def by_members(members: Sequence[ListedImage]) -> LabelledImages:
    """Label each picture by a member of the same key, anywhere in its archive.

    Raises:
        StreamError: a picture has no label, a label cannot be read, or the shards have different lists of classes.
    """
    samples = _samples(members)
    images = [sample.picture for sample in samples]
    drawn = bool(samples) and any(label.drawn for label in samples[0].labels[:1])
    missing = f"no member of its key ends in {CLS}, or in {JSON} with label, class or names"
    labelled = number_labels(images, (sample.labels[0].label if sample.labels else None for sample in samples), missing)
    further = tuple(
        FurtherLabel(index, extra.label, extra.member, sample.labels[0].member, extra.member.lower().endswith(TXT))
        for index, sample in enumerate(samples)
        for extra in sample.labels[1:]
        if extra.label != sample.labels[0].label
    )
    return labelled._replace(classes=load_rows("emoji") if drawn else _classes_beside(images), further=further)


def _samples(members: Sequence[ListedImage]) -> list[Sample]:
    """Return the pictures in their order, each with the labels under its key.

    Consecutive members of a key with a picture and a label are a sample, as in webdataset. If they have only a picture or only a
    label, the other is taken from elsewhere in the archive, with a warning.
    """
    stretches = [(key, list(group)) for key, group in groupby(members, _key)]
    places = Counter(key for key, _ in stretches)
    scattered: dict[Key, list[list[ListedImage]]] = {}
    for key, stretch in stretches:
        if places[key] > 1:
            scattered.setdefault(key, []).append(stretch)
    samples: list[Sample] = []
    for key, stretch in stretches:
        if stretch_pictures := pictures(stretch):
            labels = _labels(_label_members(stretch, scattered.get(key, ())), stretch_pictures[0].name)
            samples += [Sample(picture, labels) for picture in stretch_pictures]
    if scattered:
        first, second = next(iter(scattered.values()))[:2]
        warn(
            f"{first[0].name} and {second[0].name}: members of one key that do not stand next to each other, as in "
            f"{count_of(len(scattered), 'key')} of these archives; taken together where picture and label stand apart, from "
            "which webdataset makes two samples (tar --sort=name keeps them together)"
        )
    return samples


def _label_members(members: Sequence[ListedImage], stretches: Sequence[Sequence[ListedImage]]) -> list[ListedImage]:
    """Return the label members that belong to the pictures among `members`.

    Args:
        stretches: All members of the key, if they stand in several places of the archive.
    """
    own_labels = [member for member in members if _is_label(member)]
    separate_labels = [member for stretch in stretches if not pictures(stretch) for member in stretch]
    if any(not member.name.lower().endswith(TXT) for member in [*own_labels, *separate_labels]):
        return own_labels + separate_labels
    return [member for stretch in stretches for member in stretch if _is_label(member)] or own_labels


def _key(member: ListedImage) -> Key:
    """Return a member's WebDataset key: its name up to the first dot after the last slash."""
    if not isinstance(member.place, Span):
        return member.base, member.name
    folder, slash, own = member.name.rpartition("/")
    return member.base, folder + slash + own.partition(".")[0]


def key_of(member: ListedImage) -> str:
    """Return a member's key without folders, for messages."""
    return _key(member)[1].rpartition("/")[2]


def _is_label(member: ListedImage) -> bool:
    return isinstance(member.place, Span) and member.name.lower().endswith(LABEL_ENDINGS)


def _labels(members: Sequence[ListedImage], image: str) -> list[MemberLabel]:
    """Return all labels of the members: from .cls, then from .json, and last from .txt if that is short."""
    labels: list[MemberLabel] = []
    for ending in LABEL_ENDINGS:
        for member in members:
            if not member.name.lower().endswith(ending) or not isinstance(member.place, Span):
                continue
            if ending == TXT and (not labels or member.place.size > LONGEST_NAME):
                continue
            if (text := _text(member, ending != TXT)) and ending == JSON:
                labels += _json_labels(text, member.name, image, first=not labels)
            elif text:
                number = whole_number(text)
                labels.append(MemberLabel(text if number is None else number, member.name))
    return labels


def _text(member: ListedImage, needed: bool) -> str:
    """Return a member's text; empty if it is not a text and not needed.

    Raises:
        StreamError: a needed member is not a text.
    """
    assert isinstance(member.place, Span)
    try:
        return decode_text(member.place.read().read()).strip()
    except (OSError, ValueError) as error:
        if not needed:
            return ""
        raise StreamError(f"{member.name}: expected a label in UTF-8 ({error})") from None


def _json_labels(text: str, member: str, image: str, first: bool) -> list[MemberLabel]:
    """Return the labels in a JSON object, which may have other fields for other purposes.

    Args:
        first: True if the picture has no label so far, so that `names` must be a single name.

    Raises:
        StreamError: the text is no JSON, a label is neither a whole number nor a text, or there are several names.
    """
    try:
        record = parse_foreign(text)
        labels = {field: record[field] for field in ("label", "class") if field in record} if isinstance(record, dict) else {}
        check_characters(list(labels.values()))
    except ValueError as error:
        raise StreamError(f"{image}: the {JSON} of its key is no JSON ({error})") from None
    for field, label in labels.items():
        if isinstance(label, float) and label.is_integer():
            labels[field] = int(label)
        elif isinstance(label, float) or (first and isinstance(label, list | dict | bool)):
            raise StreamError(
                f"{image}: the {JSON} of its key has {field} {str(label)[:40]}, expected a number from 0 or the name of a class "
                "(--labels folders takes the folders' names instead)"
            )
    values = [label if isinstance(label, str) else whole_number(label) for label in labels.values()]
    member_labels = [MemberLabel(label, member) for label in values if label is not None and label != ""]
    names = record.get("names") if isinstance(record, dict) else None
    if member_labels or not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return member_labels
    return [MemberLabel(only_name(image, names), member, drawn=True)] if first or len(names) == 1 else []


def _classes_beside(images: Sequence[ListedImage]) -> ClassRows | None:
    """Return the classes in CLIP_benchmark's classnames.txt beside the shards, if there is one.

    Raises:
        StreamError: the shards belong to data sets with different classes.
    """
    archives = dict.fromkeys(map(named_path, images))
    folders = dict.fromkeys(folder for archive in archives for folder in list(Path(archive).absolute().parents)[:2])
    files = [folder / CLASS_NAMES for folder in folders if (folder / CLASS_NAMES).is_file()]
    lists = [rows_by_line(file) for file in files]
    if any(rows.classes != lists[0].classes for rows in lists):
        raise StreamError(
            f"{files[0]} and {files[-1]} name other classes: use shards of one data set, or name the classes by --classes"
        )
    return lists[0] if lists else None
