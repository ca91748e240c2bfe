"""Repair the planted pairs of embedded models, one at a time, and measure the four groups of each pair before and after.

    clip-scenes --groups --count 200 --seed 0 --out-dir GROUPS; clip-effects --seed 1 -o BUNDLE.safetensors
    python repair.py GROUPS BUNDLE.safetensors [TABLE.csv]

The edits of a pair are kept in TABLE.csv.part as soon as they are measured, and a run that was interrupted goes on from there,
to the same bytes. Without TABLE.csv, the table goes to standard output, and nothing is kept.

A pair (class A, cue B) has four groups: A or another class C, beside B or beside another thing. Units that see B and write A
are edited so that they no longer write along A (`null`; pairs only their mean), or stand at their means (`zero`). Their
number is the one of 5, 10, 20, … that is best on validation scenes, or 0, no edit, if none raises the worst group without a
loss of more than LOSS in another (clip-edit --choose ends there); the controls edit as many units of the same bundle in the
same way: random ones, those that write A most, those that see B most, and `blind`: units that write A as strongly as the
edited ones, but see B least. Two baselines change outputs, not weights: `heads` puts the direct effects of whole heads at
their means, those of largest variance along the text of the cue (repair_heads.py; 1, 2, 4, … of them, chosen like the units),
`projection` removes the cue's direction from the image embeddings. Every row has means over the pairs: the number of units,
the worst group before and after with the interval of its gain over pairs, the share of its error that is gone, the accuracy
of the four groups after the edit less that before, in points, and zero-shot accuracy on single emoji before and after, over
the scenes of all pairs, with the interval of the paired difference.
"""

import csv
import hashlib
import io
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from repair_heads import WholeHeads
from scipy import stats
from torch import Tensor

import cliptools as ct
from cliptools.analysis.edited_passes import edited_outputs
from cliptools.analysis.seen import cue_scores, write_scores
from cliptools.emoji.export import slug
from cliptools.emoji.render import single_scenes_for
from cliptools.front.bundles import read, require_neurons
from cliptools.front.edit_choose import ChoiceRequest, Grouped, best_trial, image_weights, measure_groups
from cliptools.front.mismatch import read_directions
from cliptools.front.vocabulary import default_vocabulary_of
from cliptools.images.classification.grouped import SCENES, open_grouped
from cliptools.io.bundle import Bundle
from cliptools.io.cache import KeptRecords, kept_records
from cliptools.io.files import text_output
from cliptools.io.header import digest
from cliptools.models.load import LoadedModel, load_recorded_model
from cliptools.models.templates import class_templates
from cliptools.models.text_encoder import encode_named
from cliptools.text.emoji_concepts import Plant, concepts, plants
from cliptools.text.vocabularies import Pool

GROUPS = ("A_cue", "A_other", "C_cue", "C_other")
COLUMNS = (
    "model", "seed", "units", "edit", "count", "before", "after", "low", "high", "error_gone", *GROUPS,
    "zero_shot", "zero_shot_after", "zero_shot_low", "zero_shot_high", "scenes", "pairs",
)  # fmt: skip
SINGLE = 300  # scenes of one emoji for each pair
MEANS = 400  # scenes over which the means of neurons are taken; those of pairs are in their bundle
LOSS = 0.02  # largest loss of another group on validation
Weights = dict[str, Tensor]


class Measured(NamedTuple):
    """One edit of one pair."""

    count: int
    before: Float[np.ndarray, " group"]
    after: Float[np.ndarray, " group"]
    right: Bool[np.ndarray, "2 scene"]
    """Single emoji named correctly, before and after."""


class Names(NamedTuple):
    """Class A and cue B of a planted pair or fact."""

    named: str
    cue: str

    @property
    def folder(self) -> str:
        """The folder of the groups in a split."""
        return f"{slug(self.named)}-{slug(self.cue)}"


class Repairs:
    """The repairs of one model with one bundle."""

    def __init__(self, groups: Path, path: Path) -> None:
        self.groups, self.path, self.bundle = groups, path, require_neurons(read(path), "read")
        self.model: LoadedModel = load_recorded_model(self.bundle.header.model, "cpu", "fp32")
        self.seed = int(self.bundle.header.history[0]["arguments"].get("seed", 0))
        self.names = [concept.name for concept in concepts()]
        self.text = self.encode(self.names)  # (concept, d)
        pool = default_vocabulary_of(self.model.name)
        self.mean = encode_named(self.model, pool, ()).double().mean(0)  # (d)
        self.rng = np.random.default_rng(self.seed)

    @property
    def pairs(self) -> bool:
        """True for neuron-head pairs, false for neurons."""
        return bool(self.bundle["unit"][0, 2] >= 0)

    @property
    def settings(self) -> dict[str, Any]:
        """What the measurements depend on."""
        files = {"scenes": self.groups / "scenes.jsonl", "bundle": self.path}
        files |= {name: Path(__file__).with_name(f"{name}.py") for name in ("repair", "repair_heads")}
        digests = {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}
        return digests | {"single": SINGLE, "means": MEANS, "loss": LOSS}

    def all(self, kept: KeptRecords | None) -> Iterator[dict[tuple[str, str], Measured]]:
        """Yield the edits of every pair by the names of the units and of the edit, those that an earlier run has kept first.

        Raises:
            CliptoolsError: the earlier run had other scenes, another bundle or another version of this study.
        """
        earlier = [] if kept is None else list(kept.records(self.settings))
        for number, plant in enumerate(plants()):
            if number < len(earlier):
                self.rng.permutation(self.bundle.units)  # as `pair` draws, so that the draws for later pairs are the same
                self.rng.integers(2**31)
                yield {(edit["units"], edit["edit"]): measured_of(edit) for edit in earlier[number]["edits"]}
                continue
            edits = {(units, edit): measured for units, edit, measured in self.pair(plant)}
            if kept is not None:
                kept.append({"edits": [{"units": u, "edit": e} | record_of(measured) for (u, e), measured in edits.items()]})
            print(f"{self.path}: {self.names[plant.named]}", file=sys.stderr, flush=True)
            yield edits

    @cached_property
    def heads(self) -> WholeHeads:
        """The heads of the model, with the share of their variance along every concept."""
        return WholeHeads(self.model, self.text - self.mean, self.seed)

    def encode(self, names: list[str], templates: tuple[str, ...] = ()) -> Float[Tensor, "text d"]:
        """Return the embeddings of names."""
        return encode_named(self.model, Pool("names", tuple(names), digest(*names)), templates).double()

    def pair(self, plant: Plant) -> Iterator[tuple[str, str, Measured]]:
        """Yield the measured edits of one pair with the names of the units and of the edit."""
        pair = self.names_of(plant)
        named = pair.named
        validation, test = (self.open(split, pair) for split in ("validation", "test"))
        orders = self.orders(plant)
        edits = [self.weights(orders["repair"][:count], named, "null") for count in self.counts(len(orders["repair"]))]
        count = best_count(self.measure(validation, edits, pair), self.counts(len(orders["repair"])))
        ways = [*((units, "null") for units in orders), ("repair", "zero")]
        jobs = [(units, how, self.weights(orders[units][:count], named, how)) for units, how in ways]
        groups = self.measure(test, [weights for *_, weights in jobs], pair)
        heads = self.choose_heads(validation, plant)
        s = F.normalize(self.text[plant.cue] - self.mean, dim=0)
        right = self.single([weights for *_, weights in jobs], heads, s)
        for (units, edit, _), after, hits in zip(jobs, groups[1:], right[1:-2], strict=True):
            yield units, edit, Measured(count, groups[0], after, np.stack([right[0], hits]))
        M = self.without_heads(test, [heads])  # (2, image, d)
        before, after = self.accuracies(test, M, pair)
        yield "heads", "mean", Measured(len(heads), before, after, right[[0, -2]])
        before, after = self.accuracies(test, without(M[0], s), pair)
        yield "none", "projection", Measured(0, before, after, right[[0, -1]])

    def names_of(self, plant: Plant) -> Names:
        """Return the names of a planted pair."""
        return Names(self.names[plant.named], self.names[plant.cue])

    def open(self, split: str, planted: Names) -> Grouped:
        """Return the scenes of a pair or fact."""
        return Grouped(*open_grouped([str(self.groups / "images" / split / planted.folder)], SCENES, None, None))

    def orders(self, plant: Plant) -> dict[str, Int[np.ndarray, " u"]]:
        """Return the units in the order in which each way of choosing takes them."""
        read, r = read_directions(self.bundle), torch.from_numpy(self.bundle["direction"])
        t, s = (self.text[[concept]] - self.mean for concept in (plant.named, plant.cue))
        rather = bool((self.bundle["unit"][:, 2] < 0).all())  # neurons: those that see the cue rather than the class
        score = cue_scores(read, r, s, t, rather)
        write, see = write_scores(r, read.deviation, t), read.in_float64().correlations(s.double())[:, 0]
        repair = score.argsort(descending=True, stable=True)[: int((score > 0).sum())].numpy()
        others = np.setdiff1d(np.arange(len(see)), repair)
        unseeing = others[see.numpy()[others].argsort(kind="stable")[: len(others) // 2]]
        first = write.numpy()[repair[: self.bundle.units // 10]]  # of all that an edit may have
        near = np.abs(write.numpy()[unseeing][None] - first[:, None])  # (repair, unseeing)
        blind: list[int] = []
        for row in near:
            free = np.argsort(row)
            blind.append(next(int(unseeing[i]) for i in free if int(unseeing[i]) not in blind))
        return {
            "repair": repair,
            "random": self.rng.permutation(self.bundle.units),
            "write": write.argsort(descending=True, stable=True).numpy(),
            "see": see.argsort(descending=True, stable=True).numpy(),
            "blind": np.array(blind),
        }

    def counts(self, units: int) -> list[int]:
        """Return 5, 10, 20, … up to the number of units that have a score, at most a tenth of all."""
        most = min(units, self.bundle.units // 10)
        return [count for power in range(12) if (count := 5 * 2**power) <= most]

    def weights(self, rows: Int[np.ndarray, " u"], named: str, how: str) -> Weights:
        """Return the changed weights of the edit of some units; of no unit there are none."""
        if not len(rows):
            return {}
        part: Bundle = self.bundle.select(np.sort(rows))
        scenes = MEANS if how == "zero" and not self.pairs else None  # means of pairs are in the bundle
        edited = ct.edit(part, writes=named if how == "null" else (), how=how, model=self.model, limit=scenes)
        return image_weights(edited)

    def choose_heads(self, validation: Grouped, plant: Plant) -> Int[Tensor, " head"]:
        """Return the heads of the best number on validation scenes, those of largest variance along the cue."""
        order = self.heads.order(plant.cue)
        counts = [count for power in range(12) if (count := 2**power) <= len(order) // 2]
        M = self.without_heads(validation, [order[:count] for count in counts])
        return order[: best_count(self.accuracies(validation, M, self.names_of(plant)), counts)]

    def places(self, names: Sequence[str], planted: Names) -> list[int]:
        """Return the places of the four groups, in the order of GROUPS, among the names PAIR/CLASS/BESIDE."""
        named, cue = map(slug, planted)
        kind = {(True, True): 0, (True, False): 1, (False, True): 2, (False, False): 3}
        parts = [[slug(part) for part in name.split("/")[-2:]] for name in names]
        found = {kind[of == named, beside == cue]: place for place, (of, beside) in enumerate(parts)}
        return [found[number] for number in range(len(GROUPS))]

    def measure(self, grouped: Grouped, edits: list[Weights], planted: Names) -> Float[np.ndarray, "edit group"]:
        """Return the accuracies of the four groups: of the untouched model, and of each edit."""
        choice = ChoiceRequest(validation=("-",), test=("-",), groups=SCENES)
        figures = measure_groups(self.model, [{}, *edits], grouped, choice)
        records = [figures.fields(s)["groups"] for s in range(1 + len(edits))]
        places = self.places([group["group"] for group in records[0]], planted)
        return np.array([[groups[place]["value"] for place in places] for groups in records])

    def without_heads(self, grouped: Grouped, sets: Sequence[Int[Tensor, " _"]]) -> Float[Tensor, "s image d"]:
        """Return M(I) of all images: of the untouched model, and with each set of heads at their means."""
        images = grouped.images.source
        pictures = torch.stack([self.model.transform(images.load(i)) for i in range(len(images))])
        return torch.cat([self.heads.outputs(part, sets) for part in pictures.split(50)], 1)

    def accuracies(self, grouped: Grouped, z: Float[Tensor, "edit image d"], planted: Names) -> Float[np.ndarray, "edit group"]:
        """Return the accuracies of the four groups with each set of image embeddings."""
        names = [row.name for row in grouped.images.classes]
        t = self.encode(names, class_templates(self.model.name, ()))  # (2, d)
        hit = ((z @ t.T).argmax(-1) == torch.from_numpy(grouped.images.label)).numpy()  # (edit, image)
        places = self.places(grouped.groups.names, planted)
        return np.array([[row[grouped.groups.of == place].mean() for place in places] for row in hit])

    @torch.inference_mode()
    def single(
        self, edits: list[Weights], heads: Int[Tensor, " _"] | None = None, s: Float[Tensor, " d"] | None = None
    ) -> Bool[np.ndarray, "edit scene"]:
        """Return the single emoji that are named correctly: untouched, with each set of weights, without heads, without s."""
        source = single_scenes_for(self.model.name, SINGLE, int(self.rng.integers(2**31)))
        visual: Any = self.model.clip.visual
        hits = []
        for start in range(0, SINGLE, 50):
            images = torch.stack([self.model.transform(source.load(i)) for i in range(start, min(start + 50, SINGLE))])
            label = torch.from_numpy(source.concept[start : start + 50])
            outputs = edited_outputs(visual, [{}, *edits], images).double()
            if heads is not None:
                outputs = torch.cat([outputs, self.heads.outputs(images, [heads])[1:]])
            if s is not None:
                outputs = torch.cat([outputs, without(outputs[0], s)[1:]])  # (edit, b, d)
            hits.append((outputs @ self.text.T).argmax(-1) == label)
        return torch.cat(hits, 1).numpy()


def without(M: Float[Tensor, "b d"], s: Float[Tensor, " d"]) -> Float[Tensor, "2 b d"]:
    """Return embeddings as they are, and without their component along a unit vector."""
    return torch.stack([M, M - (M @ s)[:, None] * s])


def best_count(groups: Float[np.ndarray, "edit group"], counts: Sequence[int]) -> int:
    """Return the best number of units by accuracies of the untouched model, then of each number; 0 if none is better."""
    worst, least = int(groups[0].argmin()), groups[1:].min(1)
    loss = np.delete(groups[0] - groups[1:], worst, axis=1).max(1)
    try:
        return counts[best_trial(counts, least.tolist(), loss.tolist(), float(groups[0].min()), LOSS)]
    except ct.CliptoolsError:
        return 0


def record_of(measured: Measured) -> dict[str, Any]:
    """Return a measurement as it is kept."""
    return {name: value if isinstance(value, int) else value.tolist() for name, value in measured._asdict().items()}


def measured_of(record: dict[str, Any]) -> Measured:
    """Return a measurement that was kept."""
    groups = (np.array(record[name], np.float64) for name in ("before", "after"))
    return Measured(record["count"], *groups, np.array(record["right"], bool))


def row(repairs: Repairs, units: str, edit: str, measured: list[Measured]) -> dict[str, object]:
    """Return the row of one way of editing, over all pairs."""
    before, after = (np.array([getattr(one, name) for one in measured]) for name in ("before", "after"))  # (pair, group)
    worst, worst_after = before.min(1), after.min(1)
    gain, right = worst_after - worst, np.concatenate([one.right for one in measured], 1)
    half = float(stats.sem(gain) * stats.t.ppf(0.975, len(gain) - 1)) if len(gain) > 1 else math.nan
    change = right[1].astype(float) - right[0]
    half_change = 1.96 * change.std(ddof=1) / math.sqrt(len(change))
    numbers = {"before": worst.mean(), "after": worst_after.mean(), "low": gain.mean() - half, "high": gain.mean() + half}
    numbers |= {"error_gone": gain.mean() / max(1e-9, 1 - worst.mean())}
    numbers |= {name: 100 * change for name, change in zip(GROUPS, (after - before).mean(0), strict=True)}
    numbers |= {"zero_shot": right[0].mean(), "zero_shot_after": right[1].mean()}
    numbers |= {"zero_shot_low": change.mean() - half_change, "zero_shot_high": change.mean() + half_change}
    shown = {name: f"{value:.4f}" for name, value in numbers.items()}
    fixed = {"model": repairs.model.name, "seed": repairs.seed, "units": units, "edit": edit, "pairs": len(measured)}
    return fixed | shown | {"count": f"{np.mean([one.count for one in measured]):.0f}", "scenes": right.shape[1]}


def table(repairs: Repairs, pairs: Iterable[dict[tuple[str, str], Measured]]) -> bytes:
    """Return the table of one model and one seed."""
    results: dict[tuple[str, str], list[Measured]] = {}
    for edits in pairs:
        for key, measured in edits.items():
            results.setdefault(key, []).append(measured)
    lines = io.StringIO()
    writer = csv.DictWriter(lines, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(row(repairs, units, edit, measured) for (units, edit), measured in results.items())
    return lines.getvalue().encode()


def main(groups: Path, bundle: Path, output: Path | None = None) -> None:
    """Write the table."""
    repairs = Repairs(groups, bundle)
    with kept_records(output, resume=True) as kept:
        rows = table(repairs, repairs.all(kept))
        with text_output(output) as stream:
            stream.write(rows)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
