"""A folder of pictures that a run fills and a later run may go on with."""

import re
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from cliptools.ground.earlier_run import check_same, whole_lines
from cliptools.ground.errors import CliptoolsError
from cliptools.ground.output import put_whole, whole_file
from cliptools.ground.records import write_record

LINES = "images.jsonl"
DESCRIPTIONS = "descriptions.jsonl"


class Gallery:
    """Pictures with a line each in images.jsonl, and the descriptions they were made of in descriptions.jsonl.

    A line is written when its picture is whole, so that whatever ends a run, the lines tell what is done.

    Args:
        folder: Made if need be.
        resume: Whether to go on with what is there.

    Raises:
        CliptoolsError: a folder that is not empty, without `resume`; one that cannot be written; or a damaged list in it.
    """

    def __init__(self, folder: Path, resume: bool) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not resume and any(folder.iterdir()):
                raise CliptoolsError(f"{folder}: not empty; go on with what is there (--resume), or name a new folder")
        except OSError as error:
            raise CliptoolsError(f"{folder}: cannot write here ({error.strerror})") from None
        listed = self._lines(LINES, file=str)
        there = [record for record in listed if (folder / record["file"]).is_file()]
        if len(there) < len(listed):  # pictures that somebody has removed are made again
            with whole_file(folder / LINES) as stream:
                for record in there:
                    write_record(stream, record)
        self.done = {record["file"]: record for record in there}
        self.described = {
            record["key"]: record for record in self._lines(DESCRIPTIONS, key=str, descriptions=list, settings=dict)
        }

    def path(self, name: str) -> str:
        """What a record calls the picture of this name."""
        return str(self.folder / name)

    def finished(self, name: str, wanted: dict[str, Any]) -> dict[str, Any] | None:
        """The record of a picture that an earlier run has finished.

        Raises:
            CliptoolsError: a field of it is not as wanted: it was made with other settings.
        """
        record = self.done.get(name)
        if record is None:
            return None
        for key, value in wanted.items():
            check_same(self.folder, key, record.get(key), value)
        return record | {"file": self.path(name)}

    def descriptions(self, key: str, settings: dict[str, Any]) -> list[str] | None:
        """What an earlier run has written for a task.

        Raises:
            CliptoolsError: written with other settings.
        """
        record = self.described.get(key)
        if record is None:
            return None
        check_same(self.folder, "settings", record["settings"], settings)
        return [str(text) for text in record["descriptions"]]

    def add(self, name: str, image: Image.Image, record: dict[str, Any]) -> None:
        """A picture, then its line; there it is called by its place in the folder, which may be moved."""
        self.put(name, image)
        self._append(LINES, record | {"file": name})

    def add_descriptions(self, key: str, texts: list[str], settings: dict[str, Any]) -> None:
        """All descriptions of a task."""
        self._append(DESCRIPTIONS, {"key": key, "descriptions": texts, "settings": settings})

    def put(self, name: str, image: Image.Image) -> None:
        """The picture as PNG, whole or not at all, with nothing in it but pixels."""
        path = self.folder / name
        buffer = BytesIO()
        Image.frombytes("RGB", image.size, image.convert("RGB").tobytes()).save(buffer, "PNG")
        try:
            put_whole(path, buffer.getvalue())
        except OSError as error:
            raise CliptoolsError(f"{path}: could not be written ({error.strerror})") from None

    def _append(self, name: str, record: dict[str, Any]) -> None:
        path = self.folder / name
        try:
            with path.open("ab") as stream:
                write_record(stream, record)
        except OSError as error:
            raise CliptoolsError(f"{path}: could not be written ({error.strerror})") from None

    def _lines(self, name: str, **needed: type) -> list[dict[str, Any]]:
        path = self.folder / name
        found = list(whole_lines(path)) if path.exists() else []
        for number, record in enumerate(found, 1):
            if missing := next((key for key, kind in needed.items() if not isinstance(record.get(key), kind)), None):
                raise CliptoolsError(f"{path}: damaged (line {number} has no `{missing}`); remove it, or name a new folder")
        return found


def slug(text: str) -> str:
    """A text as a part of a path."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower().replace("->", " to ")).strip("-") or "pair"
