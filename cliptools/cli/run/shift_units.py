"""Measurement of clip-shift: chooses the units of each concept, reads the images, and sums the units' shares over groups.

The equations of the share and of the choice are in analysis/concept_units.py.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int
from torch import Tensor

from cliptools.analysis.concept_units import (
    LOOKED_AT,
    PARTS,
    SETS,
    CandidateActivity,
    ConceptShare,
    ConceptUnits,
    ShareCorrelations,
    Shares,
    UnitSelector,
    choose_units,
    random_sets,
)
from cliptools.analysis.shift_statistics import BlockMeans, GroupMoments, Neighbours
from cliptools.cli.app import Batching, Sampling
from cliptools.console import count_of, progress, summarise, working
from cliptools.devices import in_halves
from cliptools.errors import StreamError
from cliptools.front.unit_records import unit_keys
from cliptools.images.annotations import Labels
from cliptools.images.groups import Groups
from cliptools.images.loader import Skipped, choose, load_batches
from cliptools.io.bundle import Bundle
from cliptools.io.jsonl import rounded, unit_name
from cliptools.io.shift_baseline import Baseline
from cliptools.models.load import LoadedModel
from cliptools.models.templates import concept_sentences
from cliptools.models.text_encoder import encode_texts
from cliptools.models.unusable import Screen, unusable
from cliptools.unit_effects.factored import FactoredEffect
from cliptools.unit_effects.select import recorded_effect

TOOL = "clip-shift"
DIGITS = 9  # of numbers with which a later run is compared
Record = dict[str, Any]
Batches = Iterable[tuple[list[int], Tensor]]
"""Indices of some images and their pictures [b, 3, y, x]."""


@dataclass(frozen=True, kw_only=True)
class MeasureOptions(Sampling, Batching):
    """Options of clip-shift for the concepts, the choice of their units, the measure, and the images."""

    concepts: tuple[str, ...]
    templates: tuple[str, ...]
    units_per_concept: int
    choose: Literal["overlap", "seen"] | None
    by: Literal["norm", "signed", "text"] | None

    @property
    def measure(self) -> Literal["norm", "signed", "text"]:
        """The measure of concepts."""
        return self.by or "norm"


class Measures(NamedTuple):
    """Shares of b images, and the quantities with which they are compared."""

    share: Float64[np.ndarray, "b c"]
    """Shares of the concepts."""
    rest: Float64[np.ndarray, "b c"]
    """The model's own similarity, without the part that the units write."""
    random_share: Float64[np.ndarray, "b s c"]
    """Shares of sets of random units."""
    random_rest: Float64[np.ndarray, "b s c"]
    """The model's own similarity, without the part that these units write."""


class MeasurementPlan(NamedTuple):
    """Concepts, their units, and the measure of their shares."""

    concepts: Sequence[str]
    units: Sequence[Sequence[Record]]
    """Units of every concept, as records list them; none with --by text."""
    choose: str | None
    """Choice of the units, overlap or seen; None without units."""
    looked_at: int | None
    """Number of images by which the units were chosen, here or in the baseline's run; None if no images were used."""
    sets: int
    """Number of sets of random units that are measured as well."""
    measure: Callable[[Tensor], tuple[Measures, dict[int, str]]]
    """Function from pictures to their measures, and the rows that are not usable with the reason."""


class Images:
    """The images of a run, which can be read more than once; an unreadable image is reported once."""

    def __init__(self, groups: Groups, model: LoadedModel, options: MeasureOptions) -> None:
        self.groups, self.model, self.options, self.skipped = groups, model, options, Skipped()
        self.screen = Screen[int](groups.source.names.__getitem__, self.skipped.add, options.strict)
        self.indices = choose(groups.source, options.limit, options.sample, options.seed)

    def look(self) -> Batches:
        """Return a sample of the images, by which units are chosen."""
        count = min(LOOKED_AT, len(self.indices))
        drawn = np.random.default_rng(self.options.seed).choice(len(self.indices), count, replace=False)
        return self.batches([self.indices[i] for i in sorted(drawn.tolist())])

    def batches(self, indices: Sequence[int]) -> Batches:
        """Return these images, preprocessed."""
        options = self.options
        return load_batches(
            self.groups.source, indices, self.model.transform,
            batch_size=options.batch_size, workers=options.workers, strict=options.strict, skipped=self.skipped,
        )  # fmt: skip


def make_plan(
    neurons: Bundle, model: LoadedModel, options: MeasureOptions, images: Images, baseline: Baseline | None
) -> MeasurementPlan:
    """Choose the units of every concept, or read those of the baseline, and prepare the measurement.

    Raises:
        StreamError: the baseline has no record of a concept, or its units are not in the bundle.
    """
    sentences, templates = concept_sentences(model, options.concepts, options.templates)
    t = encode_texts(model, sentences, templates)  # (c, d)
    settings = neurons.header.settings
    effect = recorded_effect(model.clip, settings)
    text = options.measure == "text"
    way = None if text else way_to_choose(options, baseline)
    chosen, looked_at = _choose(neurons, effect, t, options, way, images, baseline)
    unit = torch.from_numpy(neurons["unit"])
    sets = random_sets(0 if text else neurons.units, options.units_per_concept, SETS)  # (s, n)
    shares = ConceptShare(effect, unit, chosen.row, t, sets)
    units = [[] for _ in options.concepts] if text else chosen_records(unit, chosen)
    return MeasurementPlan(
        options.concepts, units, way, looked_at, len(sets), lambda pictures: _measures(shares(pictures), options.measure)
    )


def way_to_choose(options: MeasureOptions, baseline: Baseline | None) -> str:
    """Return --choose, else the baseline's choice of units, else `seen`."""
    if options.choose:
        return options.choose
    if baseline is None:
        return "seen"
    settings = baseline.any_record(options.concepts[0]).get("settings", {})
    return str(settings.get("choose", "overlap"))


def _choose(
    neurons: Bundle,
    effect: FactoredEffect,
    t: Float[Tensor, "c d"],
    options: MeasureOptions,
    way: str | None,
    images: Images,
    baseline: Baseline | None,
) -> tuple[ConceptUnits, int | None]:
    """Return the units of every concept, and the number of images by which they were chosen."""
    unit, r = torch.from_numpy(neurons["unit"]), torch.from_numpy(neurons["direction"])
    if way is not None and baseline is not None:
        records = [baseline.any_record(concept) for concept in options.concepts]
        return _baseline_units(neurons, r, t.cpu(), records, baseline.source), records[0].get("looked_at")
    if way != "seen":
        return choose_units(r, t.cpu(), options.units_per_concept), None
    selector = UnitSelector(effect, unit, r, t.cpu())
    with working("choosing units"):
        for numbers, measured in in_halves(images.look(), lambda _, pictures: selector.measure(pictures)):
            usable = list(images.screen.places(numbers, unusable(measured.embedding, measured.activity)))
            selector.add(CandidateActivity(*(part[usable] for part in measured)))
    return selector.choose(options.units_per_concept), selector.count


def _baseline_units(
    neurons: Bundle, r: Float[Tensor, "u d"], t: Float[Tensor, "c d"], records: Sequence[Record], source: str
) -> ConceptUnits:
    """Return the units that an earlier run's records list.

    Raises:
        StreamError: a unit that is not in the bundle.
    """
    row_of = {tuple(unit): row for row, unit in enumerate(neurons["unit"].tolist())}
    rows, seen_values = [], []
    for record in records:
        units = [(unit.get("layer"), unit.get("neuron"), unit.get("head", -1)) for unit in record.get("units", [])]
        if missing := next((unit for unit in units if unit not in row_of), None):
            raise StreamError(
                f"--baseline {source}: {record['concept']!r} was measured with unit {unit_name(*missing)}, which is not in"
                " the bundle (or not in --layers); use the options and the bundle of that run"
            )
        rows.append([row_of[unit] for unit in units])
        seen_values.append([unit.get("seen", float("nan")) for unit in record.get("units", [])])
    row = torch.tensor(rows)  # (c, n)
    overlap = (r[row] * t.to(r)[:, None]).sum(-1)  # (c, n, d) -> (c, n)
    return ConceptUnits(row, overlap, torch.tensor(seen_values))


def chosen_records(unit: Int[Tensor, "u 3"], chosen: ConceptUnits) -> list[list[Record]]:
    """Return the units of every concept or word, as records list them."""
    figures = {"overlap": chosen.overlap.tolist()} | ({} if chosen.seen is None else {"seen": chosen.seen.tolist()})
    return [
        [
            unit_keys(*key) | {name: rounded(part[c][n]) for name, part in figures.items() if not math.isnan(part[c][n])}
            for n, key in enumerate(keys)
        ]
        for c, keys in enumerate(unit[chosen.row].tolist())
    ]


def _measures(shares: Shares, by: str) -> tuple[Measures, dict[int, str]]:
    """Return the shares of --by with the quantities for comparison, and the rows that are not usable with the reason."""
    signed = by == "signed"
    random = shares.random_signed if signed else shares.random_norm[..., None].expand_as(shares.random_signed)  # (b, s, c)
    parts = (
        {"norm": shares.norm, "signed": shares.signed, "text": shares.text}[by],
        shares.text - shares.signed,
        random,
        shares.text[:, None] - shares.random_signed,
    )
    return Measures(*(part.cpu().double().numpy() for part in parts)), unusable(shares.embedding, *parts)


def read_shares(images: Images, plan: MeasurementPlan) -> Iterator[tuple[list[int], Measures]]:
    """Yield the indices of some images and their measures, a batch at a time.

    Raises:
        CliptoolsError: no image can be read, or none is usable.
    """
    count = 0
    batches = progress(images.batches(images.indices), "images", len(images.indices), lambda batch: len(batch[0]))
    for numbers, (measures, reasons) in in_halves(batches, lambda _, pictures: plan.measure(pictures)):
        usable = list(images.screen.places(numbers, reasons))
        if usable:
            yield [numbers[place] for place in usable], Measures(*(part[usable] for part in measures))
        count += len(usable)
    images.screen.require(count)
    skip_text = f", {len(images.skipped)} skipped" if len(images.skipped) else ""
    summarise(
        f"{TOOL}: {count_of(count, 'image')}{skip_text} in {count_of(len(images.groups.names), 'group')}, "
        f"{count_of(len(plan.concepts), 'concept')}"
    )


class ShareSums(NamedTuple):
    """Sums of the shares over all images."""

    moments: GroupMoments
    """Moments of images, or with --block of blocks' means."""
    images: Int[np.ndarray, " g"]
    """Number of images in every group."""
    neighbours: Neighbours
    """Similarity of consecutive images, or of the means of consecutive blocks."""
    following: ShareCorrelations
    """Correlations of the units' shares with every concept."""
    values: Float32[np.ndarray, "n c"]
    """Shares of the single images if there are labels, else empty."""
    numbers: Int[np.ndarray, " n"]
    """Indices of these images."""


def measure(
    batches: Iterator[tuple[list[int], Measures]],
    groups: Groups,
    plan: MeasurementPlan,
    labels: Labels | None,
    write: Callable[[Record], None] | None = None,
) -> ShareSums:
    """Sum the shares by group; keep those of single images only if there are labels.

    Args:
        write: Called with the record of every image, as it comes.
    """
    concepts, group_of, block = len(plan.concepts), np.array(groups.of), block_of(groups)
    moments, neighbours = GroupMoments(len(groups.names), concepts), Neighbours(len(groups.names), concepts)
    cell, cell_group = (group_of, None) if block is None else cells_of(group_of, block)
    means = BlockMeans(0 if cell_group is None else len(cell_group), concepts)
    following = ShareCorrelations(concepts, plan.sets, PARTS if block is None else int(block.max()) + 1)
    images = np.zeros(len(groups.names), np.int64)
    values, numbers = [np.zeros((0, concepts), np.float32)], [np.zeros(0, np.int64)]
    for batch, measures in batches:
        shares, group = measures.share, group_of[batch]  # (b, c), (b,)
        images += np.bincount(group, minlength=len(images))
        if cell_group is None:
            moments.add(group, shares)
            neighbours.add(group, shares)
        else:
            means.add(cell[batch], shares)
        following.add(np.array(batch) % PARTS if block is None else block[batch], *measures)
        if labels is not None:
            values.append(shares.astype(np.float32))
            numbers.append(np.array(batch))
        if write is not None:
            for image, row in zip(batch, shares.tolist(), strict=True):
                write(_image_record(image, row, groups, plan, labels))
    if cell_group is not None:
        complete, mean = means.means()
        moments.add(cell_group[complete], mean)
        neighbours.add(cell_group[complete], mean)
    return ShareSums(moments, images, neighbours, following, np.concatenate(values), np.concatenate(numbers))


def block_of(groups: Groups) -> Int[np.ndarray, " image"] | None:
    """Return the block of every image; None without --block."""
    return None if groups.block is None else np.array(groups.block)


def cells_of(
    group_of: Int[np.ndarray, " image"], block: Int[np.ndarray, " image"]
) -> tuple[Int[np.ndarray, " image"], Int[np.ndarray, " cell"]]:
    """Return the cell, a block within a group, of every image, in order of appearance; and the group of every cell."""
    _, first, cell = np.unique(np.stack([group_of, block], 1), axis=0, return_index=True, return_inverse=True)
    place = first.argsort().argsort()
    return place[cell.reshape(-1)], group_of[np.sort(first)]


def _image_record(image: int, shares: Sequence[float], groups: Groups, plan: MeasurementPlan, labels: Labels | None) -> Record:
    record: Record = {"image": groups.source.names[image], "group": groups.names[groups.of[image]]}
    record["shares"] = {name: rounded(share, DIGITS) for name, share in zip(plan.concepts, shares, strict=True)}
    if labels is not None:
        labelled = zip(plan.concepts, labels[image].tolist(), strict=True)
        record["labels"] = {name: bool(label) for name, label in labelled if not math.isnan(label)}
    return record
