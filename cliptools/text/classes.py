"""Classes by name: with synonyms, from a preset or a file, and the forms in which a text may name them.

Pairs of classes: what a picture shows, and what it is to be taken for.

Names that a text names: as whole words whatever their case, the longest first, so that a `teddy bear` is no `bear`.
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

SHOWN = 3  # classes of a file that are repeated as prompts will say them
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class ClassName:
    """A class, and other words for it."""

    name: str
    synonyms: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The name, then its synonyms."""
        return (self.name, *self.synonyms)


def parse_class(line: str, known: bool = True) -> ClassName:
    """`sofa, couch` as the class `sofa` with the synonym `couch`.

    >>> parse_class("sofa, couch")
    ClassName(name='sofa', synonyms=('couch',))

    Args:
        known: A lone name that the embedded world knows brings its synonyms.

    Raises:
        TextError: no name in it.
    """
    names = tuple(dict.fromkeys(part.strip() for part in line.split(",") if part.strip()))
    if not names:
        raise TextError(f"class {line!r}: expected a name, or a name and its synonyms as in 'sofa, couch'")
    return ClassName(names[0], names[1:] or (_known_synonyms(names[0]) if known else ()))


@dataclass(frozen=True)
class ClassList:
    """Classes, a row for every number that a label may have, and by what else than names labels may call them."""

    classes: tuple[ClassName, ...]
    ids: tuple[str, ...] = ()
    """Of all classes, or of none: what the list says of WordNet's ids."""
    numbers: tuple[int, ...] = ()
    """Likewise: the numbers that the list gives its classes, which are in their order."""
    folders: tuple[tuple[str, ...], ...] = ()
    """What folders of the classes may be called, an id or a number before the name."""


def class_list(name: str, known: bool = True) -> ClassList:
    """Classes by name (see CLASS_LISTS), or from a file in any form that class_lists knows; says how a file was understood.

    Names that stand twice are classes of their own, which is said: two of ImageNet's are called missile, two sunglasses.

    Args:
        known: As for parse_class.

    Raises:
        TextError: no such list or file, not to be understood, or no class in it.
    """
    if name in CLASS_LISTS:
        classes = tuple(parse_class(line, known) for line in CLASS_LISTS[name]())
        if text := _twice(classes):
            note(f"classes {name}: {text}")
        return ClassList(classes)
    understood = read_class_list(Path(name), ", ".join(CLASS_LISTS))
    entries = understood.entries
    classes = tuple(parse_class(entry.name, known) for entry in entries)
    more = ", …" if len(classes) > SHOWN else ""
    shown = ", ".join(each.name for each in classes[:SHOWN])
    note(f"classes {name}: {understood.form}; {count_of(len(classes), 'class')}, in prompts: {shown}{more}")
    if text := _twice(classes):
        warn(f"classes {name}: {text}")
    ids, numbers = [entry.id for entry in entries], [entry.number for entry in entries]
    return ClassList(
        classes,
        tuple(each for each in ids if each is not None),
        tuple(each for each in numbers if each is not None),
        tuple(entry.folders for entry in entries),
    )


def load_classes(name: str, known: bool = True) -> tuple[ClassName, ...]:
    """The classes alone, as class_list reads them."""
    return class_list(name, known).classes


def distinct_classes(classes: Iterable[ClassName]) -> tuple[ClassName, ...]:
    """Each name once, with all the synonyms it has: for what depends on the texts alone.

    >>> [each.name for each in distinct_classes([ClassName("crane", ("bird",)), ClassName("crane"), ClassName("dog")])]
    ['crane', 'dog']
    """
    synonyms: dict[str, dict[str, None]] = {}
    for each in classes:
        synonyms.setdefault(each.name, {}).update(dict.fromkeys(each.synonyms))
    return tuple(ClassName(name, tuple(more)) for name, more in synonyms.items())


def _twice(classes: Sequence[ClassName]) -> str:
    """Which names stand for several classes, in words; nothing if none does."""
    times = Counter(each.name for each in classes)
    several = [name for name, count in times.items() if count > 1]
    if not several:
        return ""
    rows = {name: [str(row) for row, each in enumerate(classes, 1) if each.name == name] for name in several[:SHOWN]}
    shown = [f"{name!r} (places {', '.join(places)})" for name, places in rows.items()]
    more = f" and {len(several) - SHOWN} more names" if len(several) > SHOWN else ""
    return f"{', '.join(shown)}{more} stand for several of the {len(classes)} classes, which a model cannot tell apart by text"


def refuse_twice(names: Iterable[str], source: str) -> None:
    """
    Args:
        source: What to call the list in the message.

    Raises:
        TextError: one of the names stands there twice.
    """
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise TextError(f"{source}: {name} stands there twice")
        seen.add(name)


def distinct_names(classes: Sequence[ClassName], source: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """All names of all classes, each once, and for each the number of its class, from 0.

    A name that stands for several classes is the first one's; a synonym that is also a name is the name's; one that two classes
    have as a synonym is left out, and that is said.
    """
    owner: dict[str, int] = {}
    for number, each in enumerate(classes):
        owner.setdefault(each.name, number)
    synonyms: dict[str, list[int]] = {}
    for number, each in enumerate(classes):
        for name in each.synonyms:
            synonyms.setdefault(name, []).append(number)
    shared = {name: numbers for name, numbers in synonyms.items() if len({*numbers, owner.get(name, numbers[0])}) > 1}
    if shared:
        first, numbers = next(iter(shared.items()))
        several = sorted({*numbers, *([owner[first]] if first in owner else [])})
        more = f" and {len(shared) - 1} more" if len(shared) > 1 else ""
        places = ", ".join(str(number + 1) for number in several)
        warn(f"classes {source}: synonym {first!r}{more} left out, for several classes go by it (places {places})")
    named = [
        (name, number)
        for number, each in enumerate(classes)
        for name in each.names
        if owner.get(name, number if name not in shared else None) == number
    ]
    return tuple(name for name, _ in named), tuple(number for _, number in named)


def word_forms(name: str) -> tuple[str, ...]:
    """A name and its plurals, lower case: `butterflies`, `wolves`, `mice`, `snowmen` besides the regular ones."""
    lower = name.lower()
    forms = [lower, f"{lower}s", f"{lower}es"]
    for ending, plural in (("y", "ies"), ("f", "ves"), ("fe", "ves"), ("mouse", "mice"), ("man", "men"), ("ox", "oxen")):
        if lower.endswith(ending):
            forms.append(lower.removesuffix(ending) + plural)
    return tuple(forms)


def names_pattern(names: Iterable[str]) -> re.Pattern[str]:
    """Where a text names one of these, plurals included, as whole words whatever their case."""
    forms = sorted({form for name in names for form in word_forms(name)}, key=lambda form: (-len(form), form))
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, forms))})(?!\w)", re.IGNORECASE)


def _known_synonyms(name: str) -> tuple[str, ...]:
    from cliptools.text.emoji_concepts import concept_index, concepts

    found = concept_index().get(name.lower())
    if found is None:
        return ()
    concept = concepts()[found]
    return tuple(other for other in (concept.name, *concept.synonyms) if other.lower() != name.lower())


def _emoji_lines() -> Iterable[str]:
    from cliptools.text.emoji_concepts import concepts

    return (", ".join((concept.name, *concept.synonyms)) for concept in concepts())


def _imagenet_lines(restricted: bool = False) -> Iterable[str]:
    from cliptools.text.imagenet_classes import open_clip_names

    return open_clip_names(restricted)


CLASS_LISTS: dict[str, Callable[[], Iterable[str]]] = {
    "cifar10": lambda: CIFAR10,
    "emoji": _emoji_lines,
    "imagenet": _imagenet_lines,
    "imagenet-r": lambda: _imagenet_lines(restricted=True),
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
    """Pictures of the first class are to be taken for the second."""

    depict: ClassName
    predict: ClassName

    @property
    def name(self) -> str:
        """`cat->dog`."""
        return f"{self.depict.name}->{self.predict.name}"


def make_pair(depict: str, predict: str) -> ClassPair:
    """The pair of two classes, each `name` or `name, synonym`.

    Raises:
        TextError: no name, or one class twice.
    """
    pair = ClassPair(parse_class(depict), parse_class(predict))
    if {name.lower() for name in pair.depict.names} & {name.lower() for name in pair.predict.names}:
        raise TextError(f"pair {pair.name}: depicted and predicted class are the same or synonyms, expected two classes")
    return pair


def load_pairs(name: str) -> tuple[ClassPair, ...]:
    """Pairs by name (see PAIR_LISTS), or from a UTF-8 file: `depicted,predicted` a line, # for comments.

    Raises:
        TextError: no such list or file, not UTF-8, a line of other than two names, no pair at all, or one twice.
    """
    rows = PAIR_LISTS[name] if name in PAIR_LISTS else _rows(Path(name))
    pairs = tuple(make_pair(depict, predict) for depict, predict in rows)
    if not pairs:
        raise TextError(f"pairs {name}: empty, expected a pair a line as in 'cat,dog'")
    refuse_twice((pair.name for pair in pairs), f"pairs {name}")
    return pairs


def all_pairs(classes: Sequence[ClassName]) -> list[ClassPair]:
    """Every ordered pair of two different classes."""
    return [ClassPair(a, b) for a in classes for b in classes if a is not b]


def _rows(path: Path) -> list[tuple[str, str]]:
    rows = []
    for number, line in read_lines(path, "pairs", ", ".join(PAIR_LISTS)):
        try:
            cells = [cell.strip() for cell in next(csv.reader([line], skipinitialspace=True))]
        except csv.Error as error:
            raise TextError(f"pairs {path}: line {number}: expected 'depicted,predicted', found no CSV ({error})") from None
        if len(cells) != 2 or not all(cells):
            raise TextError(f"pairs {path}: line {number}: expected 'depicted,predicted', found {line[:40]!r}")
        rows.append((cells[0], cells[1]))
    return rows


OF_ANOTHER_KIND = (
    "hot dog", "prairie dog", "teddy bear", "computer mouse", "three button mouse", "carousel horse", "rocking horse",
    "sea horse", "sea lion", "sea cow", "sea urchin", "sea slug", "sea cucumber", "guinea pig", "water pistol", "mortar board",
    "clapper board",
)  # fmt: skip
"""Names that are no kind of what their last word is; a polar bear, in contrast, is a bear."""


class Mention(NamedTuple):
    """A place where a text names something."""

    start: int
    stop: int
    name: str
    """As it was given, in small letters."""


class Names:
    """Names to look for in texts.

    Args:
        names: In any case; several that differ in their case only are one.
        longer: Further names, which are not looked for. Where a text has one of them, a shorter name within it is not named,
            unless that is its last word and it is a kind of that: `fire` not in `fire engine`, but `car` in `police car`.
    """

    def __init__(self, names: Iterable[str], longer: Iterable[str] = ()) -> None:
        wanted = dict.fromkeys(name.lower() for name in names)
        others = dict.fromkeys(name.lower() for name in (*longer, *OF_ANOTHER_KIND))
        hiding = [name for name in others if name not in wanted and _hides(name, wanted)]
        patterns = [(name, _pattern(name), name in wanted) for name in (*wanted, *hiding)]
        self._patterns = sorted(patterns, key=lambda entry: (-len(entry[0]), entry[0]))

    def mentions(self, text: str) -> list[Mention]:
        """Return the places that name something, in the order of the text; no two overlap."""
        places: list[Mention] = []
        rest = text.lower()
        for name, pattern, wanted in self._patterns:
            if wanted:
                places.extend(Mention(match.start(), match.end(), name) for match in pattern.finditer(rest))
            rest = pattern.sub(lambda match: "\0" * len(match.group()), rest)
        return sorted(places)

    def named(self, text: str) -> set[str]:
        """Return the names in a text, in small letters."""
        return {place.name for place in self.mentions(text)}


def _pattern(name: str) -> re.Pattern[str]:
    """A name and its plurals; its words may be joined by a hyphen, but it is no part of a longer word (`cat-like`)."""
    forms = (re.escape(re.sub(r"(?<=\w)[\s-]+(?=\w)", " ", form)).replace("\\ ", r"[\s-]+") for form in word_forms(name))
    return re.compile(rf"(?<!\w)(?<!\w-)(?:{'|'.join(forms)})(?!-?\w)")


def _hides(longer: str, names: Iterable[str]) -> bool:
    """Tell for a longer name whether a name within it is not meant where a text has it."""
    within = [name for name in names if len(name) < len(longer) and re.search(rf"(?<!\w){re.escape(name)}(?!\w)", longer)]
    kind_of = longer not in OF_ANOTHER_KIND and any(longer.endswith(name) for name in within)
    return bool(within) and not kind_of
