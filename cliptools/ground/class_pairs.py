"""Pairs of classes: what a picture shows, and what it is to be taken for."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cliptools.ground.class_names import ClassName, parse_class, refuse_twice
from cliptools.ground.errors import TextError
from cliptools.ground.text_lines import read_lines

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
