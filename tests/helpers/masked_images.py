"""Inputs and checks of test_masked_images.py that other tests share."""

from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from cliptools.errors import ImageError
from cliptools.images.segmentation.masked_image import MaskedImage


def write_gtsegs(path: Path, images: list[np.ndarray], masks: list[np.ndarray], mask_type: str = "u1") -> None:
    """Write a file in the layout of gtsegs_ijcv.mat: transposed arrays behind references, each mask in a cell."""
    with h5py.File(path, "w") as file:
        for name in ("img", "gt"):
            file.create_dataset(f"value/{name}", (len(images), 1), dtype=h5py.ref_dtype)
        for i, (image, mask) in enumerate(zip(images, masks, strict=True)):
            file[f"#refs#/img{i}"] = image.transpose(2, 1, 0)
            file[f"#refs#/mask{i}"] = mask.T.astype(mask_type)
            cell = file.create_dataset(f"#refs#/cell{i}", (1, 1), dtype=h5py.ref_dtype)
            cell[0, 0] = file[f"#refs#/mask{i}"].ref
            file["value/img"][i, 0] = file[f"#refs#/img{i}"].ref
            file["value/gt"][i, 0] = cell.ref


def read(readings: Iterable[MaskedImage | ImageError]) -> list[MaskedImage]:
    found = list(readings)
    assert all(isinstance(one, MaskedImage) for one in found), found
    return found


def save_pair(folder: Path, name: str, image: np.ndarray, mask: np.ndarray) -> None:
    for part, pixels, ending in (("images", image, ".bmp"), ("masks", np.where(mask, 255, 0).astype(np.uint8), ".png")):
        path = folder / part / f"{name}{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
