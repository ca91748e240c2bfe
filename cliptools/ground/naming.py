"""Names that a text names: as whole words whatever their case, the longest first, so that a `teddy bear` is no `bear`."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from cliptools.ground.class_names import word_forms

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
