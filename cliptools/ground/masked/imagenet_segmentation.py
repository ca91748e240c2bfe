"""ImageNet-Segmentation (Guillaumin et al. 2014): `gtsegs_ijcv.mat`, a MATLAB 7.3 file, which is HDF5.

/value/img and /value/gt hold a reference an image: to its pixels [3, x, y], and to a cell whose first reference leads to its
mask [x, y], 1 where the object is. MATLAB's arrays lie transposed.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cliptools.ground.errors import CliptoolsError, ImageError, StreamError
from cliptools.ground.masked.image import MaskedImage, Reading


def segmented(path: Path) -> Iterator[Reading]:
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
            images, masks = file["/value/img"], file["/value/gt"]
        except KeyError:
            raise StreamError(f"{path}: an HDF5 file without /value/img and /value/gt (expected gtsegs_ijcv.mat)") from None
        for index in range(len(images)):
            yield _one(file, f"{path.stem}/{index:04d}", images[index, 0], masks[index, 0])


def _one(file: Any, name: str, image: Any, mask: Any) -> Reading:
    try:
        pixels = np.array(file[image]).transpose(2, 1, 0)  # (y, x, 3)
        truth = np.array(file[file[mask][0, 0]]).T > 0  # (y, x)
    except (ValueError, KeyError, OSError, IndexError, TypeError) as error:
        return ImageError(f"{name}: damaged ({error})")
    if pixels.shape[:2] != truth.shape or pixels.dtype != np.uint8:
        return ImageError(f"{name}: image {pixels.shape} {pixels.dtype} and mask {truth.shape} do not belong together")
    return MaskedImage(name, Image.fromarray(np.ascontiguousarray(pixels)), (), truth[None])
