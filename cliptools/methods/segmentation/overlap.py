"""Intersection over union by class and its mean: one convention for masks and label maps."""

import math

import numpy as np
from jaxtyping import Float, Int


def iou_of(both: Int[np.ndarray, " class"], either: Int[np.ndarray, " class"]) -> Float[np.ndarray, " class"]:
    """Intersection over union by class from counts of pixels; NaN for a class that has no pixel in either.

    >>> iou_of(np.array([3, 0, 0]), np.array([4, 2, 0])).tolist()
    [0.75, 0.0, nan]
    """
    return np.where(either > 0, both / np.maximum(either, 1), np.nan)


def mean_iou(iou: Float[np.ndarray, " class"]) -> float:
    """Mean over the classes that have one; NaN where none has.

    >>> mean_iou(np.array([0.75, 0.25, np.nan])), mean_iou(np.array([np.nan]))
    (0.5, nan)
    """
    present = np.isfinite(iou)
    return float(iou[present].mean()) if present.any() else math.nan
