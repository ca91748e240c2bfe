"""Logits of windows that slide over an image, brought to pixels and averaged where they overlap, as two small matrices.

Windows stand in rows and columns, tokens in each window too, and bilinear interpolation is one along either axis. So the
average over windows at every pixel is, for each text, A_y L A_x': L holds the logits of all windows' tokens, window rows
over token rows by window columns over token columns, and A_y, A_x say how far each of them reaches. Interpolation from the
windows' pixels to another size is one factor more.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def window_starts(length: int, side: int, stride: int) -> list[int]:
    """Where windows begin that cover so many pixels; the last one ends with them."""
    return [*range(0, length - side, stride), length - side]


def bilinear(tokens: int, pixels: int, like: Tensor) -> Float[Tensor, "pixel token"]:
    """Linear interpolation along one axis, ends held, pixels at their centres."""
    eye = torch.eye(tokens, dtype=like.dtype, device=like.device)
    return F.interpolate(eye[None], size=pixels, mode="linear")[0].T


def averaging(starts: Sequence[int], side: int, tokens: int, length: int, like: Tensor) -> Float[Tensor, "pixel window_token"]:
    """Each pixel as the mean, over the windows that hold it, of their interpolated tokens; along one axis."""
    of_window = bilinear(tokens, side, like)  # (side, token)
    A = like.new_zeros(length, len(starts), tokens)
    for number, start in enumerate(starts):
        A[start : start + side, number] = of_window
    return (A / (A.sum((1, 2), keepdim=True))).flatten(1)  # a window's weights sum to 1 where it holds the pixel


class Averaged:
    """Logits at every pixel of an image seen in windows, made a few texts at a time."""

    def __init__(
        self,
        logits: Float[Tensor, "window text row column"],
        starts: tuple[Sequence[int], Sequence[int]],
        side: tuple[int, int],
        size: tuple[int, int],
    ) -> None:
        """
        Args:
            logits: Of the windows, row by row.
            starts: Tops of the window rows, and lefts of the window columns.
            side: Height and width of a window, in pixels.
            size: Of the image the windows are of.
        """
        down, across = len(starts[0]), len(starts[1])
        L = logits.unflatten(0, (down, across)).permute(2, 0, 3, 1, 4)  # (text, down, row, across, column)
        self.L: Float[Tensor, "text window_row window_column"] = L.flatten(3, 4).flatten(1, 2)
        self.size = size
        self.A_y = averaging(starts[0], side[0], logits.shape[2], size[0], logits)
        self.A_x = averaging(starts[1], side[1], logits.shape[3], size[1], logits)

    def at(self, rows: int, columns: int, texts: slice = slice(None), part: slice = slice(None)) -> Float[Tensor, "text y x"]:
        """Logits of some texts at another size, bilinear between the image's pixels; of some of its rows."""
        A_y = self.A_y if rows == self.size[0] else bilinear(self.size[0], rows, self.A_y) @ self.A_y
        A_x = self.A_x if columns == self.size[1] else bilinear(self.size[1], columns, self.A_x) @ self.A_x
        return A_y[part] @ self.L[texts] @ A_x.T
