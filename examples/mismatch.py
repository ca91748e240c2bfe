"""Find the planted pairs among all ordered pairs of concepts by what units see and write, and by the model's similarities alone.

    clip-effects --seed 1 -o BUNDLE.safetensors; python mismatch.py BUNDLE.safetensors…

Each bundle has two rows: by units (G of analysis/mismatch.py, and its score z), and by the model's own similarities (s^T Sigma t,
and its z). first and three are the numbers of planted cues in whose row the named class stands first or among the first three.
The ranks of the plants are among all pairs by z: median, their number among the first 20 and the first 100, the median by the
plain number in place of z, and the median after pairs of things that look alike were left out. alike is the number of plants that
are left out with these. auc is the share of (plant, other pair) among the first 100 pairs in which the other pair is of things
that look more alike (`together`): 0.5 would tell nothing, 1 would tell all plants from all pairs that stand between.
"""

import csv
import sys
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from cliptools.analysis.mismatch import Mismatch, Scores
from cliptools.front.bundles import read, require_neurons
from cliptools.front.mismatch import read_directions
from cliptools.front.models import model_of
from cliptools.front.vocabulary import vocabulary
from cliptools.models.text_encoder import encode_pool
from cliptools.text.emoji_concepts import concepts, plants

COLUMNS = ("model", "seed", "by", "first", "three", "median", "in_20", "in_100", "median_plain", "median_unlike", "alike", "auc")
FIRST = 100  # pairs among which plants are told from others


def pair_scores(path: Path) -> tuple[Scores, Bool[np.ndarray, "s t"]]:
    """Return the scores of all pairs of concepts, and True for those that look alike."""
    bundle = require_neurons(read(path), "read")
    t = encode_pool(model_of(bundle, None, "cpu"), vocabulary(concept.name for concept in concepts()))
    search = Mismatch(read_directions(bundle), torch.from_numpy(bundle["direction"]), t)
    scores = search.scores(search.t, ~torch.eye(len(t), dtype=torch.bool))
    return scores, search.alike(scores).numpy()


def row_ranks(x: Float[np.ndarray, "s t"], s: Int[np.ndarray, " p"], t: Int[np.ndarray, " p"]) -> Int[np.ndarray, " p"]:
    """Return the rank of each pair within its row."""
    return 1 + (x[s] > x[s, t][:, None]).sum(1)


def ranks(
    x: Float[np.ndarray, "s t"], listed: Bool[np.ndarray, "s t"], s: Int[np.ndarray, " p"], t: Int[np.ndarray, " p"]
) -> Int[np.ndarray, " p"]:
    """Return the rank of each pair among the listed pairs."""
    ordered = np.sort(x[listed])
    return 1 + len(ordered) - np.searchsorted(ordered, x[s, t], side="right")


def told_apart(score: Float[np.ndarray, "s t"], together: Float[np.ndarray, "s t"], planted: Bool[np.ndarray, "s t"]) -> float:
    """Return the share of (plant, other) among the first pairs in which the other pair is more alike; NaN without a plant."""
    first = np.argsort(-score, axis=None)[:FIRST]
    plant, other = (together.flat[first[planted.flat[first] == kind]] for kind in (True, False))
    return float((plant[:, None] < other).mean()) if len(plant) else float("nan")


def main() -> None:
    """Write the rows of all bundles to stdout."""
    table = csv.DictWriter(sys.stdout, COLUMNS, lineterminator="\n")
    table.writeheader()
    s, t = (np.array([getattr(plant, name) for plant in plants()]) for name in ("cue", "named"))
    for path in map(Path, sys.argv[1:]):
        scores, alike = pair_scores(path)
        columns = {name: column.double().numpy().copy() for name, column in scores._asdict().items()}
        other = ~np.eye(len(alike), dtype=bool)
        planted = np.zeros_like(other)
        planted[s, t] = True
        for by, plain, z in (("units", "G", "z"), ("own", "own", "own_z")):
            columns[plain][~other] = columns[z][~other] = -np.inf
            row, place = row_ranks(columns[plain], s, t), ranks(columns[z], other, s, t)
            unlike = ranks(columns[z], other & ~alike, s, t)
            model, _, seed = path.stem.rpartition("-")
            result = {"model": model, "seed": seed, "by": by, "first": (row == 1).sum(), "three": (row <= 3).sum()}
            result |= {"median": np.median(place), "in_20": (place <= 20).sum(), "in_100": (place <= 100).sum()}
            result |= {"median_plain": np.median(ranks(columns[plain], other, s, t)), "median_unlike": np.median(unlike)}
            result |= {"alike": alike[s, t].sum(), "auc": f"{told_apart(columns[z], columns['together'], planted):.2f}"}
            table.writerow(result)


if __name__ == "__main__":
    main()
