"""The texts of a vocabulary that images show, from labels, captions, annotations or the emoji scenes themselves.

`open_shown` opens images together with what they show. A text is shown if it, or one of its synonyms, is among the names of the
objects in the image, or if the image's caption mentions it.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from cliptools.console import count_of, warn
from cliptools.emoji.attributes import attributes_of
from cliptools.emoji.render import SceneSource
from cliptools.errors import StreamError
from cliptools.images.annotations import Annotations, by_columns, read_annotations, scene_names
from cliptools.images.classification import open_classified
from cliptools.images.groups import Columns, Groups, read_table, separator_of
from cliptools.images.listing import ListedImage, find, full_name
from cliptools.images.loader import ImageSource, ListedImages
from cliptools.images.tar import Span
from cliptools.io.jsonl import parse
from cliptools.io.text_file import decode_text, read_text
from cliptools.text.attributes import attributes
from cliptools.text.classes import Names, parse_class
from cliptools.text.emoji_concepts import concepts

SCENES, CLASSES, CAPTIONS = TRUTHS = ("scenes", "classes", "captions")
"""Values of --truth other than a file."""
TXT = ".txt"
NAMED = 3  # texts that a warning names


class TextIndex:
    """Texts by their names and synonyms, in any case."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.count = len(texts)
        self._texts: dict[str, list[int]] = {}
        self._by_folder: dict[str, set[int]] = {}
        for number, text in enumerate(texts):
            for form in _forms(text):
                self._texts.setdefault(form, []).append(number)
                self._by_folder.setdefault(_spaced(form), set()).add(number)

    def of(self, names: Iterable[str]) -> list[int]:
        """Return the texts that one of these names means, ascending."""
        forms = {form for name in names for form in _forms(name)}
        return sorted({number for form in forms for number in self._texts.get(form, ())})

    def of_folder(self, name: str) -> list[int]:
        """Return the texts that the name of a folder means, ascending: `black-cat` and `black_cat` mean `black cat`."""
        return sorted({number for form in _forms(name) for number in self._by_folder.get(_spaced(form), ())})

    def mask(self, numbers: Iterable[int]) -> Bool[np.ndarray, " text"]:
        """Return True at these texts."""
        mask = np.zeros(self.count, dtype=bool)
        mask[list(numbers)] = True
        return mask

    @property
    def forms(self) -> list[str]:
        """Return all names and synonyms in lower case."""
        return list(self._texts)


@dataclass(frozen=True)
class ShownTexts:
    """Images, and the texts that each shows."""

    source: ImageSource
    of: Callable[[int], list[int]]
    """Function from an image to the texts that it shows.

    Raises:
        StreamError: nothing is known about the image.
    """
    known: Bool[np.ndarray, " text"] | None
    """Texts whose presence is known; None for those that some image shows."""


class TruthOptions(NamedTuple):
    """The source of the ground truth."""

    truth: str
    """One of TRUTHS, or a file."""
    classes: str | None = None
    """A list of classes, if labels are numbers."""


def open_shown(paths: Sequence[str], options: TruthOptions, texts: Sequence[str]) -> ShownTexts:
    """Open the images of the paths, with the texts that they show.

    Args:
        options: `scenes`: the records of clip-scenes. `classes`: folders, or the labels in archives. `captions`: the texts in
            archives. A file: lines with key and names; a table with a column per text; or a class per image.

    Raises:
        StreamError: an image has no label, no caption or no record, or the file is of another kind.
        TextError: the file cannot be read.
        UsageError, CliptoolsError: as loader.open_images.
    """
    index = TextIndex(texts)
    if options.truth == SCENES:
        images = find(paths)
        by_folder: dict[Path, Annotations | None] = {}
        names = lambda number: scene_names(images[number], by_folder, f"--truth {SCENES}", attributes=True)  # noqa: E731
        return ShownTexts(ListedImages(images), lambda number: index.of(names(number)), scene_texts(index))
    if options.truth == CAPTIONS:
        return _captioned(find(paths, extra_endings=(TXT,)), index)
    if options.truth != CLASSES and (opened := _open_file(paths, Path(options.truth), index, texts)) is not None:
        return opened
    labelled = open_classified(paths, None if options.truth == CLASSES else options.truth, options.classes, Columns())
    rows = [index.of(name.names) for name in labelled.classes]
    known = index.mask(number for row in rows for number in row)
    return ShownTexts(labelled.source, lambda number: rows[int(labelled.label[number])], known)


def rendered_shown(source: SceneSource, texts: Sequence[str]) -> ShownTexts:
    """Return rendered scenes, with the texts that they show."""
    index = TextIndex(texts)
    names = lambda number: (*source.names_in(number), *attributes_of(source.scene(number)))  # noqa: E731
    return ShownTexts(source, lambda number: index.of(names(number)), scene_texts(index))


def listed_names(source: ImageSource, names: dict[str, tuple[str, ...]], texts: Sequence[str]) -> ShownTexts:
    """Return images, with the texts that names by image give."""
    return _annotated(source, source.names, Annotations(names, "truth"), TextIndex(texts))


def scene_texts(index: TextIndex) -> Bool[np.ndarray, " text"]:
    """Return True at the names of emoji and at the attributes of scenes."""
    return index.mask(index.of([*(concept.name for concept in concepts()), *attributes()]))


def _forms(name: str) -> set[str]:
    return {form.casefold() for form in parse_class(name).names} | {name.casefold()}


def _spaced(form: str) -> str:
    """Return the words of a name: letters and digits, with one space for all signs between them."""
    return re.sub(r"[\W_]+", " ", form).strip()


def _annotated(source: ImageSource, names: Sequence[str], annotations: Annotations, index: TextIndex) -> ShownTexts:
    return ShownTexts(source, lambda number: index.of(annotations.of(names[number])), None)


def _open_file(paths: Sequence[str], file: Path, index: TextIndex, texts: Sequence[str]) -> ShownTexts | None:
    """Open images with the names or columns of a file; None if it has neither, but may have classes."""
    text = read_text(file, "--truth")
    head = next((line for line in text.split("\n") if line.strip()), "")
    try:
        record = parse(head)
    except ValueError:
        record = None
    if isinstance(record, dict) and {"key", "names"} <= record.keys():
        images = find(paths)
        return _annotated(
            ListedImages(images), [full_name(image) for image in images], read_annotations(file, attributes=True), index
        )
    columns = {name.strip().strip('"').casefold() for name in head.split(separator_of(head, "image"))}
    if "image" not in columns or not (named := [n for n, text in enumerate(texts) if text.casefold() in columns]):
        return None
    images = find(paths)
    groups = Groups(ListedImages(images), images, (), [])
    labels = by_columns(groups, read_table(file, "image"), [texts[n] for n in named])  # (image, column)
    unknown = np.isnan(labels).sum(0)  # (column)
    counts = zip(named, unknown.tolist(), strict=True)
    if lacking := [f"{texts[n]!r} ({count_of(count, 'image')})" for n, count in counts if count]:
        more = ", …" if len(lacking) > NAMED else ""
        left_out = f"{count_of(len(lacking), 'text')} with images without an entry"
        warn(f"--truth {file}: not judged, {left_out}: {', '.join(lacking[:NAMED])}{more}")
    known = index.mask(n for n, count in zip(named, unknown, strict=True) if not count)
    return ShownTexts(
        groups.source, lambda number: [n for n, label in zip(named, labels[number], strict=True) if label == 1], known
    )


def _captioned(members: Sequence[ListedImage], index: TextIndex) -> ShownTexts:
    """Return the pictures of archives, each with the texts that the .txt of its key mentions.

    Raises:
        StreamError: a picture has no caption.
    """
    spans = {_key(member): member.place for member in members if member.name.lower().endswith(TXT)}
    images = [member for member in members if not member.name.lower().endswith(TXT)]
    if lacking := next((image.name for image in images if not isinstance(spans.get(_key(image)), Span)), None):
        raise StreamError(f"--truth {CAPTIONS}: {lacking} has no caption (expected a member KEY{TXT} of its archive)")
    names = Names(index.forms)
    return ShownTexts(ListedImages(images), partial(_mentioned, images, spans, names, index), None)


def _mentioned(
    images: Sequence[ListedImage], spans: dict[tuple[str, str], str | Span], names: Names, index: TextIndex, number: int
) -> list[int]:
    """Return the texts that the caption of an image mentions."""
    span = spans[_key(images[number])]
    assert isinstance(span, Span)
    try:
        caption = decode_text(span.read().read())
    except (OSError, ValueError) as error:
        raise StreamError(f"--truth {CAPTIONS}: the caption of {images[number].name} cannot be read ({error})") from None
    return index.of(names.names_in(caption))


def _key(member: ListedImage) -> tuple[str, str]:
    """Return the archive and the WebDataset key of a member: its name up to the first dot after the last slash."""
    path = PurePosixPath(member.name)
    return member.base, str(path.parent / path.name.partition(".")[0])
