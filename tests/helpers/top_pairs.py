"""Inputs and checks of test_top_pairs.py that other tests share."""

from pathlib import Path

import numpy as np
from PIL import Image

COUNT, SHOWN = 24, 3


def some_photos(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(4)
    for i in range(COUNT):
        Image.fromarray(random.integers(0, 256, (3, 3, 3)).astype(np.uint8)).resize((40, 36)).save(folder / f"{i:02d}.png")
    return folder
