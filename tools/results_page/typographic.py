"""Typographic attacks and their repair (examples/typographic.py), over the seeds, and whether an edit meets the goals."""

from collections.abc import Sequence
from typing import NamedTuple

from examples.result_tables import Row, Share, Tables, difference, wilson
from tools.results_page.comparison import mean, numbers, over_runs

TABLE, PARTS = "typographic", "typographic-parts"
GONE, ZERO_SHOT_LOST = 0.6, 0.005
"""The share of the loss by reading that should be gone, and the largest loss of accuracy without words."""
CONTROLS = ("random", "write")
NONE, BLANK, OTHER = "none", "blank", "other"


class AttackWay(NamedTuple):
    """The rows of one way of editing one model, of all seeds and kinds of pictures; or those of the untouched model."""

    units: str
    edit: str
    rows: Sequence[Row]

    def of(self, picture: str) -> list[Row]:
        """Return the rows of one kind of picture, one for each seed."""
        return [row for row in self.rows if row.text("picture") == picture]

    def share(self, column: str, picture: str) -> Share:
        """Return a share over the scenes of all seeds, with Wilson's interval."""
        rows = self.of(picture)
        counts = numbers(rows, "n")
        hits = sum(round(value * n) for value, n in zip(numbers(rows, column), counts, strict=True))
        return wilson(hits / sum(counts), round(sum(counts)))

    def change(self, picture: str) -> Share:
        """Return the mean change of accuracy over the seeds, with the ends of all intervals."""
        return over_runs([row.share("change", "change_low", "change_high") for row in self.of(picture)])

    def gone(self, column: str = "gone") -> float:
        """Return the share of the loss that is gone, as a mean over the seeds that have a loss; 0 if none has."""
        values = [float(row.text(column)) for row in self.of(OTHER) if row.text(column)]
        return mean(values) if values else 0.0

    @property
    def is_control(self) -> bool:
        """True for edits of other units."""
        return self.units in CONTROLS

    @property
    def meets(self) -> bool:
        """True if the edit meets both goals."""
        return self.gone() >= GONE and self.change(NONE).value >= -ZERO_SHOT_LOST - 1e-9


class Attacked(NamedTuple):
    """The untouched model and all ways of editing it."""

    untouched: AttackWay
    ways: Sequence[AttackWay]

    def successful(self) -> list[AttackWay]:
        """Return the edits, controls aside, that meet both goals."""
        return [way for way in self.ways if way.meets and not way.is_control]

    def read(self) -> Share:
        """Return the accuracy that the attack costs by being read: with a plate without letters, less that with the name."""
        return difference(*(self.untouched.share("accuracy", picture) for picture in (BLANK, OTHER)))


def attacked(tables: Tables, model: str) -> Attacked:
    """Return the ways of editing a model.

    Raises:
        TableError: the table is missing, or has no row of the untouched model.
    """
    rows = tables.rows(TABLE, model=model)
    kinds = dict.fromkeys((row.text("units"), row.text("edit")) for row in rows)
    ways = [AttackWay(units, edit, tables.rows(TABLE, model=model, units=units, edit=edit)) for units, edit in kinds]
    untouched = AttackWay("none", "none", tables.rows(TABLE, model=model, units="none"))
    return Attacked(untouched, [way for way in ways if way.units != "none"])


def carriers(tables: Tables, model: str, part: str) -> list[Row]:
    """Return the rows of the parts that carry the margin, such as those of `unit`, of the first seed in the table.

    Raises:
        TableError: the table is missing, or has no such row.
    """
    rows = tables.rows(PARTS, model=model, part=part)
    return [row for row in rows if row.text("seed") == rows[0].text("seed")]


def part_change(tables: Tables, model: str, part: str) -> float:
    """Return the change of one part of the margin, as a mean over the seeds; 0 for a part that the model does not have.

    Raises:
        TableError: the table is missing.
    """
    rows = [row for row in tables.rows(PARTS, model=model) if row.text("part") == part]
    return mean(numbers(rows, "change")) if rows else 0.0
