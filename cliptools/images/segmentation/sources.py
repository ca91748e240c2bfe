"""Pictures with masks from a path: `masked_images` chooses the reader by the kind of path.

* Scenes of clip-scenes, whose masks are exact: a folder (`scenes_in_folder`), or a tar read as a stream (`scenes_in_tar`).
* A folder with images/ and masks/ (label_maps.py).
* ImageNet-Segmentation (Guillaumin et al. 2014): `imagenet_segmentation` reads `gtsegs_ijcv.mat`, a MATLAB 7.3 file, which is
  HDF5. /value/img and /value/gt hold one reference per image: to its pixels [3, x, y], and to a cell whose first reference leads
  to its mask [x, y], 1 where the object is. MATLAB's arrays are transposed; arrays of other programs as [y, x, 3] and [y, x] are
  read as well.
"""

import tarfile
from collections.abc import Iterator
from functools import partial
from io import BufferedIOBase, BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image

from cliptools.console import count_of, warn
from cliptools.errors import CliptoolsError, ImageError, StreamError
from cliptools.images.segmentation.label_maps import pairs_in_folder
from cliptools.images.segmentation.mask_pixels import FULL, array_pixels, numbers_of
from cliptools.images.segmentation.masked_image import (
    MaskBasis,
    MaskedImage,
    Reading,
    Rules,
    ignored_pixels,
    read_or_error,
    read_pair,
    single_mask,
)
from cliptools.io.jsonl import file_objects, parse_foreign

MOST_OF_16_BITS = 65535  # the greatest value of 16 bits


def masked_images(
    path: Path | None,
    stdin: BufferedIOBase | None = None,
    single: bool = False,
    ignored: tuple[int, ...] = (),
    basis: MaskBasis | None = None,
) -> Iterator[Reading]:
    """Read pictures and masks from any of the supported places.

    These are a folder with images/ and masks/ (paired by stem; 0 is the background), a folder or tar of clip-scenes, and
    ImageNet-Segmentation's `gtsegs_ijcv.mat`.

    Args:
        path: None for a tar of scenes on `stdin`.
        single: True for one mask of everything drawn in a scene, without a text; False for a mask and the name of every visible
            emoji.
        ignored: Mask values of pixels that do not count.
        basis: The pixels that masks/ belong to, for pictures with an EXIF orientation (masked_image.py); None: by their sizes.

    Raises:
        CliptoolsError: the path does not exist, or is none of these places.
    """
    rules = Rules(ignored)
    if path is None:
        assert stdin is not None
        return scenes_in_tar(stdin, "standard input", single, rules)
    if path.is_dir():
        return scenes_in_folder(path, single, rules) if (path / SCENES).is_file() else pairs_in_folder(path, ignored, basis)
    if not path.exists():
        raise CliptoolsError(f"{path}: no such file or folder")
    if path.suffix.lower() == ".mat":
        return imagenet_segmentation(path, rules)
    return _scenes_in_file(path, single, rules)


def _scenes_in_file(path: Path, single: bool, rules: Rules) -> Iterator[Reading]:
    with path.open("rb") as stream:
        yield from scenes_in_tar(stream, str(path), single, rules)


SCENES = "scenes.jsonl"


def scenes_in_folder(folder: Path, single: bool, rules: Rules = Rules()) -> Iterator[Reading]:
    """Yield the scenes of a folder of clip-scenes --out-dir, as its scenes.jsonl lists them."""
    path = folder / SCENES
    for _, line in file_objects(path, str(path)):
        record = _check_record(line, str(path))
        image, masks = (folder / str(record.get(part)) for part in ("image", "masks"))
        yield read_or_error(record["key"], partial(_scene, record, image, masks, single, rules))


def scenes_in_tar(stream: BufferedIOBase, name: str, single: bool, rules: Rules = Rules()) -> Iterator[Reading]:
    """Yield the scenes of a tar of clip-scenes as a stream; KEY.png, KEY.json and KEY.masks.png of a scene are consecutive.

    Raises:
        StreamError: the stream is empty, no tar, truncated, or has no scenes.
    """
    tail = _TailReader(stream)
    parts: dict[str, bytes] = {}
    current, count = None, 0
    incomplete: list[str] = []
    try:
        with tarfile.open(fileobj=tail, mode="r|") as archive:  # type: ignore[call-overload]  # tarfile only reads from it
            while (member := archive.next()) is not None:
                archive.members = []  # else the list grows with the archive
                if (file := archive.extractfile(member)) is None:
                    continue
                folder, slash, base = member.name.removeprefix("./").rpartition("/")
                stem, _, ending = base.partition(".")
                if (key := folder + slash + stem) != current:
                    incomplete += [str(current)] if parts else []
                    current, parts = key, {}
                parts[ending] = file.read()
                if {"png", "json", "masks.png"} <= set(parts):
                    count += 1
                    record, image, masks = _record(parts["json"], name), BytesIO(parts["png"]), BytesIO(parts["masks.png"])
                    yield read_or_error(key, partial(_scene, record, image, masks, single, rules))
                    parts = {}
    except tarfile.ReadError as error:
        raise StreamError(f"{name}: expected a tar of clip-scenes, found none or one cut short ({error})") from None
    incomplete += [str(current)] if parts else []
    if incomplete and count:
        warn(
            f"{name}: {count_of(len(incomplete), 'key')} left out, the first {incomplete[0]}, where KEY.png, KEY.json and "
            "KEY.masks.png do not stand next to each other"
        )
    if not tail.ends_in_zeros():
        raise StreamError(f"{name}: truncated or damaged tar: no end mark after {count_of(count, 'scene')}")
    if not count:
        raise StreamError(f"{name}: a tar without scenes (expected KEY.png, KEY.json and KEY.masks.png, as clip-scenes writes)")


class _TailReader:
    """A stream that remembers its last block: tarfile accepts any end, but only a block of zeros is the end of an archive."""

    def __init__(self, stream: BufferedIOBase) -> None:
        self._stream = stream
        self._last = b""

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._last = (self._last + data)[-tarfile.BLOCKSIZE :]
        return data

    def ends_in_zeros(self) -> bool:
        """Read to the end and return True if the last block read so far and the rest are zeros."""
        clean = True
        while data := self.read(1 << 20):
            clean &= not data.strip(b"\0")
        return clean and not self._last.strip(b"\0")


def _scene(record: dict[str, Any], image: Path | BytesIO, masks: Path | BytesIO, single: bool, rules: Rules) -> MaskedImage:
    picture, pixels = read_pair(image, masks, rules.alignment, "mask" if single else "labels")
    if single:
        return single_mask(record["key"], picture, pixels, rules)
    labels, void = numbers_of(pixels, "labels", "numbers of emoji"), ignored_pixels(pixels, rules.ignored)
    if void is not None:
        labels = np.where(void, 0, labels)
    slots: dict[str, list[int]] = {}  # slots by name: two dogs share one mask
    for slot, name in enumerate(record["names"], 1):
        if (labels == slot).any():
            slots.setdefault(name, []).append(slot)
    shape = labels.shape
    named_masks = np.stack([np.isin(labels, numbers) for numbers in slots.values()]) if slots else np.zeros((0, *shape), bool)
    return MaskedImage(record["key"], picture, tuple(slots), named_masks, void, pixels.remarks)


def _record(data: bytes, name: str) -> dict[str, Any]:
    try:
        return _check_record(parse_foreign(data.decode()), name)
    except ValueError:
        return _check_record(None, name)


def _check_record(record: Any, name: str) -> dict[str, Any]:
    if isinstance(record, dict) and isinstance(record.get("key"), str):
        names = record.get("names")
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            return record
    raise StreamError(f"{name}: a scene's record without `key` and `names` (expected what clip-scenes writes)")


def imagenet_segmentation(path: Path, rules: Rules = Rules()) -> Iterator[Reading]:
    """Yield the images and masks of ImageNet-Segmentation in the file's order, named by their index from 0.

    Raises:
        CliptoolsError: h5py is not installed.
        StreamError: the file is not gtsegs_ijcv.mat.
    """
    try:
        import h5py
    except ModuleNotFoundError:
        raise CliptoolsError(f"{path}: reading it needs h5py: pip install 'cliptools[mat]'") from None
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise StreamError(f"{path}: expected gtsegs_ijcv.mat (MATLAB 7.3, HDF5), found no HDF5 ({error})") from None
    with file:
        try:
            images, masks = (_dataset(file, name) for name in ("/value/img", "/value/gt"))
        except KeyError:
            raise StreamError(f"{path}: an HDF5 file without /value/img and /value/gt (expected gtsegs_ijcv.mat)") from None
        for index in range(images.size):
            place = np.unravel_index(index, images.shape)  # a column of references, or a row
            yield _hdf5_image(file, f"{path.stem}/{index:04d}", images, masks, tuple(map(int, place)), rules)


def _dataset(file: Any, name: str) -> Any:
    dataset = file[name]
    if not hasattr(dataset, "shape"):  # a group
        raise KeyError(name)
    return dataset


def _hdf5_image(file: Any, name: str, images: Any, masks: Any, place: tuple[int, ...], rules: Rules) -> Reading:
    try:
        pixels, mask_array = np.array(file[images[place]]), np.array(file[file[masks[place]][0, 0]])
    except (ValueError, KeyError, OSError, IndexError, TypeError) as error:
        return ImageError(f"{name}: damaged ({error})")
    try:
        picture, mask = _upright(pixels, mask_array)
        return single_mask(name, Image.fromarray(_eight_bits(picture)), array_pixels(mask), rules)
    except ImageError as error:
        return ImageError(f"{name}: {error}")


def _upright(
    pixels: Shaped[np.ndarray, "..."], mask: Shaped[np.ndarray, "..."]
) -> tuple[Shaped[np.ndarray, "y x 3"], Shaped[np.ndarray, "row column"]]:
    """Return image and mask as [y, x, 3] and [y, x], from MATLAB's transposed arrays or from that form.

    Raises:
        ImageError: the shapes or types are not those of an image and its mask.
    """
    kinds = "biuf"
    if pixels.ndim == 3 and mask.ndim == 2 and pixels.size and pixels.dtype.kind in kinds and mask.dtype.kind in kinds:
        if pixels.shape == (3, *mask.shape):
            return pixels.transpose(2, 1, 0), mask.T
        if pixels.shape == (*mask.shape, 3):
            return pixels, mask
    raise ImageError(
        f"image {pixels.shape} {pixels.dtype} and mask {mask.shape} {mask.dtype} do not belong together, expected numbers "
        "(3, x, y) and (x, y), or (y, x, 3) and (y, x)"
    )


def _eight_bits(pixels: Shaped[np.ndarray, "y x 3"]) -> UInt8[np.ndarray, "y x 3"]:
    """Return pixels of 8 bits, from 16 bits or from real numbers between 0 and 1 or 0 and 255.

    Raises:
        ImageError: the values are outside these ranges.
    """
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels)
    low, high = float(pixels.min()), float(pixels.max())
    if pixels.dtype.kind == "b" or (pixels.dtype.kind == "f" and low >= 0 and high <= 1):
        scale = float(FULL)
    elif low >= 0 and high <= FULL:
        scale = 1.0
    elif pixels.dtype == np.uint16:
        scale = FULL / MOST_OF_16_BITS
    else:
        raise ImageError(
            f"image from {low:g} to {high:g} ({pixels.dtype}), expected numbers from 0 to 255, from 0 to 1, or of 16 bits"
        )
    return np.ascontiguousarray((pixels.astype(np.float64) * scale).round().astype(np.uint8))
