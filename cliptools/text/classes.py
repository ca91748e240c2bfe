"""Classes with their synonyms, pairs of classes, and the mentions of class names in texts.

`class_list` reads classes from a preset or a file, and `load_pairs` reads pairs. `Names` finds the names that a text mentions, as
whole words in any case, plurals included; the longest name takes precedence, so that `teddy bear` does not mention `bear`.
"""

import csv
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cliptools.console import count_of, note, warn
from cliptools.errors import TextError
from cliptools.io.text_file import read_lines
from cliptools.text.class_lists import read_class_list
from cliptools.text.emoji_concepts import concept_index, concepts
from cliptools.text.vocabularies import open_clip_names

SHOWN = 3  # classes of a file that a note shows as prompts will name them
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class ClassName:
    """A class and its synonyms."""

    name: str
    synonyms: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The name, followed by its synonyms."""
        return (self.name, *self.synonyms)


def parse_class(line: str, known: bool = True) -> ClassName:
    """Parse a class and its synonyms: `sofa, couch` is the class `sofa` with the synonym `couch`.

    >>> parse_class("sofa, couch")
    ClassName(name='sofa', synonyms=('couch',))

    Args:
        known: Add the synonyms of a name that the embedded world knows, if the line has none.

    Raises:
        TextError: the line has no name.
    """
    names = tuple(dict.fromkeys(part.strip() for part in line.split(",") if part.strip()))
    if not names:
        raise TextError(f"class {line!r}: expected a name, or a name and its synonyms as in 'sofa, couch'")
    return ClassName(names[0], names[1:] or (_known_synonyms(names[0]) if known else ()))


@dataclass(frozen=True)
class ClassList:
    """Classes, a row for every number that a label may have, and the ids, numbers and folders by which labels may name them."""

    classes: tuple[ClassName, ...]
    ids: tuple[str, ...] = ()
    """Ids of all classes in the list, or empty."""
    numbers: tuple[int, ...] = ()
    """Numbers of all classes in the list, ascending, or empty."""
    folders: tuple[tuple[str, ...], ...] = ()
    """Possible names of each class's folder, with an id or a number before the name."""


def class_list(name: str, known: bool = True) -> ClassList:
    """Return a list of classes by name (see CLASS_LISTS), or from a file in any form that class_lists reads; note its form.

    Equal names stay separate classes, with a note or warning: two of ImageNet's classes are called missile, and two sunglasses.

    Args:
        known: See parse_class.

    Raises:
        TextError: the list or file is unknown, has no known form, or is empty.
    """
    if name in CLASS_LISTS:
        classes = tuple(parse_class(line, known) for line in CLASS_LISTS[name]())
        if text := _duplicates_text(classes):
            note(f"classes {name}: {text}")
        return ClassList(classes)
    file = read_class_list(Path(name), ", ".join(CLASS_LISTS))
    entries = file.entries
    classes = tuple(parse_class(entry.name, known) for entry in entries)
    ellipsis = ", …" if len(classes) > SHOWN else ""
    first_names = ", ".join(item.name for item in classes[:SHOWN])
    note(f"classes {name}: {file.form}; {count_of(len(classes), 'class')}, in prompts: {first_names}{ellipsis}")
    if text := _duplicates_text(classes):
        warn(f"classes {name}: {text}")
    ids, numbers = [entry.id for entry in entries], [entry.number for entry in entries]
    return ClassList(
        classes,
        tuple(value for value in ids if value is not None),
        tuple(number for number in numbers if number is not None),
        tuple(entry.folders for entry in entries),
    )


def load_classes(name: str, known: bool = True) -> tuple[ClassName, ...]:
    """Return the classes of a list, without ids, numbers and folders."""
    return class_list(name, known).classes


def distinct_classes(classes: Iterable[ClassName]) -> tuple[ClassName, ...]:
    """Return every name once, with the synonyms of all its classes.

    >>> [item.name for item in distinct_classes([ClassName("crane", ("bird",)), ClassName("crane"), ClassName("dog")])]
    ['crane', 'dog']
    """
    synonyms: dict[str, dict[str, None]] = {}
    for item in classes:
        synonyms.setdefault(item.name, {}).update(dict.fromkeys(item.synonyms))
    return tuple(ClassName(name, tuple(class_synonyms)) for name, class_synonyms in synonyms.items())


def _duplicates_text(classes: Sequence[ClassName]) -> str:
    """Return a message about names of several classes; empty if there are none."""
    counts = Counter(item.name for item in classes)
    repeated = [name for name, count in counts.items() if count > 1]
    if not repeated:
        return ""
    rows = {name: [str(row) for row, item in enumerate(classes, 1) if item.name == name] for name in repeated[:SHOWN]}
    descriptions = [f"{name!r} (places {', '.join(places)})" for name, places in rows.items()]
    remainder = f" and {len(repeated) - SHOWN} more names" if len(repeated) > SHOWN else ""
    names = f"{', '.join(descriptions)}{remainder}"
    return f"{names} stand for several of the {len(classes)} classes, which a model cannot tell apart by text"


def refuse_duplicates(names: Iterable[str], source: str) -> None:
    """Check that a list has no duplicate names.

    Args:
        source: Name of the list in the message.

    Raises:
        TextError: a name is listed twice.
    """
    earlier: set[str] = set()
    for name in names:
        if name in earlier:
            raise TextError(f"{source}: {name} is listed twice")
        earlier.add(name)


def distinct_names(classes: Sequence[ClassName], source: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return all names and synonyms without duplicates, and the number of the class of each, from 0.

    A name of several classes belongs to the first of them; a synonym that is also a name belongs to the class of that name; a
    synonym of several classes is left out with a warning.
    """
    owner: dict[str, int] = {}
    for number, item in enumerate(classes):
        owner.setdefault(item.name, number)
    synonyms: dict[str, list[int]] = {}
    for number, item in enumerate(classes):
        for name in item.synonyms:
            synonyms.setdefault(name, []).append(number)
    shared = {name: numbers for name, numbers in synonyms.items() if len({*numbers, owner.get(name, numbers[0])}) > 1}
    if shared:
        example, numbers = next(iter(shared.items()))
        sharing = sorted({*numbers, *([owner[example]] if example in owner else [])})
        others = f" and {len(shared) - 1} more" if len(shared) > 1 else ""
        places = ", ".join(str(number + 1) for number in sharing)
        warn(f"classes {source}: synonym {example!r}{others} left out, because several classes have it (places {places})")
    names_with_class = [
        (name, number)
        for number, item in enumerate(classes)
        for name in item.names
        if owner.get(name, number if name not in shared else None) == number
    ]
    return tuple(name for name, _ in names_with_class), tuple(number for _, number in names_with_class)


def word_forms(name: str) -> tuple[str, ...]:
    """Return a name and its plurals in lower case: `butterflies`, `wolves`, `mice`, `snowmen` besides the regular ones."""
    lower = name.lower()
    forms = [lower, f"{lower}s", f"{lower}es"]
    for ending, plural in (("y", "ies"), ("f", "ves"), ("fe", "ves"), ("mouse", "mice"), ("man", "men"), ("ox", "oxen")):
        if lower.endswith(ending):
            forms.append(lower.removesuffix(ending) + plural)
    return tuple(forms)


def names_pattern(names: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern that finds these names and their plurals in a text, as whole words in any case."""
    forms = sorted({form for name in names for form in word_forms(name)}, key=lambda form: (-len(form), form))
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, forms))})(?!\w)", re.IGNORECASE)


def _known_synonyms(name: str) -> tuple[str, ...]:
    """Return the other names of the concept of the embedded world that has this name; empty if there is none."""
    index = concept_index().get(name.lower())
    if index is None:
        return ()
    concept = concepts()[index]
    return tuple(synonym for synonym in (concept.name, *concept.synonyms) if synonym.lower() != name.lower())


def _emoji_lines() -> Iterable[str]:
    return (", ".join((concept.name, *concept.synonyms)) for concept in concepts())


CLASS_LISTS: dict[str, Callable[[], Iterable[str]]] = {
    "cifar10": lambda: CIFAR10,
    "emoji": _emoji_lines,
    "imagenet": open_clip_names,
    "imagenet-r": lambda: open_clip_names(restricted=True),
}


CIFAR10_PAIRS = (
    ("horse", "automobile"),
    ("dog", "deer"),
    ("bird", "frog"),
    ("ship", "truck"),
    ("ship", "automobile"),
)
"""Depicted and predicted class, as in paper 1's Table 3."""
PAIR_LISTS = {"cifar10": CIFAR10_PAIRS}


@dataclass(frozen=True)
class ClassPair:
    """Two classes: images show the first and should be classified as the second."""

    depict: ClassName
    predict: ClassName

    @property
    def name(self) -> str:
        """The pair as `cat->dog`."""
        return f"{self.depict.name}->{self.predict.name}"


def make_pair(depict: str, predict: str) -> ClassPair:
    """Return the pair of two classes, given as `name` or `name, synonym`.

    Raises:
        TextError: a name is missing, or both classes are the same.
    """
    pair = ClassPair(parse_class(depict), parse_class(predict))
    if {name.lower() for name in pair.depict.names} & {name.lower() for name in pair.predict.names}:
        raise TextError(f"pair {pair.name}: depicted and predicted class are the same or synonyms, expected two classes")
    return pair


def load_pairs(name: str) -> tuple[ClassPair, ...]:
    """Return pairs by name (see PAIR_LISTS), or from a UTF-8 file with `depicted,predicted` per line and # for comments.

    Raises:
        TextError: the list or file is unknown, not UTF-8 or empty, a line does not have two names, or a pair is listed twice.
    """
    rows = PAIR_LISTS[name] if name in PAIR_LISTS else _rows(Path(name))
    pairs = tuple(make_pair(depict, predict) for depict, predict in rows)
    if not pairs:
        raise TextError(f"pairs {name}: empty, expected one pair per line as in 'cat,dog'")
    refuse_duplicates((pair.name for pair in pairs), f"pairs {name}")
    return pairs


def _rows(path: Path) -> list[tuple[str, str]]:
    rows = []
    for number, line in read_lines(path, "pairs", ", ".join(PAIR_LISTS)):
        try:
            cells = [cell.strip() for cell in next(csv.reader([line], skipinitialspace=True))]
        except csv.Error as error:
            raise TextError(f"pairs {path}: line {number}: expected 'depicted,predicted', found invalid CSV ({error})") from None
        if len(cells) != 2 or not all(cells):
            raise TextError(f"pairs {path}: line {number}: expected 'depicted,predicted', found {line[:40]!r}")
        rows.append((cells[0], cells[1]))
    return rows


OF_ANOTHER_KIND = (
    "hot dog", "prairie dog", "teddy bear", "computer mouse", "three button mouse", "carousel horse", "rocking horse",
    "sea horse", "sea lion", "sea cow", "sea urchin", "sea slug", "sea cucumber", "guinea pig", "water pistol", "mortar board",
    "clapper board",
)  # fmt: skip
"""Names that are not a kind of their last word; a polar bear, in contrast, is a bear."""


class Mention(NamedTuple):
    """A place where a text mentions a name."""

    start: int
    stop: int
    name: str
    """The name in lower case."""


class Names:
    """Names to look for in texts.

    Args:
        names: Names to find; their case does not matter.
        longer: Longer names that hide a shorter name within them, unless that is their last word and they are a kind of it:
            `fire engine` does not mention `fire`, but `police car` mentions `car`.
    """

    def __init__(self, names: Iterable[str], longer: Iterable[str] = ()) -> None:
        lower_names = dict.fromkeys(name.lower() for name in names)
        longer_names = dict.fromkeys(name.lower() for name in (*longer, *OF_ANOTHER_KIND))
        hiding = [name for name in longer_names if name not in lower_names and _is_hiding(name, lower_names)]
        patterns = [(name, _pattern(name), name in lower_names) for name in (*lower_names, *hiding)]
        self._patterns = sorted(patterns, key=lambda entry: (-len(entry[0]), entry[0]))

    def mentions(self, text: str) -> list[Mention]:
        """Return the places where a text mentions a name, in order; no two overlap."""
        places: list[Mention] = []
        remaining = text.lower()
        for name, pattern, is_name in self._patterns:
            if is_name:
                places.extend(Mention(match.start(), match.end(), name) for match in pattern.finditer(remaining))
            remaining = pattern.sub(lambda match: "\0" * len(match.group()), remaining)
        return sorted(places)

    def names_in(self, text: str) -> set[str]:
        """Return the names that a text mentions, in lower case."""
        return {place.name for place in self.mentions(text)}


def _pattern(name: str) -> re.Pattern[str]:
    """Return a pattern for a name and its plurals; hyphens may join its words, but it is not part of a word (`cat-like`)."""
    forms = (re.escape(re.sub(r"(?<=\w)[\s-]+(?=\w)", " ", form)).replace("\\ ", r"[\s-]+") for form in word_forms(name))
    return re.compile(rf"(?<!\w)(?<!\w-)(?:{'|'.join(forms)})(?!-?\w)")


def _is_hiding(longer: str, names: Iterable[str]) -> bool:
    """Return whether a longer name hides a shorter name within it."""
    within = [name for name in names if len(name) < len(longer) and re.search(rf"(?<!\w){re.escape(name)}(?!\w)", longer)]
    kind_of = longer not in OF_ANOTHER_KIND and any(longer.endswith(name) for name in within)
    return bool(within) and not kind_of
