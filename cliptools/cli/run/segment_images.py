"""clip-segment IMAGE…: heat maps and masks of images, as records, pictures or tensors."""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import click
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cliptools.cli.run.bundle_output import write_table
from cliptools.cli.run.segment_heat_maps import Found, Segmenter, heat_maps
from cliptools.console import count_of, progress, summarise
from cliptools.devices import in_halves
from cliptools.errors import CliptoolsError, ImageError
from cliptools.images.loader import ImageSource, Skipped, same_shapes
from cliptools.io.cache import check_same
from cliptools.io.files import binary_output, only_writer, put_whole, text_output
from cliptools.io.header import canonical
from cliptools.io.jsonl import parse, rounded, write_record
from cliptools.io.spools import TensorSpool
from cliptools.models.unusable import Screen
from cliptools.render import contact_sheet as pictures
from cliptools.segmentation.masks import bounding_box, label_map, mask_of

RECORDS = "segments.json"  # in an image's folder, written last: where it is, the image is finished
SHOWN = 40  # rows of a table on a terminal
LONGEST_SLUG = 60

Records = list[dict[str, Any]]


class Waiting(NamedTuple):
    """An image on its way to the model."""

    name: str
    picture: Image.Image | None
    """None where one that is finished cannot be read any more."""
    records: Records
    """Of one that an earlier run has finished. It keeps its place in its batch, on which the last digits of the others depend."""


@dataclass
class Folder:
    """--out-dir: a folder an image, with masks, overlays and its records."""

    path: Path
    resume: bool

    def __post_init__(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            occupied = any(self.path.iterdir())
        except OSError as error:
            raise CliptoolsError(f"{self.path}: cannot write here ({error.strerror})") from None
        if occupied and not self.resume:
            raise CliptoolsError(f"{self.path}: not empty; go on with what is there (--resume), or name a new folder")

    def finished(self, name: str, settings: dict[str, Any], texts: Sequence[str]) -> Records:
        """Records of an image that an earlier run has finished; none if it has not.

        Raises:
            CliptoolsError: it was made with other settings or texts.
        """
        path = self.path / folder_of(name) / RECORDS
        if not self.resume or not path.is_file():
            return []
        try:
            records: Records = parse(path.read_bytes())
            found = [record.get("text") for record in records]
        except (ValueError, TypeError, AttributeError):
            raise CliptoolsError(f"{path}: damaged; remove it, or name a new folder") from None
        for record in records:
            for key, value in settings.items():
                check_same(path, key, record.get(key), value)
        if texts:
            check_same(path, "texts", found, list(texts))
        return records

    def write(self, name: str, data: bytes) -> str:
        """A file that appears whole, and what records call it."""
        path = self.path / name
        try:
            put_whole(path, data)
        except OSError as error:
            raise CliptoolsError(f"{path}: could not be written ({error.strerror})") from None
        return name


def open_folder(options: dict[str, Any]) -> Folder | None:
    """The folder of --out-dir, if there is one, for this run alone until it ends."""
    if not options["out_dir"]:
        return None
    click.get_current_context().with_resource(only_writer(options["out_dir"]))
    return Folder(options["out_dir"], options["resume"])


def folder_of(name: str) -> str:
    """An image's folder below --out-dir: its name, which may come out of an archive and must not lead elsewhere."""
    parts = [part for part in PurePosixPath(name).parts if part.strip("/")]
    return "/".join(f"{part}_" if set(part) == {"."} else part for part in parts)


def segment_images(
    made: Segmenter, source: ImageSource, options: dict[str, Any], output_format: str, output: Path | None
) -> None:
    """Heat maps and masks of every image, written as they come."""

    def find(batch: Sequence[Waiting], tensors: Tensor | None) -> list[list[Found] | str] | None:
        if tensors is None or all(one.records for one in batch):
            return None
        return made.find(tensors, [texts] * len(batch))

    folder = open_folder(options)
    texts = tuple(options["texts"])
    made.settings["threshold"] = made.thresholds[0]
    skipped = Skipped()
    screen = Screen[str](str, skipped.add, options["strict"])
    shown: list[list[str]] = []
    count = 0
    keep_tensors = output_format == "safetensors"
    with binary_output(output) if keep_tensors else text_output(output) as stream, spool_for(keep_tensors) as spool:
        items = _waiting(made, source, folder, texts, options["strict"], skipped)
        batches = same_shapes(progress(items, "images", len(source)), options["batch_size"])
        for batch, found in in_halves(batches, find):
            for records in _batch_records(made, batch, found, folder, spool, screen):
                count += 1
                for record in records:
                    if output_format == "jsonl":
                        write_record(stream, record)
                    elif len(shown) <= SHOWN:
                        shown.append(_row(record))
        screen.require(count)
        _finish(stream, made, spool, shown, output_format)
    summarise(f"clip-segment: {count_of(count, 'image')}" + (f", {len(skipped)} skipped" if len(skipped) else ""))


def _waiting(
    made: Segmenter, source: ImageSource, folder: Folder | None, texts: tuple[str, ...], strict: bool, skipped: Skipped
) -> Iterator[tuple[Waiting, Tensor | None]]:
    for index, name in enumerate(source.names):
        done = folder.finished(name, made.settings, texts) if folder is not None else []
        picture = read_again(source, index) if done else loaded(source, index, strict, skipped)
        if picture is not None:
            yield Waiting(name, picture, done), made.tensor(picture)
        elif done:
            yield Waiting(name, None, done), None


def read_again(source: ImageSource, index: int) -> Image.Image | None:
    """An image that is finished, which may be gone meanwhile."""
    try:
        return source.load(index)
    except ImageError:
        return None


def loaded(source: ImageSource, index: int, strict: bool, skipped: Skipped) -> Image.Image | None:
    """An image; None for one that cannot be read, after a warning, or with `strict` an error."""
    name = source.names[index]
    try:
        return source.load(index)
    except ImageError as error:
        if strict:
            raise ImageError(f"{name}: {error}") from None
        skipped.add(name, str(error))
        return None


def _batch_records(
    made: Segmenter,
    batch: Sequence[Waiting],
    found: Sequence[list[Found] | str] | None,
    folder: Folder | None,
    spool: TensorSpool | None,
    screen: Screen[str],
) -> Iterator[Records]:
    if found is None:
        yield from (one.records for one in batch)
        return
    names = [one.name for one in batch]
    reasons = {i: of_one for i, of_one in enumerate(found) if isinstance(of_one, str) and not batch[i].records}
    for place in screen.places(names, reasons):
        one, of_one = batch[place], found[place]
        if one.records:
            yield one.records
            continue
        assert one.picture is not None and not isinstance(of_one, str)
        heat = heat_maps(of_one, *one.picture.size)
        if spool is not None:
            spool.add(one.name, heat)
        yield _image_records(made, one.name, one.picture, of_one, heat, folder)


def _image_records(
    made: Segmenter, name: str, picture: Image.Image, found: Sequence[Found], heat: "np.ndarray", folder: Folder | None
) -> Records:

    maps = torch.from_numpy(heat)  # (text, y, x)
    masks = mask_of(maps, made.thresholds[0]).numpy()
    labels = label_map(maps, made.thresholds[0]).numpy() if len(found) > 1 else None
    records: Records = []
    for i, (one, stem) in enumerate(zip(found, slugs([one.text for one in found]), strict=True)):
        low, high = one.scores.min(), one.scores.max()
        record = {"image": name, "text": one.text, "score": rounded(one.cosine), "share": rounded(masks[i].mean())}
        record |= {"box": bounding_box(masks[i]), "lowest": rounded(low), "highest": rounded(high)}
        record |= {"width": picture.width, "height": picture.height, "grid": list(one.scores.shape)}
        if labels is not None:
            record |= {"label": i + 1, "label_share": rounded((labels == i + 1).mean())}
            record["label_rule"] = "highest of the maps standardised over the image, 0 below every threshold"
        if folder is not None:
            where = folder_of(name)
            record["mask"] = folder.write(f"{where}/{stem}.mask.png", pictures.png(pictures.mask_picture(masks[i])))
            drawn = pictures.overlay(picture, heat[i], masks[i])
            record["overlay"] = folder.write(f"{where}/{stem}.overlay.png", pictures.png(drawn))
            if labels is not None:
                record["label_map"] = f"{where}/labels.png"
        records.append(record | made.settings)
    if folder is not None:
        if labels is not None:
            folder.write(f"{folder_of(name)}/labels.png", pictures.png(pictures.label_picture(labels)))
        folder.write(f"{folder_of(name)}/{RECORDS}", json.dumps(records, ensure_ascii=False).encode())
    return records


def slugs(texts: Sequence[str]) -> list[str]:
    """A file name for each text, all different."""
    plain = [re.sub(r"\W+", "-", text.lower()).strip("-")[:LONGEST_SLUG] or "text" for text in texts]
    taken: set[str] = set()
    names = []
    for number, name in enumerate(plain):
        names.append(name if name not in taken else f"{number + 1}-{name}")
        taken.add(names[-1])
    return names


def _finish(
    stream: BufferedIOBase, made: Segmenter, spool: TensorSpool | None, shown: list[list[str]], output_format: str
) -> None:
    """What is written once all is known: the tensors, or the table."""
    if spool is not None:
        spool.write(stream, canonical({"kind": "heat maps", "format": 1} | made.settings))
    elif output_format == "table":
        write_table(stream, ["image", "text", "score", "share"], shown[:SHOWN])
        if len(shown) > SHOWN:
            stream.write("… more images (-f jsonl for all)\n".encode())


def _row(record: dict[str, Any]) -> list[str]:
    return [record["image"], record["text"], f"{record['score']:.3f}", f"{100 * record['share']:.1f} %"]


def spool_for(wanted: bool) -> Any:
    """Where tensors wait for their header, or nothing."""

    return TensorSpool() if wanted else nullcontext()
