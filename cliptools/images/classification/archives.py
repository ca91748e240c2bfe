"""Labels that travel with pictures in archives, as WebDataset has them: KEY.cls, or KEY.json with `label`, `class` or `names`.

CLIP_benchmark's sets are such archives, with the names of their classes in classnames.txt beside the shards or their folder.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from cliptools.console import count_of, warn
from cliptools.errors import StreamError
from cliptools.images.classification.class_rows import ClassRows, Label, Labelled, Other, gather, load_rows, rows_by_line
from cliptools.images.classification.label_files import only_name
from cliptools.images.listing import Found, named_path
from cliptools.images.tar import Span
from cliptools.io.jsonl import check_characters, parse_foreign, whole_number
from cliptools.io.text_file import decoded

CLS, JSON, TXT = ".cls", ".json", ".txt"
BESIDE = (CLS, JSON, TXT)
"""Endings of members that say what a picture shows; .txt mostly has captions, and labels nothing by itself."""
CLASS_NAMES = "classnames.txt"
LONGEST_NAME = 200  # bytes of a .txt that may be the name of a class
Key = tuple[str, str]


class Said(NamedTuple):
    """One label, and the member that says it."""

    label: Label
    member: str
    drawn: bool = False
    """Whether clip-scenes says it, by the names of what is drawn."""


class Sample(NamedTuple):
    """A picture, and all that the members of its key say; the first counts."""

    picture: Found
    said: Sequence[Said]


def pictures(found: Iterable[Found]) -> list[Found]:
    """Without the members that are labels."""
    return [one for one in found if not _is_label(one)]


def are_labelled(found: Sequence[Found]) -> bool:
    """Whether the first picture is in an archive that says what it shows, or any members are labels and nothing else.

    Raises:
        StreamError: what is said of the first picture cannot be read.
    """
    first = next((one for one in found if not _is_label(one)), None)
    if first is None or not isinstance(first.place, Span):
        return False
    key = _key(first)
    said = _said([one for one in found if _is_label(one) and _key(one) == key], first.name)
    return bool(said) or any(isinstance(one.place, Span) and one.name.lower().endswith(CLS) for one in found)


def by_members(found: Sequence[Found]) -> Labelled:
    """The label of each picture, from a member of the same key, wherever in the archive that is.

    Raises:
        StreamError: a picture without one, a label that cannot be read, or shards with several lists of classes.
    """
    samples = _samples(found)
    images = [sample.picture for sample in samples]
    drawn = bool(samples) and any(said.drawn for said in samples[0].said[:1])
    missing = f"no member of its key ends in {CLS}, or in {JSON} with label, class or names"
    labelled = gather(images, (sample.said[0].label if sample.said else None for sample in samples), missing)
    others = tuple(
        Other(index, said.label, said.member, sample.said[0].member, said.member.lower().endswith(TXT))
        for index, sample in enumerate(samples)
        for said in sample.said[1:]
        if said.label != sample.said[0].label
    )
    return labelled._replace(classes=load_rows("emoji") if drawn else _classes_beside(images), others=others)


def _samples(found: Sequence[Found]) -> list[Sample]:
    """Pictures in their order, each with the labels of its key.

    Members of a key that follow each other and have a picture and a label are a sample by themselves, as webdataset has it. Where
    they have but one of these, the other is looked for in the rest of the archive, and that is said.
    """
    stretches = [(key, list(group)) for key, group in groupby(found, _key)]
    places = Counter(key for key, _ in stretches)
    several: dict[Key, list[list[Found]]] = {}
    for key, members in stretches:
        if places[key] > 1:
            several.setdefault(key, []).append(members)
    samples: list[Sample] = []
    for key, members in stretches:
        if shown := pictures(members):
            said = _said(_labels_of(members, several.get(key, ())), shown[0].name)
            samples += [Sample(one, said) for one in shown]
    if several:
        first, second = next(iter(several.values()))[:2]
        warn(
            f"{first[0].name} and {second[0].name}: members of one key that do not stand next to each other, as in "
            f"{count_of(len(several), 'key')} of these archives; "
            "taken together where picture and label stand apart, of which webdataset "
            "makes two samples (tar --sort=name keeps them together)"
        )
    return samples


def _labels_of(members: Sequence[Found], stretches: Sequence[Sequence[Found]]) -> list[Found]:
    """The label members that go with the pictures among `members`.

    Args:
        stretches: All members of the key, where they stand in several places.
    """
    own = [one for one in members if _is_label(one)]
    alone = [one for stretch in stretches if not pictures(stretch) for one in stretch]
    if any(not one.name.lower().endswith(TXT) for one in [*own, *alone]):
        return own + alone
    return [one for stretch in stretches for one in stretch if _is_label(one)] or own


def _key(one: Found) -> Key:
    """WebDataset's: all before the first dot of a member's own name."""
    if not isinstance(one.place, Span):
        return one.base, one.name
    folder, slash, own = one.name.rpartition("/")
    return one.base, folder + slash + own.partition(".")[0]


def key_of(one: Found) -> str:
    """The key alone, for messages."""
    return _key(one)[1].rpartition("/")[2]


def _is_label(one: Found) -> bool:
    return isinstance(one.place, Span) and one.name.lower().endswith(BESIDE)


def _said(members: Sequence[Found], image: str) -> list[Said]:
    """All labels that members say: of .cls, then of .json, and behind these what a .txt says, if that is short."""
    said: list[Said] = []
    for ending in BESIDE:
        for one in members:
            if not one.name.lower().endswith(ending) or not isinstance(one.place, Span):
                continue
            if ending == TXT and (not said or one.place.size > LONGEST_NAME):
                continue
            if (text := _text(one, ending != TXT)) and ending == JSON:
                said += _recorded(text, one.name, image, first=not said)
            elif text:
                number = whole_number(text)
                said.append(Said(text if number is None else number, one.name))
    return said


def _text(one: Found, needed: bool) -> str:
    """A member's text; nothing of one that is not needed and no text.

    Raises:
        StreamError: it cannot be read.
    """
    assert isinstance(one.place, Span)
    try:
        return decoded(one.place.read().read()).strip()
    except (OSError, ValueError) as error:
        if not needed:
            return ""
        raise StreamError(f"{one.name}: expected a label in UTF-8 ({error})") from None


def _recorded(text: str, member: str, image: str, first: bool) -> list[Said]:
    """The labels of a JSON object, in which others keep other things.

    Args:
        first: Nothing else has said what the picture shows, so that it must be one thing.

    Raises:
        StreamError: no JSON, a label that is no number, or several things.
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
                "(--labels folders if folders say it)"
            )
    wholes = [label if isinstance(label, str) else whole_number(label) for label in labels.values()]
    said = [Said(label, member) for label in wholes if label is not None and label != ""]
    names = record.get("names") if isinstance(record, dict) else None
    if said or not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return said
    return [Said(only_name(image, names), member, drawn=True)] if first or len(names) == 1 else []


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
