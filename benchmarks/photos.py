"""Files for benchmarks: pictures with the spectrum of photographs, and emoji scenes."""

import os
from pathlib import Path
from typing import Any

from runs import tool


def make_photos(folder: Path, count: int, distinct: int = 512, height: int = 375, width: int = 500) -> list[Path]:
    """Write JPEG files with the spectrum of photographs; files after the first `distinct` are hard links."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    files = []
    for i in range(count):
        path = folder / f"{i:05d}.jpg"
        if i < distinct:
            pixels = (np.clip(_natural(rng, height, width), 0, 1) * 255).astype(np.uint8)
            Image.fromarray(pixels).save(path, quality=90)
        else:
            os.link(folder / f"{i % distinct:05d}.jpg", path)
        files.append(path)
    return files


def _natural(rng: Any, height: int, width: int) -> Any:
    """Return a random field whose amplitude falls as 1 / frequency, mostly in brightness, as in photographs."""
    import numpy as np

    y, x = np.fft.fftfreq(height)[:, None] * height, np.fft.rfftfreq(width)[None] * width
    frequency = np.hypot(x, y)
    frequency[0, 0] = np.inf
    noise = rng.normal(size=(3, *frequency.shape, 2)).view(np.complex128)[..., 0]
    field = np.fft.irfft2(noise * frequency ** -rng.uniform(0.9, 1.4), (height, width))
    field /= field.std((1, 2), keepdims=True)
    opponent = np.array([[0.87, 0.82, 0.75], [0.3, 0, -0.37], [0.09, -0.18, 0.09]])  # brightness, blue-yellow, green-red
    contrast, brightness, cast = rng.uniform(0.1, 0.3), rng.normal(0.45, 0.15), rng.normal(0, 0.05, 3)
    return np.einsum("chw,ck->hwk", field, opponent) * contrast + brightness + cast


def make_scenes(folder: Path, distinct: int) -> list[Path]:
    """Write PNG files of one emoji each, in one folder per name."""
    tool("scenes", "--single", "--count", distinct, "--out-dir", folder, "-q")
    return sorted((folder / "images").rglob("*.png"))


def link(files: list[Path], count: int, folder: Path, nested: bool = False) -> Path:
    """Fill a folder with `count` hard links to the files in turn; with `nested`, in folders named like those of the files."""
    for i in range(count):
        file = files[i % len(files)]
        where = folder / file.parent.name if nested else folder
        where.mkdir(parents=True, exist_ok=True)
        os.link(file, where / f"{i:05d}{file.suffix}")
    return folder
