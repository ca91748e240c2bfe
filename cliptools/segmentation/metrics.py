"""Agreement of masks, heat maps and label maps with the ground truth, summed over images.

Masks and heat maps (`Fit`), as for ImageNet-Segmentation: pixel accuracy, mIoU and average precision. Pixel counts and the
intersections and unions of the two classes {background, object} are summed over the pixels of all images; average precision is
the mean of the images' own (Chefer et al. 2021; arXiv 2406.04341, Table 5). An image without the object has no average precision
of the object.

Label maps (`LabelFit`): intersection over union of each class, from counts over the pixels of all images.

Both follow the same conventions. Pixels that are to be ignored (void) are in no count. A class that neither the result nor the
ground truth has, has no intersection over union (NaN) and is left out of the mean.

By hand, because torchmetrics is a large dependency for a few counts; the tests compare with it.
"""

import math
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int

from cliptools.images.segmentation.label_maps import IGNORED


def iou_of(both: Int[np.ndarray, " class"], either: Int[np.ndarray, " class"]) -> Float[np.ndarray, " class"]:
    """Intersection over union by class from counts of pixels; NaN for a class whose union has no pixel.

    >>> iou_of(np.array([3, 0, 0]), np.array([4, 2, 0])).tolist()
    [0.75, 0.0, nan]
    """
    return np.where(either > 0, both / np.maximum(either, 1), np.nan)


def mean_iou(iou: Float[np.ndarray, " class"]) -> float:
    """Mean over the classes whose value is defined; NaN if no value is.

    >>> mean_iou(np.array([0.75, 0.25, np.nan])), mean_iou(np.array([np.nan]))
    (0.5, nan)
    """
    present = np.isfinite(iou)
    return float(iou[present].mean()) if present.any() else math.nan


@dataclass
class Fit:
    """Pixel counts of one image or the sums over several, and the sum of their average precisions."""

    intersection: Int[np.ndarray, "2"] = field(default_factory=lambda: np.zeros(2, np.int64))
    """Background and object pixels on which mask and ground truth agree."""
    union: Int[np.ndarray, "2"] = field(default_factory=lambda: np.zeros(2, np.int64))
    """Pixels that the mask or the ground truth gives to the background, and to the object."""
    pixels: int = 0
    images: int = 0
    precision: float = 0.0
    object_precision: float = 0.0
    objects: int = 0
    """Number of images that show the object; `object_precision` is the sum over these."""

    def __iadd__(self, other: "Fit") -> "Fit":
        self.intersection, self.union = self.intersection + other.intersection, self.union + other.union
        self.pixels, self.images = self.pixels + other.pixels, self.images + other.images
        self.precision, self.object_precision = self.precision + other.precision, self.object_precision + other.object_precision
        self.objects += other.objects
        return self

    @property
    def accuracy(self) -> float:
        """Share of the counted pixels where mask and ground truth agree; NaN if no pixel is counted."""
        return int(self.intersection.sum()) / self.pixels if self.pixels else math.nan

    @property
    def iou(self) -> tuple[float, float]:
        """Intersection over union of background and object; NaN for a class that neither mask nor ground truth has."""
        background, object_iou = iou_of(self.intersection, self.union).tolist()
        return background, object_iou

    @property
    def mean_iou(self) -> float:
        """Mean of the defined values of `iou`; NaN if no pixel is counted."""
        return mean_iou(iou_of(self.intersection, self.union))

    @property
    def mean_precision(self) -> float:
        """Mean over images of the average precision of both classes, all pixels in one ranking.

        The score is the heat for the object and 1 - heat for the background. NaN without images.
        """
        return self.precision / self.images if self.images else math.nan

    @property
    def mean_object_precision(self) -> float:
        """Mean over the images that show the object, of the object's average precision; NaN if no image shows the object.

        A large background does not raise this figure.
        """
        return self.object_precision / self.objects if self.objects else math.nan


def fit(
    heat: Float[np.ndarray, "y x"],
    mask: Bool[np.ndarray, "y x"],
    truth: Bool[np.ndarray, "y x"],
    void: Bool[np.ndarray, "y x"] | None = None,
) -> Fit:
    """Counts of one image, from its heat map in [0, 1], its mask and the true mask.

    Args:
        void: Pixels that are not counted.
    """
    counted = np.ones_like(truth) if void is None else ~void
    h, m, t = heat[counted], mask[counted], truth[counted]  # (y, x) -> (pixel,)
    both, either = int((m & t).sum()), int((m | t).sum())
    return Fit(
        np.array([t.size - either, both]),
        np.array([t.size - both, either]),
        t.size,
        1,
        average_precision(np.concatenate([1 - h, h]), np.concatenate([~t, t])),  # both classes: (2 pixel,)
        average_precision(h, t),
        int(t.any()),
    )


def average_precision(score: Float[np.ndarray, " pixel"], truth: Bool[np.ndarray, " pixel"]) -> float:
    """Sum over descending distinct scores of precision times the gain in recall; 0 if no pixel is true."""
    if not truth.any():
        return 0.0
    order = np.argsort(-score, kind="stable")
    score, truth = score[order], truth[order]
    last = np.append(np.flatnonzero(np.diff(score)), len(score) - 1)  # (distinct,): last index of each run of equal scores
    hits = np.cumsum(truth)[last]  # (pixel,) -> (distinct,)
    gain = np.diff(hits, prepend=0) / hits[-1]
    return float((gain * hits / (last + 1)).sum())


@dataclass
class LabelFit:
    """Pixel counts by class of one image or the sums over several; ignored pixels of the ground truth are not counted."""

    both: Int[np.ndarray, " class"]
    """Pixels to which both the label map and the ground truth give the class."""
    predicted: Int[np.ndarray, " class"]
    """Pixels to which the label map gives the class."""
    true: Int[np.ndarray, " class"]
    """Pixels to which the ground truth gives the class."""
    images: int = 0

    @classmethod
    def empty(cls, classes: int) -> "LabelFit":
        """Return counts before the first image."""
        zeros = np.zeros(classes, np.int64)
        return cls(zeros, zeros, zeros)

    def __iadd__(self, other: "LabelFit") -> "LabelFit":
        self.both, self.true = self.both + other.both, self.true + other.true
        self.predicted = self.predicted + other.predicted
        self.images += other.images
        return self

    @property
    def iou(self) -> Float[np.ndarray, " class"]:
        """Intersection over union by class; NaN for a class that neither map nor ground truth has."""
        return iou_of(self.both, self.predicted + self.true - self.both)

    @property
    def mean_iou(self) -> float:
        """Mean over the classes that the label map or the ground truth has; NaN if no pixel is counted."""
        return mean_iou(self.iou)

    @property
    def mean_iou_true(self) -> float:
        """Mean over the classes that the ground truth has; NaN if no pixel is counted.

        Of a few images with many classes this figure tells more: most classes are in no image, and one wrong pixel of such a
        class adds a zero to `mean_iou`.
        """
        return mean_iou(self.iou[self.true > 0])

    @property
    def accuracy(self) -> float:
        """Share of the counted pixels with the right label; NaN if no pixel is counted."""
        return int(self.both.sum()) / int(self.true.sum()) if self.true.any() else math.nan


def label_fit(labels: Int[np.ndarray, "y x"], truth: Int[np.ndarray, "y x"], classes: int) -> LabelFit:
    """Counts of one image, from its label map and the ground truth; labels are below `classes`, or IGNORED in the truth."""
    counted = truth != IGNORED
    y, t = labels[counted], truth[counted]  # (y, x) -> (pixel,)
    both, predicted, true = (np.bincount(values, minlength=classes) for values in (t[y == t], y, t))  # (pixel,) -> (class,)
    return LabelFit(both, predicted, true, 1)
