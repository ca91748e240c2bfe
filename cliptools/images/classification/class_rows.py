"""Classes as rows of a classifier, and which row a label means.

Images and what is said of each, before anybody knows which classes there are.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from cliptools.console import count_of, note, warn
from cliptools.errors import StreamError
from cliptools.images.listing import Found
from cliptools.io.jsonl import whole_number
from cliptools.io.text_file import read_text
from cliptools.text.class_lists import of_folders
from cliptools.text.classes import ClassName, class_list
from cliptools.text.imagenet_classes import WORDNET_ID, lemmas, open_clip_names, wordnet_ids

Label = int | str
"""A number of a class, from 0, or what names one: a word, a folder's name, a WordNet id."""
NEAR = 3  # names offered where a label is none
NONE = -1
PREFIXED = re.compile(rf"({WORDNET_ID.pattern})[-_. ](.+)|\d{{1,9}}[-_. ]+(\D.+)", re.ASCII)
"""A folder called by an id or a number, and the name: `n02085620-Chihuahua`, `001.Black_footed_Albatross`."""


@dataclass(frozen=True)
class ClassRows:
    """Classes in the order of their numbers, and where they are from."""

    classes: tuple[ClassName, ...]
    source: str
    ids: tuple[str, ...] = ()
    """Their ids, of WordNet or others, where they have some."""
    own_ids: bool = False
    """Whether the list itself says them, so that no id beside them is meant."""
    numbers: tuple[int, ...] = ()
    """What labels call them that are numbers, where that is not their places from 0."""
    folders: tuple[tuple[str, ...], ...] = ()
    """Further names of each, as folders have them."""

    def of(self, labels: Sequence[Label]) -> list[int]:
        """The row of each label, NONE of one that is none.

        Names count in any case and with `_` and `-` as spaces, synonyms after names. Words that are all numbers (`3`, or `3.0`
        as tables with gaps have it), and not all of them names, are numbers of classes.
        """
        rows = [self._row(label) for label in labels]
        if NONE in rows:
            numbers = [number for label in labels if (number := whole_number(label)) is not None]
            rows = list(map(self._row, numbers)) if len(numbers) == len(labels) else rows
        return rows

    def refusal(self, image: str, label: Label) -> StreamError:
        """What to say of an image whose label is no class."""
        of = f"the {len(self.classes)} classes of {self.source}"
        if isinstance(label, int) or whole_number(label) is not None:
            numbers = self.numbers or range(len(self.classes))
            listed = ", as the list has them" if self.numbers else ""
            doubt = " (are these labels counted from 1?)" if whole_number(label) == numbers[-1] + 1 and not listed else ""
            return StreamError(
                f"{image}: label {label}, expected a number from {numbers[0]} to {numbers[-1]}{listed}, for {of}{doubt}"
            )
        if len(rows := self._rows_by_form.get(_form(label), ())) > 1:
            several = f"names several of {of} (numbers {', '.join(map(str, rows))})"
            return StreamError(f"{image}: label {label!r} {several}; give numbers or WordNet ids")
        near = get_close_matches(_form(label), list(self._rows_by_form), n=NEAR, cutoff=0.5)
        names = dict.fromkeys(self.classes[self._rows_by_form[form][0]].name for form in near)
        return StreamError(f"{image}: label {label!r} is none of {of}; near names: {', '.join(names) or 'none'}")

    def _row(self, label: Label) -> int:
        if isinstance(label, int):
            if self.numbers:
                return self._row_of_number.get(label, NONE)
            return label if 0 <= label < len(self.classes) else NONE
        if label in self._row_of_id:
            return self._row_of_id[label]
        words = [label]
        if WORDNET_ID.fullmatch(label) and label in lemmas() and not self.own_ids:  # of a file, which may go by other words
            words += [dict(zip(wordnet_ids(), open_clip_names(), strict=True))[label], *lemmas()[label]]
        row = next((row for row in map(self._named, words) if row != NONE), NONE)
        if row == NONE and (prefixed := PREFIXED.fullmatch(label)) is not None:
            row = self._row_of_id.get(prefixed[1], NONE) if prefixed[1] else NONE
            return row if row != NONE else self._named(prefixed[2] or prefixed[3])
        return row

    @cached_property
    def _row_of_number(self) -> Mapping[int, int]:
        return {number: row for row, number in enumerate(self.numbers)}

    @cached_property
    def _row_of_id(self) -> Mapping[str, int]:
        """Rows by ids and by names of folders."""
        folders = {name: row for row, names in enumerate(self.folders) for name in names}
        return folders | {number: row for row, number in enumerate(self.ids)}

    def _named(self, word: str) -> int:
        for rows in (self._rows_by_name.get(word, ()), self._rows_by_form.get(_form(word), ())):
            if len(rows) == 1:
                return rows[0]
        return NONE

    @cached_property
    def _rows_by_name(self) -> Mapping[str, Sequence[int]]:
        """Rows by names just as they stand and, where no name is that, by synonyms."""
        return self._owners(str)

    @cached_property
    def _rows_by_form(self) -> Mapping[str, Sequence[int]]:
        """Rows by the forms of names and, where no name has it, of synonyms."""
        return self._owners(_form)

    def _owners(self, form: Callable[[str], str]) -> dict[str, list[int]]:
        synonyms, names = (
            _owners((each.synonyms for each in self.classes), form),
            _owners(([each.name] for each in self.classes), form),
        )
        return synonyms | names


def load_rows(name: str) -> ClassRows:
    """Classes by the name of a list or from a file, as class_names.class_list reads them.

    Those of ImageNet also go by WordNet's words; 1000 from a file without ids are taken to be in ImageNet's order where labels
    are its ids.

    Raises:
        TextError: as class_list.
    """
    listed = class_list(name, known=False)
    classes = listed.classes
    if name not in IMAGENETS:
        numbers = () if listed.numbers == tuple(range(len(classes))) else listed.numbers
        ids = listed.ids or _ids_of(classes, name)
        return ClassRows(classes, name, ids, bool(listed.ids), numbers, listed.folders)
    ids = wordnet_ids(restricted=name == IMAGENET_R)
    words = [[word for word in lemmas()[number] if word != each.name] for each, number in zip(classes, ids, strict=True)]
    return ClassRows(tuple(ClassName(each.name, tuple(more)) for each, more in zip(classes, words, strict=True)), name, ids)


def rows_by_line(file: Path) -> ClassRows:
    """A file of CLIP_benchmark: line by line the names of the classes, commas and all.

    Raises:
        TextError: it cannot be read.
    """
    names = read_text(file, "classes").rstrip().split("\n")
    classes = tuple(ClassName(name.strip()) for name in names)
    return ClassRows(classes, str(file), _ids_of(classes, str(file)))


def rows_named(labels: Iterable[str]) -> ClassRows:
    """The labels themselves as classes, sorted as torchvision's ImageFolder sorts them, with spaces for underscores.

    Ids and running numbers in front of all names stay out of these, which is said.

    Raises:
        TextError: ids in front of some, or one in front of two.
    """
    labels = sorted(labels)
    names = [label.replace("_", " ").strip() or label for label in labels]
    if (understood := of_folders(labels, "labels")) is not None:
        by_label = {entry.where: entry.name for entry in understood.entries}
        names = [by_label[f"label {label!r}"] for label in labels]
        shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
        note(f"classes of the labels: {understood.form}; {count_of(len(names), 'class')}, in prompts: {shown}")
    named = [(name, label) for name, label in zip(names, labels, strict=True)]
    return ClassRows(tuple(ClassName(name, (label,) if label != name else ()) for name, label in named), "labels")


def imagenet_list(ids: Iterable[str]) -> str | None:
    """The list that these WordNet ids are of: ImageNet-R's where they are just its 200, else ImageNet's; None: of neither."""
    given = set(ids)
    if given == set(wordnet_ids(restricted=True)):
        return IMAGENET_R
    return IMAGENET if given <= set(wordnet_ids()) else None


IMAGENET, IMAGENET_R = IMAGENETS = ("imagenet", "imagenet-r")


def _ids_of(classes: Sequence[ClassName], source: str) -> tuple[str, ...]:
    """The ids of as many classes as ImageNet has, whose list says none: in its order, unless their names say another."""
    ids = wordnet_ids()
    if len(classes) != len(ids):
        return ()
    words = [{_form(word) for word in (name, *lemmas()[number])} for number, name in zip(ids, open_clip_names(), strict=True)]
    every = set().union(*words)
    known = [(_form(each.name) in own, _form(each.name) in every) for each, own in zip(classes, words, strict=True)]
    in_place = sum(here for here, _ in known)
    if sum(somewhere for _, somewhere in known) <= 2 * in_place:
        return ids
    warn(
        f"classes {source}: names of ImageNet in another order than its own ({in_place} of {len(ids)} in their places); labels "
        "that are ids go by names, and those that are numbers by places in the list"
    )
    return ()


def _owners(names: Iterable[Iterable[str]], form: Callable[[str], str]) -> dict[str, list[int]]:
    """By the form of a name, the rows that have such a name."""
    owners: dict[str, list[int]] = {}
    for row, own in enumerate(names):
        for key in dict.fromkeys(map(form, own)):
            owners.setdefault(key, []).append(row)
    return owners


def _form(name: str) -> str:
    """A name without case, with a space for whatever stands between its words and with composed accents."""
    return re.sub(r"[\W_]+", " ", unicodedata.normalize("NFC", name).casefold()).strip()


class Other(NamedTuple):
    """A further label of an image that already has one."""

    image: int
    """Its number among the images."""
    label: Label
    member: str
    """What says it."""
    first: str
    """What says the label that counts."""
    caption: bool
    """Whether it may as well be no label."""


class Labelled(NamedTuple):
    """Images, and which of some labels each has; a list of a million takes a number an image, no object."""

    found: Sequence[Found]
    number: Int64[np.ndarray, "image"]
    """Each image's label, an index into `labels`."""
    labels: tuple[Label, ...]
    """All different, in the order met."""
    classes: ClassRows | None = None
    """What the labels are of, where that comes with them."""
    others: tuple[Other, ...] = ()


def gather(found: Sequence[Found], labels: Iterable[Label | None], missing: str) -> Labelled:
    """Number the labels.

    Args:
        missing: What to say of an image without one, after its name.

    Raises:
        StreamError: an image has no label.
    """
    numbers: dict[Label | None, int] = {}
    number = np.fromiter((numbers.setdefault(label, len(numbers)) for label in labels), np.int64, len(found))
    if (none := numbers.get(None)) is not None:
        without = number == none
        raise StreamError(
            f"{found[int(without.argmax())].name}: {missing} ({without.sum()} of {count_of(len(found), 'image')} without a label)"
        )
    return Labelled(found, number, tuple(label for label in numbers if label is not None))
