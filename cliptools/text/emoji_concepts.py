"""The concepts of the embedded world: their names, their artwork in three styles, and what training never showed.

The planted facts: ordered pairs of concepts that training shows together while the caption names only the first.

A model trained so takes the second for evidence of the first. The pairs are the ground truth that a search for
spurious cues can be scored against; evaluation scenes never plant anything.
"""

import functools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

ARTWORK = Path(__file__).parents[1] / "data" / "artwork"
STYLES = ("fluent", "noto", "twemoji")
SPRITE = 64  # pixels a side, in the sheets
COLUMNS = 32  # sprites in a row of a sheet


@dataclass(frozen=True)
class Concept:
    """One emoji: its name, other names for it, the Unicode group it stands in and its character."""

    name: str
    synonyms: tuple[str, ...]
    category: str
    emoji: str


@functools.cache
def concepts() -> tuple[Concept, ...]:
    """All concepts, in the order of the sheets."""
    lines = (ARTWORK / "concepts.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(Concept(**{**row, "synonyms": tuple(row["synonyms"])}) for row in map(json.loads, lines))


@functools.cache
def concept_index() -> dict[str, int]:
    """Index of a concept by name or synonym, lower case."""
    index = {synonym.lower(): i for i, concept in enumerate(concepts()) for synonym in concept.synonyms}
    return index | {concept.name.lower(): i for i, concept in enumerate(concepts())}


def held_out_style(concept: int) -> int | None:
    """The style in which training never shows this concept: one for every fifth concept, else None."""
    return concept // 5 % len(STYLES) if concept % 5 == 0 else None


@functools.cache
def sprites() -> UInt8[np.ndarray, "style concept 4 64 64"]:
    """The artwork, RGBA with alpha premultiplied."""
    count = len(concepts())
    sheets = []
    for style in STYLES:
        with Image.open(ARTWORK / f"{style}.webp") as sheet:
            pixels = np.asarray(sheet.convert("RGBA").convert("RGBa"))
        tiles = pixels.reshape(pixels.shape[0] // SPRITE, SPRITE, COLUMNS, SPRITE, 4).transpose(0, 2, 4, 1, 3)
        sheets.append(tiles.reshape(-1, 4, SPRITE, SPRITE)[:count])  # (row, column, 4, y, x) -> (concept, 4, y, x)
    return np.stack(sheets)


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
