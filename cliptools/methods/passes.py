"""How much is held at once: images kept beyond those wanted, units in a pass over the images, images that wait together."""

import math
from collections.abc import Sequence

import torch

from cliptools.methods.paths import UNITS_AT_ONCE, Paths, Slab
from cliptools.methods.statistics import UnitStatistics
from cliptools.methods.threshold import rank_of

TOP_SHARE, LEAST_TOP, MOST_TOP = 0.02, 10, 100
EXACT = 200  # the largest rank of a threshold for which more images are kept, so that it is exact
CHEAP = 3e7  # bytes of kept images that nobody misses
WAITING = 24_000_000  # scalars that may wait to be taken in together
TOGETHER = 96, 512  # images that wait at least, and at most: what is made of them must stay small beside the lists
AMPLE = 2  # times T kept beyond T, where memory allows: every list is certified then, or nearly
ENOUGH = 1.5  # times T, where passes are many anyhow: one more of them costs less than a second look at all images


def top_count(images: int) -> int:
    """T where none is asked for: 2 % of the images, within 10 and 100, and below their number.

    An effect's tail is heavy: the images on which a unit acts are few of many (paper 1: 100 of 5,000).

    >>> [top_count(images) for images in (10_000, 5000, 2000, 501, 60, 8, 1)]
    [100, 100, 40, 11, 10, 7, 1]
    """
    share = math.ceil(TOP_SHARE * images - 1e-6)
    return max(1, min(max(share, LEAST_TOP), MOST_TOP, images - 1))


def margin_for(paths: Paths, layers: Sequence[int], expected: int, top: int, memory: float, quantile: float | None = None) -> int:
    """Images kept beyond T, so that few lists need a second pass: what is cheap, else what the memory leaves room for.

    Of few images that may be all there are; then there is nothing to certify.

    Args:
        expected: The number of images to come, roughly.
        top: T, images wanted per unit.
        memory: Bytes of statistics to hold at once.
        quantile: q of a threshold that is to be exact where that takes few images more.
    """
    sizes = [paths.size(layer) for layer in layers]
    least = max(16, top // 2)
    fixed = sum(n * UnitStatistics.bytes_per_unit(k, top) for n, k in sizes)
    each = sum(n * UnitStatistics.bytes_per_unit(k, 1) for n, k in sizes) - sum(
        n * UnitStatistics.bytes_per_unit(k, 0) for n, k in sizes
    )
    room = int((memory - fixed) // each)
    if room < least:
        least = min(int(ENOUGH * top), expected)
    rank = 0 if quantile is None else rank_of(quantile, expected)
    for_threshold = rank + max(16, rank // 2) - top if rank <= EXACT else 0
    wanted = max(int(AMPLE * top), for_threshold)
    return max(least, min(expected - top, max(int(CHEAP // each), min(room, wanted))))


def plan(paths: Paths, layers: Sequence[int], kept: int, memory: float) -> list[list[Slab]]:
    """Slabs for each pass over the images, so that no pass holds more statistics than the memory allowed.

    Args:
        kept: Images kept per unit.
        memory: Bytes of statistics to hold at once.
    """
    passes: list[list[Slab]] = [[]]
    free = memory
    for layer in layers:
        n, k = paths.size(layer)
        each = UnitStatistics.bytes_per_unit(k, kept)
        start = 0
        while start < n:
            fit = min(n - start, int(free // each))
            if fit < min(n - start, UNITS_AT_ONCE) and passes[-1]:
                passes.append([])
                free = memory
                continue
            fit = max(1, fit)
            passes[-1].append(Slab(layer, torch.arange(start, start + fit)))
            start, free = start + fit, free - fit * each
    return passes


def at_once(paths: Paths, slabs: Sequence[Slab]) -> int:
    """Images whose scalars may wait together."""
    least, most = TOGETHER
    return min(most, max(least, WAITING // sum(len(slab.neurons) * paths.size(slab.layer)[1] for slab in slabs)))


def pass_label(number: int, passes: int) -> str:
    """What a bar says of a pass over the images."""
    return "images" if passes == 1 else f"images, pass {number + 1} of {passes}"
