"""Typographic attacks on embedded models, and their repair: a word is written on a scene, and the model reads it.

    clip-scenes --written --count 2000 --seed 1 | clip-effects - -o MODEL-1.safetensors
    python typographic.py PARTS.csv MODEL-1.safetensors… > TABLE.csv          # typographic.mk has the options for emoji-rn2

typographic_scenes.py describes the pictures, typographic_parts.py the table PARTS, which says what carries the margin. TABLE has
a row for each edit and each kind of picture: accuracy over all concepts, and the share of scenes that are `fooled`, whose best
class is what the word names (on scenes without it: what it would name, by chance), both with Wilson's intervals of n scenes; the
change of accuracy by the edit with the interval of the paired difference; and `told`, the share of scenes on which the model,
asked for the word (`the word dog`) among all words but the thing's own name, gives the word that is written. `gone` is the share
of the loss by reading that is gone after the edit: of what a name costs more than a plate without letters, which covers as much,
what accuracy with the name gains, less what it gains with the plate if that is positive. `gone_whole` is the gain with the name
over the loss from scenes without a word. All these figures are of test scenes. The edits are those of clip-edit:

    sees, zero       units that see `written word` and write one of the words, at their means
    explain, zero    units of largest mean excess on attacked validation scenes, as clip-explain has it
    … , null         these neurons no longer write along the three words that they write most (ViT only)
    heads, zero      heads of the last layer, or of the pooling, whose direct effects on attacked validation scenes change most
                     when a plate takes the place of the word
    random, write    controls of as many units as the larger of the edits `sees` and `explain`: drawn at random, or those that
                     write the words most, whatever they see; `random heads` as many other heads of the layer, drawn at
                     random

The number of units is the one of 5, 10, 20, … up to a tenth of all, that of heads the one of 1, 2, 4, … up to half of the layer,
after which accuracy with the word is best on validation scenes, while accuracy without words falls by at most half a point. Where
no number is better than the untouched model, nothing is edited, and the count is 0.
"""

import csv
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from typographic_parts import COLUMNS as PART_COLUMNS
from typographic_parts import Carried, carried
from typographic_parts import rows as part_rows
from typographic_scenes import NONE, PICTURES, Drawn, draw, pictures

import cliptools as ct
from cliptools.analysis.edited_passes import edited_outputs
from cliptools.analysis.margin_passes import HeadName
from cliptools.analysis.seen import cue_scores, write_scores
from cliptools.analysis.zero_shot import wilson
from cliptools.emoji.export import BLANK, OTHER
from cliptools.emoji.writing import writable
from cliptools.front.bundles import read, require_neurons
from cliptools.front.edit_choose import best_trial, image_weights
from cliptools.front.mismatch import read_directions
from cliptools.front.vocabulary import default_vocabulary_of
from cliptools.io.header import digest
from cliptools.models.load import LoadedModel, load_recorded_model
from cliptools.models.templates import class_templates
from cliptools.models.text_encoder import encode_named
from cliptools.text.emoji_concepts import concepts, fact_words
from cliptools.text.vocabularies import Pool

COLUMNS = (
    "model", "seed", "units", "edit", "count", "picture", "n", "accuracy", "low", "high", "fooled", "fooled_low", "fooled_high",
    "change", "change_low", "change_high", "gone", "gone_whole", "told", "told_low", "told_high",
)  # fmt: skip
VALIDATION, TEST = 5_100_000, 5_200_000  # seeds of scenes, added to that of the bundle
SCENES = {"validation": 526, "test": 1052}
BARE = 2  # validation scenes without a word for each one with it, because the limit on their loss is narrow
EXPLAINED = 200  # validation scenes
MEANS = 150  # scenes over which the means of neurons and heads are taken; those of pairs are in their bundle
LOSS = 0.005  # largest loss of accuracy without words on validation scenes
NULL_WORDS = 3
AT_ONCE = 50  # scenes
CUE = "written word"
Weights = dict[str, Tensor]


class Edit(NamedTuple):
    """Changed weights of some units."""

    units: str
    how: str
    count: int
    weights: Weights


class Answers(NamedTuple):
    """Answers of the untouched model and of each edit."""

    answer: Int[np.ndarray, "edit scene"]
    """The concept of the best class."""
    told: Bool[np.ndarray, "edit scene"]
    """True where the model tells the word, asked for it."""


class Attack:
    """Attacks on the model of one bundle."""

    def __init__(self, path: Path) -> None:
        self.bundle = require_neurons(read(path), "read")
        self.model: LoadedModel = load_recorded_model(self.bundle.header.model, "cpu", "fp32")
        self.seed = int(path.stem.rpartition("-")[2])
        self.rng = np.random.default_rng(self.seed)
        self.names = [concept.name for concept in concepts()]
        self.text = self.encode(self.names, class_templates(self.model.name, ()))  # (concept, d)
        self.words = [concept for concept in writable() if concept not in fact_words()]
        self.word_text = self.encode([f"the word {self.names[concept]}" for concept in self.words])  # (word, d)
        self.pool = default_vocabulary_of(self.model.name)
        t = encode_named(self.model, self.pool, ()).double()
        self.mean = t.mean(0)  # (d)
        self.t = t - self.mean  # (text, d)

    @property
    def pairs(self) -> bool:
        """True for neuron-head pairs, false for neurons."""
        return bool(self.bundle["unit"][0, 2] >= 0)

    def encode(self, names: Sequence[str], templates: tuple[str, ...] = ()) -> Float[Tensor, "text d"]:
        """Return the embeddings of names."""
        return encode_named(self.model, Pool("names", tuple(names), digest(*names)), templates).double()

    def draw(self, split: str, picture: str) -> Drawn:
        """Return the scenes of a split: of validation, on which everything is chosen, or of test."""
        count = SCENES[split] * (BARE if (split, picture) == ("validation", NONE) else 1)
        return draw(picture, count, {"validation": VALIDATION, "test": TEST}[split] + self.seed)

    @torch.inference_mode()
    def answers(self, drawn: Drawn, edits: Sequence[Edit]) -> Answers:
        """Return the answers on scenes of one kind of picture."""
        visual: Any = self.model.clip.visual
        sets = [{}, *(edit.weights for edit in edits)]
        own = torch.from_numpy(np.array(self.words)[None] == drawn.thing[:, None])  # (scene, word)
        best, told = [], []
        for start in range(0, len(drawn), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            M = edited_outputs(visual, sets, pictures(self.model, drawn.scenes[part])).double()  # (edit, b, d)
            best.append((M @ self.text.T).argmax(-1))
            asked = (M @ self.word_text.T).masked_fill(own[part], -math.inf).argmax(-1).numpy()  # (edit, b)
            told.append(np.array(self.words)[asked] == drawn.word[part])
        return Answers(torch.cat(best, 1).numpy(), np.concatenate(told, 1))

    def carried(self) -> Carried:
        """Return what carries the margins of attacked validation scenes."""
        written, blank = (self.draw("validation", picture).first(EXPLAINED) for picture in (OTHER, BLANK))
        return carried(self.model, self.bundle, self.text, written, blank)

    def orders(self, parts: Carried) -> dict[str, Int[np.ndarray, " u"]]:
        """Return the units in the order in which each way of choosing takes them."""
        read, r = read_directions(self.bundle), torch.from_numpy(self.bundle["direction"])
        s, t = self.encode([CUE]) - self.mean, self.encode([self.names[word] for word in self.words]) - self.mean
        score = cue_scores(read, r, s, t, rather=not self.pairs)  # as clip-edit --sees has it
        ranked = {"sees": score, "explain": parts.excess, "write": write_scores(r, read.deviation, t)}
        orders = {
            name: value.argsort(descending=True, stable=True)[: int((value > 0).sum())].numpy() for name, value in ranked.items()
        }
        return orders | {"random": self.rng.permutation(self.bundle.units)}

    @property
    def ways(self) -> tuple[str, ...]:
        """Ways of changing weights; no weight changes what a pair writes along a text only."""
        return ("zero",) if self.pairs else ("zero", "null")

    def edits(self, orders: Mapping[str, Int[np.ndarray, " u"]], parts: Carried) -> Iterator[list[Edit]]:
        """Yield the edits among which validation scenes choose: lists of growing numbers of units, no edit first."""
        for units in ("sees", "explain"):
            for how in self.ways:
                counts = [count for power in range(12) if (count := 5 * 2**power) <= self.most(orders[units])]
                edits = [Edit(units, how, count, self.weights(orders[units][:count], how)) for count in counts]
                yield [Edit(units, how, 0, {}), *edits]
        heads = last_heads(parts)
        counts = [count for power in range(12) if (count := 2**power) <= len(heads) // 2]
        yield [Edit("heads", "zero", 0, {}), *(Edit("heads", "zero", n, self.head_weights(heads[:n])) for n in counts)]

    def controls(self, edits: Sequence[Edit], orders: Mapping[str, Int[np.ndarray, " u"]], parts: Carried) -> Iterator[Edit]:
        """Yield the controls: as many units, or heads, as the largest edit of the same kind has."""
        for how in self.ways:
            count = max(edit.count for edit in edits if edit.units in ("sees", "explain") and edit.how == how)
            for units in ("random", "write"):
                rows = orders[units][:count]
                yield Edit(units, how, len(rows), self.weights(rows, how))
        (count,) = (edit.count for edit in edits if edit.units == "heads")
        heads = last_heads(parts)
        others = [place for place in self.rng.permutation(len(heads)).tolist() if place >= count]
        drawn = [heads[place] for place in others[:count]]
        yield Edit("random heads", "zero", count, self.head_weights(drawn))

    def most(self, order: Int[np.ndarray, " u"]) -> int:
        """Return the largest number of units of an edit: a tenth of all."""
        return min(len(order), self.bundle.units // 10)

    def weights(self, rows: Int[np.ndarray, " u"], how: str) -> Weights:
        """Return the changed weights of the edit of some units; of no unit there are none."""
        if not len(rows):
            return {}
        if how == "zero":
            part = self.bundle.select(np.sort(rows))
            return image_weights(ct.edit(part, how="zero", model=self.model, limit=None if self.pairs else MEANS))
        t = self.encode([self.names[word] for word in self.words]) - self.mean
        along = torch.from_numpy(self.bundle["direction"][rows]).double() @ t.T  # (u, word)
        lines = [
            self.line(*self.bundle["unit"][row].tolist()) | {"writes": self.names[self.words[word]]}
            for row, words in zip(rows, along.topk(NULL_WORDS, 1).indices.tolist(), strict=True)
            for word in words
        ]
        return image_weights(ct.edit(lines, how="null", model=self.model, bundle=self.bundle))

    def head_weights(self, heads: Sequence[tuple[int, int]]) -> Weights:
        """Return the changed weights of the edit of some heads; of no head there are none."""
        if not heads:
            return {}
        lines = [self.line(layer, -1, head) for layer, head in heads]
        return image_weights(ct.edit(lines, how="zero", model=self.model, limit=MEANS))

    def line(self, layer: int, neuron: int, head: int) -> dict[str, Any]:
        """Return a unit as a record that clip-edit reads."""
        numbers = {"layer": layer, "neuron": neuron, "head": head}
        return {key: number for key, number in numbers.items() if number >= 0} | {"model": self.bundle.header.model}

    def choose(self, candidates: Sequence[Sequence[Edit]]) -> list[Edit]:
        """Return of each list, which begins with no edit, the edit that is best on validation scenes."""
        flat = [edit for edits in candidates for edit in edits[1:]]
        right = []
        for picture in (OTHER, NONE):
            drawn = self.draw("validation", picture)
            right.append((self.answers(drawn, flat).answer == drawn.thing).mean(1))
        attacked, bare = right
        chosen, start = [], 1
        for nothing, *edits in candidates:
            places = range(start, start + len(edits))
            gains, losses = [attacked[place] for place in places], [bare[0] - bare[place] for place in places]
            try:
                chosen.append(edits[best_trial([edit.count for edit in edits], gains, losses, float(attacked[0]), LOSS)])
            except ct.CliptoolsError:  # no edit is better
                chosen.append(nothing)
            start += len(edits)
        return chosen

    def rows(self, parts: Carried) -> Iterator[dict[str, Any]]:
        """Yield the rows of the table."""
        orders = self.orders(parts)
        edits = self.choose(list(self.edits(orders, parts)))
        edits = [*edits, *self.controls(edits, orders, parts)]
        drawn = {picture: self.draw("test", picture) for picture in PICTURES}
        answers = {picture: self.answers(scenes, edits) for picture, scenes in drawn.items()}
        right = {picture: answers[picture].answer == scenes.thing for picture, scenes in drawn.items()}
        for number, edit in enumerate((Edit("none", "none", 0, {}), *edits)):
            for picture, scenes in drawn.items():
                fixed = {"model": self.model.name, "seed": self.seed, "units": edit.units, "edit": edit.how, "count": edit.count}
                row = fixed | {"picture": picture, "n": len(scenes)}
                row |= _shares("accuracy", right[picture][number], "low", "high")
                row |= _shares("fooled", answers[picture].answer[number] == scenes.word)
                row |= _difference(right[picture][number].astype(float) - right[picture][0])
                if picture == OTHER:
                    row |= gone({picture: hits.mean(1) for picture, hits in right.items()}, number)
                    row |= _shares("told", answers[picture].told[number])
                yield row


def last_heads(parts: Carried) -> list[HeadName]:
    """Return the heads of the last layer, or of the pooling, those of largest change first."""
    last = max(head.layer for head in parts.head)
    heads = [parts.head[place] for place in parts.head_change.argsort(descending=True).tolist()]
    return [head for head in heads if head.layer == last]


def gone(accuracy: Mapping[str, Float[np.ndarray, " edit"]], number: int) -> dict[str, str]:
    """Return the shares of the losses that are gone after an edit, by reading and in all; none where nothing is lost."""
    gain = {picture: float(values[number] - values[0]) for picture, values in accuracy.items()}
    read, whole = (float(accuracy[picture][0] - accuracy[OTHER][0]) for picture in (BLANK, NONE))
    shares = {"gone": (gain[OTHER] - max(0.0, gain[BLANK]), read), "gone_whole": (gain[OTHER], whole)}
    return {name: f"{gained / lost:.4f}" for name, (gained, lost) in shares.items() if lost > 0}


def _shares(name: str, hit: Bool[np.ndarray, " scene"], low: str = "", high: str = "") -> dict[str, str]:
    """Return a share with its interval."""
    ends = wilson(float(hit.mean()), len(hit))
    columns = (name, low or f"{name}_low", high or f"{name}_high")
    return {column: f"{value:.4f}" for column, value in zip(columns, (hit.mean(), *ends), strict=True)}


def _difference(change: Float[np.ndarray, " scene"]) -> dict[str, str]:
    """Return the mean of a paired difference with its interval."""
    half = 1.96 * change.std(ddof=1) / math.sqrt(len(change))
    values = (change.mean(), change.mean() - half, change.mean() + half)
    return {column: f"{value:.4f}" for column, value in zip(("change", "change_low", "change_high"), values, strict=True)}


def main(parts_file: Path, bundles: Sequence[Path]) -> None:
    """Write the rows of all bundles to stdout, and those of the parts to a file."""
    writer = csv.DictWriter(sys.stdout, COLUMNS, lineterminator="\n")
    writer.writeheader()
    with parts_file.open("w", encoding="utf-8", newline="") as stream:
        part_writer = csv.DictWriter(stream, PART_COLUMNS, lineterminator="\n")
        part_writer.writeheader()
        for path in bundles:
            attack = Attack(path)
            parts = attack.carried()
            fixed = {"model": attack.model.name, "seed": attack.seed, "scenes": parts.scenes}
            part_writer.writerows(fixed | row for row in part_rows(parts, attack.bundle, attack.pool, attack.t))
            writer.writerows(attack.rows(parts))
            sys.stdout.flush()
            print(f"{path}: done", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
