"""A vision transformer on pictures of other sizes than it was trained on: its positional embeddings, resized."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


def resized_positions(
    positions: Float[Tensor, "token width"], grid: tuple[int, int], rows: int, columns: int
) -> Float[Tensor, "new_token width"]:
    """The class token's embedding as it is, those of the patches brought from one grid to another (bicubic, antialiased)."""
    wide = positions if positions.dtype == torch.float64 else positions.float()  # half precision has no bicubic
    patches = wide[1:].T.unflatten(1, grid)[None]  # (1, width, row, column)
    wanted = torch.nn.functional.interpolate(patches, size=(rows, columns), mode="bicubic", antialias=True)
    return torch.cat([positions[:1], wanted[0].flatten(1).T.to(positions.dtype)])


@contextmanager
def on_grid(visual: Any, rows: int, columns: int) -> Iterator[None]:
    """The tower (an open_clip VisionTransformer) takes pictures of rows × columns patches within the block."""
    grid = tuple(visual.grid_size)
    if grid == (rows, columns):
        yield
        return
    kept = visual.positional_embedding
    resized = resized_positions(kept.detach(), grid, rows, columns)
    visual.positional_embedding = nn.Parameter(resized, requires_grad=False)
    try:
        yield
    finally:
        visual.positional_embedding = kept
