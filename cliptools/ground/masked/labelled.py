"""Pictures with a true label for every pixel: folders of label PNGs, and scenes of clip-scenes."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from PIL import Image

from cliptools.ground.decode import decode
from cliptools.ground.errors import CliptoolsError, ImageError, StreamError, first_line
from cliptools.ground.masked.folder_pairs import by_stem
from cliptools.ground.masked.image import MaskedImage

GROUND, LEFT_OUT = 0, -1  # classes have the labels from 1


class LabelledImage(NamedTuple):
    """A picture and the class of every pixel: 1, 2, …, or GROUND, or LEFT_OUT where none counts."""

    name: str
    picture: Image.Image
    labels: Int[np.ndarray, "y x"]


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
            raise StreamError(
                f"{name}: label {found}, expected {self.first} to {last} for {self.classes} classes, {self.first - 1} for the "
                f"ground, or a number left out ({ignored}); see --first-label, --ignore and --classes"
            )
        return labels


def labelled_in_folders(images: Path, labels: Path, numbering: Numbering) -> Iterator[LabelledImage | ImageError]:
    """Every label PNG with the image of its name; images without labels are passed over.

    Raises:
        CliptoolsError: no labels, or labels without an image.
        StreamError: a label that stands for no class.
    """
    pictures, truths = by_stem(images), by_stem(labels)
    if not truths:
        raise CliptoolsError(f"{labels}: no label PNGs in this folder")
    if alone := sorted(set(truths) - set(pictures)):
        raise CliptoolsError(f"{labels}: {len(alone)} label PNGs have no image in {images}, the first: {alone[0]}")
    return (_guarded(stem, partial(_read, stem, pictures[stem], truths[stem], numbering)) for stem in sorted(truths))


def labelled_scene(scene: MaskedImage, label_of: dict[str, int]) -> LabelledImage:
    """A scene's label map; what has no label in `label_of` is ground."""
    labels = np.zeros((scene.picture.height, scene.picture.width), np.int64)
    for text, mask in zip(scene.texts, scene.masks, strict=True):
        labels[mask] = label_of.get(text, GROUND)
    return LabelledImage(scene.name, scene.picture, labels)


def _guarded(name: str, read: partial[LabelledImage]) -> LabelledImage | ImageError:
    try:
        return read()
    except ImageError as error:
        return ImageError(f"{name}: {error}")


def _read(stem: str, image: Path, truth: Path, numbering: Numbering) -> LabelledImage:
    picture, pixels = decode(str(image)), _label_numbers(truth)
    if pixels.shape != (picture.height, picture.width):
        found = f"{pixels.shape[1]} × {pixels.shape[0]}"
        raise ImageError(f"the image has {picture.width} × {picture.height} pixels, its labels {found}")
    return LabelledImage(stem, picture, numbering.labels(pixels, stem))


def _label_numbers(file: Path) -> Int[np.ndarray, "y x"]:
    """A label picture's numbers: indices of a palette, or grey of 8 or 16 bits."""
    try:
        with Image.open(file, formats=["PNG"]) as image:
            image.load()
            pixels = np.asarray(image)
    except Exception as error:  # Pillow's readers raise nearly anything on damaged data
        raise ImageError(f"its labels cannot be read ({first_line(error)})") from None
    if pixels.ndim != 2:
        raise ImageError("its labels are colours, expected a palette or grey picture whose values are numbers of classes")
    return pixels.astype(np.int64)
