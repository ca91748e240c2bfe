"""clip-segment IMAGE… --classes with a CLIP-ResNet: label maps, as records, pictures or logits."""

import json
from io import BufferedIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cliptools.commands.segmenting.images import RECORDS, SHOWN, Folder, folder_of, loaded, open_folder, spool_for
from cliptools.commands.segmenting.labeller import Labeller
from cliptools.ground.counted import count_of
from cliptools.ground.errors import ImageError
from cliptools.ground.output import binary_output, text_output
from cliptools.ground.progress import progress, summarise
from cliptools.ground.records import rounded, write_record

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from cliptools.ground.images import ImageSource
    from cliptools.ground.tensor_spool import TensorSpool

NAMED = 3  # classes of an image in it


def label_images(made: Labeller, source: "ImageSource", options: dict[str, Any], output_format: str, output: Path | None) -> None:
    """A label map of every image, written as they come."""
    from cliptools.ground.loader import Skipped
    from cliptools.ground.unusable import Screen

    folder = open_folder(options)
    made.settings["background"] = made.classes[0] if made.has_ground else made.cuts[0]
    skipped = Skipped()
    screen = Screen[str](str, skipped.add, options["strict"])
    count = 0
    shown: list[list[str]] = []
    keep_tensors = output_format == "safetensors"
    with binary_output(output) if keep_tensors else text_output(output) as stream, spool_for(keep_tensors) as spool:
        for index, name in enumerate(progress(source.names, "images", len(source))):
            done = folder.finished(name, made.settings, ()) if folder is not None else []
            picture = None if done else loaded(source, index, options["strict"], skipped)
            if not done and picture is None:
                continue
            record = done[0] if picture is None else _made(made, name, picture, folder, spool)
            if not screen.places([name], {0: record} if isinstance(record, str) else {}):
                continue
            assert not isinstance(record, str)
            count += 1
            if output_format == "jsonl":
                write_record(stream, record)
            elif len(shown) <= SHOWN:
                shown.append(_row(record))
        screen.require(count)
        _finish(stream, made, spool, shown)
    summarise(f"clip-segment: {count_of(count, 'image')}" + (f", {len(skipped)} skipped" if len(skipped) else ""))


def _made(
    made: Labeller, name: str, picture: "Image.Image", folder: Folder | None, spool: "TensorSpool | None"
) -> dict[str, Any] | str:
    """The record of one image, and all that is kept of it; or the reason why it is not usable."""
    from cliptools.methods.segmentation.label_maps import best_texts, logits_at_size, to_labels

    try:
        averaged = made.averaged(picture)
    except ImageError as error:
        return str(error)
    if spool is not None:
        spool.add(name, logits_at_size(averaged, made.room))
    cut = made.cuts[0]
    found = best_texts(averaged, picture.height, picture.width, cut is not None, room=made.room)
    labels = to_labels(found, made.label_of_text, cut).numpy()
    record = _record(made, name, picture, labels)
    if folder is not None:
        record = _written(record, labels, picture, folder, len(made.classes) - 1)
    return record


def _record(made: Labeller, name: str, picture: "Image.Image", labels: "np.ndarray") -> dict[str, Any]:
    import numpy as np

    from cliptools.methods.segmentation.masks import bounding_box

    numbers, pixels = np.unique(labels, return_counts=True)
    seen = []
    for label, many in sorted(zip(numbers.tolist(), pixels.tolist(), strict=True), key=lambda one: (-one[1], one[0])):
        each = {"label": label, "class": made.classes[label], "share": rounded(many / labels.size)}
        seen.append(each | {"box": bounding_box(labels == label)})
    return {"image": name, "width": picture.width, "height": picture.height, "found": seen} | made.settings


def _written(record: dict[str, Any], labels: "np.ndarray", picture: "Image.Image", folder: Folder, most: int) -> dict[str, Any]:
    """Pictures of the label map, and the record, last of all: where that is, the image is finished."""
    from cliptools.ground import segment_pictures as pictures

    where = folder_of(record["image"])
    label_map = folder.write(f"{where}/labels.png", pictures.png(pictures.label_picture(labels, most)))
    overlay = folder.write(f"{where}/overlay.png", pictures.png(pictures.label_overlay(picture, labels)))
    record |= {"label_map": label_map, "overlay": overlay}
    folder.write(f"{where}/{RECORDS}", json.dumps([record], ensure_ascii=False).encode())
    return record


def _finish(stream: BufferedIOBase, made: Labeller, spool: "TensorSpool | None", shown: list[list[str]]) -> None:
    """What is written once all is known: the tensors, or the table."""
    if spool is not None:
        from cliptools.ground.provenance import canonical

        said = {"kind": "logits", "format": 1, "label": made.label_of_text.tolist(), "names": list(made.classes)}
        spool.write(stream, canonical(said | made.settings))
    elif shown:
        from cliptools.commands.segmenting.table import write_table

        write_table(stream, ["image", "classes"], shown[:SHOWN])
        if len(shown) > SHOWN:
            stream.write("… more images (-f jsonl for all)\n".encode())


def _row(record: dict[str, Any]) -> list[str]:
    named = [f"{each['class']} {100 * each['share']:.0f} %" for each in record["found"][:NAMED]]
    more = len(record["found"]) - NAMED
    return [record["image"], ", ".join(named) + (f" and {more} more" if more > 0 else "")]
