"""The order in which images are worked on: one that the order of the list cannot influence."""

from collections.abc import Sequence

import numpy as np


def canonical_order(names: Sequence[str], seed: int) -> tuple[list[int], list[int]]:
    """Positions in `names` sorted by name, and a seeded shuffle of those ranks.

    A folder per class would otherwise show one class first, which the running centre of the statistics would have to
    make good; and equal sets of images, however listed, now give equal bytes.
    """
    ranked = sorted(range(len(names)), key=lambda i: names[i])
    return ranked, np.random.default_rng((seed, len(names))).permutation(len(names)).tolist()
