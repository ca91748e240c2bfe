"""The orders in which images are worked on and in which they rank: the order of the list leaves no trace in either."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


def canonical_order(names: Sequence[str], seed: int) -> tuple[list[int], list[int]]:
    """Positions in `names` sorted by name, and a seeded shuffle of those ranks.

    A folder per class would otherwise show one class first, which the running centre of the statistics would have to
    make good; and equal sets of images, however listed, now give equal bytes.
    """
    ranked = sorted(range(len(names)), key=lambda i: names[i])
    return ranked, np.random.default_rng((seed, len(names))).permutation(len(names)).tolist()


def ranking(norm: Float[Tensor, "n f"], image: Int[Tensor, "n f"]) -> Int[Tensor, "n f"]:
    """Places by norm, largest first; equal norms are told apart by their image's number."""
    order = torch.sort(image, dim=1, stable=True).indices
    return order.gather(1, torch.sort(norm.gather(1, order), dim=1, descending=True, stable=True).indices)
