"""What clip-shift says of the shares it has measured: of each image, each group and each concept."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from cliptools.ground.records import rounded

if TYPE_CHECKING:
    import numpy as np

    from cliptools.commands.shift_units import Measures, Watched
    from cliptools.ground.groups import Groups
    from cliptools.ground.labels import Labels
    from cliptools.ground.shift_plot import Panel
    from cliptools.methods.following import Following
    from cliptools.methods.point_biserial import Correlation
    from cliptools.methods.running_moments import BlockMeans, GroupMoments, Neighbours, Sample

    Read = tuple[list[int], Measures]
    """Numbers of some images and what is measured on them."""

DIGITS = 9  # of what a later run is to compare itself with
Record = dict[str, Any]


class Measured(NamedTuple):
    """All shares, summed up."""

    moments: "GroupMoments"
    """Of images, or of blocks' means."""
    images: "np.ndarray"
    """How many images each group has."""
    neighbours: "Neighbours"
    """How alike images are that follow each other, or blocks' means."""
    following: "Following"
    values: "np.ndarray"
    """Each image's shares [n, concept] if there are labels, else none."""
    numbers: "np.ndarray"
    """And which images these are [n]."""


def measure(
    read: "Iterator[Read]",
    groups: "Groups",
    watched: "Watched",
    labels: "Labels | None",
    tell: Callable[[Record], None] | None = None,
) -> Measured:
    """Sum up by group; keep single values only where labels ask for them.

    Args:
        tell: Is told of every image, as it comes.
    """
    import numpy as np

    from cliptools.methods.following import PARTS, Following
    from cliptools.methods.running_moments import BlockMeans, GroupMoments, Neighbours

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


def _blocks(groups: "Groups") -> "np.ndarray | None":
    import numpy as np

    return None if groups.block is None else np.array(groups.block)


def _cells(of: "np.ndarray", block: "np.ndarray") -> "tuple[np.ndarray, np.ndarray]":
    """Each image's block within its group, numbered in order of appearance, and each such block's group."""
    import numpy as np

    _, first, cell = np.unique(np.stack([of, block], 1), axis=0, return_index=True, return_inverse=True)
    place = first.argsort().argsort()
    return place[cell.reshape(-1)], of[np.sort(first)]


def _add_means(means: "BlockMeans", group: "np.ndarray", moments: "GroupMoments", neighbours: "Neighbours") -> None:
    known, value = means.means()
    moments.add(group[known], value)
    neighbours.add(group[known], value)


def _image_record(image: int, shares: Sequence[float], groups: "Groups", watched: "Watched", labels: "Labels | None") -> Record:
    record: Record = {"image": groups.source.names[image], "group": groups.names[groups.of[image]]}
    record["shares"] = {name: rounded(share, DIGITS) for name, share in zip(watched.concepts, shares, strict=True)}
    if labels is not None:
        labelled = zip(watched.concepts, labels[image].tolist(), strict=True)
        record["labels"] = {name: bool(label) for name, label in labelled if not math.isnan(label)}
    return record


def group_records(measured: Measured, groups: "Groups", watched: "Watched", labels: "Labels | None") -> Iterator[Record]:
    """A record a concept and group that has an image."""
    import numpy as np

    from cliptools.methods.point_biserial import point_biserial

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


def concept_records(measured: Measured, groups: "Groups", watched: "Watched", labels: "Labels") -> Iterator[Record]:
    """A record a labelled concept: over all images, and over groups."""
    import numpy as np

    from cliptools.methods.point_biserial import frequency, group_correlation, point_biserial

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


def _of_concept(measured: Measured, watched: "Watched", c: int) -> Record:
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


def sample_record(sample: "Sample") -> Record:
    """A sample's figures, with the digits that a later run compares itself by."""
    names = ("mean", "spread", "standard_error", "skewness", "kurtosis")
    return {name: rounded(getattr(sample, name), DIGITS) for name in names}


def _labelled(label: "np.ndarray") -> Record:
    """How many images have a label, and how many of these show the concept."""
    from cliptools.methods.point_biserial import frequency

    count, shown = frequency(label)
    return {"labelled": count} | ({"frequency": rounded(shown)} if count else {})


def _correlation(name: str, correlation: "Correlation | None") -> Record:
    if correlation is None:
        return {}
    value, low, high, size, why = correlation
    if low is None or high is None:
        return {name: {"value": rounded(value), "count": size, "no_interval": why}}
    return {name: {"value": rounded(value), "low": rounded(low), "high": rounded(high), "count": size}}


def panels(records: Sequence[Record], groups: Sequence[str], concepts: Sequence[str]) -> "list[Panel]":
    """What the plot shows."""
    from cliptools.ground.shift_plot import Panel

    by = {(record["concept"], record["group"]): record for record in records}
    drawn = []
    for concept in concepts:
        these = [by.get((concept, group), {}) for group in groups]
        mean, error, shown = ([each.get(key) for each in these] for key in ("mean", "standard_error", "frequency"))
        drawn.append(Panel(concept, mean, error, shown, [bool(each.get("drift", {}).get("alarm")) for each in these]))
    return drawn
