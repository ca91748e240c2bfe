"""What clip-shift says of the shares it has measured: of each image, each group and each concept.

The images of clip-shift: those that choose units, and all of them, measured.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cliptools.analysis.concept_units import LOOKED_AT, PARTS, Following
from cliptools.analysis.correlations import Correlation, frequency, group_correlation, point_biserial
from cliptools.analysis.shift_statistics import BlockMeans, GroupMoments, Neighbours, Sample
from cliptools.cli.run.shift_units import Batches, Measures, Watched
from cliptools.console import count_of, progress, summarise
from cliptools.devices import in_halves
from cliptools.images.annotations import Labels
from cliptools.images.groups import Groups
from cliptools.images.loader import Skipped, choose, load_batches
from cliptools.io.jsonl import rounded
from cliptools.models.load import LoadedModel
from cliptools.models.unusable import Screen
from cliptools.render.shift_plot import Panel

if TYPE_CHECKING:
    Read = tuple[list[int], Measures]
    """Numbers of some images and what is measured on them."""

DIGITS = 9  # of what a later run is to compare itself with
Record = dict[str, Any]


class Measured(NamedTuple):
    """All shares, summed up."""

    moments: GroupMoments
    """Of images, or of blocks' means."""
    images: "np.ndarray"
    """How many images each group has."""
    neighbours: Neighbours
    """How alike images are that follow each other, or blocks' means."""
    following: Following
    values: "np.ndarray"
    """Each image's shares [n, concept] if there are labels, else none."""
    numbers: "np.ndarray"
    """And which images these are [n]."""


def measure(
    read: "Iterator[Read]",
    groups: Groups,
    watched: Watched,
    labels: Labels | None,
    tell: Callable[[Record], None] | None = None,
) -> Measured:
    """Sum up by group; keep single values only where labels ask for them.

    Args:
        tell: Is told of every image, as it comes.
    """

    concepts, of, block = len(watched.concepts), np.array(groups.of), _blocks(groups)
    moments, neighbours = GroupMoments(len(groups.names), concepts), Neighbours(len(groups.names), concepts)
    cell, cell_group = (of, None) if block is None else _cells(of, block)
    means = BlockMeans(0 if cell_group is None else len(cell_group), concepts)
    following = Following(concepts, watched.sets, PARTS if block is None else int(block.max()) + 1)
    images = np.zeros(len(groups.names), np.int64)
    values, numbers = [np.zeros((0, concepts), np.float32)], [np.zeros(0, np.int64)]
    for some, measures in read:
        shares, group = measures.share, of[some]
        images += np.bincount(group, minlength=len(images))
        if cell_group is None:
            moments.add(group, shares)
            neighbours.add(group, shares)
        else:
            means.add(cell[some], shares)
        following.add(np.array(some) % PARTS if block is None else block[some], *measures)
        if labels is not None:
            values.append(shares.astype(np.float32))
            numbers.append(np.array(some))
        if tell is not None:
            for image, row in zip(some, shares.tolist(), strict=True):
                tell(_image_record(image, row, groups, watched, labels))
    if cell_group is not None:
        _add_means(means, cell_group, moments, neighbours)
    return Measured(moments, images, neighbours, following, np.concatenate(values), np.concatenate(numbers))


def _blocks(groups: Groups) -> np.ndarray | None:

    return None if groups.block is None else np.array(groups.block)


def _cells(of: "np.ndarray", block: "np.ndarray") -> tuple[np.ndarray, np.ndarray]:
    """Each image's block within its group, numbered in order of appearance, and each such block's group."""

    _, first, cell = np.unique(np.stack([of, block], 1), axis=0, return_index=True, return_inverse=True)
    place = first.argsort().argsort()
    return place[cell.reshape(-1)], of[np.sort(first)]


def _add_means(means: BlockMeans, group: "np.ndarray", moments: GroupMoments, neighbours: Neighbours) -> None:
    known, value = means.means()
    moments.add(group[known], value)
    neighbours.add(group[known], value)


def _image_record(image: int, shares: Sequence[float], groups: Groups, watched: Watched, labels: Labels | None) -> Record:
    record: Record = {"image": groups.source.names[image], "group": groups.names[groups.of[image]]}
    record["shares"] = {name: rounded(share, DIGITS) for name, share in zip(watched.concepts, shares, strict=True)}
    if labels is not None:
        labelled = zip(watched.concepts, labels[image].tolist(), strict=True)
        record["labels"] = {name: bool(label) for name, label in labelled if not math.isnan(label)}
    return record


def group_records(measured: Measured, groups: Groups, watched: Watched, labels: Labels | None) -> Iterator[Record]:
    """A record a concept and group that has an image."""

    of, block = np.array(groups.of)[measured.numbers], _blocks(groups)
    for c, concept in enumerate(watched.concepts):
        shared = _of_concept(measured, watched, c)
        for g, group in enumerate(groups.names):
            if not measured.images[g]:
                continue
            record: Record = {"group": group, "concept": concept, "images": int(measured.images[g])}
            record |= ({} if block is None else {"blocks": int(measured.moments.count[g])}) | sample_record(
                measured.moments.sample(g, c)
            )
            if labels is not None:
                numbers = measured.numbers[of == g]
                label, value = labels[numbers, c], measured.values[of == g, c]
                correlation = point_biserial(value, label, None if block is None else block[numbers])
                record |= _labelled(label) | _correlation("correlation", correlation)
            yield record | shared


def concept_records(measured: Measured, groups: Groups, watched: Watched, labels: Labels) -> Iterator[Record]:
    """A record a labelled concept: over all images, and over groups."""

    of, block = np.array(groups.of)[measured.numbers], _blocks(groups)
    for c, concept in enumerate(watched.concepts):
        label, value = labels[measured.numbers, c], measured.values[:, c]
        if not frequency(label)[0]:
            continue
        over = group_correlation(value, label, of)
        correlation = point_biserial(value, label, None if block is None else block[measured.numbers])
        record: Record = {"concept": concept, "images": len(value)} | _labelled(label)
        record |= _correlation("correlation", correlation) | _correlation("group_correlation", over)
        yield record | _of_concept(measured, watched, c)


def _of_concept(measured: Measured, watched: Watched, c: int) -> Record:
    """What all records of a concept say: how alike neighbours are, its units, what chose them and how far they follow it."""
    alike = measured.neighbours.correlation(measured.moments, c)
    record: Record = {} if alike is None else {"neighbours": {"correlation": rounded(alike), "pairs": measured.neighbours.pairs}}
    record["units"] = watched.units[c]
    if watched.looked_at is not None:
        record["looked_at"] = watched.looked_at
    if watched.units[c] and (followed := measured.following.of(c)) is not None:
        figures = {"value": followed.value, "low": followed.low, "high": followed.high}
        follows = {key: None if value is None else rounded(value) for key, value in figures.items()} | {"count": followed.size}
        record["follows"] = follows | ({} if followed.chance is None else {"chance": rounded(followed.chance)})
    return record


def sample_record(sample: Sample) -> Record:
    """A sample's figures, with the digits that a later run compares itself by."""
    names = ("mean", "spread", "standard_error", "skewness", "kurtosis")
    return {name: rounded(getattr(sample, name), DIGITS) for name in names}


def _labelled(label: "np.ndarray") -> Record:
    """How many images have a label, and how many of these show the concept."""

    count, shown = frequency(label)
    return {"labelled": count} | ({"frequency": rounded(shown)} if count else {})


def _correlation(name: str, correlation: Correlation | None) -> Record:
    if correlation is None:
        return {}
    value, low, high, size, why = correlation
    if low is None or high is None:
        return {name: {"value": rounded(value), "count": size, "no_interval": why}}
    return {name: {"value": rounded(value), "low": rounded(low), "high": rounded(high), "count": size}}


def panels(records: Sequence[Record], groups: Sequence[str], concepts: Sequence[str]) -> list[Panel]:
    """What the plot shows."""

    by = {(record["concept"], record["group"]): record for record in records}
    drawn = []
    for concept in concepts:
        these = [by.get((concept, group), {}) for group in groups]
        mean, error, shown = ([each.get(key) for each in these] for key in ("mean", "standard_error", "frequency"))
        drawn.append(Panel(concept, mean, error, shown, [bool(each.get("drift", {}).get("alarm")) for each in these]))
    return drawn


class Images:
    """The images asked for, to be read more than once; each that cannot be read is told of once."""

    def __init__(self, groups: Groups, model: LoadedModel, options: dict[str, Any]) -> None:

        self.groups, self.model, self.options, self.skipped = groups, model, options, Skipped()
        self.screen = Screen[int](groups.source.names.__getitem__, self.skipped.add, options["strict"])
        self.indices = choose(groups.source, options["limit"], options["sample"], options["seed"])

    def look(self) -> Batches:
        """Some of them, drawn over all, to choose units by."""

        count = min(LOOKED_AT, len(self.indices))
        drawn = np.random.default_rng(self.options["seed"]).choice(len(self.indices), count, replace=False)
        return self.batches([self.indices[i] for i in sorted(drawn.tolist())])

    def batches(self, indices: Sequence[int]) -> Batches:
        """These, preprocessed."""

        options = self.options
        return load_batches(
            self.groups.source, indices, self.model.transform,
            batch_size=options["batch_size"], workers=options["workers"], strict=options["strict"], skipped=self.skipped,
        )  # fmt: skip


def read_shares(images: Images, watched: Watched) -> "Iterator[Read]":
    """What is measured on the images, a batch at a time.

    Raises:
        CliptoolsError: not one image can be read, or none is usable.
    """

    count = 0
    read = progress(images.batches(images.indices), "images", len(images.indices), lambda batch: len(batch[0]))
    for some, (measures, reasons) in in_halves(read, lambda _, pictures: watched.measure(pictures)):
        stay = list(images.screen.places(some, reasons))
        if stay:
            yield [some[place] for place in stay], type(measures)(*(part[stay] for part in measures))
        count += len(stay)
    images.screen.require(count)
    skips = f", {len(images.skipped)} skipped" if len(images.skipped) else ""
    summarise(
        f"clip-shift: {count_of(count, 'image')}{skips} in {count_of(len(images.groups.names), 'group')}, "
        f"{count_of(len(watched.concepts), 'concept')}"
    )
