"""Folders of images and masks, paired by name.

Pictures with a true label for every pixel: folders of label PNGs, and scenes of clip-scenes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from PIL import Image

from cliptools.console import count_of
from cliptools.errors import CliptoolsError, ImageError, StreamError
from cliptools.images.decode import LABELS, is_picture
from cliptools.images.segmentation.mask_pixels import CUT_OUT, numbers_of
from cliptools.images.segmentation.masked_image import (
    Folders,
    Lie,
    MaskedImage,
    Placing,
    Reading,
    Rules,
    guarded,
    masked,
    read_pair,
)


def pairs_in_folder(folder: Path, ignored: tuple[int, ...] = (), lie: Lie | None = None) -> Iterator[Reading]:
    """images/ and masks/ below a folder, paired by their paths without endings, sorted.

    Args:
        ignored: Numbers in masks of pixels that do not count.
        lie: How masks lie on pictures with an EXIF orientation (turning.py); None: by their sizes.

    Raises:
        CliptoolsError: no such folders, or an image without a mask.
    """
    images, masks = (by_stem(folder / part) for part in ("images", "masks"))
    if not images:
        raise CliptoolsError(f"{folder}: no images in images/ (expected images/ and masks/, or scenes of clip-scenes)")
    if alone := sorted(set(images) - set(masks)):
        near = next((masks[stem].name for stem in sorted(set(masks) - set(images)) if stem.startswith(alone[0])), None)
        hint = f" (masks/ has {near}; expected the image's name, with any ending)" if near else ""
        raise CliptoolsError(
            f"{folder}: {len(alone)} of {count_of(len(images), 'image')} without a mask in masks/, the first: {alone[0]}{hint}"
        )
    rules = Rules(ignored, placing(images, masks, lie))
    return (guarded(stem, partial(masked, stem, images[stem], masks[stem], rules)) for stem in sorted(images))


def placing(images: dict[str, Path], masks: dict[str, Path], lie: Lie | None) -> Placing:
    """How the masks of two folders are laid on the images."""
    folders = Folders([(images[stem], masks[stem]) for stem in sorted(set(images) & set(masks))])
    return Placing(lie, lambda: folders.lie)


def by_stem(folder: Path) -> dict[str, Path]:
    """The pictures below a folder by their paths without endings.

    Raises:
        CliptoolsError: two that differ by their ending alone.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        if not path.is_file() or path.name.startswith(".") or not (is_picture(path.name) or path.name.endswith(LABELS)):
            continue
        own = path.name.removesuffix(LABELS) if path.name.endswith(LABELS) else path.stem
        stem = str(path.relative_to(folder).parent / own)
        if stem in found:
            raise CliptoolsError(f"{folder}: {found[stem].name} and {path.name} differ by their ending alone; keep one of them")
        found[stem] = path
    return found


GROUND, LEFT_OUT = 0, -1  # classes have the labels from 1


class LabelledImage(NamedTuple):
    """A picture and the class of every pixel: 1, 2, …, or GROUND, or LEFT_OUT where none counts."""

    name: str
    picture: Image.Image
    labels: Int[np.ndarray, "y x"]
    remarks: tuple[str, ...] = ()
    """What was assumed of the labels; each goes on after `N masks`."""


@dataclass(frozen=True)
class Numbering:
    """What the numbers in label pictures mean."""

    classes: int
    first: int = 1
    """The number of the first class; the one before it is the ground."""
    ignored: tuple[int, ...] = (255,)
    """Numbers of pixels that do not count."""

    def labels(self, pixels: Int[np.ndarray, "y x"], name: str) -> Int[np.ndarray, "y x"]:
        """Labels as LabelledImage has them.

        Raises:
            StreamError: a number that stands for no class, nor for pixels that do not count.
        """
        left_out = np.isin(pixels, self.ignored)
        labels = np.where(left_out, LEFT_OUT, pixels.astype(np.int64) - self.first + 1)
        strange = ~left_out & ((labels < GROUND) | (labels > self.classes))
        if strange.any():
            found, last = int(pixels[strange].max()), self.first + self.classes - 1
            ignored = ", ".join(map(str, self.ignored)) or "none"
            ground = f"{self.first - 1} for the ground, " if self.first else ""
            raise StreamError(
                f"{name}: label {found}, expected {self.first} to {last} for {count_of(self.classes, 'class')}, {ground}or a "
                f"number left out ({ignored}); see --first-label, --ignore and --classes"
            )
        return labels


def labelled_in_folders(
    images: Path, labels: Path, numbering: Numbering, lie: Lie | None = None
) -> Iterator[LabelledImage | ImageError]:
    """Every label PNG with the image of its name; images without labels are passed over.

    Args:
        lie: How labels lie on pictures with an EXIF orientation (turning.py); None: by their sizes.

    Raises:
        CliptoolsError: no labels, or labels without an image.
        StreamError: a label that stands for no class.
    """
    pictures, truths = by_stem(images), by_stem(labels)
    if not truths:
        raise CliptoolsError(f"{labels}: no label PNGs in this folder")
    if alone := sorted(set(truths) - set(pictures)):
        raise CliptoolsError(f"{labels}: {count_of(len(alone), 'label PNG')} without an image in {images}, the first: {alone[0]}")
    rule = placing(pictures, truths, lie)
    return (_guarded(stem, partial(_read, stem, pictures[stem], truths[stem], numbering, rule)) for stem in sorted(truths))


def labelled_scene(scene: MaskedImage, label_of: dict[str, int]) -> LabelledImage:
    """A scene's label map; what has no label in `label_of` is ground."""
    labels = np.zeros((scene.picture.height, scene.picture.width), np.int64)
    for text, mask in zip(scene.texts, scene.masks, strict=True):
        labels[mask] = label_of.get(text, GROUND)
    if scene.void is not None:
        labels[scene.void] = LEFT_OUT
    return LabelledImage(scene.name, scene.picture, labels, scene.remarks)


def _guarded(name: str, read: partial[LabelledImage]) -> LabelledImage | ImageError:
    try:
        return read()
    except ImageError as error:
        return ImageError(f"{name}: {error}")


def _read(stem: str, image: Path, truth: Path, numbering: Numbering, rule: Placing) -> LabelledImage:
    picture, pixels = read_pair(image, truth, rule, "labels")
    numbers = numbers_of(pixels, "labels", "numbers of classes")
    remarks = tuple(remark for remark in pixels.remarks if remark != CUT_OUT)  # numbers do not depend on transparency
    return LabelledImage(stem, picture, numbering.labels(numbers, stem), remarks)
