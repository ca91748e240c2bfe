"""From scores of patches to heat maps, masks and label maps at an image's own size.

Logits of windows that slide over an image, brought to pixels and averaged where they overlap, as two small matrices.

Windows stand in rows and columns, tokens in each window too, and bilinear interpolation is one along either axis. So the
average over windows at every pixel is, for each text, A_y L A_x': L holds the logits of all windows' tokens, window rows
over token rows by window columns over token columns, and A_y, A_x say how far each of them reaches. Interpolation from the
windows' pixels to another size is one factor more.

From logits of many texts to one label a pixel.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor
from torch.nn import functional as F

from cliptools.devices import Limit, in_halves
from cliptools.errors import SingleItemError

Threshold = float | Literal["mean"]


def at_size(scores: Float[Tensor, "text row column"], rows: int, columns: int) -> Float[Tensor, "text y x"]:
    """Scores at every pixel, bilinear between the patches' centres."""
    return torch.nn.functional.interpolate(scores[None], size=(rows, columns), mode="bilinear")[0]


def min_max(scores: Float[Tensor, "text y x"]) -> Float[Tensor, "text y x"]:
    """Each text's map from its least score, 0, to its greatest, 1; zeros where all are the same."""
    low, high = scores.amin((1, 2), keepdim=True), scores.amax((1, 2), keepdim=True)
    return torch.where(high > low, (scores - low) / torch.where(high > low, high - low, 1), 0)


def mask_of(heat: Float[Tensor, "text y x"], threshold: Threshold = 0.5) -> Bool[Tensor, "text y x"]:
    """Mark pixels of a heat map in [0, 1] that reach the threshold, or its own mean over the image; none in a map of zeros."""
    cut = heat.mean((1, 2), keepdim=True) if threshold == "mean" else threshold
    return (heat >= cut) & (heat > 0)


def label_map(heat: Float[Tensor, "text y x"], threshold: Threshold = 0.5) -> Int[Tensor, "y x"]:
    """1 + the text whose standardised map is highest, among those whose mask holds the pixel; 0, the ground, where none does.

    Maps are standardised to mean 0 and deviation 1 over the image, so that a text with broad or loud neurons does not
    win everywhere.
    """
    mean, deviation = heat.mean((1, 2), keepdim=True), heat.std((1, 2), keepdim=True, correction=0)
    z = (heat - mean) / torch.where(deviation > 0, deviation, 1)
    z = torch.where(mask_of(heat, threshold), z, -torch.inf)
    highest, label = z.max(0)  # (y, x)
    return torch.where(highest > -torch.inf, label + 1, 0)


def bounding_box(mask: Bool[np.ndarray, "y x"]) -> list[int] | None:
    """Left, top, right and bottom (the last two just outside) of what the mask holds; None if it holds nothing."""
    if not mask.any():
        return None
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


def window_starts(length: int, side: int, stride: int) -> list[int]:
    """Return the starts of windows that cover so many pixels; the last window ends with them."""
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


SHARPNESS = 40.0  # the softmax is over so many times the logits
TOGETHER = 1 << 22  # logits made at a time: as many texts as this allows, so that memory grows little with texts and pixels


class Labelled(NamedTuple):
    """The best text at every pixel, on the CPU."""

    text: Int[Tensor, "y x"]
    logit: Float[Tensor, "y x"]
    """Its logit, times the sharpness."""
    total: Float[Tensor, "y x"] | None
    """log of the softmax' denominator over all texts, where it was asked for."""

    @property
    def probability(self) -> Float[Tensor, "y x"]:
        """The best text's share of the softmax."""
        assert self.total is not None
        return (self.logit - self.total).exp()


@dataclass
class Room:
    """Numbers of texts and rows that fit into memory at the size of the pictures, as far as is known."""

    texts: Limit = field(default_factory=Limit)
    rows: Limit = field(default_factory=Limit)
    """Rows of pixels, once a single text is too much."""


class _Best(NamedTuple):
    """The best text of some at every pixel of some rows."""

    won: Tensor
    """True where this text is better than those before."""
    text: Tensor
    """Best text at these pixels."""
    highest: Tensor
    total: Tensor | None


def best_texts(
    averaged: Averaged,
    rows: int,
    columns: int,
    probabilities: bool = True,
    sharpness: float = SHARPNESS,
    room: Room | None = None,
) -> Labelled:
    """Softmax over the texts and argmax, at so many rows and columns of pixels; of equal ones the first.

    Where the device runs out of memory, fewer texts are compared at a time, and in the end fewer rows of pixels.

    Args:
        probabilities: Compute the softmax too, which the argmax does not need.
        room: Is kept up to date, for callers that come back with further pictures.

    Raises:
        SingleItemError: a single row is too much.
    """
    room = Room() if room is None else room

    def work(some: Sequence[int], _: Tensor | None) -> Labelled:
        part = slice(some[0], some[-1] + 1)
        try:
            return _best_of_rows(averaged, (rows, columns), part, probabilities, sharpness, room)
        except SingleItemError:
            room.texts.largest = None  # of fewer rows more texts fit
            raise

    parts = [part for _, part in in_halves([(range(rows), None)], work, "rows", room.rows)]
    text, logit = torch.cat([part.text for part in parts]), torch.cat([part.logit for part in parts])  # (y, x)
    totals = [part.total for part in parts if part.total is not None]
    return Labelled(text, logit, torch.cat(totals) if totals else None)


def _best_of_rows(
    averaged: Averaged, size: tuple[int, int], part: slice, probabilities: bool, sharpness: float, room: Room
) -> Labelled:
    """The labels of some rows of pixels."""
    rows, columns = part.stop - part.start, size[1]
    highest = averaged.L.new_full((rows, columns), -torch.inf)
    total = highest.clone() if probabilities else None
    text = torch.zeros(rows, columns, dtype=torch.int64, device=highest.device)
    count, together = len(averaged.L), max(1, TOGETHER // (rows * columns))

    def compare(some: Sequence[int], _: Tensor | None) -> _Best:
        logits = sharpness * averaged.at(*size, slice(some[0], some[-1] + 1), part)
        top = logits.amax(0)
        won = top > highest  # few pixels, later on: to look for the text there alone is much quicker than max(0) everywhere
        summed = None if total is None else torch.logaddexp(total, logits.logsumexp(0))
        return _Best(won, logits[:, won].argmax(0) + some[0], torch.maximum(highest, top), summed)

    batches = ((range(start, min(start + together, count)), None) for start in range(0, count, together))
    for _, best in in_halves(batches, compare, "texts", room.texts):
        text[best.won] = best.text
        highest, total = best.highest, best.total
    return Labelled(text.cpu(), highest.cpu(), None if total is None else total.cpu())


def logits_at_size(averaged: Averaged, room: Room | None = None) -> Float32[np.ndarray, "text y x"]:
    """Logits of all texts at the size of the image as resized."""

    def work(some: Sequence[int], _: Tensor | None) -> Float32[np.ndarray, "some y x"]:
        return averaged.at(*averaged.size, slice(some[0], some[-1] + 1)).float().cpu().numpy()

    texts = [(range(len(averaged.L)), None)]
    parts = [part for _, part in in_halves(texts, work, "texts", Limit() if room is None else room.texts)]
    return np.concatenate(parts) if len(parts) > 1 else parts[0]


def to_labels(found: Labelled, label_of_text: Int[Tensor, " text"], threshold: float | None = None) -> Int[Tensor, "y x"]:
    """The class of each pixel's best text; 0, the ground, where its probability is below the threshold."""
    labels = label_of_text.to(found.text.device)[found.text]
    return labels if threshold is None else torch.where(found.probability >= threshold, labels, 0)
