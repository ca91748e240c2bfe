"""Intersection over union by class and its mean: one convention for masks and label maps.

How well a mask and a heat map fit the truth: pixel accuracy, mIoU and average precision, as for ImageNet-Segmentation.

Over all images, accuracy and the intersections and unions of the two classes {ground, object} are pooled over pixels, and
average precision is the mean of the images' own (Chefer et al. 2021; arXiv 2406.04341, Table 5). Pixels that do not count (void)
are in none of these. A class that neither masks nor truth have has no intersection over union (NaN) and is left out of the mean,
as for label maps; an image without the object has no average precision of the object.

How well label maps fit the truth: intersection over union of each class, pooled over the pixels of all images.
"""

import math
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int

from cliptools.images.segmentation.label_maps import LEFT_OUT


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


@dataclass
class LabelFit:
    """Pixel counts by class, of one image or of many added up; pixels left out of the truth are in none."""

    both: Int[np.ndarray, " class"]
    """Pixels of which map and truth say the class."""
    found: Int[np.ndarray, " class"]
    true: Int[np.ndarray, " class"]
    images: int = 0

    @classmethod
    def none(cls, classes: int) -> "LabelFit":
        """Return counts before the first image."""
        zeros = np.zeros(classes, np.int64)
        return cls(zeros, zeros, zeros)

    def __iadd__(self, other: "LabelFit") -> "LabelFit":
        self.both, self.found, self.true = self.both + other.both, self.found + other.found, self.true + other.true
        self.images += other.images
        return self

    @property
    def iou(self) -> Float[np.ndarray, " class"]:
        """Intersection over union by class; NaN for a class that neither map nor ground truth has."""
        return iou_of(self.both, self.found + self.true - self.both)

    @property
    def mean_iou(self) -> float:
        """Over the classes that map or truth has; NaN where no pixel counts."""
        return mean_iou(self.iou)

    @property
    def mean_iou_true(self) -> float:
        """Over the classes that the truth has, which a few images of many classes tell more by; NaN where no pixel counts."""
        return mean_iou(self.iou[self.true > 0])

    @property
    def accuracy(self) -> float:
        """Share of the pixels with the right label; NaN where no pixel counts."""
        return int(self.both.sum()) / int(self.true.sum()) if self.true.any() else math.nan


def label_fit(labels: Int[np.ndarray, "y x"], truth: Int[np.ndarray, "y x"], classes: int) -> LabelFit:
    """One image's label map against the truth; labels are below `classes`, in the truth also LEFT_OUT."""
    counts = truth != LEFT_OUT
    y, t = labels[counts], truth[counts]
    both, found, true = (np.bincount(kept, minlength=classes) for kept in (t[y == t], y, t))
    return LabelFit(both, found, true, 1)
