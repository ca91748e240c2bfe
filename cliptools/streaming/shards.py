"""Measurement shard by shard: statistics of the images of a shard, and effects from the statistics of all shards.

`measure_shard` is `measure` (measure.py) about a provisional mean that all shards share; `conclude` turns the sum of the shards'
statistics (shard_statistics.py) into the effects that one run over all images gives.

Paper 2 (arXiv 2509.19943) keeps the fifth of the pairs with the largest effects and replaces the sum of all other pairs by its
mean: `keep_top_units` and `omitted_mean`.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cliptools.devices import to_float64, to_float64_device
from cliptools.errors import CliptoolsError
from cliptools.models.unusable import Screen
from cliptools.streaming.embeddings import Embeddings
from cliptools.streaming.measure import Batches, Measurement, check_same, first_looks, list_capacity, read_images
from cliptools.streaming.memory_plan import sample_size
from cliptools.streaming.moments import Basis
from cliptools.streaming.principal import SymmetricStack
from cliptools.streaming.shard_statistics import ShardStatistics, restored_statistics, shard_statistics_of
from cliptools.streaming.statistics import UnitStatistics
from cliptools.streaming.summary import Effects, Settings, gram_stack
from cliptools.unit_effects.factored import FactoredEffect, UnitBlock, unit_blocks_of
from cliptools.unit_effects.pairs import PairEffect

AT_A_TIME = 0.2  # share of the memory for the sum of a block; the next shard and the result of adding take the remainder


def measure_shard(
    effect: FactoredEffect,
    sample: Batches | None,
    batches: Batches,
    layers: Sequence[int],
    listed: int,
    expected: int,
    settings: Settings,
    embeddings: Embeddings,
    known_basis: Callable[[UnitBlock], Basis] | None = None,
    screen: Screen[int] | None = None,
) -> Iterator[tuple[UnitBlock, ShardStatistics]]:
    """Statistics of all units of the layers over a shard's images, block after block.

    Args:
        sample: Images drawn from the whole list, the same for every shard. None: the shard's own first images, as in `measure`.
        batches: The shard's own images.
        listed: Number of images in the whole list.
        expected: Number of images in the shard.
        embeddings: Takes the embeddings of the shard's images.
        known_basis: The basis of a block, if another shard has computed it; then the sample is not read.
        screen: As for `measure`.

    Raises:
        CliptoolsError: no image of the sample could be read, or an image is not usable.
        SpoiltError: a later look has shown that an image is not usable.
    """
    screen = Screen() if screen is None else screen

    def bases(blocks: Sequence[tuple[UnitBlock, SymmetricStack]]) -> Sequence[Basis | None]:
        if known_basis is not None:
            return [Basis(*(column.to(G.blocks[0].device) for column in known_basis(block))) for block, G in blocks]
        assert sample is not None  # otherwise the shard's own images give the basis
        size = sample_size(effect, layers, list_capacity(settings, listed))
        return _bases_of_sample(effect, sample, blocks, size, settings, screen)

    shared = None if known_basis is None and sample is None else bases
    for _, block, statistics in first_looks(effect, batches, layers, listed, expected, settings, screen, embeddings, shared):
        yield block, shard_statistics_of(statistics)


def _bases_of_sample(
    effect: FactoredEffect,
    sample: Batches,
    blocks: Sequence[tuple[UnitBlock, SymmetricStack]],
    size: int,
    settings: Settings,
    screen: Screen[int],
) -> list[Basis | None]:
    """The basis of every block, from the first `size` images of the sample."""
    statistics = [UnitStatistics(G, 1, size, size, quantile=1.0, sample=size) for _, G in blocks]
    images = read_images(effect, sample(None), [block for block, _ in blocks], statistics, settings, "sample", size, screen)
    if not images and not len(screen):
        raise CliptoolsError(f"none of the {size} images drawn for the provisional mean could be read")
    screen.require(images)
    for block in statistics:
        block.settle_all()
    return [block.basis for block in statistics]


class Conclusion(NamedTuple):
    """Effects from all shards together."""

    effects: Effects
    uncertain: Int[Tensor, "r 3"]
    """Units whose top images are not certain, where no second look was possible."""
    doubtful: int | None
    """Number of images that a second look would read; None: all."""
    reread: int
    """Number of images that a second look has read."""


def conclude(
    effect: FactoredEffect,
    layers: Sequence[int],
    sum_of_shards: Callable[[UnitBlock], ShardStatistics],
    listed: int,
    settings: Settings,
    batches: Batches | None,
    screen: Screen[int] | None = None,
) -> Conclusion:
    """Effects from the sums of all shards.

    Args:
        sum_of_shards: Function that gives the sum of all shards for a block of units.
        listed: Number of images in the whole list.
        batches: The images for a second look at the doubtful ones, if they can be read.
        screen: As for `measure`.

    Raises:
        CliptoolsError: the shards have no image, or an image of the second look is not usable.
    """
    measurement = Measurement(effect, layers, settings)
    capacity, count = list_capacity(settings, listed), 0
    for block in blocks_to_merge(effect.size, layers, capacity, settings.memory):
        shard = sum_of_shards(block)
        if not shard.seen:
            raise CliptoolsError("no image could be read")
        check_same(shard.seen, count or shard.seen)
        count = shard.seen
        G = gram_stack(effect, block)
        measurement.take(block, restored_statistics(shard, G, settings.top_of(listed), settings.quantile, listed))
    unsettled = measurement.unsettled
    uncertain = [effect.units(block.layer)[block.part(rows).neurons.cpu()] for block, rows, _, _ in unsettled]
    images = [unsettled_units.images for unsettled_units in unsettled]
    doubtful = None if None in images else len(set[int]().union(*filter(None, images)))
    no_units = torch.zeros(0, 3, dtype=torch.int64)
    if uncertain and batches is not None:
        reread = measurement.settle(batches, count, Screen() if screen is None else screen)
        return Conclusion(measurement.effects(), no_units, 0, reread)
    return Conclusion(measurement.effects(), torch.cat([no_units, *uncertain]), doubtful, 0)


def blocks_to_merge(
    size: Callable[[int], tuple[int, int]], layers: Sequence[int], capacity: int, memory: float
) -> Iterator[UnitBlock]:
    """Blocks of the layers' units, small enough for the statistics of a block to be added up in memory.

    Args:
        size: Numbers of units and of paths of a layer.
        capacity: C.
        memory: Bytes of statistics to hold at a time.
    """
    for layer in layers:
        n, k = size(layer)
        step = max(1, int(AT_A_TIME * memory // UnitStatistics.bytes_per_unit(k, capacity, 8)))
        yield from (UnitBlock(layer, torch.arange(start, min(start + step, n))) for start in range(0, n, step))


def keep_top_units(top_norm: Float[Tensor, "u T"], share: float) -> Bool[Tensor, " u"]:
    """True for the share of the units with the largest mean top norm: at least one unit, the first of equal ones."""
    count = max(1, round(share * len(top_norm)))
    kept = torch.zeros(len(top_norm), dtype=torch.bool)
    kept[top_norm.double().mean(1).argsort(descending=True, stable=True)[:count].cpu()] = True
    return kept


def omitted_mean(effect: FactoredEffect, effects: Effects, kept: Bool[Tensor, " u"]) -> Float[Tensor, "d"]:
    """The sum of the mean effects of all units that are not kept, in float64.

    Args:
        effects: Statistics of all units of the effect; compact if these are pairs.
    """
    mean = effects.mean.double() * ~kept[:, None].to(effects.mean.device)  # [u, d], or [u, 1] if compact
    if not isinstance(effect, PairEffect):
        return mean.sum(0)
    blocks, rows = unit_blocks_of(effect, effects.unit.cpu().long())
    weight = effect.directions(blocks[0].part(slice(0, 1)))
    totals = []
    for block, row in zip(blocks, rows, strict=True):
        S = mean[None, row.to(mean.device)]  # [1, n, 1]
        S = S if to_float64_device(weight) is weight else S.to(weight.dtype).to(weight.device)
        totals.append(to_float64(effect.total(block, S)[0]))
    return torch.stack(totals).sum(0)
