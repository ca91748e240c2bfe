"""Classes and groups of scenes from the records of clip-scenes --groups: KEY.json in an archive, scenes.jsonl in a folder."""

from collections.abc import Iterator, Sequence
from io import BufferedIOBase
from pathlib import Path, PurePosixPath
from typing import Any

from cliptools.errors import StreamError
from cliptools.images.annotations import SCENES, members_after
from cliptools.images.classification.group_tables import TableRow
from cliptools.images.groups import without_ending
from cliptools.images.listing import ListedImage, find, full_name
from cliptools.images.tar import Span
from cliptools.io.jsonl import file_objects, parse_foreign
from cliptools.io.text_file import decode_text

OPTION = "--groups scenes"


def scene_rows(paths: Sequence[str], stdin: BufferedIOBase | None) -> list[TableRow]:
    """Return class, value, pair and split of scenes.

    Raises:
        StreamError: an image has no record of a scene with a group.
    """
    return [_row(image, record) for image, record in _records(find(paths, stdin))]


def _row(image: ListedImage, record: dict[str, Any]) -> TableRow:
    label, beside, pair, split = (record.get(field) for field in ("label", "beside", "pair", "split"))
    if not (isinstance(label, str) and isinstance(beside, str) and isinstance(pair, str) and isinstance(split, str)):
        raise StreamError(
            f"{OPTION}: the record of {image.name} has no `pair`, `label`, `beside` and `split`, as clip-scenes "
            "--groups writes them"
        )
    return TableRow(image, label, beside, pair, split)


def _records(images: Sequence[ListedImage]) -> Iterator[tuple[ListedImage, dict[str, Any]]]:
    """Yield each image with its record.

    Raises:
        StreamError: an image has no record.
    """
    by_folder: dict[Path, dict[str, dict[str, Any]]] = {}
    for image in images:
        record = _member(image.name, image.place) if isinstance(image.place, Span) else _line(image, by_folder)
        if record is None:
            raise StreamError(
                f"{OPTION}: {image.name} has no record: expected KEY.json after it in its archive, or {SCENES} in a "
                "folder above it, as clip-scenes --groups writes them"
            )
        yield image, record


def _member(name: str, span: Span) -> dict[str, Any] | None:
    """Return the JSON object of the same key that follows a picture in its archive."""
    key = PurePosixPath(name).with_suffix("").name
    for member, data in members_after(span):
        stem, _, ending = PurePosixPath(member).name.partition(".")
        if stem != key:
            break
        if ending == "json":
            try:
                record = parse_foreign(decode_text(data))
            except ValueError:
                break
            return record if isinstance(record, dict) else None
    return None


def _line(image: ListedImage, by_folder: dict[Path, dict[str, dict[str, Any]]]) -> dict[str, Any] | None:
    """Return the line of an image in the scenes.jsonl of the next folder above it that has one."""
    for folder in Path(str(image.place)).parents:
        if folder not in by_folder:
            path = folder / SCENES
            lines = file_objects(path, f"{OPTION} {path}") if path.is_file() else ()
            by_folder[folder] = {str(record.get("key")): record for _, record in lines}
        if records := by_folder[folder]:
            parts = PurePosixPath(without_ending(full_name(image))).parts
            tails = ("/".join(parts[start:]) for start in range(len(parts)))
            return next((records[tail] for tail in tails if tail in records), None)
    return None
