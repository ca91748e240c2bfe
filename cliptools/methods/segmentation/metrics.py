"""How well a mask and a heat map fit the truth: pixel accuracy, mIoU and average precision, as for ImageNet-Segmentation.

Over all images, accuracy and the intersections and unions of the two classes {ground, object} are pooled over pixels, and
average precision is the mean of the images' own (Chefer et al. 2021; arXiv 2406.04341, Table 5). Pixels that do not count (void)
are in none of these. A class that neither masks nor truth have has no intersection over union (NaN) and is left out of the mean,
as in label_metrics.py; an image without the object has no average precision of the object.
"""

import math
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int

from cliptools.methods.segmentation.overlap import iou_of, mean_iou


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
    objects: int = 0
    """Images that show the object, over which `object_precision` is a sum."""

    def __iadd__(self, other: "Fit") -> "Fit":
        self.intersection, self.union = self.intersection + other.intersection, self.union + other.union
        self.pixels, self.images = self.pixels + other.pixels, self.images + other.images
        self.precision, self.object_precision = self.precision + other.precision, self.object_precision + other.object_precision
        self.objects += other.objects
        return self

    @property
    def accuracy(self) -> float:
        """Share of the pixels that the mask has right; NaN where no pixel counts."""
        return int(self.intersection.sum()) / self.pixels if self.pixels else math.nan

    @property
    def iou(self) -> tuple[float, float]:
        """Intersection over union of ground and object; NaN for a class that neither mask nor truth has."""
        ground, thing = iou_of(self.intersection, self.union).tolist()
        return ground, thing

    @property
    def mean_iou(self) -> float:
        """Over those of ground and object that mask or truth has; NaN where no pixel counts."""
        return mean_iou(iou_of(self.intersection, self.union))

    @property
    def mean_precision(self) -> float:
        """Over images, of both classes together: heat for the object, 1 - heat for the ground, all pixels in one ranking."""
        return self.precision / self.images

    @property
    def mean_object_precision(self) -> float:
        """Over the images that show the object, of it alone: the share of ground does not raise it; NaN if none shows it."""
        return self.object_precision / self.objects if self.objects else math.nan


def fit(
    heat: Float[np.ndarray, "y x"],
    mask: Bool[np.ndarray, "y x"],
    truth: Bool[np.ndarray, "y x"],
    void: Bool[np.ndarray, "y x"] | None = None,
) -> Fit:
    """One image's heat map in [0, 1] and mask against the true mask.

    Args:
        void: Pixels that do not count.
    """
    counted = np.ones_like(truth) if void is None else ~void
    h, m, t = heat[counted], mask[counted], truth[counted]  # (pixel,)
    both, either = int((m & t).sum()), int((m | t).sum())
    return Fit(
        np.array([t.size - either, both]),
        np.array([t.size - both, either]),
        t.size,
        1,
        average_precision(np.concatenate([1 - h, h]), np.concatenate([~t, t])),
        average_precision(h, t),
        int(t.any()),
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
