"""Scenes of clip-scenes, whose masks are exact: as a folder, or as a tar read as it comes."""

import tarfile
from collections.abc import Iterator
from functools import partial
from io import BufferedIOBase, BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from cliptools.ground.counted import count_of
from cliptools.ground.errors import StreamError
from cliptools.ground.masked.image import MaskedImage, Reading, Rules, guarded, left_out, read_pair, whole_mask
from cliptools.ground.masked.mask_pixels import numbers_of
from cliptools.ground.progress import warn
from cliptools.ground.records import file_objects
from cliptools.ground.strict_json import parse_foreign

SCENES = "scenes.jsonl"


def scenes_in_folder(folder: Path, whole: bool, rules: Rules = Rules()) -> Iterator[Reading]:
    """clip-scenes --out-dir: scenes.jsonl says what is where."""
    path = folder / SCENES
    for _, said in file_objects(path, str(path)):
        record = _checked(said, str(path))
        image, masks = (folder / str(record.get(part)) for part in ("image", "masks"))
        yield guarded(record["key"], partial(_scene, record, image, masks, whole, rules))


def scenes_in_tar(stream: BufferedIOBase, name: str, whole: bool, rules: Rules = Rules()) -> Iterator[Reading]:
    """clip-scenes' tar, read as it comes: KEY.png, KEY.json and KEY.masks.png of one scene follow each other.

    Raises:
        StreamError: empty, no tar, cut short, or without scenes.
    """
    tail = _Tail(stream)
    parts: dict[str, bytes] = {}
    current, found = None, 0
    incomplete: list[str] = []
    try:
        with tarfile.open(fileobj=tail, mode="r|") as archive:  # type: ignore[call-overload]  # all it does is read
            while (member := archive.next()) is not None:
                archive.members = []  # the list would grow with the archive
                if (file := archive.extractfile(member)) is None:
                    continue
                folder, slash, own = member.name.removeprefix("./").rpartition("/")
                stem, _, ending = own.partition(".")
                if (key := folder + slash + stem) != current:
                    incomplete += [str(current)] if parts else []
                    current, parts = key, {}
                parts[ending] = file.read()
                if {"png", "json", "masks.png"} <= set(parts):
                    found += 1
                    record, image, masks = _record(parts["json"], name), BytesIO(parts["png"]), BytesIO(parts["masks.png"])
                    yield guarded(key, partial(_scene, record, image, masks, whole, rules))
                    parts = {}
    except tarfile.ReadError as error:
        raise StreamError(f"{name}: expected a tar of clip-scenes, found none or one cut short ({error})") from None
    incomplete += [str(current)] if parts else []
    if incomplete and found:
        warn(
            f"{name}: {count_of(len(incomplete), 'key')} left out, the first {incomplete[0]}, where KEY.png, KEY.json and "
            "KEY.masks.png do not stand next to each other"
        )
    if not tail.ends_in_zeros():
        raise StreamError(f"{name}: truncated or damaged tar: no end mark after {count_of(found, 'scene')}")
    if not found:
        raise StreamError(f"{name}: a tar without scenes (expected KEY.png, KEY.json and KEY.masks.png, as clip-scenes writes)")


class _Tail:
    """A stream that remembers its last block: tarfile takes any end for the end, only a block of zeros is one."""

    def __init__(self, stream: BufferedIOBase) -> None:
        self._stream = stream
        self._last = b""

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._last = (self._last + data)[-tarfile.BLOCKSIZE :]
        return data

    def ends_in_zeros(self) -> bool:
        """Whether the last block read, and all that is still to come, is zeros."""
        clean = True
        while data := self.read(1 << 20):
            clean &= not data.strip(b"\0")
        return clean and not self._last.strip(b"\0")


def _scene(record: dict[str, Any], image: Path | BytesIO, masks: Path | BytesIO, whole: bool, rules: Rules) -> MaskedImage:
    picture, pixels = read_pair(image, masks, rules.placing, "mask" if whole else "labels")
    if whole:
        return whole_mask(record["key"], picture, pixels, rules)
    labels, void = numbers_of(pixels, "labels", "numbers of emoji"), left_out(pixels, rules.ignored)
    if void is not None:
        labels = np.where(void, 0, labels)
    slots: dict[str, list[int]] = {}  # of a name: two dogs have one mask
    for slot, name in enumerate(record["names"], 1):
        if (labels == slot).any():
            slots.setdefault(name, []).append(slot)
    shown = np.stack([np.isin(labels, own) for own in slots.values()]) if slots else np.zeros((0, *labels.shape), bool)
    return MaskedImage(record["key"], picture, tuple(slots), shown, void, pixels.remarks)


def _record(data: bytes, name: str) -> dict[str, Any]:
    try:
        return _checked(parse_foreign(data.decode()), name)
    except ValueError:
        return _checked(None, name)


def _checked(record: Any, name: str) -> dict[str, Any]:
    if isinstance(record, dict) and isinstance(record.get("key"), str):
        names = record.get("names")
        if isinstance(names, list) and all(isinstance(each, str) for each in names):
            return record
    raise StreamError(f"{name}: a scene's record without `key` and `names` (expected what clip-scenes writes)")
