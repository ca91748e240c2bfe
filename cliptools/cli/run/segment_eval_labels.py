"""Ground truth of label maps for clip-segment-eval: label PNGs with numbered classes, or scenes with named objects."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cliptools.cli.app import open_input
from cliptools.console import count_of
from cliptools.errors import CliptoolsError, ImageError, UsageError
from cliptools.images.segmentation.label_maps import LabelledImage, Numbering, labelled_in_folders, labelled_scene
from cliptools.images.segmentation.masked_image import MaskBasis, Reading
from cliptools.images.segmentation.sources import masked_images
from cliptools.text.classes import ClassList, ClassName

BACKGROUND_NAMES = ("background", "bg", "ground", "void", "unlabeled", "unlabelled", "ignore")
"""Names of the background that some lists of classes have as their first entry."""
VOID = 255  # number of pixels that do not count, by default


def check_numbering(listed: ClassList, source: str, first_label: int | None, backgrounds: Sequence[str]) -> None:
    """Reject a list of classes whose numbers in label PNGs are unclear.

    Args:
        source: The list, as --classes names it.
        first_label: The value of --first-label.
        backgrounds: The values of --background.

    Raises:
        CliptoolsError: the list numbers its classes with gaps; label PNGs are read with consecutive numbers.
        UsageError: without --first-label, the first class may have another number than 1.
    """
    numbers = listed.numbers
    if numbers and numbers[-1] - numbers[0] >= len(numbers):
        raise CliptoolsError(
            f"classes {source}: {count_of(len(numbers), 'class')} with numbers up to {numbers[-1]}, so some numbers are missing; "
            "label PNGs need consecutive numbers: fill the gaps with names of their own, or renumber the PNGs"
        )
    if first_label is not None:
        return
    name = listed.classes[0].name
    named = name in backgrounds
    number = numbers[0] + named if numbers else 1
    if not named and name.strip(" _").casefold() in BACKGROUND_NAMES:
        raise UsageError(
            f"classes {source}: the first class is {name!r}, and number 0 in label PNGs is the background: --background {name!r} "
            "if they are the same, --first-label for the number of the first class if they are not"
        )
    if number != 1:
        raise UsageError(
            f"classes {source}: numbers from {numbers[0]}, while label PNGs mostly begin at 1, after the background: "
            f"--first-label {number} if the PNGs have the list's numbers, --first-label 1 if they begin at 1"
        )


def labelled_folder(
    images: Path, labels: Path, classes: int, first_label: int | None, ignored: tuple[int, ...], mask_pixels: MaskBasis | None
) -> Iterator[LabelledImage | ImageError]:
    """Read the images of a folder with the label PNGs of another folder.

    Args:
        classes: Number of classes without the background.
        first_label: Number of the first class; None for 1.
        ignored: Numbers of pixels that do not count; empty for 255, if no class has it.

    Raises:
        CliptoolsError: a folder does not exist.
    """
    for folder in (images, labels):
        if not folder.is_dir():
            raise CliptoolsError(f"{folder}: no such folder")
    first = 1 if first_label is None else first_label
    ignored = ignored or ((VOID,) if first + classes <= VOID else ())
    return labelled_in_folders(images, labels, Numbering(classes, first, ignored), mask_pixels)


class Scenes:
    """Scenes of folders and tars, which can be read several times; a tar on standard input goes to a temporary file."""

    def __init__(self, paths: Sequence[str], ignored: tuple[int, ...], stack: ExitStack) -> None:
        """Copy standard input, if it is among the paths.

        Args:
            ignored: Numbers of pixels that do not count.
            stack: Closes the temporary file.
        """
        self._paths, self._ignored = paths, ignored
        self._copy: Any = None
        if "-" in paths:
            stream, _ = open_input(None, "a tar of clip-scenes", "a PATH")
            self._copy = stack.enter_context(tempfile.TemporaryFile(prefix="cliptools-"))  # noqa: SIM115 - closed by the stack
            shutil.copyfileobj(stream, self._copy, 1 << 20)

    def __iter__(self) -> Iterator[Reading]:
        """Read all scenes from the beginning."""
        for path in self._paths:
            if path == "-":
                self._copy.seek(0)
                yield from masked_images(None, self._copy, ignored=self._ignored)
            else:
                yield from masked_images(Path(path), ignored=self._ignored)


def classes_of(scenes: Scenes) -> tuple[ClassName, ...]:
    """The names of all objects in the scenes, in alphabetical order.

    Raises:
        CliptoolsError: the scenes do not name what they show.
    """
    names = {text for scene in scenes if not isinstance(scene, ImageError) for text in scene.texts}
    if not names:
        raise CliptoolsError("the masks have no names: give label PNGs (--labels) and --classes, or scenes of clip-scenes")
    return tuple(ClassName(name) for name in sorted(names))


def labelled_scenes(scenes: Scenes, classes: Sequence[str]) -> Iterator[LabelledImage | ImageError]:
    """Yield the label map of every scene, or the error that names an unreadable scene.

    Args:
        classes: Names by label; the first one is the background's.
    """
    label_of = {name: label for label, name in reversed(list(enumerate(classes))) if label}  # if names are equal, the first label
    for scene in scenes:
        yield scene if isinstance(scene, ImageError) else labelled_scene(scene, label_of)
