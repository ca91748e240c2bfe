"""Score the words of bundles by what fresh scenes show.

    clip-effects --limit 2000 | clip-decompose --m 8 --verify scenes -o BUNDLE.safetensors; python words.py BUNDLE.safetensors…

A row for each bundle and kind of word has the mean over the units of the correlation of activity and ground truth, over 3,000
scenes of another seed, with its 95 % interval over units. written is the word of largest coefficient, overlap that of largest
inner product with the direction, seen that of the top images, verified the one that --verify puts first; written dealt and seen
dealt are words of other units. A row agreement has the rank correlation over units of the agreement and the truth of the same
word, with Fisher's interval.
"""

import csv
import math
import sys
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import spearmanr

from cliptools.analysis.presence import UnitGroup, correlations
from cliptools.front.bundles import read, require_neurons
from cliptools.front.images import Reading
from cliptools.front.judge_images import measure, open_judged, true_presence
from cliptools.images.loader import Skipped
from cliptools.io.bundle import Bundle
from cliptools.models.load import load_recorded_model

COLUMNS = ("model", "seed", "words", "correlation", "low", "high", "units")
SCENES, OTHER_SEED = 3000, 1000


def truths(bundle: Bundle, seed: int) -> Float[np.ndarray, "unit text"]:
    """Return the correlations of all activities with the presence of all texts of the bundle."""
    texts = bundle.text_list("words")["texts"]
    images = open_judged(bundle, None, "scenes", None, texts, limit=SCENES, sample=None, seed=OTHER_SEED + seed, same_names=False)
    measured = measure(bundle, load_recorded_model(bundle.header.model), images, len(texts), Reading(), Skipped())
    assert images.truth is not None
    presence, everything = true_presence(images.truth, measured.numbers, len(texts)), np.arange(len(measured.numbers))
    parts = []
    for rows, a in measured.activities.columns():
        units = UnitGroup(a, bundle["direction"][rows].astype(np.float64))
        parts.append(np.nan_to_num(correlations(a, presence.moments(units, everything))))
    return np.concatenate(parts)


def first_words(bundle: Bundle, seed: int) -> dict[str, Int[np.ndarray, " unit"]]:
    """Return the first word of each kind of every unit, as an index into the bundle's texts."""
    weight = np.where(bundle["word"] >= 0, bundle["coefficient"], -np.inf)
    words = {"written": bundle["word"][np.arange(len(weight)), weight.argmax(1)]}
    words |= {name: bundle[name][:, 0] for name in ("overlap", "seen", "verified")}
    rng = np.random.default_rng(seed)
    return words | {f"{name} dealt": rng.permutation(words[name]) for name in ("written", "seen")}


def rows(path: Path) -> list[dict[str, object]]:
    """Return the rows of a bundle."""
    bundle = require_neurons(read(path), "mean")
    seed = int(bundle.header.history[0]["arguments"].get("seed", 0))
    truth, units = truths(bundle, seed), np.arange(bundle.units)
    common = {"model": bundle.header.model["name"], "seed": seed, "units": bundle.units}
    result = []
    for kind, word in first_words(bundle, seed).items():
        value = truth[units, word]
        margin = 1.96 * value.std(ddof=1) / math.sqrt(len(value))
        numbers = {"correlation": value.mean(), "low": value.mean() - margin, "high": value.mean() + margin}
        result.append(common | {"words": kind} | {name: f"{number:.3f}" for name, number in numbers.items()})
    rank = float(spearmanr(bundle["agreement"], truth[units, first_words(bundle, seed)["written"]]).statistic)
    ends = [math.tanh(math.atanh(rank) + side * 1.96 / math.sqrt(len(units) - 3)) for side in (-1, 1)]
    values = {"correlation": rank, "low": ends[0], "high": ends[1]}
    return [*result, common | {"words": "agreement"} | {name: f"{number:.3f}" for name, number in values.items()}]


if __name__ == "__main__":
    writer = csv.DictWriter(sys.stdout, COLUMNS)
    writer.writeheader()
    for name in sys.argv[1:]:
        writer.writerows(rows(Path(name)))
