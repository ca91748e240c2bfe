"""Classes as rows of a classifier.

`ClassRows` finds the row that a label means, by number, id, name or synonym; `load_rows`, `rows_by_line` and `rows_named` build
it from a list, a file of CLIP_benchmark, or the labels themselves. `LabelledImages` holds images with their labels before the
classes are known.
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
from cliptools.images.listing import ListedImage
from cliptools.io.jsonl import whole_number
from cliptools.io.text_file import read_text
from cliptools.text.class_lists import folder_classes
from cliptools.text.classes import ClassName, class_list
from cliptools.text.vocabularies import WORDNET_ID, lemmas, open_clip_names, wordnet_ids

IMAGENET, IMAGENET_R = IMAGENETS = ("imagenet", "imagenet-r")
Label = int | str
"""The number of a class, from 0, or a text that names it: a word, a folder's name, a WordNet id."""
MOST_SIMILAR = 3  # number of similar names that a message offers for an unknown label
NO_ROW = -1
PREFIXED = re.compile(rf"({WORDNET_ID.pattern})[-_. ](.+)|\d{{1,9}}[-_. ]+(\D.+)", re.ASCII)
"""Names of folders that begin with an id or a number: `n02085620-Chihuahua`, `001.Black_footed_Albatross`."""


@dataclass(frozen=True)
class ClassRows:
    """Classes in the order of their numbers, with their origin."""

    classes: tuple[ClassName, ...]
    source: str
    ids: tuple[str, ...] = ()
    """The ids of the classes (WordNet's or others), if they have ids."""
    own_ids: bool = False
    """True if the list itself has the ids, so that a WordNet id outside the list means no class of it."""
    numbers: tuple[int, ...] = ()
    """The numbers that labels use for the classes, if these are not 0, 1, 2, …"""
    folders: tuple[tuple[str, ...], ...] = ()
    """Further names of each class, as folders have them."""

    def of(self, labels: Sequence[Label]) -> list[int]:
        """Return the row of each label, or NO_ROW for an unknown label.

        Names match in any case and with `_` and `-` as spaces; names take precedence over synonyms. If all labels are texts of
        whole numbers (`3`, or `3.0` as in tables with gaps), and not all of them are names, they are numbers of classes.
        """
        rows = [self._row(label) for label in labels]
        if NO_ROW in rows:
            numbers = [number for label in labels if (number := whole_number(label)) is not None]
            rows = list(map(self._row, numbers)) if len(numbers) == len(labels) else rows
        return rows

    def refusal(self, image: str, label: Label) -> StreamError:
        """Return the error for an image whose label is no class."""
        classes = f"the {len(self.classes)} classes of {self.source}"
        if isinstance(label, int) or whole_number(label) is not None:
            numbers = self.numbers or range(len(self.classes))
            listed = ", as the list has them" if self.numbers else ""
            doubt = " (are these labels counted from 1?)" if whole_number(label) == numbers[-1] + 1 and not listed else ""
            return StreamError(
                f"{image}: label {label}, expected a number from {numbers[0]} to {numbers[-1]}{listed}, for {classes}{doubt}"
            )
        if len(rows := self._rows_by_form.get(_form(label), ())) > 1:
            ambiguity = f"names several of {classes} (numbers {', '.join(map(str, rows))})"
            return StreamError(f"{image}: label {label!r} {ambiguity}; give numbers or WordNet ids")
        similar = get_close_matches(_form(label), list(self._rows_by_form), n=MOST_SIMILAR, cutoff=0.5)
        names = dict.fromkeys(self.classes[self._rows_by_form[form][0]].name for form in similar)
        return StreamError(f"{image}: label {label!r} is not one of {classes}; similar names: {', '.join(names) or 'none'}")

    def _row(self, label: Label) -> int:
        if isinstance(label, int):
            if self.numbers:
                return self._row_of_number.get(label, NO_ROW)
            return label if 0 <= label < len(self.classes) else NO_ROW
        if label in self._row_of_id:
            return self._row_of_id[label]
        words = [label]
        if WORDNET_ID.fullmatch(label) and label in lemmas() and not self.own_ids:  # a list from a file may use other words
            words += [dict(zip(wordnet_ids(), open_clip_names(), strict=True))[label], *lemmas()[label]]
        row = next((row for row in map(self._row_of_name, words) if row != NO_ROW), NO_ROW)
        if row == NO_ROW and (prefixed := PREFIXED.fullmatch(label)) is not None:
            row = self._row_of_id.get(prefixed[1], NO_ROW) if prefixed[1] else NO_ROW
            return row if row != NO_ROW else self._row_of_name(prefixed[2] or prefixed[3])
        return row

    @cached_property
    def _row_of_number(self) -> Mapping[int, int]:
        return {number: row for row, number in enumerate(self.numbers)}

    @cached_property
    def _row_of_id(self) -> Mapping[str, int]:
        """Rows by id and by name of folder."""
        folders = {name: row for row, names in enumerate(self.folders) for name in names}
        return folders | {number: row for row, number in enumerate(self.ids)}

    def _row_of_name(self, word: str) -> int:
        for rows in (self._rows_by_name.get(word, ()), self._rows_by_form.get(_form(word), ())):
            if len(rows) == 1:
                return rows[0]
        return NO_ROW

    @cached_property
    def _rows_by_name(self) -> Mapping[str, Sequence[int]]:
        """Rows by exact name, or by synonym where no name matches."""
        return self._owners(str)

    @cached_property
    def _rows_by_form(self) -> Mapping[str, Sequence[int]]:
        """Rows by the normalized form of the name, or of a synonym where no name matches."""
        return self._owners(_form)

    def _owners(self, form: Callable[[str], str]) -> dict[str, list[int]]:
        synonyms, names = (
            _owners((entry.synonyms for entry in self.classes), form),
            _owners(([entry.name] for entry in self.classes), form),
        )
        return synonyms | names


def load_rows(name: str) -> ClassRows:
    """Return the classes of a list by its name, or from a file, as classes.class_list reads them.

    ImageNet's classes also match WordNet's words; 1000 classes from a file without ids are taken to be in ImageNet's order if the
    labels are its ids.

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
    words = [[word for word in lemmas()[number] if word != entry.name] for entry, number in zip(classes, ids, strict=True)]
    return ClassRows(tuple(ClassName(entry.name, tuple(more)) for entry, more in zip(classes, words, strict=True)), name, ids)


def rows_by_line(file: Path) -> ClassRows:
    """Read a file of CLIP_benchmark: one class name per line, which may contain commas.

    Raises:
        TextError: the file cannot be read.
    """
    names = read_text(file, "classes").rstrip().split("\n")
    classes = tuple(ClassName(name.strip()) for name in names)
    return ClassRows(classes, str(file), _ids_of(classes, str(file)))


def rows_named(labels: Iterable[str]) -> ClassRows:
    """Return the labels themselves as classes, sorted like in torchvision's ImageFolder, with spaces for underscores.

    Ids and running numbers before all names are removed, with a note.

    Raises:
        TextError: only some names have ids, or two names have the same id.
    """
    labels = sorted(labels)
    names = [label.replace("_", " ").strip() or label for label in labels]
    if (understood := folder_classes(labels, "labels")) is not None:
        by_label = {entry.place: entry.name for entry in understood.entries}
        names = [by_label[f"label {label!r}"] for label in labels]
        shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
        note(f"classes of the labels: {understood.form}; {count_of(len(names), 'class')}, in prompts: {shown}")
    named = [(name, label) for name, label in zip(names, labels, strict=True)]
    classes = tuple(ClassName(name, (label,) if label != name else ()) for name, label in named)
    return ClassRows(classes, "labels", folders=tuple((label,) for _, label in named))


def imagenet_list(ids: Iterable[str]) -> str | None:
    """Return the list with these WordNet ids: ImageNet-R if they are its 200, else ImageNet; None if neither has them."""
    distinct = set(ids)
    if distinct == set(wordnet_ids(restricted=True)):
        return IMAGENET_R
    return IMAGENET if distinct <= set(wordnet_ids()) else None


def _ids_of(classes: Sequence[ClassName], source: str) -> tuple[str, ...]:
    """Return ImageNet's ids for 1000 classes without ids, in its order, unless the names are in another order."""
    ids = wordnet_ids()
    if len(classes) != len(ids):
        return ()
    words = [{_form(word) for word in (name, *lemmas()[number])} for number, name in zip(ids, open_clip_names(), strict=True)]
    all_words = set().union(*words)
    forms = [_form(entry.name) for entry in classes]
    in_place = sum(form in synonyms for form, synonyms in zip(forms, words, strict=True))
    if sum(form in all_words for form in forms) <= 2 * in_place:
        return ids
    warn(
        f"classes {source}: names of ImageNet in another order than its own ({in_place} of {len(ids)} in their places); labels "
        "that are ids are matched by name, and those that are numbers by position in the list"
    )
    return ()


def _owners(names: Iterable[Iterable[str]], form: Callable[[str], str]) -> dict[str, list[int]]:
    """Return the rows that have a name, by the form of the name."""
    owners: dict[str, list[int]] = {}
    for row, own in enumerate(names):
        for key in dict.fromkeys(map(form, own)):
            owners.setdefault(key, []).append(row)
    return owners


def _form(name: str) -> str:
    """Return a name case-folded, with composed accents and one space between words."""
    return re.sub(r"[\W_]+", " ", unicodedata.normalize("NFC", name).casefold()).strip()


class FurtherLabel(NamedTuple):
    """A further label of an image that already has one."""

    image: int
    """Index of the image."""
    label: Label
    member: str
    """The archive member with this label."""
    first: str
    """The archive member with the label that counts."""
    caption: bool
    """True if the text may be a caption instead of a label."""


class LabelledImages(NamedTuple):
    """Images and the label of each, stored as one number per image, since there may be millions."""

    images: Sequence[ListedImage]
    number: Int64[np.ndarray, "image"]
    """Each image's label, an index into `labels`."""
    labels: tuple[Label, ...]
    """All different labels, in order of appearance."""
    classes: ClassRows | None = None
    """The classes of the labels, if they come with the images."""
    further: tuple[FurtherLabel, ...] = ()


def number_labels(images: Sequence[ListedImage], labels: Iterable[Label | None], missing: str) -> LabelledImages:
    """Number the labels of the images.

    Args:
        missing: Message about an image without a label, after its name.

    Raises:
        StreamError: an image has no label.
    """
    numbers: dict[Label | None, int] = {}
    number = np.fromiter((numbers.setdefault(label, len(numbers)) for label in labels), np.int64, len(images))
    if (missing_number := numbers.get(None)) is not None:
        is_unlabelled = number == missing_number
        count = f"{is_unlabelled.sum()} of {count_of(len(images), 'image')} without a label"
        raise StreamError(f"{images[int(is_unlabelled.argmax())].name}: {missing} ({count})")
    return LabelledImages(images, number, tuple(label for label in numbers if label is not None))
