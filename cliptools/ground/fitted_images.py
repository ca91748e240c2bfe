"""Whole pictures as a tower takes them: the aspect kept, sides in whole patches, in batches of one shape."""

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

Item = TypeVar("Item")


def fitted_size(width: int, height: int, short: int, patch: tuple[int, int]) -> tuple[int, int]:
    """Width and height with the shorter side near `short` pixels and the aspect kept, as nearly as whole patches allow.

    >>> fitted_size(640, 480, 224, (32, 32))
    (288, 224)
    """
    scale = short / min(width, height)
    down, across = patch
    return max(1, round(width * scale / across)) * across, max(1, round(height * scale / down)) * down


def fitted_tensor(
    picture: Image.Image, short: int, patch: tuple[int, int], preprocessing: dict[str, Any]
) -> Float[Tensor, "3 y x"]:
    """The whole picture, resized to whole patches and normalised as the model's preprocessing says; nothing is cropped."""
    resample = Image.Resampling[preprocessing["interpolation"].upper()]
    size = fitted_size(*picture.size, short, patch)
    resized = picture if picture.size == size else picture.resize(size, resample)
    pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 255  # (3, y, x)
    mean, deviation = (torch.tensor(preprocessing[key])[:, None, None] for key in ("mean", "std"))
    return (pixels - mean) / deviation


def same_shapes(items: Iterable[tuple[Item, Tensor | None]], batch_size: int) -> Iterator[tuple[list[Item], Tensor | None]]:
    """Batches of neighbours of one shape, at most `batch_size`, in order; an item without a tensor goes by itself."""
    waiting: list[Item] = []
    tensors: list[Tensor] = []
    for item, tensor in items:
        if waiting and (tensor is None or len(waiting) == batch_size or tensors[0].shape != tensor.shape):
            yield waiting, torch.stack(tensors)
            waiting, tensors = [], []
        if tensor is None:
            yield [item], None
            continue
        waiting.append(item)
        tensors.append(tensor)
    if waiting:
        yield waiting, torch.stack(tensors)
