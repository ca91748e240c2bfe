"""Compare the words of a dictionary's latents with those of neurons, from the lines of clip-judge and the bundles beside them.

    clip-judge --truth scenes --bundle neurons-0.safetensors -f jsonl > neurons-0.jsonl
    python dictionary.py neurons-0.jsonl latents-0.jsonl

A row for each kind of unit, choice of units and kind of word has means over units, with their 95 % intervals over units, of the
correlation of a unit's activity with the presence of the word in scenes that did not choose it, and of F1. written is the word of
largest coefficient, own the one that the bundle says the unit sees, seen the one that clip-judge chose on other scenes. A choice
is all units that have ever acted, or the half of these with the largest mean top norms. with_word is the share of the units whose
seen word is no chance, at a false discovery rate of 5 %.
"""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from cliptools.analysis.word_metrics import mean_interval
from cliptools.front.bundles import read
from cliptools.front.unit_records import strength

COLUMNS = ("model", "seed", "layer", "kind", "chosen", "words", "correlation", "low", "high", "f1", "f1_low", "f1_high",
           "with_word", "units")  # fmt: skip
WORDS = ("written", "own", "seen")


def choices(path: Path) -> dict[str, Bool[np.ndarray, " unit"]]:
    """Return the units of each choice."""
    norm = strength(read(path))
    rank = np.empty(len(norm), np.int64)
    rank[np.argsort(-norm, kind="stable")] = np.arange(len(norm))
    return {"acting": norm > 0, "strongest half": (norm > 0) & (2 * rank < (norm > 0).sum())}


def rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of one bundle's judged lines."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    header = read(path.with_suffix(".safetensors")).header
    common = {"model": header.model["name"], "seed": header.history[0]["arguments"].get("seed", 0)}
    common |= {"layer": header.settings["layers"][0], "kind": header.settings["units"]}
    result = []
    for chosen, mask in choices(path.with_suffix(".safetensors")).items():
        units = [line for line, included in zip(lines, mask, strict=True) if included]
        for words in WORDS:
            row: dict[str, Any] = common | {"chosen": chosen, "words": words, "units": len(units)}
            for metric, names in (("correlation", ("correlation", "low", "high")), ("f1", ("f1", "f1_low", "f1_high"))):
                values = [(line.get(words) or {}).get(metric) for line in units]
                found = np.array([np.nan if value is None else value for value in values], np.float64)
                row |= {name: f"{value:.3f}" for name, value in zip(names, mean_interval(found), strict=True)}
            row["with_word"] = f"{np.mean([line['has_word'] for line in units]):.3f}"
            result.append(row)
    return result


if __name__ == "__main__":
    writer = csv.DictWriter(sys.stdout, COLUMNS)
    writer.writeheader()
    for name in sys.argv[1:]:
        writer.writerows(rows(Path(name)))
