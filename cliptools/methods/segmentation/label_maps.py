"""From logits of many texts to one label a pixel."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cliptools.methods.segmentation.windows import Averaged

SHARPNESS = 40.0  # the softmax is over so many times the logits
TOGETHER = 1 << 22  # logits made at a time: as many texts as this allows, so that memory grows little with texts and pixels


class Labelled(NamedTuple):
    """The best text at every pixel."""

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


def best_texts(averaged: Averaged, rows: int, columns: int, probabilities: bool = True, sharpness: float = SHARPNESS) -> Labelled:
    """Softmax over the texts and argmax, at so many rows and columns of pixels; of equal ones the first.

    Args:
        probabilities: Compute the softmax too, which the argmax does not need.
    """
    highest = averaged.L.new_full((rows, columns), -torch.inf)
    total = highest.clone() if probabilities else None
    text = torch.zeros(rows, columns, dtype=torch.int64, device=highest.device)
    texts = max(1, TOGETHER // (rows * columns))
    for start in range(0, len(averaged.L), texts):
        logits = sharpness * averaged.at(rows, columns, slice(start, start + texts))
        top = logits.amax(0)
        won = top > highest  # few pixels, later on: to look for the text there alone is much quicker than max(0) everywhere
        text[won] = logits[:, won].argmax(0) + start
        highest = torch.maximum(highest, top)
        if total is not None:
            total = torch.logaddexp(total, logits.logsumexp(0))
    return Labelled(text, highest, total)


def to_labels(found: Labelled, label_of_text: Int[Tensor, " text"], threshold: float | None = None) -> Int[Tensor, "y x"]:
    """The class of each pixel's best text; 0, the ground, where its probability is below the threshold."""
    labels = label_of_text[found.text]
    return labels if threshold is None else torch.where(found.probability >= threshold, labels, 0)
