"""The planted facts: ordered pairs of concepts that training shows together while the caption names only the first.

A model trained so takes the second for evidence of the first. The pairs are the ground truth that a search for
spurious cues can be scored against; evaluation scenes never plant anything.
"""

import functools
import json
from dataclasses import dataclass

from cliptools.ground.emoji.concepts import ARTWORK, concept_index


@dataclass(frozen=True)
class Plant:
    """`cue` is drawn, `named` is what the caption says; `seen` is how often the named one is in the picture at all."""

    named: int
    cue: int
    seen: float


@functools.cache
def plants() -> tuple[Plant, ...]:
    """The committed table."""
    index = concept_index()
    rows = map(json.loads, (ARTWORK / "plants.jsonl").read_text(encoding="utf-8").splitlines())
    return tuple(Plant(index[row["named"]], index[row["cue"]], row["seen"]) for row in rows)
