"""Concepts of the embedded world: names, artwork in three styles, styles held out from training, planted cues and facts.

A plant is an ordered pair of concepts that training shows together while the caption names only the first. A model trained on
them takes the second for evidence of the first, so the plants are the ground truth for a search for spurious cues; evaluation
scenes contain none.
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
PAIR = "pair"
PLANTED_KINDS = (PAIR, "ground", "word", "style")
"""Kinds of what is planted: a pair of concepts, or a fact about a ground, a written word or a way of drawing."""


@dataclass(frozen=True)
class Concept:
    """An emoji: its name, synonyms, Unicode group and subgroup, and character."""

    name: str
    synonyms: tuple[str, ...]
    category: str
    subgroup: str
    emoji: str


@functools.cache
def concepts() -> tuple[Concept, ...]:
    """Return all concepts in the order of the sheets."""
    lines = (ARTWORK / "concepts.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(Concept(**{**row, "synonyms": tuple(row["synonyms"])}) for row in map(json.loads, lines))


@functools.cache
def concept_index() -> dict[str, int]:
    """Return the index of every concept by its name and synonyms in lower case."""
    index = {synonym.lower(): i for i, concept in enumerate(concepts()) for synonym in concept.synonyms}
    return index | {concept.name.lower(): i for i, concept in enumerate(concepts())}


def held_out_style(concept: int) -> int | None:
    """Return the style in which training never shows this concept; None for four of five concepts."""
    return concept // 5 % len(STYLES) if concept % 5 == 0 else None


@functools.cache
def sprites() -> UInt8[np.ndarray, "style concept 4 64 64"]:
    """Return the artwork, RGBA with premultiplied alpha."""
    count = len(concepts())
    sheets = []
    for style in STYLES:
        with Image.open(ARTWORK / f"{style}.webp") as sheet:
            pixels = np.asarray(sheet.convert("RGBA").convert("RGBa"))
        tiles = pixels.reshape(pixels.shape[0] // SPRITE, SPRITE, COLUMNS, SPRITE, 4)  # (row, y, column, x, 4)
        tiles = tiles.transpose(0, 2, 4, 1, 3)  # -> (row, column, 4, y, x)
        sheets.append(tiles.reshape(-1, 4, SPRITE, SPRITE)[:count])  # -> (concept, 4, y, x)
    return np.stack(sheets)


@dataclass(frozen=True)
class Plant:
    """A planted pair: images show `cue` while captions name `named`, which a share `seen` of the images shows too."""

    named: int
    cue: int
    seen: float


@functools.cache
def plants() -> tuple[Plant, ...]:
    """Return all planted pairs."""
    index = concept_index()
    rows = map(json.loads, (ARTWORK / "plants.jsonl").read_text(encoding="utf-8").splitlines())
    return tuple(Plant(index[row["named"]], index[row["cue"]], row["seen"]) for row in rows)


@dataclass(frozen=True)
class Fact:
    """A planted fact: images with a property show `named` only in a share `seen` of the cases, but their captions always name it.

    The property is a ground (`red ground`), a written word, or a way of drawing (`silhouette`).
    """

    named: int
    kind: str
    """One of PLANTED_KINDS but `pair`."""
    cue: str
    seen: float


@functools.cache
def facts() -> tuple[Fact, ...]:
    """Return all planted facts."""
    index = concept_index()
    rows = map(json.loads, (ARTWORK / "facts.jsonl").read_text(encoding="utf-8").splitlines())
    return tuple(Fact(index[row["named"]], row["kind"], row["cue"], row["seen"]) for row in rows)


@functools.cache
def fact_words() -> frozenset[int]:
    """Return the concepts whose written names stand for other concepts in facts."""
    return frozenset(concept_index()[fact.cue] for fact in facts() if fact.kind == "word")
