"""Masks and label maps at an image's own size, from scores of patches: for heat maps of texts, and for logits of many texts.

Heat maps. `at_size` interpolates the scores of patches to pixels, `min_max` scales each text's map to [0, 1], `mask_of` applies
a threshold, and `label_map` compares the standardised maps of several texts.

Logits of many texts. A window slides over the image; the logits of the windows' tokens are interpolated to pixels and averaged
where windows overlap. Windows stand in rows and columns, and so do the tokens of a window; bilinear interpolation is linear
interpolation along each axis in turn. The average at every pixel is therefore, for each text, a product of three matrices:

    A_y L A_x'

L holds the logits of all windows' tokens: its rows are (window row, token row), its columns (window column, token column). A_y
and A_x hold the weight of each token at each pixel. Interpolation from the resized image to another size is one matrix more on
either side. `best_texts` computes the softmax over the texts and the best text of every pixel without holding the logits of all
texts at once, and `to_labels` maps texts to classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from cliptools.devices import Limit, in_halves
from cliptools.errors import SingleItemError

Threshold = float | Literal["mean"]


def at_size(scores: Float[Tensor, "text row column"], rows: int, columns: int) -> Float[Tensor, "text y x"]:
    """Scores at every pixel, bilinear between the patches' centres."""
    return torch.nn.functional.interpolate(scores[None], size=(rows, columns), mode="bilinear")[0]


def min_max(scores: Float[Tensor, "text y x"]) -> Float[Tensor, "text y x"]:
    """Each text's map scaled from its lowest score, 0, to its highest, 1; zeros for a map of equal scores."""
    low, high = scores.amin((1, 2), keepdim=True), scores.amax((1, 2), keepdim=True)
    return torch.where(high > low, (scores - low) / torch.where(high > low, high - low, 1), 0)


def mask_of(heat: Float[Tensor, "text y x"], threshold: Threshold = 0.5) -> Bool[Tensor, "text y x"]:
    """Mark pixels of a heat map in [0, 1] that reach the threshold, or the map's own mean; no pixel of a map of zeros."""
    cut = heat.mean((1, 2), keepdim=True) if threshold == "mean" else threshold  # (text, 1, 1), or a number
    return (heat >= cut) & (heat > 0)


def label_map(heat: Float[Tensor, "text y x"], threshold: Threshold = 0.5) -> Int[Tensor, "y x"]:
    """1 + the text whose standardised map is highest at the pixel, among texts whose mask holds the pixel; 0 for the background.

    Maps are standardised to mean 0 and deviation 1 over the image, so that a text whose neurons are active everywhere, or
    strongly, does not win at every pixel.
    """
    mean, deviation = heat.mean((1, 2), keepdim=True), heat.std((1, 2), keepdim=True, correction=0)
    z = (heat - mean) / torch.where(deviation > 0, deviation, 1)
    z = torch.where(mask_of(heat, threshold), z, -torch.inf)
    highest, label = z.max(0)  # (text, y, x) -> (y, x)
    return torch.where(highest > -torch.inf, label + 1, 0)


def bounding_box(mask: Bool[np.ndarray, "y x"]) -> list[int] | None:
    """Left, top, right and bottom of the mask's pixels, right and bottom exclusive; None for an empty mask."""
    box = Image.fromarray(mask).getbbox()
    return None if box is None else list(box)


def window_starts(length: int, side: int, stride: int) -> list[int]:
    """Return the starts of windows that cover `length` pixels; the last window ends at the last pixel."""
    return [*range(0, length - side, stride), length - side]


def interpolation_matrix(tokens: int, pixels: int, like: Tensor) -> Float[Tensor, "pixel token"]:
    """Matrix of linear interpolation along one axis, between the centres of tokens; constant beyond the outermost centres."""
    eye = torch.eye(tokens, dtype=like.dtype, device=like.device)
    return F.interpolate(eye[None], size=pixels, mode="linear")[0].T  # (token, pixel) -> (pixel, token)


def averaging_matrix(
    starts: Sequence[int], side: int, tokens: int, length: int, like: Tensor
) -> Float[Tensor, "pixel window_token"]:
    """Matrix of the mean over the windows that hold a pixel, of their interpolated tokens; along one axis."""
    window_weights = interpolation_matrix(tokens, side, like)  # (side, token)
    A = like.new_zeros(length, len(starts), tokens)  # (pixel, window, token)
    for number, start in enumerate(starts):
        A[start : start + side, number] = window_weights
    # At a pixel the weights of a window that holds it sum to 1, so the sum over all windows is the number of such windows.
    return (A / (A.sum((1, 2), keepdim=True))).flatten(1)  # (pixel, window token)


class WindowAverage:
    """Logits of windows over an image; `at` averages them at every pixel, for a few texts at a time."""

    def __init__(
        self,
        logits: Float[Tensor, "window text row column"],
        starts: tuple[Sequence[int], Sequence[int]],
        side: tuple[int, int],
        size: tuple[int, int],
    ) -> None:
        """
        Args:
            logits: Logits of the windows' tokens; windows row by row.
            starts: Top pixel of each row of windows, and left pixel of each column of windows.
            side: Height and width of a window, in pixels.
            size: Height and width of the image, in pixels.
        """
        down, across = len(starts[0]), len(starts[1])
        # (window, text, row, column) -> (text, down, row, across, column)
        L = logits.unflatten(0, (down, across)).permute(2, 0, 3, 1, 4)
        self.L: Float[Tensor, "text window_row window_column"] = L.flatten(3, 4).flatten(1, 2)
        self.size = size
        self.A_y = averaging_matrix(starts[0], side[0], logits.shape[2], size[0], logits)  # (y, window row)
        self.A_x = averaging_matrix(starts[1], side[1], logits.shape[3], size[1], logits)  # (x, window column)

    def at(self, rows: int, columns: int, texts: slice = slice(None), part: slice = slice(None)) -> Float[Tensor, "text y x"]:
        """Logits at another size, bilinear between the image's pixels; `texts` and `part` select texts and rows of pixels."""
        A_y = self.A_y if rows == self.size[0] else interpolation_matrix(self.size[0], rows, self.A_y) @ self.A_y
        A_x = self.A_x if columns == self.size[1] else interpolation_matrix(self.size[1], columns, self.A_x) @ self.A_x
        return A_y[part] @ self.L[texts] @ A_x.T  # (text, window row, window column) -> (text, y, x)


SHARPNESS = 40.0  # factor of the logits before the softmax (arXiv 2509.19943)
MOST_LOGITS = 1 << 22  # logits held at a time: limits the texts, so that memory grows little with texts and pixels


class BestTexts(NamedTuple):
    """The best text at every pixel, on the CPU."""

    text: Int[Tensor, "y x"]
    logit: Float[Tensor, "y x"]
    """Logit of the best text, times the sharpness."""
    total: Float[Tensor, "y x"] | None
    """Logarithm of the softmax' denominator, over all texts; None if probabilities are not computed."""

    @property
    def probability(self) -> Float[Tensor, "y x"]:
        """The best text's share of the softmax."""
        assert self.total is not None
        return (self.logit - self.total).exp()


@dataclass
class MemoryLimits:
    """Numbers of texts and of rows of pixels that fit into memory, once the device has run out of memory with more."""

    texts: Limit = field(default_factory=Limit)
    rows: Limit = field(default_factory=Limit)
    """Rows of pixels at a time; limited once a single text does not fit."""


class _Best(NamedTuple):
    """The best text of a batch of texts, at the pixels of a block of rows."""

    improved: Bool[Tensor, "y x"]
    """True where the batch has a better text than the batches before."""
    text: Int[Tensor, " pixel"]
    """Best text at the improved pixels."""
    highest: Float[Tensor, "y x"]
    """Highest logit of this batch and those before, times the sharpness."""
    total: Float[Tensor, "y x"] | None
    """Logarithm of the softmax' denominator over this batch and those before."""


def best_texts(
    averaged: WindowAverage,
    rows: int,
    columns: int,
    probabilities: bool = True,
    sharpness: float = SHARPNESS,
    limits: MemoryLimits | None = None,
) -> BestTexts:
    """Softmax over the texts and best text of every pixel, at the given size; of equal texts the first.

    Where the device runs out of memory, fewer texts are compared at a time, and in the end fewer rows of pixels.

    Args:
        probabilities: Compute the softmax too, which the best text does not need.
        limits: Updated in place, so that the next picture of the caller begins with numbers that fit.

    Raises:
        SingleItemError: a single row of pixels does not fit into memory.
    """
    limits = MemoryLimits() if limits is None else limits

    def work(indices: Sequence[int], _: Tensor | None) -> BestTexts:
        part = slice(indices[0], indices[-1] + 1)
        try:
            return _best_of_rows(averaged, (rows, columns), part, probabilities, sharpness, limits)
        except SingleItemError:
            limits.texts.largest = None  # with fewer rows, more texts fit
            raise

    parts = [part for _, part in in_halves([(range(rows), None)], work, "rows", limits.rows)]
    text, logit = torch.cat([part.text for part in parts]), torch.cat([part.logit for part in parts])  # (rows, x) -> (y, x)
    totals = [part.total for part in parts if part.total is not None]
    return BestTexts(text, logit, torch.cat(totals) if totals else None)


def _best_of_rows(
    averaged: WindowAverage, size: tuple[int, int], part: slice, probabilities: bool, sharpness: float, limits: MemoryLimits
) -> BestTexts:
    """The best texts of a block of rows of pixels."""
    rows, columns = part.stop - part.start, size[1]
    highest = averaged.L.new_full((rows, columns), -torch.inf)
    total = highest.clone() if probabilities else None
    text = torch.zeros(rows, columns, dtype=torch.int64, device=highest.device)
    count, at_once = len(averaged.L), max(1, MOST_LOGITS // (rows * columns))  # texts

    def compare(indices: Sequence[int], _: Tensor | None) -> _Best:
        logits = sharpness * averaged.at(*size, slice(indices[0], indices[-1] + 1), part)  # (text, rows, x)
        top = logits.amax(0)  # (text, rows, x) -> (rows, x)
        improved = top > highest  # few pixels in later batches: argmax at these alone is much quicker than max(0) at all pixels
        new_total = None if total is None else torch.logaddexp(total, logits.logsumexp(0))
        best = logits[:, improved].argmax(0) + indices[0]  # (text, pixel) -> (pixel,)
        return _Best(improved, best, torch.maximum(highest, top), new_total)

    batches = ((range(start, min(start + at_once, count)), None) for start in range(0, count, at_once))
    for _, best in in_halves(batches, compare, "texts", limits.texts):
        text[best.improved] = best.text
        highest, total = best.highest, best.total
    return BestTexts(text.cpu(), highest.cpu(), None if total is None else total.cpu())


def logits_at_size(averaged: WindowAverage, limits: MemoryLimits | None = None) -> Float32[np.ndarray, "text y x"]:
    """Logits of all texts at the size of the image as resized."""

    def work(indices: Sequence[int], _: Tensor | None) -> Float32[np.ndarray, "part y x"]:
        return averaged.at(*averaged.size, slice(indices[0], indices[-1] + 1)).float().cpu().numpy()

    texts = [(range(len(averaged.L)), None)]
    parts = [part for _, part in in_halves(texts, work, "texts", Limit() if limits is None else limits.texts)]
    return np.concatenate(parts) if len(parts) > 1 else parts[0]  # (part, y, x) -> (text, y, x)


def to_labels(best: BestTexts, label_of_text: Int[Tensor, " text"], threshold: float | None = None) -> Int[Tensor, "y x"]:
    """The class of each pixel's best text; 0, the background, where the text's probability is below the threshold."""
    labels = label_of_text.to(best.text.device)[best.text]
    return labels if threshold is None else torch.where(best.probability >= threshold, labels, 0)
