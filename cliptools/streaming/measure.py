"""From images to the statistics of factored effects: the pass that every factored effect goes through.

For every unit n of the layers, over all images I (paper 1, arXiv 2406.04341, Sec. 3.3; paper 2, arXiv 2509.19943):

    b_n = mean of phi_n(I)                        r_n = first right singular vector of the T rows phi_n - b_n of largest norm
    tau_n = norm of rank (1 - q) N                explained_all = sum over I of <phi_n - b_n, r_n>^2 / sum of ||phi_n - b_n||^2

S, [units, K] for each image, is too large to store for all images, and D, [units, K, d], too large to form at once. So the units
are divided into blocks that fit into memory, or of which one at a time does while the others lie in files (`memory_plan`). The S
of a block go into `UnitStatistics`, in S space; at the end `summarise` takes the results to the joint space through D, a few
units at a time. Units whose top images a pass could not certify get a second look (`Measurement.settle`).
"""

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cliptools.console import count_of, note, progress
from cliptools.devices import in_halves, to_float64_device
from cliptools.errors import CliptoolsError
from cliptools.models.unusable import Screen, unusable
from cliptools.streaming.embeddings import Embeddings
from cliptools.streaming.memory_plan import images_at_once, lie_in_files, memory_plan, sample_size
from cliptools.streaming.moments import Basis
from cliptools.streaming.principal import SymmetricStack
from cliptools.streaming.ranking import rank_of
from cliptools.streaming.statistics import Finished, UnitStatistics
from cliptools.streaming.summary import Effects, Settings, gram_stack, summarise
from cliptools.unit_effects.factored import FactoredEffect, UnitBlock, scale_of

Batches = Callable[[Collection[int] | None], Iterator[tuple[list[int], Tensor]]]
"""Image numbers and preprocessed pictures [b, 3, y, x], of these images or of all (None), always in the same order."""


EXACT = 200  # the largest rank of a threshold for which more images are kept, so that it is exact
MARGIN = 2  # times T: images kept beyond T, so that nearly every list is certified
LEAST_MARGIN = 48
WHOLE_SHARE = 0.25  # of the memory, for lists of all images


def list_capacity(settings: Settings, listed: int) -> int:
    """C: images kept per unit, the same for a run and all shards of it; all images of a short list.

    The norm of the threshold's rank is certain only if the list goes on beyond it. So the list has half as many images more than
    the rank, or is shorter than the rank, and norms are counted.
    """
    top = settings.top_of(listed)
    if settings.margin is not None:
        return top + settings.margin
    rank = rank_of(settings.quantile, listed)
    capacity, with_threshold = top + max(LEAST_MARGIN, MARGIN * top), rank + rank // 2
    if rank <= EXACT:
        capacity = max(capacity, with_threshold)
    elif capacity < with_threshold:
        capacity = min(capacity, rank - 1)
    return min(capacity, max(listed, top))


def keep_all(
    settings: Settings, effect: FactoredEffect, layers: Sequence[int], images: int, share: float = WHOLE_SHARE
) -> Settings:
    """Settings whose lists keep all images, if these take at most a share of the memory; else the same settings.

    Then no list or threshold is in doubt. A unit that acts on fewer than T images needs this most: silent images, whose norms are
    nearly equal, end its list.
    """
    top = settings.top_of(images)
    size = sum(n * UnitStatistics.bytes_per_unit(k, max(images, top)) for n, k in map(effect.size, layers))
    return settings._replace(margin=max(0, images - top)) if size <= share * settings.memory else settings


class Report(NamedTuple):
    """Result of a measurement, and its course."""

    effects: Effects
    images: int
    embeddings: Embeddings
    passes: int
    """Passes over all images; more than one if the statistics do not fit into the memory together."""
    redone: int
    """Units whose top images a pass could not certify and a second look settled."""
    reread: int
    """Images that the second look read."""


def measure(
    effect: FactoredEffect,
    batches: Batches,
    layers: Sequence[int],
    expected: int,
    settings: Settings,
    screen: Screen[int] | None = None,
) -> Report:
    """Exact statistics of all units of the layers, with one forward pass an image wherever that can certify them.

    Args:
        expected: Number of images in `batches`, skipped ones included.
        screen: Leaves out images that are not usable; call this function by its `again`. None: such an image is an error.

    Raises:
        CliptoolsError: no image could be read, an image is not usable, or a later pass or look read another number of images.
        SpoiltError: a later look has shown that an image is not usable.
    """
    screen = Screen() if screen is None else screen
    measurement, count, passes, embeddings = Measurement(effect, layers, settings), 0, 0, Embeddings(expected)
    looks = first_looks(effect, batches, layers, expected, expected, settings, screen, embeddings)
    for number, block, statistics in looks:
        images = statistics.moments.count
        check_same(images, count or images)
        count, passes = images, number + 1
        measurement.take(block, statistics)
        del statistics
    redone = measurement.uncertain
    reread = measurement.settle(batches, count, screen) if redone else 0
    return Report(measurement.effects(), count, embeddings, passes, redone, reread)


def first_looks(
    effect: FactoredEffect,
    batches: Batches,
    layers: Sequence[int],
    listed: int,
    expected: int,
    settings: Settings,
    screen: Screen[int],
    embeddings: Embeddings,
    bases: Callable[[Sequence[tuple[UnitBlock, SymmetricStack]]], Sequence[Basis | None]] | None = None,
) -> Iterator[tuple[int, UnitBlock, UnitStatistics]]:
    """Statistics of all units of the layers over the images, block after block, each with the number of its pass.

    A block's statistics are released when the next block is asked for, which needs their memory.

    Args:
        listed: Number of images in the whole list.
        expected: The number of images that `batches` will give, skipped ones included.
        embeddings: Takes the embeddings of all usable images.
        bases: Function that gives the basis of every block of a pass; then there may be no readable image, as in a shard.
            None: the first images give the basis.
    """
    top, capacity = settings.top_of(listed), list_capacity(settings, listed)
    sample = sample_size(effect, layers, capacity)
    in_files = lie_in_files(effect, layers, capacity, settings.memory)
    passes = memory_plan(effect, layers, capacity, settings.memory, in_files)
    for number, blocks in enumerate(passes):
        grams = [gram_stack(effect, block, in_files) for block in blocks]
        size = images_at_once(effect, blocks, settings.memory if in_files else None)
        known = [None] * len(blocks) if bases is None else bases(list(zip(blocks, grams, strict=True)))
        statistics = [
            UnitStatistics(G, top, capacity, listed, settings.quantile, basis, size, sample)
            for G, basis in zip(grams, known, strict=True)
        ]
        label = "images" if len(passes) == 1 else f"images, pass {number + 1} of {len(passes)}"
        images = read_images(
            effect, batches(None), blocks, statistics, settings, label, expected, screen, None if number else embeddings
        )
        if bases is None:
            screen.require(images)
        screen.end_look()
        for block_statistics in statistics:
            block_statistics.settle_all()
        del grams, known, block_statistics  # so that the memory of each is free once its block is taken
        for block in blocks:
            yield number, block, statistics.pop(0)


def check_same(images: int, before: int) -> None:
    """Require the same number of images in every look, or statistics would mix different sets of images.

    Raises:
        CliptoolsError: images have been added, removed or damaged meanwhile.
    """
    if images != before:
        raise CliptoolsError(f"images changed while they were read: first {before} could be read, then {images}; run again")


def read_images(
    effect: FactoredEffect,
    batches: Iterator[tuple[list[int], Tensor]],
    blocks: Sequence[UnitBlock],
    statistics: Sequence[UnitStatistics],
    settings: Settings,
    label: str,
    expected: int,
    screen: Screen[int],
    embeddings: Embeddings | None = None,
) -> int:
    """Add all usable images to the statistics of these blocks, and return their number.

    Args:
        embeddings: Takes the embeddings of the usable images, if that is wanted.
    """
    count = 0
    shown = progress(batches, label, expected, lambda batch: len(batch[0]))
    for images, (S, embedding) in in_halves(shown, lambda _, pictures: _with_first_block(*effect.read(pictures, blocks))):
        usable = take_in(statistics, images, S, embedding, settings.scale, screen)
        if embeddings is not None:
            embeddings.add([images[place] for place in usable], embedding[list(usable)])
        count += len(usable)
    return count


def _with_first_block(
    S: Iterable[Float[Tensor, "b _ _"]], embedding: Float[Tensor, "b d"]
) -> tuple[Iterator[Float[Tensor, "b _ _"]], Float[Tensor, "b d"]]:
    """The same values with the first block's S computed: if this runs out of memory, no statistics have changed yet."""
    scalars = map(to_float64_device, S)
    return itertools.chain([next(scalars)], scalars), to_float64_device(embedding)


def take_in(
    statistics: Sequence[UnitStatistics],
    images: Sequence[int],
    S: Iterable[Float[Tensor, "b _ _"]],
    embedding: Float[Tensor, "b d"],
    scaled: bool,
    screen: Screen[int],
) -> Sequence[int]:
    """Add a batch of images to the statistics of all blocks, and return the places of the usable ones in the batch."""
    scale = scale_of(embedding, scaled)
    numbers = torch.tensor(images, device=embedding.device)
    usable: Sequence[int] = ()
    for number, (block, scalars) in enumerate(zip(statistics, S, strict=True)):
        usable = screen.places(images, unusable(embedding, scalars, scale=scale), taken=number > 0)
        if len(usable) == len(images):
            block.update(scalars, numbers, scale)
        elif usable:
            rows = torch.tensor(usable, device=embedding.device)
            block.update(scalars[rows], numbers[rows], scale[rows])
    return usable


class Unsettled(NamedTuple):
    """Units whose top images are not certain yet."""

    block: UnitBlock
    """The block that was measured."""
    rows: Int[Tensor, "r"]
    """The rows of its uncertain units."""
    statistics: UnitStatistics
    """Their statistics, ready for a second look."""
    images: Collection[int] | None
    """The images to look at again; None: all of them."""


class Measurement:
    """Statistics of all blocks in the joint space, and the units that need a second look."""

    def __init__(self, effect: FactoredEffect, layers: Sequence[int], settings: Settings) -> None:
        self.effect, self.settings = effect, settings
        self.parts: dict[int, list[tuple[UnitBlock, Effects]]] = {layer: [] for layer in layers}
        self.unsettled: list[Unsettled] = []

    @property
    def uncertain(self) -> int:
        """Number of units whose top images the pass could not certify."""
        return sum(len(unsettled.rows) for unsettled in self.unsettled)

    def take(self, block: UnitBlock, statistics: UnitStatistics) -> None:
        """Finish the statistics of a block, which have all images."""
        finished, effects = self._finish(block, statistics)
        self.parts[block.layer].append((block, effects))
        rows = (~finished.certified).nonzero()[:, 0]
        if len(rows):
            doubtful = finished.doubtful[rows]  # [r, R]
            images = None if finished.beyond.any() else set(doubtful[doubtful >= 0].tolist())
            self.unsettled.append(Unsettled(block, rows, statistics.second_look(rows), images))

    def settle(self, batches: Batches, count: int, screen: Screen[int]) -> int:
        """Take a second look at the doubtful images, and return their number: about the known mean, lists need no certificate."""
        doubtful = [unsettled.images for unsettled in self.unsettled]
        images = None if None in doubtful else set[int]().union(*filter(None, doubtful))
        for _, rows, statistics, _ in self.unsettled:
            statistics.list.forget(None if images is None else torch.tensor(sorted(images), device=rows.device))
        scope, total = ("all images", count) if images is None else (count_of(len(images), "image"), len(images))
        note(f"a second look at {scope} is needed for {count_of(self.uncertain, 'unit')}")
        blocks = [block.part(rows) for block, rows, _, _ in self.unsettled]
        if images is not None:
            screen.end_look()  # all of these images were added before
        second = [unsettled.statistics for unsettled in self.unsettled]
        reread = read_images(self.effect, batches(images), blocks, second, self.settings, "second look", total, screen)
        screen.end_look()
        check_same(reread, total)
        for (full_block, rows, statistics, _), block in zip(self.unsettled, blocks, strict=True):
            (old,) = (effects for measured, effects in self.parts[full_block.layer] if measured is full_block)
            for before, after in zip(old, self._finish(block, statistics)[1], strict=True):
                before[rows.to(before.device)] = after
        return reread

    def _finish(self, block: UnitBlock, statistics: UnitStatistics) -> tuple[Finished, Effects]:
        """Results of a block in S space and in the joint space."""
        statistics.take_all()  # T follows from the number of images
        finished = statistics.finish(self.settings.top_of(statistics.moments.count))
        return finished, summarise(self.effect, block, finished, statistics, self.settings)

    def effects(self) -> Effects:
        """Statistics of all units, in the order of the layers."""
        parts = [effects for layer in self.parts.values() for _, effects in layer]
        return Effects(*(torch.cat(column) for column in zip(*parts, strict=True)))
