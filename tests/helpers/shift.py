"""Inputs and checks of test_shift.py that other tests share."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.io import savemat


def unit_rows(*shape: int) -> torch.Tensor:
    drawn = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    return torch.nn.functional.normalize(drawn, dim=-1)


def png(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), "teal").save(path)
    return path


def cars(folder: Path, whole: bool) -> Path:
    """Write Stanford Cars with four pictures, as one list or as in the development kit."""
    names = np.array(["Acura Integra Type R 2001", "Audi S5 Convertible 2012", "BMW M6 Convertible 2010"], dtype=object)
    fields = ["bbox_x1", "class", "relative_im_path" if whole else "fname"]

    def annotations(prefix: str, classes: tuple[int, ...], first: int) -> np.ndarray:
        files = [f"{prefix}{first + i:05d}.png" for i in range(len(classes))]
        rows = [(np.float64(1), np.uint8(k), file) for k, file in zip(classes, files, strict=True)]
        return np.array(rows, dtype=[(field, object) for field in fields])[None]

    if whole:
        [png(folder / "car_ims" / f"{i:05d}.png") for i in range(1, 5)]
        savemat(folder / "cars_annos.mat", {"annotations": annotations("car_ims/", (1, 2, 3, 2), 1), "class_names": names[None]})
        return folder
    (folder / "devkit").mkdir(parents=True)
    [
        png(folder / part / f"{i:05d}.png")
        for part, i in (("cars_train", 1), ("cars_train", 2), ("cars_test", 1), ("cars_test", 2))
    ]
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": names[None]})
    savemat(folder / "devkit" / "cars_train_annos.mat", {"annotations": annotations("", (1, 2), 1)})
    savemat(folder / "cars_test_annos_withlabels.mat", {"annotations": annotations("", (3, 2), 1)})
    return folder


def table(folder: Path, text: str) -> Path:
    path = folder / "images.csv"
    path.write_text(text)
    return path
