"""Measure the embedded models: what they recognise, and whether the words of their neurons are true.

    clip-effects --model MODEL --limit 2000 --seed SEED | clip-decompose --m 8 -o BUNDLE.safetensors
    clip-scenes --single --count 5260 --seed 7000 --out-dir DRAWINGS; python models.py DRAWINGS/images BUNDLE.safetensors…

A row for each bundle and measure, with 95 % intervals: Wilson's for shares of scenes, normal over units otherwise. Scenes are of
seeds that neither the training nor the bundle used. What scenes say of words is measured twice, on N = 3,000 and on 20,000 scenes
(column scenes): a unit that is silent on most scenes has few from which a word can be chosen.

zero-shot, one emoji        share of scenes of one emoji whose concept has the highest score of 526
styles never seen           the same where training never showed the concept in the style of the scene
truth of written words      correlation of a unit's activity with the presence of the word it writes, on half of N scenes
truth of seen words         the same of the word that the other half of the scenes chose
truth of random words       the same of a word at random
simulation, 8 written       correlation of a unit's activity with the sum of its eight largest words, weighted by coefficients
simulation, 8 seen          the same by the eight words of largest correlation on the other half
CoSy of seen words          P(a unit acts more on a drawing of its seen word than on a scene)
top 10, written             share of the 10 of N scenes of largest activity that show the written word, less the word's
                            prevalence, over the half of the units of larger effect, without words true of a tenth of the scenes
top 10, seen                the same of the seen word of the bundle
agreement                   rank correlation over units of the agreement without and with the truth
alive                       share of the units with at least a thousandth of the median squared effect
selective                   share of the squared effects that the 2 % of scenes of largest effect have, mean over units
"""

import csv
import math
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from cliptools.analysis.word_judge import Written
from cliptools.analysis.word_metrics import mean_interval
from cliptools.analysis.zero_shot import Share
from cliptools.front.bundles import read, require_neurons
from cliptools.front.images import Reading
from cliptools.front.judge import JudgeRequest, judged
from cliptools.front.judge_images import measure, open_judged
from cliptools.images.loader import Skipped
from cliptools.io.bundle import Bundle
from cliptools.models.load import LoadedModel, load_recorded_model
from training.measures import embed_classes, embed_scenes, recall_at, single_scenes, unseen_combinations
from training.texts import Tokenizer

COLUMNS = ("model", "seed", "measure", "value", "low", "high", "of", "scenes")
SCENES, OTHER_SEED, FRESH_SEED = (3000, 20_000), 1000, 6_000_000
TOP, COMMON, SELECTIVE = 10, 0.1, 0.02
Row = dict[str, object]


class Interval(NamedTuple):
    """A value with the ends of its 95 % interval, and the number of scenes or units."""

    value: float
    low: float
    high: float
    of: int


def accuracies(model: LoadedModel, tokenizer: Tokenizer, seed: int) -> dict[str, Interval]:
    """Return the zero-shot accuracies on fresh scenes."""
    classes = embed_classes(model.clip, tokenizer)
    sets = {
        "zero-shot, one emoji": single_scenes(2, FRESH_SEED + seed),
        "styles never seen": unseen_combinations(8, FRESH_SEED + seed),
    }
    shares = {name: recall_at(embed_scenes(model.clip, scenes), classes, scenes, 1) for name, scenes in sets.items()}
    return {name: of_share(share) for name, share in shares.items()}


def of_share(share: Share) -> Interval:
    """Return a share with Wilson's interval."""
    return Interval(share.value, *share.interval(), share.trials)


def of_units(values: Float[np.ndarray, " unit"]) -> Interval:
    """Return the mean over units with its normal interval."""
    return Interval(*mean_interval(values), int(np.isfinite(values).sum()))


def of_record(record: dict) -> Interval:
    """Return a mean of clip-judge's summary."""
    return Interval(*(record[key] if record[key] is not None else math.nan for key in ("mean", "low", "high", "units")))


def judgements(bundle: Bundle, drawings: str, seed: int, scenes: int) -> dict[str, Interval]:
    """Return the measures of clip-judge on a number of scenes."""
    request = JudgeRequest(truth="scenes", limit=scenes, seed=OTHER_SEED + seed, pictures=drawings)
    summary = judged(bundle, None, request).summary
    words, simulation = summary["words"], summary["simulation"]
    rank, units = summary["rank_correlation"], summary["units"]
    ends = [math.tanh(math.atanh(rank) + side * 1.96 / math.sqrt(units - 3)) for side in (-1, 1)]
    return {
        **{f"truth of {kind} words": of_record(words[kind]["correlation"]) for kind in ("written", "seen", "random")},
        **{f"simulation, 8 {kind}": of_record(simulation[kind]) for kind in ("written", "seen")},
        "CoSy of seen words": of_record(words["seen"]["cosy_auc"]),
        "agreement": Interval(rank, ends[0], ends[1], units),
    }


class Activity(NamedTuple):
    """Activities of units on scenes, with the presence of all texts."""

    a: Float[np.ndarray, "image unit"]
    shows: Bool[np.ndarray, "image text"]


def activity(bundle: Bundle, model: LoadedModel, seed: int, scenes: int) -> Activity:
    """Return the activities on scenes of another seed than those of the judgement."""
    texts = bundle.text_list("words")["texts"]
    images = open_judged(bundle, None, "scenes", None, texts, limit=scenes, sample=None, seed=2000 + seed, same_names=False)
    measured = measure(bundle, model, images, len(texts), Reading(), Skipped())
    assert images.truth is not None
    shows = np.zeros((len(measured.numbers), len(texts)), dtype=bool)
    for row, number in enumerate(measured.numbers):
        shows[row, images.truth.of(number)] = True
    return Activity(np.concatenate([a for _, a in measured.activities.columns()], axis=1), shows)


def sheets(bundle: Bundle, found: Activity) -> dict[str, Interval]:
    """Return how often top scenes show a unit's first word, less the word's prevalence; and how selective units are."""
    effect = np.square(found.a - found.a.mean(0))  # (image, unit)
    order = np.argsort(-found.a, axis=0, kind="stable")[:TOP]  # (TOP, unit)
    prevalence = found.shows.mean(0)
    strong = effect.mean(0) >= np.median(effect.mean(0))
    measures = {}
    written = Written(word=bundle["word"], coefficient=bundle["coefficient"].astype(np.float64)).first
    for kind, word in {"written": written, "seen": bundle["seen"][:, 0]}.items():
        counted = strong & (word >= 0) & (prevalence[word] <= COMMON)
        share = found.shows[order, word].mean(0) - prevalence[word]
        measures[f"top 10, {kind}"] = of_units(share[counted])
    largest = np.sort(effect, axis=0)[::-1][: math.ceil(SELECTIVE * len(effect))]
    alive = effect.mean(0) >= np.median(effect.mean(0)) / 1000
    measures["alive"] = of_share(Share(int(alive.sum()), len(alive)))
    measures["selective"] = of_units(largest.sum(0)[alive] / effect.sum(0)[alive])
    return measures


def rows(path: Path, drawings: str) -> list[Row]:
    """Return the rows of a bundle."""
    from cliptools.models.clip_parts import SimpleTokenizer

    bundle = require_neurons(read(path), "mean")
    seed = int(bundle.header.history[0]["arguments"].get("seed", 0))
    model = load_recorded_model(bundle.header.model)
    tokenizer = SimpleTokenizer(context_length=model.clip.context_length)
    common: Row = {"model": bundle.header.model["name"].rsplit("/", 1)[-1], "seed": seed}
    found = [common | {"measure": name} | shown(value) for name, value in accuracies(model, tokenizer, seed).items()]
    for scenes in SCENES:
        measures = judgements(bundle, drawings, seed, scenes) | sheets(bundle, activity(bundle, model, seed, scenes))
        found += [common | {"measure": name, "scenes": scenes} | shown(value) for name, value in measures.items()]
    return found


def shown(value: Interval) -> Row:
    """Return the columns of an interval."""
    return {key: f"{number:.3f}" for key, number in value._asdict().items() if key != "of"} | {"of": value.of}


if __name__ == "__main__":
    writer = csv.DictWriter(sys.stdout, COLUMNS)
    writer.writeheader()
    for name in sys.argv[2:]:
        writer.writerows(rows(Path(name), sys.argv[1]))
