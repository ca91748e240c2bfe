"""Ways of editing in the study of repairs (examples/repair.py), over the seeds, and whether the edit meets the goals."""

from collections.abc import Sequence
from typing import NamedTuple

from cliptools.text.emoji_concepts import PAIR
from examples.result_tables import Row, Share, Tables
from tools.results_page.comparison import LESS, MORE, compare, mean, numbers, over_runs

TABLE, UNNAMED = "repair", "repair-unnamed"
EDIT = ("repair", "null")
"""Units and edit of the way that the study is about."""
LOST = {"A_cue": 2.0, "A_other": 1.5, "C_other": 1.5}
"""The largest loss of each group but another class beside the cue, in points."""
ZERO_SHOT_LOST = 0.5
CONTROLS = ("random", "write", "see", "blind")


class Way(NamedTuple):
    """The rows of one way of editing one model, one for each seed, in the order of the table."""

    units: str
    edit: str
    rows: Sequence[Row]

    def mean(self, column: str) -> float:
        """Return the mean of a column over the seeds."""
        return mean(numbers(self.rows, column))

    def gains(self) -> list[Share]:
        """Return the gain of the worst group for each seed, with its interval over pairs."""
        return [Share(row.number("after") - row.number("before"), row.number("low"), row.number("high")) for row in self.rows]

    def gain(self) -> Share:
        """Return the mean of the gain over the seeds, with the ends of all intervals."""
        return over_runs(self.gains())

    def zero_shot_change(self) -> Share:
        """Return the mean change of zero-shot accuracy over the seeds, with the ends of all intervals."""
        ends = [(row.number("zero_shot_low"), row.number("zero_shot_high")) for row in self.rows]
        return over_runs([Share(change, *end) for change, end in zip(self._zero_shot_changes(), ends, strict=True)])

    def _zero_shot_changes(self) -> list[float]:
        return [row.number("zero_shot_after") - row.number("zero_shot") for row in self.rows]

    def versus(self, other: "Way") -> tuple[int, int]:
        """Return the number of seeds with a significantly larger gain than another way's, and with a smaller one."""
        outcomes = [compare(a, b) for a, b in zip(self.gains(), other.gains(), strict=True)]
        return outcomes.count(MORE), outcomes.count(LESS)


class Goal(NamedTuple):
    """A figure of the edit and its limit: the share of the error that is gone, or a change in points."""

    column: str
    value: float
    limit: float

    @property
    def met(self) -> bool:
        """True if the figure is at least the limit."""
        return self.value >= self.limit - 1e-9


class Repaired(NamedTuple):
    """All ways of editing one model, the edit that the study is about first."""

    edit: Way
    others: Sequence[Way]

    def goals(self, least: float) -> list[Goal]:
        """Return the goals by the means over the seeds.

        Args:
            least: Share of the worst group's error that should be gone.
        """
        return _goals(self.edit, least)

    def controls_behind(self) -> list[Way]:
        """Return the controls whose gain is significantly smaller than the edit's for every seed."""
        return [way for way in self.controls() if self.edit.versus(way)[0] == len(self.edit.rows)]

    def controls(self) -> list[Way]:
        """Return the ways that edit other units."""
        return [way for way in self.others if way.units in CONTROLS]

    def seeds_that_meet(self, least: float) -> int:
        """Return the number of seeds that meet all goals."""
        seeds = [self.edit._replace(rows=[row]) for row in self.edit.rows]
        return sum(all(goal.met for goal in _goals(seed, least)) for seed in seeds)


def _goals(way: Way, least: float) -> list[Goal]:
    groups = [Goal(column, way.mean(column), -lost) for column, lost in LOST.items()]
    zero_shot = Goal("zero_shot", 100 * way.zero_shot_change().value, -ZERO_SHOT_LOST)
    return [Goal("error_gone", way.mean("error_gone"), least), *groups, zero_shot]


def repaired(tables: Tables, model: str) -> Repaired:
    """Return the ways of editing a model: the edit that the study is about, then all others.

    Raises:
        TableError: the table is missing, or has no row of the model.
    """
    rows = tables.rows(TABLE, model=model)
    kinds = dict.fromkeys((row.text("units"), row.text("edit")) for row in rows)
    ways = [Way(units, edit, tables.rows(TABLE, model=model, units=units, edit=edit)) for units, edit in (EDIT, *kinds)]
    return Repaired(ways[0], [way for way in ways[1:] if way[:2] != EDIT])


def blind_repairs(tables: Tables, kind: str, **values: str) -> list[Row]:
    """Return the rows of repairs without names that are about what is planted of a kind.

    A table without a column of kinds is about pairs only.

    Raises:
        TableError: the table is missing, or has no such row.
    """
    kinds = {"kind": kind} if planted_kinds(tables) != [PAIR] else {}
    return tables.rows(UNNAMED, **kinds, **values)


def planted_kinds(tables: Tables) -> list[str]:
    """Return the kinds of what is planted that the table of repairs without names is about.

    Raises:
        TableError: the table is missing.
    """
    return list(dict.fromkeys(row.cells.get("kind", PAIR) for row in tables.rows(UNNAMED)))
