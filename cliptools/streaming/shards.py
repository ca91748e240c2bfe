"""Keeping the units that act most, and what the others add up to on average (paper 2, arXiv 2509.19943: a fifth of the pairs).

The one pass over images, shard by shard: a shard's images into partials, all partials into effects.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cliptools.devices import exact, home
from cliptools.effects.factored import FactoredEffect, UnitBlock
from cliptools.effects.resnet_pooling import LAYER, Pairs
from cliptools.errors import CliptoolsError
from cliptools.models.unusable import Screen
from cliptools.streaming.measure import (
    EXACT,
    Batches,
    Effects,
    Measurement,
    Settings,
    at_once,
    check_same,
    gram_stack,
    pass_label,
    plan,
    read_images,
)
from cliptools.streaming.partials import Basis, Partial, basis_of, partial_of, restored
from cliptools.streaming.principal import SymmetricStack
from cliptools.streaming.ranking import rank_of
from cliptools.streaming.statistics import UnitStatistics


def strongest(top_norm: Float[Tensor, "u T"], share: float) -> Bool[Tensor, " u"]:
    """Which units are among this share of largest mean top norm: at least one, the first of equal ones."""
    count = max(1, round(share * len(top_norm)))
    kept = torch.zeros(len(top_norm), dtype=torch.bool)
    kept[top_norm.double().mean(1).argsort(descending=True, stable=True)[:count].cpu()] = True
    return kept


def rest_mean(paths: FactoredEffect, effects: Effects, kept: Bool[Tensor, " u"]) -> Float[Tensor, "d"]:
    """The mean over the images of the sum of the effects of all units that are not kept, in float64.

    Args:
        effects: Of all units that the paths have; compact ones are of pairs.
    """
    mean = effects.mean.double() * ~kept[:, None].to(effects.mean.device)  # (u, d), or (u, 1) where compact
    if not isinstance(paths, Pairs):
        return mean.sum(0)
    weight = paths.directions(UnitBlock(LAYER, torch.arange(1)))
    S = mean[None] if home(weight) is weight else mean[None].to(weight.dtype).to(weight.device)
    return exact(paths.total(UnitBlock(LAYER, torch.arange(len(mean))), S)[0])


SAMPLE = 256  # images whose mean is the provisional one
LEAST_MARGIN = 16
SHORT = 5  # times T: so many images are kept all
AT_A_TIME = 0.2  # of the memory allowed: a slab, what is added to it, and what both become


class Concluded(NamedTuple):
    """What all shards together say."""

    effects: Effects
    uncertain: Int[Tensor, "r 3"]
    """Units whose top images no one has looked at again, though they are not certain."""
    doubtful: int | None
    """How many images that would take; None: all."""
    reread: int
    """Images looked at again."""


def kept_in(settings: Settings, listed: int) -> int:
    """C: images kept of each unit, the same in all shards; of a short list all, so that there is nothing to certify."""
    if settings.margin is not None:
        return settings.top_of(listed) + settings.margin
    held, rank = settings.held(listed), rank_of(settings.quantile, listed)
    if listed <= SHORT * held:
        return max(listed, held)
    return max(held + max(LEAST_MARGIN, held), rank + rank // 2 if rank <= EXACT else 0)


def measure_shard(
    paths: FactoredEffect,
    sample: Batches,
    batches: Batches,
    layers: Sequence[int],
    listed: int,
    expected: int,
    settings: Settings,
    known: Callable[[UnitBlock], Basis] | None = None,
    screen: Screen[int] | None = None,
) -> Iterator[tuple[UnitBlock, Partial]]:
    """Statistics of all units of the layers from some of the images, slab after slab.

    Args:
        sample: Images drawn over the whole list, the same for every shard.
        batches: The shard's own.
        listed: Images of the whole list.
        expected: Images of the shard.
        known: What the shards share, where another one has found it; then there is no sample to look at.
        screen: As for engine.measure.

    Raises:
        CliptoolsError: no image of the sample could be read; or one that is not usable.
        SpoiltError: a later look has found that an image is not usable.
    """
    screen = Screen() if screen is None else screen
    top, capacity = settings.top_of(listed), kept_in(settings, listed)
    passes = plan(paths, layers, capacity, settings.memory)
    for number, slabs in enumerate(passes):
        grams = [gram_stack(paths, slab) for slab in slabs]
        if known is None:
            bases = _sampled(paths, sample, slabs, grams, settings, screen)
        else:
            bases = [known(slab) for slab in slabs]
            bases = [Basis(*(column.to(G.blocks[0].device) for column in basis)) for basis, G in zip(bases, grams, strict=True)]
        wait = at_once(paths, slabs)
        statistics = [
            UnitStatistics(G, top, listed, settings.quantile, capacity - top, basis.centre, wait, shared=True)
            for G, basis in zip(grams, bases, strict=True)
        ]
        read_images(paths, batches(None), slabs, statistics, settings, pass_label(number, len(passes)), expected, screen)
        screen.end_look()
        del grams
        for slab, basis in zip(slabs, bases, strict=True):
            yield slab, partial_of(statistics.pop(0), basis, listed)


def _sampled(
    paths: FactoredEffect,
    sample: Batches,
    slabs: Sequence[UnitBlock],
    grams: Sequence[SymmetricStack],
    settings: Settings,
    screen: Screen[int],
) -> list[Basis]:
    """What the sample says of these slabs."""
    statistics = [UnitStatistics(G, 1, 0, quantile=1.0, margin=0) for G in grams]
    looked = read_images(paths, sample(None), slabs, statistics, settings, "sample", SAMPLE, screen)
    if not looked and not len(screen):
        raise CliptoolsError(f"not one image of the {SAMPLE} drawn for the provisional mean could be read")
    screen.require(looked)
    for each in statistics:
        each.finish()
    return [basis_of(each) for each in statistics]


def slabs_to_merge(
    size: Callable[[int], tuple[int, int]], layers: Sequence[int], capacity: int, memory: float
) -> Iterator[UnitBlock]:
    """Units of the layers, so many at a time that what is added up of them fits into the memory.

    Args:
        size: Units and paths of a layer.
        capacity: C.
        memory: Bytes.
    """
    for layer in layers:
        n, k = size(layer)
        step = max(1, int(AT_A_TIME * memory // UnitStatistics.bytes_per_unit(k, capacity, 8)))
        yield from (UnitBlock(layer, torch.arange(start, min(start + step, n))) for start in range(0, n, step))


def conclude(
    paths: FactoredEffect,
    layers: Sequence[int],
    joined: Callable[[UnitBlock], Partial],
    listed: int,
    settings: Settings,
    batches: Batches | None,
    screen: Screen[int] | None = None,
) -> Concluded:
    """Effects from all parts together.

    Args:
        joined: All parts of some units, added up.
        listed: Images of the whole list.
        batches: The images, where they are at hand, to look again at those in doubt.
        screen: As for engine.measure.

    Raises:
        CliptoolsError: there is no image in any part; or one to look at again is not usable.
    """
    measurement = Measurement(paths, layers, settings)
    capacity, seen = kept_in(settings, listed), 0
    for slab in slabs_to_merge(paths.size, layers, capacity, settings.memory):
        part = joined(slab)
        if not part.seen:
            raise CliptoolsError("not one image could be read")
        check_same(part.seen, seen or part.seen)
        seen = part.seen
        measurement.take(slab, restored(part, gram_stack(paths, slab), settings.top_of(listed), settings.quantile, capacity))
    uncertain = [
        paths.units(each.slab.layer)[each.slab.neurons[each.rows.to(each.slab.neurons.device)].cpu()]
        for each in measurement.unsettled
    ]
    images = [each.images for each in measurement.unsettled]
    doubtful = None if None in images else len(set().union(*(each for each in images if each is not None)))
    if uncertain and batches is not None:
        reread = measurement.settle(batches, seen, Screen() if screen is None else screen)
        return Concluded(measurement.effects(), torch.zeros(0, 3, dtype=torch.int64), 0, reread)
    nobody = torch.zeros(0, 3, dtype=torch.int64)
    return Concluded(measurement.effects(), torch.cat([nobody, *uncertain]), doubtful, 0)
