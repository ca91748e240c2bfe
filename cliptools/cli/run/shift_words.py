"""Measurement of clip-shift without a concept: all words of a vocabulary with their units, summed over groups of images.

The measures are in analysis/word_shares.py; shift_word_drift.py compares the groups with a baseline.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int

from cliptools.analysis.word_shares import OpenBlocks, WordMeasure, Words, WordSums, units_of_words
from cliptools.cli.app import Output, parse_layers
from cliptools.cli.run.shift_drift import sample_record
from cliptools.cli.run.shift_units import DIGITS, TOOL, Images, MeasureOptions, Record, block_of, cells_of, chosen_records
from cliptools.console import count_of, progress, summarise
from cliptools.devices import in_halves
from cliptools.front.mismatch import NEEDED_TENSORS, read_directions, require_read
from cliptools.front.unit_records import ENOUGH_IMAGES
from cliptools.front.vocabulary import default_vocabulary, vocabulary, vocabulary_of
from cliptools.images.groups import Groups
from cliptools.io.bundle import Bundle
from cliptools.io.jsonl import rounded
from cliptools.models.load import LoadedModel
from cliptools.models.templates import recorded_templates
from cliptools.models.text_encoder import encode_named
from cliptools.models.unusable import unusable
from cliptools.unit_effects.select import recorded_effect

UNITS, SIMILARITIES = "units", "similarities"
BY = {None: (UNITS, SIMILARITIES), "signed": (UNITS,), "text": (SIMILARITIES,)}
"""The measures, by --by."""
LEAST_SURE = 20  # images or blocks that the small chances of many words need
MOMENTS = ("mean", "spread", "skewness", "kurtosis")
KEYS = ("layer", "neuron", "head")
QUOTED = 100  # largest number of characters of a list of groups that a message quotes
TABLE_ROWS = 20
TABLE_UNITS = 3


@dataclass(frozen=True, kw_only=True)
class WordOptions(MeasureOptions, Output):
    """Options of clip-shift that a run without a concept reads."""

    pool: str | None
    block: str | None
    baseline: Path | None
    alarm: float | None
    match: bool
    layers: str | None
    device: str


class WordPlan(NamedTuple):
    """The words, their units and how they are measured."""

    words: Sequence[str]
    by: Sequence[str]
    """UNITS, SIMILARITIES or both, in the order of the columns: all words by the first, then by the second."""
    units: Sequence[Sequence[Record]]
    """Units of every word, as records list them; empty lists without UNITS."""
    measure: WordMeasure
    source: dict[str, Record]
    """Fields that all records of a measure share: vocabulary, settings, model and bundle."""

    @property
    def columns(self) -> list[tuple[str, int]]:
        """Measure and word of every column."""
        return [(by, w) for by in self.by for w in range(len(self.words))]


def make_plan(neurons: Bundle, named: Record, model: LoadedModel, options: WordOptions) -> WordPlan:
    """Return the words of --pool with their units.

    Raises:
        StreamError: --choose seen needs read directions, which the bundle lacks.
    """
    if options.pool is not None:
        pool = vocabulary(options.pool)
    else:
        pool = vocabulary_of(neurons, None) if "words" in neurons else default_vocabulary(neurons)
    t, by = encode_named(model, pool, options.templates), BY[None if options.by == "norm" else options.by]
    settings: Record = {"digest": pool.digest, "templates": recorded_templates(options.templates)}
    if (block := options.block) is not None:
        settings["block"] = int(block) if block.isdecimal() else block
    source = {name: {"pool": pool.name, "settings": settings} | named for name in by}
    header, unit = neurons.header.settings, torch.from_numpy(neurons["unit"])
    row = torch.zeros(len(t), 0, dtype=torch.int64)
    units: list[list[Record]] = [[] for _ in pool.texts]
    if UNITS in by:
        way = _way_to_choose(neurons, options)
        r = torch.from_numpy(neurons["direction"])
        read = read_directions(neurons) if way == "seen" else None
        chosen = units_of_words(r, t.cpu(), options.units_per_concept, read, neurons.header.images.get("count", ENOUGH_IMAGES))
        row, units = chosen.row, chosen_records(unit, chosen)
        more = {"units_per_concept": options.units_per_concept, "effect": header["effect"], "choose": way}
        more |= {"layers": list(parse_layers(options.layers))} if options.layers else {}
        source[UNITS]["settings"] = settings | more
    effect = recorded_effect(model.clip, header)
    return WordPlan(pool.texts, by, units, WordMeasure(effect, unit, row, t), source)


def _way_to_choose(neurons: Bundle, options: WordOptions) -> str:
    """Return --choose, else seen if the bundle has read directions, else overlap.

    Raises:
        StreamError: --choose seen, and the bundle has none.
    """
    if options.choose == "seen":
        require_read(neurons, "--choose seen")
    return options.choose or ("seen" if all(name in neurons for name in NEEDED_TENSORS) else "overlap")


def measure_words(images: Images, groups: Groups, plan: WordPlan) -> WordSums:
    """Measure all words on all images and sum them over groups.

    Raises:
        CliptoolsError: no image can be read, or none is usable.
    """
    block, count = block_of(groups), 0
    group_of, cell_group = np.array(groups.of), None
    sums = WordSums(len(groups.names), len(plan.columns), sum(map(len, plan.units)))
    blocks = None
    if block is not None:
        cell, cell_group = cells_of(group_of, block)
        blocks = OpenBlocks(cell, images.indices)
    batches = progress(images.batches(images.indices), "images", len(images.indices), lambda batch: len(batch[0]))
    for numbers, words in in_halves(batches, lambda _, pictures: plan.measure(pictures)):
        reasons = unusable(words.embedding, words.part.flatten(1), words.similarity)
        places = list(images.screen.places(numbers, reasons))
        if places:
            usable = [numbers[place] for place in places]
            sums.images += np.bincount(group_of[usable], minlength=len(sums.images))
            _add(sums, blocks, usable, group_of, cell_group, _columns(words, plan.by)[places])
        count += len(places)
    if blocks is not None and cell_group is not None and (rest := blocks.complete(None)) is not None:
        sums.add(cell_group[rest[0]], rest[1])
    images.screen.require(count)
    skip_text = f", {len(images.skipped)} skipped" if len(images.skipped) else ""
    sizes = f"{count_of(len(groups.names), 'group')}, {count_of(len(plan.words), 'word')}"
    summarise(f"{TOOL}: {count_of(count, 'image')}{skip_text} in {sizes}")
    return sums


def _columns(words: Words, by: Sequence[str]) -> Float64[np.ndarray, "b c"]:
    """Return the measures of all columns, followed by the parts of units."""
    values = {UNITS: words.part.sum(-1), SIMILARITIES: words.similarity}
    return torch.cat([*(values[name] for name in by), words.part.flatten(1)], 1).cpu().double().numpy()


def _add(
    sums: WordSums,
    blocks: OpenBlocks | None,
    images: Sequence[int],
    group_of: Int[np.ndarray, " image"],
    cell_group: Int[np.ndarray, " cell"] | None,
    value: Float64[np.ndarray, "b c"],
) -> None:
    """Add the values of some images, or the means of the blocks that end with them."""
    if blocks is None or cell_group is None:
        sums.add(group_of[list(images)], value)
        return
    blocks.add(images, value)
    if (complete := blocks.complete(images[-1])) is not None:
        sums.add(cell_group[complete[0]], complete[1])


def word_records(sums: WordSums, groups: Groups, plan: WordPlan) -> Iterator[Record]:
    """Yield a record for each group that has an image, measure and word, in this order."""
    alike, means = _neighbours(sums, plan), sums.part_means()  # (g, w n)
    for g, group in enumerate(groups.names):
        if not sums.images[g]:
            continue
        counts: Record = {"group": group, "images": int(sums.images[g])}
        counts |= {} if groups.block is None else {"blocks": int(sums.moments.count[g])}
        unit_means = means[g].reshape(len(plan.words), -1).tolist()  # (w, n)
        for c, (by, w) in enumerate(plan.columns):
            record: Record = {"word": plan.words[w], "by": by} | counts | sample_record(sums.moments.sample(g, c)) | alike[by]
            if by == UNITS:
                pairs = zip(plan.units[w], unit_means[w], strict=True)
                record["units"] = [unit | {"mean": rounded(mean, DIGITS)} for unit, mean in pairs]
            yield record | plan.source[by]


def _neighbours(sums: WordSums, plan: WordPlan) -> dict[str, Record]:
    """Return, for each measure, the field with the median over words of the correlation of neighbours; empty if not defined."""
    fields: dict[str, Record] = {by: {} for by in plan.by}
    for by, values in zip(plan.by, np.split(sums.alike(), len(plan.by)), strict=True):
        if len(defined := values[~np.isnan(values)]):
            median = rounded(float(np.median(defined)))
            fields[by] = {"neighbours": {"correlation": median, "pairs": sums.neighbours.pairs}}
    return fields
