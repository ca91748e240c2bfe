"""Classes by name: with synonyms, from a preset or a file, and the forms in which a text may name them."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from cliptools.ground.errors import TextError
from cliptools.ground.text_lines import read_lines

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


def load_classes(name: str, known: bool = True) -> tuple[ClassName, ...]:
    """Classes by name (see CLASS_LISTS), or from a UTF-8 file: a class a line, synonyms after commas, # for comments.

    Args:
        known: As for parse_class.

    Raises:
        TextError: no such list or file, not UTF-8, no class in it, or one twice.
    """
    rows = class_rows(name, known)
    if name in CLASS_LISTS:
        return tuple({each.name: each for each in rows}.values())
    refuse_twice((repr(each.name) for each in rows), f"classes {name}")
    return rows


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


def class_rows(name: str, known: bool = True) -> tuple[ClassName, ...]:
    """The same with a row for every number a label may have: two of ImageNet's classes are called missile, two sunglasses.

    Args:
        known: As for parse_class.

    Raises:
        TextError: as load_classes, but for a class twice.
    """
    if name in CLASS_LISTS:
        lines = CLASS_LISTS[name]()
    else:
        lines = (line for _, line in read_lines(Path(name), "classes", ", ".join(CLASS_LISTS)))
    classes = tuple(parse_class(line, known) for line in lines)
    if not classes:
        raise TextError(f"classes {name}: empty, expected a class a line")
    return classes


def distinct_names(classes: Iterable[ClassName], source: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """All names of all classes, and for each the number of its class, from 0.

    Raises:
        TextError: a name that stands for two classes.
    """
    owner: dict[str, int] = {}
    for number, each in enumerate(classes):
        for name in each.names:
            if name in owner:
                raise TextError(f"classes {source}: {name!r} stands for two of them (numbers {owner[name] + 1} and {number + 1})")
            owner[name] = number
    return tuple(owner), tuple(owner.values())


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
    from cliptools.ground.emoji.concepts import concept_index, concepts

    found = concept_index().get(name.lower())
    if found is None:
        return ()
    concept = concepts()[found]
    return tuple(other for other in (concept.name, *concept.synonyms) if other.lower() != name.lower())


def _emoji_lines() -> Iterable[str]:
    from cliptools.ground.emoji.concepts import concepts

    return (", ".join((concept.name, *concept.synonyms)) for concept in concepts())


def _imagenet_lines(restricted: bool = False) -> Iterable[str]:
    from cliptools.ground.imagenet import open_clip_names

    return open_clip_names(restricted)


CLASS_LISTS: dict[str, Callable[[], Iterable[str]]] = {
    "cifar10": lambda: CIFAR10,
    "emoji": _emoji_lines,
    "imagenet": _imagenet_lines,
    "imagenet-r": lambda: _imagenet_lines(restricted=True),
}
