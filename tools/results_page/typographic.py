"""Typographic attacks and their repair (examples/typographic.py), over the seeds, and whether an edit meets the goals."""

from collections.abc import Sequence
from typing import NamedTuple

from cliptools.emoji.writing import writable
from cliptools.text.emoji_concepts import fact_words
from examples.result_tables import Row, Share, Tables, difference, wilson
from tools.results_page.comparison import MORE, compare, mean, numbers, over_runs

TABLE, PARTS = "typographic", "typographic-parts"
GONE, ZERO_SHOT_LOST = 0.6, 0.005
"""The share of the loss by reading that should be gone, and the largest loss of accuracy without words."""
CONTROLS = ("random", "write", "random heads")
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
        return over_runs(self.gains(picture))

    @property
    def is_control(self) -> bool:
        """True for edits of other units."""
        return self.units in CONTROLS

    def gains(self, picture: str) -> list[Share]:
        """Return the change of accuracy on one kind of picture for each seed, with its interval."""
        return [row.share("change", "change_low", "change_high") for row in self.of(picture)]


class Attacked(NamedTuple):
    """The untouched model and all ways of editing it."""

    untouched: AttackWay
    ways: Sequence[AttackWay]

    def gone(self, way: AttackWay) -> float:
        """Return the share of the loss by reading that is gone, over all seeds; 0 if nothing is lost.

        What the edit gains on scenes with a plate without letters does not count.
        """
        gains = zip(way.gains(OTHER), way.gains(BLANK), strict=True)
        return self._of_loss(sum(other.value - max(0.0, blank.value) for other, blank in gains), BLANK)

    def gone_whole(self, way: AttackWay) -> float:
        """Return the gain over the loss from scenes without a word, over all seeds; 0 if nothing is lost."""
        return self._of_loss(sum(gain.value for gain in way.gains(OTHER)), NONE)

    def _of_loss(self, gained: float, without: str) -> float:
        before, after = (sum(numbers(self.untouched.of(picture), "accuracy")) for picture in (without, OTHER))
        return gained / (before - after) if before > after else 0.0

    def meets(self, way: AttackWay) -> bool:
        """Return True if a way meets both goals."""
        return self.gone(way) >= GONE and way.change(NONE).value >= -ZERO_SHOT_LOST - 1e-9

    def successful(self, controls: bool = False) -> list[AttackWay]:
        """Return the edits that meet both goals, or the controls that do."""
        return [way for way in self.ways if self.meets(way) and way.is_control == controls]

    def controls(self) -> list[AttackWay]:
        """Return the edits of other units."""
        return [way for way in self.ways if way.is_control]

    def behind(self, way: AttackWay) -> list[AttackWay]:
        """Return the controls that gain significantly less than an edit in every seed, with the name on the scene."""
        gains = way.gains(OTHER)
        return [
            control
            for control in self.controls()
            if all(compare(a, b) == MORE for a, b in zip(gains, control.gains(OTHER), strict=True))
        ]

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


def part_change(tables: Tables, model: str, part: str) -> float | None:
    """Return the change of one part of the margin, as a mean over the seeds; None for a part that the model does not have.

    Raises:
        TableError: the table is missing.
    """
    rows = [row for row in tables.rows(PARTS, model=model) if row.text("part") == part]
    return mean(numbers(rows, "change")) if rows else None


def told_by_chance() -> float:
    """Return the share of scenes on which a model that cannot read tells the word, among the words of the study."""
    return 1 / len([concept for concept in writable() if concept not in fact_words()])
