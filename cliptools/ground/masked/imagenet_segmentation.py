"""ImageNet-Segmentation (Guillaumin et al. 2014): `gtsegs_ijcv.mat`, a MATLAB 7.3 file, which is HDF5.

/value/img and /value/gt hold a reference an image: to its pixels [3, x, y], and to a cell whose first reference leads to its
mask [x, y], 1 where the object is. MATLAB's arrays lie transposed; arrays that another program wrote as [y, x, 3] and [y, x]
are read as well.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image

from cliptools.ground.errors import CliptoolsError, ImageError, StreamError
from cliptools.ground.masked.image import Reading, Rules, whole_mask
from cliptools.ground.masked.mask_pixels import FULL, array_pixels

WIDE = 65535  # the greatest value of 16 bits


def segmented(path: Path, rules: Rules = Rules()) -> Iterator[Reading]:
    """Images and masks in the file's order, named by their places from 0.

    Raises:
        CliptoolsError: h5py is not installed.
        StreamError: not such a file.
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
            yield _one(file, f"{path.stem}/{index:04d}", images, masks, tuple(map(int, place)), rules)


def _dataset(file: Any, name: str) -> Any:
    dataset = file[name]
    if not hasattr(dataset, "shape"):  # a group
        raise KeyError(name)
    return dataset


def _one(file: Any, name: str, images: Any, masks: Any, place: tuple[int, ...], rules: Rules) -> Reading:
    try:
        pixels, truth = np.array(file[images[place]]), np.array(file[file[masks[place]][0, 0]])
    except (ValueError, KeyError, OSError, IndexError, TypeError) as error:
        return ImageError(f"{name}: damaged ({error})")
    try:
        picture, mask = _upright(pixels, truth)
        return whole_mask(name, Image.fromarray(_eight_bits(picture)), array_pixels(mask), rules)
    except ImageError as error:
        return ImageError(f"{name}: {error}")


def _upright(
    pixels: Shaped[np.ndarray, "..."], truth: Shaped[np.ndarray, "..."]
) -> tuple[Shaped[np.ndarray, "y x 3"], Shaped[np.ndarray, "row column"]]:
    """Image and mask by rows, be they MATLAB's or by rows already.

    Raises:
        ImageError: no image with its mask.
    """
    kinds = "biuf"
    if pixels.ndim == 3 and truth.ndim == 2 and pixels.size and pixels.dtype.kind in kinds and truth.dtype.kind in kinds:
        if pixels.shape == (3, *truth.shape):
            return pixels.transpose(2, 1, 0), truth.T
        if pixels.shape == (*truth.shape, 3):
            return pixels, truth
    raise ImageError(
        f"image {pixels.shape} {pixels.dtype} and mask {truth.shape} {truth.dtype} do not belong together, expected numbers "
        "(3, x, y) and (x, y), or (y, x, 3) and (y, x)"
    )


def _eight_bits(pixels: Shaped[np.ndarray, "y x 3"]) -> UInt8[np.ndarray, "y x 3"]:
    """Pixels of 8 bits, from 16 bits or from real numbers, which are from 0 to 1 or to 255.

    Raises:
        ImageError: other numbers.
    """
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels)
    low, high = float(pixels.min()), float(pixels.max())
    if pixels.dtype.kind == "b" or (pixels.dtype.kind == "f" and low >= 0 and high <= 1):
        scale = float(FULL)
    elif low >= 0 and high <= FULL:
        scale = 1.0
    elif pixels.dtype == np.uint16:
        scale = FULL / WIDE
    else:
        raise ImageError(
            f"image from {low:g} to {high:g} ({pixels.dtype}), expected numbers from 0 to 255, from 0 to 1, or of 16 bits"
        )
    return np.ascontiguousarray((pixels.astype(np.float64) * scale).round().astype(np.uint8))
