"""How well label maps fit the truth: intersection over union of each class, pooled over the pixels of all images."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from cliptools.ground.masked.labelled import LEFT_OUT
from cliptools.methods.segmentation.overlap import iou_of, mean_iou


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
        """Of no image yet."""
        zeros = np.zeros(classes, np.int64)
        return cls(zeros, zeros, zeros)

    def __iadd__(self, other: "LabelFit") -> "LabelFit":
        self.both, self.found, self.true = self.both + other.both, self.found + other.found, self.true + other.true
        self.images += other.images
        return self

    @property
    def iou(self) -> Float[np.ndarray, " class"]:
        """By class; NaN for one that neither map nor truth has."""
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
