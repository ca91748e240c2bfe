"""From logits of many texts to one label a pixel."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from cliptools.ground.errors import SingleItemError
from cliptools.ground.halving import Limit, in_halves
from cliptools.methods.segmentation.windows import Averaged

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
    """What the device has memory for at a time at the size of the pictures, as far as is known."""

    texts: Limit = field(default_factory=Limit)
    rows: Limit = field(default_factory=Limit)
    """Rows of pixels, once a single text is too much."""


class _Best(NamedTuple):
    """The best text of some at every pixel of some rows."""

    won: Tensor
    """Where it is better than those before."""
    text: Tensor
    """Of these pixels."""
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
            room.texts.most = None  # of fewer rows more texts fit
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
