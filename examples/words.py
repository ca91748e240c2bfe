"""Score the words of bundles by what fresh scenes and drawings of single words show.

    clip-effects --limit 2000 | clip-decompose --m 8 --verify scenes -o BUNDLE.safetensors
    clip-scenes --single --count 5260 --seed 7000 --out-dir DRAWINGS; python words.py DRAWINGS/images BUNDLE.safetensors…

A row for each bundle and kind of word has the means over the units, with their 95 % intervals over units, of two measures.
correlation is that of activity and ground truth, over 3,000 scenes of another seed. cosy_auc is the share of pairs of a drawing
of the word and one of these scenes in which the unit acts more on the drawing (CoSy). written is the word of largest
coefficient, overlap that of largest inner product with the direction, seen that of the top images, verified the one that
--verify puts first; written dealt and seen dealt are words of other units, random is any word. A row agreement has the rank
correlation over units of the agreement and the truth of the same word, with Fisher's interval.
"""

import csv
import math
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import spearmanr

from cliptools.analysis.presence import UnitGroup, correlations
from cliptools.analysis.word_metrics import AUC, cosy_scores, mean_interval
from cliptools.front.bundles import read, require_neurons
from cliptools.front.images import Reading
from cliptools.front.judge_images import measure, measure_pictures, open_judged, true_presence
from cliptools.images.loader import Skipped
from cliptools.io.bundle import Bundle
from cliptools.models.load import load_recorded_model

MEASURES = {"correlation": ("correlation", "low", "high"), AUC: ("cosy_auc", "cosy_low", "cosy_high")}
COLUMNS = ("model", "seed", "words", *(column for columns in MEASURES.values() for column in columns), "units")
SCENES, OTHER_SEED = 3000, 1000
Words = dict[str, Int[np.ndarray, " unit"]]
"""The first word of every unit, as an index into the bundle's texts, by its kind."""


class Scores(NamedTuple):
    """Scores of words by what images show."""

    truth: Float[np.ndarray, "unit text"]
    """Correlations of all activities with the presence of all texts of the bundle."""
    auc: dict[str, Float[np.ndarray, " unit"]]
    """CoSy's AUC of the first words by their kind, NaN without drawings."""


def scores_of(bundle: Bundle, seed: int, drawings: str, words: Words) -> Scores:
    """Return the scores of a bundle's words on fresh scenes and on drawings."""
    texts, model = bundle.text_list("words")["texts"], load_recorded_model(bundle.header.model)
    images = open_judged(bundle, None, "scenes", None, texts, limit=SCENES, sample=None, seed=OTHER_SEED + seed, same_names=False)
    measured = measure(bundle, model, images, len(texts), Reading(), Skipped())
    assert images.truth is not None
    presence, everything = true_presence(images.truth, measured.numbers, len(texts)), np.arange(len(measured.numbers))
    parts = []
    for rows, a in measured.activities.columns():
        units = UnitGroup(a, bundle["direction"][rows].astype(np.float64))
        parts.append(np.nan_to_num(correlations(a, presence.moments(units, everything))))
    pictures = measure_pictures(bundle, model, drawings, measured, texts, Reading())
    cosy = cosy_scores(measured.activities, everything, pictures.activities, pictures.rows, words)
    return Scores(np.concatenate(parts), {kind: scores[AUC] for kind, scores in cosy.items()})


def first_words(bundle: Bundle, seed: int) -> Words:
    """Return the first word of each kind of every unit."""
    weight = np.where(bundle["word"] >= 0, bundle["coefficient"], -np.inf)
    words = {"written": bundle["word"][np.arange(len(weight)), weight.argmax(1)]}
    words |= {name: bundle[name][:, 0] for name in ("overlap", "seen", "verified")}
    rng = np.random.default_rng(seed)
    words |= {f"{name} dealt": rng.permutation(words[name]) for name in ("written", "seen")}
    return words | {"random": rng.integers(len(bundle.text_list("words")["texts"]), size=len(weight))}


def interval(measure: str, values: tuple[float, float, float]) -> dict[str, str]:
    """Return the columns of a measure from its mean and the ends of its interval."""
    return {column: f"{value:.3f}" for column, value in zip(MEASURES[measure], values, strict=True)}


def rows(path: Path, drawings: str) -> list[dict[str, object]]:
    """Return the rows of a bundle."""
    bundle = require_neurons(read(path), "mean")
    seed = int(bundle.header.history[0]["arguments"].get("seed", 0))
    words, units = first_words(bundle, seed), np.arange(bundle.units)
    truth, auc = scores_of(bundle, seed, drawings, words)
    common: dict[str, object] = {"model": bundle.header.model["name"], "seed": seed, "units": bundle.units}
    result = []
    for kind, word in words.items():
        measures = interval("correlation", mean_interval(truth[units, word])) | interval(AUC, mean_interval(auc[kind]))
        result.append(common | {"words": kind} | measures)
    rank = float(spearmanr(bundle["agreement"], truth[units, words["written"]]).statistic)
    ends = [math.tanh(math.atanh(rank) + side * 1.96 / math.sqrt(len(units) - 3)) for side in (-1, 1)]
    return [*result, common | {"words": "agreement"} | interval("correlation", (rank, ends[0], ends[1]))]


if __name__ == "__main__":
    writer = csv.DictWriter(sys.stdout, COLUMNS)
    writer.writeheader()
    for name in sys.argv[2:]:
        writer.writerows(rows(Path(name), sys.argv[1]))
