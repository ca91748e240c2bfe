"""The attention sink of CLIP-ResNets: a corner token that stands out in every image and tells of none (arXiv 2509.19943).

In RN50x16 it is the bottom-right token. Whether a model has it is measured over images, not assumed: a sink is the token of
largest norm, or of most attention, in nearly every image, and far above the middle one.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from cliptools.ground.double_precision import exact
from cliptools.ground.errors import UsageError
from cliptools.methods.segmentation.pool_tokens import PoolTokens

MOSTLY = 0.75  # of the images: there the corner is ahead of all other tokens
FAR_OUT = 2.0  # times the middle token


class Corner(NamedTuple):
    """How the bottom-right token compares with the others, over images."""

    norm: float
    """Median over images of its norm over the middle token's."""
    norm_first: float
    """Share of the images in which no token has a larger norm."""
    attention: float
    """As `norm`, of the mean token's attention, mean over heads."""
    attention_first: float

    @property
    def is_sink(self) -> bool:
        """Whether it stands far out, by norm or by attention."""
        norm, attention = self.norm_first >= MOSTLY, self.attention_first >= MOSTLY
        return bool((norm and self.norm >= FAR_OUT) or (attention and self.attention >= FAR_OUT))


def corner_of(seen: PoolTokens) -> Corner:
    """Measure the bottom-right token."""
    norm, attention = seen.Z.norm(dim=-1), seen.a[..., 1:].mean(1)  # (b, patch)
    return Corner(*_stands_out(norm), *_stands_out(attention))


def _stands_out(value: Float[Tensor, "b patch"]) -> tuple[float, float]:
    """The last token's value over the middle one's, and how often none is larger."""
    last, middle = value[:, -1], value.median(1).values
    ratio = torch.where(middle > 0, last / middle.clamp(min=1e-30), 1.0)
    return float(ratio.median()), float(exact(last >= value.amax(1)).mean())


def repaired(maps: Float[Tensor, "b patch channel"], grid: tuple[int, int]) -> Float[Tensor, "b patch channel"]:
    """The bottom-right token replaced by the mean of its west, north and north-west neighbours.

    Raises:
        UsageError: a grid without such neighbours.
    """
    rows, columns = grid
    if min(grid) < 2:
        raise UsageError(f"--sink: a grid of {rows} × {columns} tokens has no neighbours to repair the corner from")
    maps = maps.clone()
    maps[:, -1] = (maps[:, -2] + maps[:, -1 - columns] + maps[:, -2 - columns]) / 3
    return maps
