"""The memory of a measurement: blocks of units for each pass, in memory or in files, and images in the batch buffer."""

from collections.abc import Sequence

import torch

from cliptools.devices import to_float64_device
from cliptools.streaming.statistics import SAMPLE, UnitStatistics
from cliptools.streaming.storage import files_fit
from cliptools.unit_effects.factored import UNITS_AT_ONCE, FactoredEffect, UnitBlock, gram_of

BUFFERED = 24_000_000  # scalars in the batch buffer
IMAGES_AT_ONCE = 96, 512  # least and most images in the batch buffer: its temporaries must stay small beside the lists
IN_FILES = 4  # times the memory: statistics of a pass in files, all of which every filling of the batch buffer changes
RESIDENT_SHARE = 0.1  # of the memory, for a block in files, all of which is in memory while the block changes
BUFFER_SHARE = 0.25  # of the memory, for the batch buffer of statistics in files


def sample_size(effect: FactoredEffect, layers: Sequence[int], capacity: int) -> int:
    """Number of images whose mean is the centre: as many as lists and buffer hold together, at most SAMPLE."""
    scalars = sum(n * k for n, k in map(effect.size, layers))
    return min(SAMPLE, capacity + BUFFERED // scalars)


def lie_in_files(effect: FactoredEffect, layers: Sequence[int], capacity: int, memory: float) -> bool:
    """True if the statistics do not fit into the memory together, and there is room for temporary files."""
    size = sum(n * UnitStatistics.bytes_per_unit(k, capacity) for n, k in map(effect.size, layers))
    if size <= memory:
        return False
    G = to_float64_device(gram_of(effect, UnitBlock(layers[0], torch.tensor([0]))))
    return files_fit(min(size, IN_FILES * memory) * G.element_size() / 4, G.device)


def memory_plan(
    effect: FactoredEffect, layers: Sequence[int], capacity: int, memory: float, in_files: bool = False
) -> list[list[UnitBlock]]:
    """Blocks of units for each pass over the images, such that the statistics of a pass fit into the memory, or the files.

    Args:
        capacity: C, images kept per unit.
        memory: Bytes of statistics to hold at a time.
        in_files: The statistics lie in files (`lie_in_files`), and the memory holds a block and the batch buffer.
    """
    passes: list[list[UnitBlock]] = [[]]
    room, most = (IN_FILES * memory, RESIDENT_SHARE * memory) if in_files else (memory, memory)
    free = room
    for layer in layers:
        n, k = effect.size(layer)
        unit_bytes = UnitStatistics.bytes_per_unit(k, capacity)
        start = 0
        while start < n:
            fit = min(n - start, int(min(free, most) // unit_bytes))
            if fit < min(n - start, UNITS_AT_ONCE, int(most // unit_bytes)) and passes[-1]:
                passes.append([])
                free = room
                continue
            fit = max(1, fit)
            passes[-1].append(UnitBlock(layer, torch.arange(start, start + fit)))
            start, free = start + fit, free - fit * unit_bytes
    return passes


def images_at_once(effect: FactoredEffect, blocks: Sequence[UnitBlock], memory: float | None = None) -> int:
    """Number of images in the batch buffer of these blocks.

    Args:
        memory: Bytes of which the buffer takes a share, if the statistics lie in files.
    """
    least, most = IMAGES_AT_ONCE
    scalars = sum(len(block.neurons) * effect.size(block.layer)[1] for block in blocks)
    images = min(most, max(least, BUFFERED // scalars))
    return images if memory is None else max(1, min(images, int(BUFFER_SHARE * memory / 4 // scalars)))
