"""How well a mask and a heat map fit the truth: pixel accuracy, mIoU and average precision, as for ImageNet-Segmentation.

Over all images, accuracy and the intersections and unions of the two classes {ground, object} are pooled over pixels, and
average precision is the mean of the images' own (Chefer et al. 2021; arXiv 2406.04341, Table 5).
"""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int


@dataclass
class Fit:
    """Pixel counts of one image, or of many added up, and the sum of their average precisions."""

    intersection: Int[np.ndarray, "2"] = field(default_factory=lambda: np.zeros(2, np.int64))
    """Ground and object pixels on which mask and truth agree."""
    union: Int[np.ndarray, "2"] = field(default_factory=lambda: np.zeros(2, np.int64))
    pixels: int = 0
    images: int = 0
    precision: float = 0.0
    object_precision: float = 0.0

    def __iadd__(self, other: "Fit") -> "Fit":
        self.intersection, self.union = self.intersection + other.intersection, self.union + other.union
        self.pixels, self.images = self.pixels + other.pixels, self.images + other.images
        self.precision, self.object_precision = self.precision + other.precision, self.object_precision + other.object_precision
        return self

    @property
    def accuracy(self) -> float:
        """Share of the pixels that the mask has right."""
        return int(self.intersection.sum()) / self.pixels

    @property
    def iou(self) -> tuple[float, float]:
        """Intersection over union of ground and object; 1 for a class that neither mask nor truth has."""
        ground, thing = np.where(self.union > 0, self.intersection / np.maximum(self.union, 1), 1.0).tolist()
        return ground, thing

    @property
    def mean_iou(self) -> float:
        return sum(self.iou) / 2

    @property
    def mean_precision(self) -> float:
        """Over images, of both classes together: heat for the object, 1 - heat for the ground, all pixels in one ranking."""
        return self.precision / self.images

    @property
    def mean_object_precision(self) -> float:
        """Over images, of the object alone: the share of ground in an image does not raise it."""
        return self.object_precision / self.images


def fit(heat: Float[np.ndarray, "y x"], mask: Bool[np.ndarray, "y x"], truth: Bool[np.ndarray, "y x"]) -> Fit:
    """One image's heat map in [0, 1] and mask against the true mask."""
    both, either = int((mask & truth).sum()), int((mask | truth).sum())
    h, t = heat.ravel(), truth.ravel()
    return Fit(
        np.array([truth.size - either, both]),
        np.array([truth.size - both, either]),
        truth.size,
        1,
        average_precision(np.concatenate([1 - h, h]), np.concatenate([~t, t])),
        average_precision(h, t),
    )


def average_precision(score: Float[np.ndarray, " pixel"], truth: Bool[np.ndarray, " pixel"]) -> float:
    """Sum over descending distinct scores of precision times the gain in recall; 0 where nothing is true."""
    order = np.argsort(-score, kind="stable")
    score, truth = score[order], truth[order]
    last = np.append(np.flatnonzero(np.diff(score)), len(score) - 1)  # of each run of equal scores
    hits = np.cumsum(truth)[last]  # (distinct,)
    if not hits[-1]:
        return 0.0
    gain = np.diff(hits, prepend=0) / hits[-1]
    return float((gain * hits / (last + 1)).sum())
