"""clip-segment --evaluate --classes with a CLIP-ResNet: label maps against true ones, an image a record, all in the last."""

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import numpy as np

from cliptools.cli.app import open_input
from cliptools.cli.run.bundle_output import write_table
from cliptools.cli.run.segment_evaluate import Numbered, counting, figures, percent, readable, say_remarks
from cliptools.cli.run.segment_label_maps import Labeller, keys_of, load_labeller
from cliptools.cli.run.segment_open import Opened
from cliptools.console import count_of, progress, summarise, warn
from cliptools.errors import CliptoolsError, ImageError, UsageError
from cliptools.images.segmentation.label_maps import LEFT_OUT, LabelledImage, Numbering, labelled_in_folders, labelled_scene
from cliptools.images.segmentation.masked_image import Reading
from cliptools.images.segmentation.sources import masked_images
from cliptools.io.files import text_output
from cliptools.io.jsonl import rounded, write_record
from cliptools.models.unusable import Screen
from cliptools.segmentation.masks import best_texts, to_labels
from cliptools.segmentation.metrics import LabelFit, label_fit
from cliptools.text.classes import ClassList, ClassName, class_list

GROUND_NAMES = ("background", "bg", "ground", "void", "unlabeled", "unlabelled", "ignore")
"""Names of the ground, with which some lists of segmentation begin."""
Source = Callable[[], Iterator["Reading"]]
"""Scenes, to be read as often as asked."""


def evaluate_labels(
    opened: Opened, paths: Sequence[str], options: dict[str, Any], output_format: str, output: Path | None
) -> None:
    """Records of all images, then one of the whole for each --background; or a table of these."""
    named = _named(options) if options["classes"] else None
    with ExitStack() as stack:
        if options["labels"]:
            assert named is not None and len(paths) == 1
            made = load_labeller(opened, named, options)
            images = _of_folders(made, Path(paths[0]), options)
        else:
            source = _scenes(paths, stack, tuple(options["ignored"]))
            made = load_labeller(opened, named or _shown(source), options)
            images = _of_scenes(made, source)
        _write(made, images, options, output_format, output)


def _named(options: dict[str, Any]) -> tuple[ClassName, ...]:
    """The classes of --classes.

    Raises:
        CliptoolsError: they are numbered with gaps, and label pictures are numbered without.
        UsageError: nobody says which number the first has in label pictures, and it may be another than 1.
    """

    listed = class_list(options["classes"], known=False)
    if options["labels"] and listed.numbers and listed.numbers[-1] - listed.numbers[0] >= len(listed.numbers):
        raise CliptoolsError(
            f"classes {options['classes']}: {count_of(len(listed.numbers), 'class')} by numbers up to "
            f"{listed.numbers[-1]}, with gaps; "
            "label pictures are read with numbers that run: fill the gaps by names of their own, or renumber the pictures"
        )
    if options["labels"] and options["first_label"] is None:
        _refuse_unclear_first(listed, options["backgrounds"], str(options["classes"]))
    return listed.classes


def _refuse_unclear_first(listed: ClassList, backgrounds: Sequence[str], source: str) -> None:
    """
    Raises:
        UsageError: the first class may have another number than 1 in label pictures: the list begins with the ground, or at 0.
    """
    name = listed.classes[0].name
    named = name in backgrounds
    number = listed.numbers[0] + named if listed.numbers else 1
    if not named and name.strip(" _").casefold() in GROUND_NAMES:
        raise UsageError(
            f"classes {source}: the first class is {name!r}, and number 0 in label pictures is the ground: --background {name!r} "
            "if they are the same, --first-label for the number of the first class if they are not"
        )
    if number != 1:
        raise UsageError(
            f"classes {source}: numbers from {listed.numbers[0]}, where those of label pictures mostly begin at 1 behind the "
            f"ground: --first-label {number} if the pictures have the list's numbers, --first-label 1 if they begin at 1"
        )


def _of_folders(made: Labeller, images: Path, options: dict[str, Any]) -> Iterator[LabelledImage | ImageError]:

    for folder in (images, options["labels"]):
        if not folder.is_dir():
            raise CliptoolsError(f"{folder}: no such folder")
    return labelled_in_folders(images, options["labels"], _numbering(made, options), options["lie"])


def _numbering(made: Labeller, options: dict[str, Any]) -> Numbering:
    """What the numbers in the label PNGs mean."""

    classes, first = len(made.classes) - 1, 1 if options["first_label"] is None else options["first_label"]
    ignored = tuple(options["ignored"]) or ((255,) if first + classes <= 255 else ())
    return Numbering(classes, first, ignored)


def _scenes(paths: Sequence[str], stack: ExitStack, ignored: tuple[int, ...]) -> Source:
    """Scenes of folders and tars; those on standard input wait in a temporary file, to be read twice."""

    spool: Any = None
    if "-" in paths:
        stream, _ = open_input(None, "a tar of clip-scenes", "a PATH")
        spool = stack.enter_context(tempfile.TemporaryFile(prefix="cliptools-"))  # noqa: SIM115 - closed by the stack
        shutil.copyfileobj(stream, spool, 1 << 20)

    def read() -> Iterator[Reading]:
        for path in paths:
            if path == "-":
                spool.seek(0)
                yield from masked_images(None, spool, ignored=ignored)
            else:
                yield from masked_images(Path(path), ignored=ignored)

    return read


def _shown(source: Source) -> tuple[ClassName, ...]:
    """What the scenes show, by name.

    Raises:
        CliptoolsError: the pictures do not say what they show.
    """

    names = {text for scene in source() if not isinstance(scene, ImageError) for text in scene.texts}
    if not names:
        raise CliptoolsError("these masks have no names: give label PNGs (--labels) and --classes, or scenes of clip-scenes")
    return tuple(ClassName(name) for name in sorted(names))


def _of_scenes(made: Labeller, source: Source) -> Iterator[LabelledImage | ImageError]:

    label_of = {name: label for label, name in reversed(list(enumerate(made.classes))) if label}  # of one name the first
    for scene in source():
        yield scene if isinstance(scene, ImageError) else labelled_scene(scene, label_of)


def _write(
    made: Labeller,
    images: Iterator[LabelledImage | ImageError],
    options: dict[str, Any],
    output_format: str,
    output: Path | None,
) -> None:

    whole = [LabelFit.none(len(made.classes)) for _ in made.cuts]
    skipped: list[str] = []
    keys = keys_of(made.classes)
    remarks: Counter[str] = Counter()

    def tell(name: str, reason: str) -> None:
        skipped.append(name)
        warn(f"{name}: {reason} (skipped)")

    screen = Screen[Numbered](lambda image: image[1], tell, options["strict"])
    with text_output(output) as stream:
        shown = counting(remarks, progress(readable(images, options["strict"], skipped), "images"))
        for place, image in enumerate(shown):
            fits = _fits(made, image)
            if not screen.places([(place, image.name)], {0: fits} if isinstance(fits, str) else {}):
                continue
            assert not isinstance(fits, str)
            for number, (cut, fit) in enumerate(fits):
                whole[number] += fit
                if output_format == "jsonl":
                    record = {"image": image.name, "background": _background(made, cut)} | _said(fit)
                    write_record(stream, record | made.settings)
        if not whole[0].images and not len(screen):
            raise CliptoolsError("no image with labels could be read")
        screen.require(whole[0].images)
        summaries = []
        for cut, total in zip(made.cuts, whole, strict=True):
            iou = {key: rounded(value) for key, value in zip(keys, total.iou, strict=True) if np.isfinite(value)}
            said = {"all": True, "count": total.images, "skipped": len(skipped), "background": _background(made, cut)}
            summaries.append(said | _said(total) | {"iou": iou})
        if output_format == "jsonl":
            for summary in summaries:
                write_record(stream, summary | made.settings)
        else:
            _write_table(stream, made, summaries)
    say_remarks(remarks)
    summarise(f"clip-segment: {count_of(whole[0].images, 'image')}" + (f", {len(skipped)} skipped" if skipped else ""))


def _fits(made: Labeller, image: LabelledImage) -> list[tuple[float | None, LabelFit]] | str:
    """Each background's label map against the truth; or the reason why the image is not usable."""

    probabilities = any(cut is not None for cut in made.cuts)
    picture = image.picture
    try:
        found = best_texts(made.averaged(picture), picture.height, picture.width, probabilities, room=made.room)
    except ImageError as error:
        return str(error)
    fits = []
    for cut in made.cuts:
        labels = to_labels(found, made.label_of_text, cut).numpy()
        ground_counts = made.has_ground or cut is not None
        truth: np.ndarray = image.labels if ground_counts else np.where(image.labels == 0, LEFT_OUT, image.labels)
        fits.append((cut, label_fit(labels, truth, len(made.classes))))
    return fits


def _background(made: Labeller, cut: float | None) -> str | float | None:
    return made.classes[0] if made.has_ground else cut


def _said(fit: LabelFit) -> dict[str, Any]:
    """Figures; none where no pixel counts."""
    said = figures({"miou": fit.mean_iou, "miou_true": fit.mean_iou_true, "accuracy": fit.accuracy})
    return said | {"true_classes": int((fit.true > 0).sum())}


def _write_table(stream: BufferedIOBase, made: Labeller, summaries: Sequence[dict[str, Any]]) -> None:

    rows = [
        [made.settings["method"], str(one["background"] or "left out"), str(one["count"]), str(one["true_classes"])]
        + [percent(one[key]) for key in ("miou", "accuracy")]
        for one in summaries
    ]
    write_table(stream, ["method", "background", "images", "classes", "miou", "accuracy"], rows)
