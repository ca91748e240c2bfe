"""Compare two normalizations of a pool before matching pursuit: agreement of the words, and quality of the reconstruction.

    clip-ablate … --reconstruct words --m 4,8 --bundle texts.safetensors --bundle dimensions.safetensors -f jsonl \
    | python normalization.py texts.safetensors dimensions.safetensors

The bundles are from clip-decompose --normalize texts and --normalize dimensions --prefix 4,8. Each number of words has a CSV row.
overlap is the number of shared words divided by the number of words in either set, mean over units; first is the share of units
with the same first word; residual and cosine are ‖r − r̂‖ and cos(r, r̂), mean over units; top1 is the accuracy with r̂ in place
of r, with its 95 % interval; untouched is the accuracy of the unchanged model.
"""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from cliptools.io.bundle import Bundle, read_bundle

WAYS = ("texts", "dimensions")
COLUMNS = [
    "model", "pool", "units", "m", "overlap", "first", *(f"{name}_{way}" for name in ("residual", "cosine") for way in WAYS),
    "untouched", *(f"{name}_{way}" for way in WAYS for name in ("top1", "low", "high")), "n",
]  # fmt: skip


def overlap(one: list[list[str]], other: list[list[str]]) -> float:
    """Return |A ∩ B| / |A ∪ B|, mean over units that have words."""
    shares = [len({*a} & {*b}) / len({*a} | {*b}) for a, b in zip(one, other, strict=True) if a or b]
    return float(np.mean(shares))


def words_of(bundle: Bundle, m: int) -> list[list[str]]:
    """Return the first m words of each unit, in the order of the pursuit."""
    texts = bundle.text_list("words")["texts"]
    return [[texts[j] for j in row if j >= 0] for row in bundle["word"][:, :m]]


def main() -> None:
    """Write the rows of two bundles to stdout."""
    with Path(sys.argv[1]).open("rb") as texts, Path(sys.argv[2]).open("rb") as dimensions:
        bundles = [read_bundle(texts, sys.argv[1]), read_bundle(dimensions, sys.argv[2])]
    records = [json.loads(line) for line in sys.stdin]
    untouched = next(record["top1"]["value"] for record in records if not record["layers"])
    settings = bundles[0].header.settings["words"]
    table = csv.DictWriter(sys.stdout, COLUMNS, lineterminator="\n")
    if "--titles" in sys.argv:
        table.writeheader()
    for column, m in enumerate(settings["prefix"]):
        words = [words_of(bundle, m) for bundle in bundles]
        row: dict[str, Any] = {"model": bundles[0].header.model["name"], "pool": settings["pool"], "m": m, "untouched": untouched}
        row |= {"units": bundles[0].units, "overlap": f"{overlap(*words):.3f}"}
        row["first"] = f"{np.mean([a[:1] == b[:1] for a, b in zip(*words, strict=True)]):.3f}"
        for way, bundle in zip(WAYS, bundles, strict=True):
            residual = bundle["prefix_residual"][:, column].astype(float)  # directions have unit length
            row[f"residual_{way}"] = f"{residual.mean():.3f}"
            row[f"cosine_{way}"] = f"{np.sqrt(np.clip(1 - residual**2, 0, 1)).mean():.3f}"  # r̂ is a least-squares fit of r
            [record] = [each for each in records if each.get("m") == m and each["bundle"] == bundle.digest]
            top1 = record["top1"]
            row |= {f"top1_{way}": top1["value"], f"low_{way}": top1["low"], f"high_{way}": top1["high"], "n": record["n"]}
        table.writerow(row)


if __name__ == "__main__":
    main()
