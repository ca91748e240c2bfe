"""Folders of images with masks or label maps, paired by name.

`pairs_in_folder` reads images with one mask each. `labelled_in_folders` reads images with a label for every pixel, from label
PNGs whose numbers a `Numbering` maps to classes; `labelled_scene` makes such a label map from a scene.
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
    Alignment,
    FolderPairs,
    MaskBasis,
    MaskedImage,
    Reading,
    Rules,
    read_masked,
    read_or_error,
    read_pair,
)

BACKGROUND, IGNORED = 0, -1  # labels of the background and of ignored pixels; classes have labels from 1


class LabelledImage(NamedTuple):
    """A picture with a label per pixel: a class (1, 2, …), BACKGROUND, or IGNORED for pixels that do not count."""

    name: str
    picture: Image.Image
    labels: Int[np.ndarray, "y x"]
    remarks: tuple[str, ...] = ()
    """Assumptions about the labels; each continues a sentence that begins with `N masks`."""


@dataclass(frozen=True)
class Numbering:
    """The meaning of the numbers in label pictures."""

    classes: int
    first: int = 1
    """The number of the first class; the number before it is the background."""
    ignored: tuple[int, ...] = (255,)
    """Numbers of pixels that do not count."""

    def labels(self, pixels: Int[np.ndarray, "y x"], name: str) -> Int[np.ndarray, "y x"]:
        """Return the labels of pixels as defined by LabelledImage.

        Raises:
            StreamError: a number is neither a class nor the background nor ignored.
        """
        is_ignored = np.isin(pixels, self.ignored)
        labels = np.where(is_ignored, IGNORED, pixels.astype(np.int64) - self.first + 1)
        invalid = ~is_ignored & ((labels < BACKGROUND) | (labels > self.classes))
        if invalid.any():
            number, last = int(pixels[invalid].max()), self.first + self.classes - 1
            ignored = ", ".join(map(str, self.ignored)) or "none"
            background = f"{self.first - 1} for the background, " if self.first else ""
            raise StreamError(
                f"{name}: label {number}, expected {self.first} to {last} for {count_of(self.classes, 'class')}, {background}"
                f"or a number left out ({ignored}); see --first-label, --ignore and --classes"
            )
        return labels


def labelled_in_folders(
    images: Path, labels: Path, numbering: Numbering, basis: MaskBasis | None = None
) -> Iterator[LabelledImage | ImageError]:
    """Read every label PNG with the image of the same name; images without labels are skipped.

    Args:
        basis: The pixels that labels belong to, for pictures with an EXIF orientation (masked_image.py); None: by their sizes.

    Raises:
        CliptoolsError: there are no labels, or labels without an image.
        StreamError: a label is no class.
    """
    pictures, annotations = by_stem(images), by_stem(labels)
    if not annotations:
        raise CliptoolsError(f"{labels}: no label PNGs in this folder")
    if unpaired := sorted(set(annotations) - set(pictures)):
        count = count_of(len(unpaired), "label PNG")
        raise CliptoolsError(f"{labels}: {count} without an image in {images}, the first: {unpaired[0]}")
    alignment = folder_alignment(pictures, annotations, basis)

    def read(stem: str) -> LabelledImage | ImageError:
        reading = partial(_read_labelled, stem, pictures[stem], annotations[stem], numbering, alignment)
        return _read_or_error(stem, reading)

    return (read(stem) for stem in sorted(annotations))


def labelled_scene(scene: MaskedImage, label_of: dict[str, int]) -> LabelledImage:
    """Return a scene's label map; objects without a label in `label_of` are background."""
    labels = np.zeros((scene.picture.height, scene.picture.width), np.int64)  # (y, x)
    for text, mask in zip(scene.texts, scene.masks, strict=True):
        labels[mask] = label_of.get(text, BACKGROUND)
    if scene.void is not None:
        labels[scene.void] = IGNORED
    return LabelledImage(scene.name, scene.picture, labels, scene.remarks)


def pairs_in_folder(folder: Path, ignored: tuple[int, ...] = (), basis: MaskBasis | None = None) -> Iterator[Reading]:
    """Read images/ and masks/ below a folder, paired by their paths without endings, sorted.

    Args:
        ignored: Mask values of pixels that do not count.
        basis: The pixels that masks belong to, for pictures with an EXIF orientation (masked_image.py); None: by their sizes.

    Raises:
        CliptoolsError: the folders do not exist, or an image has no mask.
    """
    images, masks = (by_stem(folder / part) for part in ("images", "masks"))
    if not images:
        raise CliptoolsError(f"{folder}: no images in images/ (expected images/ and masks/, or scenes of clip-scenes)")
    if unpaired := sorted(set(images) - set(masks)):
        similar = next((masks[stem].name for stem in sorted(set(masks) - set(images)) if stem.startswith(unpaired[0])), None)
        hint = f" (masks/ has {similar}; expected the image's name, with any ending)" if similar else ""
        count = f"{len(unpaired)} of {count_of(len(images), 'image')}"
        raise CliptoolsError(f"{folder}: {count} without a mask in masks/, the first: {unpaired[0]}{hint}")
    rules = Rules(ignored, folder_alignment(images, masks, basis))
    return (read_or_error(stem, partial(read_masked, stem, images[stem], masks[stem], rules)) for stem in sorted(images))


def folder_alignment(images: dict[str, Path], masks: dict[str, Path], basis: MaskBasis | None) -> Alignment:
    """Return the rule that aligns the masks of one folder with the images of another."""
    pairs = FolderPairs([(images[stem], masks[stem]) for stem in sorted(set(images) & set(masks))])
    return Alignment(basis, lambda: pairs.basis)


def by_stem(folder: Path) -> dict[str, Path]:
    """Return the pictures below a folder by their paths without endings.

    Raises:
        CliptoolsError: two paths differ only by their ending.
    """
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        if not path.is_file() or path.name.startswith(".") or not (is_picture(path.name) or path.name.endswith(LABELS)):
            continue
        base = path.name.removesuffix(LABELS) if path.name.endswith(LABELS) else path.stem
        stem = str(path.relative_to(folder).parent / base)
        if stem in files:
            raise CliptoolsError(f"{folder}: {files[stem].name} and {path.name} differ by their ending alone; keep one of them")
        files[stem] = path
    return files


def _read_or_error(name: str, read: partial[LabelledImage]) -> LabelledImage | ImageError:
    """Return the result of `read`, or its error with the picture's name before the message."""
    try:
        return read()
    except ImageError as error:
        return ImageError(f"{name}: {error}")


def _read_labelled(stem: str, image: Path, annotation: Path, numbering: Numbering, rule: Alignment) -> LabelledImage:
    picture, pixels = read_pair(image, annotation, rule, "labels")
    numbers = numbers_of(pixels, "labels", "numbers of classes")
    remarks = tuple(remark for remark in pixels.remarks if remark != CUT_OUT)  # numbers do not depend on transparency
    return LabelledImage(stem, picture, numbering.labels(numbers, stem), remarks)
