"""The memory of a measurement: blocks of units for each pass, images in the batch buffer."""

from collections.abc import Sequence

import torch

from cliptools.streaming.statistics import SAMPLE, UnitStatistics
from cliptools.unit_effects.factored import UNITS_AT_ONCE, FactoredEffect, UnitBlock

BUFFERED = 24_000_000  # scalars in the batch buffer
IMAGES_AT_ONCE = 96, 512  # least and most images in the batch buffer: its temporaries must stay small beside the lists


def sample_size(effect: FactoredEffect, layers: Sequence[int], capacity: int) -> int:
    """Number of images whose mean is the centre: as many as lists and buffer hold together, at most SAMPLE."""
    scalars = sum(n * k for n, k in map(effect.size, layers))
    return min(SAMPLE, capacity + BUFFERED // scalars)


def memory_plan(effect: FactoredEffect, layers: Sequence[int], capacity: int, memory: float) -> list[list[UnitBlock]]:
    """Blocks of units for each pass over the images, such that the statistics of a pass fit into the memory.

    Args:
        capacity: C, images kept per unit.
        memory: Bytes of statistics to hold at a time.
    """
    passes: list[list[UnitBlock]] = [[]]
    free = memory
    for layer in layers:
        n, k = effect.size(layer)
        unit_bytes = UnitStatistics.bytes_per_unit(k, capacity)
        start = 0
        while start < n:
            fit = min(n - start, int(free // unit_bytes))
            if fit < min(n - start, UNITS_AT_ONCE) and passes[-1]:
                passes.append([])
                free = memory
                continue
            fit = max(1, fit)
            passes[-1].append(UnitBlock(layer, torch.arange(start, start + fit)))
            start, free = start + fit, free - fit * unit_bytes
    return passes


def images_at_once(effect: FactoredEffect, blocks: Sequence[UnitBlock]) -> int:
    """Number of images in the batch buffer of these blocks."""
    least, most = IMAGES_AT_ONCE
    return min(most, max(least, BUFFERED // sum(len(block.neurons) * effect.size(block.layer)[1] for block in blocks)))
