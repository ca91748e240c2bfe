"""From scores of patches to heat maps, masks and label maps at an image's own size."""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Threshold = float | Literal["mean"]


def at_size(scores: Float[Tensor, "text row column"], rows: int, columns: int) -> Float[Tensor, "text y x"]:
    """Scores at every pixel, bilinear between the patches' centres."""
    return torch.nn.functional.interpolate(scores[None], size=(rows, columns), mode="bilinear")[0]


def min_max(scores: Float[Tensor, "text y x"]) -> Float[Tensor, "text y x"]:
    """Each text's map from its least score, 0, to its greatest, 1; zeros where all are the same."""
    low, high = scores.amin((1, 2), keepdim=True), scores.amax((1, 2), keepdim=True)
    return torch.where(high > low, (scores - low) / torch.where(high > low, high - low, 1), 0)


def mask_of(heat: Float[Tensor, "text y x"], threshold: Threshold = 0.5) -> Bool[Tensor, "text y x"]:
    """Where a heat map in [0, 1] reaches the threshold, or its own mean over the image; nowhere in a map of zeros."""
    cut = heat.mean((1, 2), keepdim=True) if threshold == "mean" else threshold
    return (heat >= cut) & (heat > 0)


def label_map(heat: Float[Tensor, "text y x"], threshold: Threshold = 0.5) -> Int[Tensor, "y x"]:
    """1 + the text whose standardised map is highest, among those whose mask holds the pixel; 0, the ground, where none does.

    Maps are standardised to mean 0 and deviation 1 over the image, so that a text with broad or loud neurons does not
    win everywhere.
    """
    mean, deviation = heat.mean((1, 2), keepdim=True), heat.std((1, 2), keepdim=True, correction=0)
    z = (heat - mean) / torch.where(deviation > 0, deviation, 1)
    z = torch.where(mask_of(heat, threshold), z, -torch.inf)
    highest, label = z.max(0)  # (y, x)
    return torch.where(highest > -torch.inf, label + 1, 0)


def bounding_box(mask: Bool[np.ndarray, "y x"]) -> list[int] | None:
    """Left, top, right and bottom (the last two just outside) of what the mask holds; None if it holds nothing."""
    if not mask.any():
        return None
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
