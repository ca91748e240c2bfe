"""Looks: other ways of drawing an emoji, so that a thing is known beyond its drawings.

A look changes the colours, makes a silhouette or an outline, blends two styles of artwork, or stretches the drawing. Styles that
training holds out for a concept never enter a blend.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

PLAIN, TINTED, SILHOUETTE, OUTLINE, BLENDED = "plain", "tinted", "silhouette", "outline", "blended"
WAYS = (PLAIN, TINTED, SILHOUETTE, OUTLINE, BLENDED)
SHARES = (0.35, 0.2, 0.12, 0.12, 0.21)
"""Probability of each way of a varied drawing."""
PAINTS = {
    "red": (0.86, 0.15, 0.15), "orange": (0.96, 0.55, 0.10), "yellow": (0.95, 0.85, 0.15), "green": (0.20, 0.65, 0.25),
    "blue": (0.15, 0.35, 0.85), "purple": (0.50, 0.20, 0.70), "pink": (0.95, 0.50, 0.70), "brown": (0.45, 0.28, 0.12),
    "black": (0.06, 0.06, 0.06), "white": (0.96, 0.96, 0.96),
}  # fmt: skip
"""RGB of the named colours that looks use."""
GAIN = 0.25  # largest relative change of each colour channel
STRETCH = 0.25  # largest logarithm of the change of width, and of height in the other direction
EDGE = 2.5  # contrast of the lines of an outline


class Look(NamedTuple):
    """A way of drawing an emoji."""

    way: str = PLAIN
    paint: str = "black"
    """Name of the colour of a tint, silhouette or outline."""
    other: int = 0
    """The second style of a blend."""
    share: float = 0.0
    """Its weight in the blend."""
    gain: tuple[float, float, float] = (1.0, 1.0, 1.0)
    stretch: float = 0.0


def draw_look(rng: np.random.Generator, styles: Sequence[int], way: str | None = None) -> Look:
    """Return a random look.

    Args:
        styles: The styles that a blend may use.
        way: One of WAYS; random if None.
    """
    chosen = str(rng.choice(WAYS, p=SHARES)) if way is None else way
    paint, other = str(rng.choice(list(PAINTS))), int(rng.choice(list(styles)))
    share, stretch = float(rng.uniform(0.25, 0.75)), float(rng.uniform(-STRETCH, STRETCH))
    gain = rng.uniform(1 - GAIN, 1 + GAIN, 3)
    return Look(chosen, paint, other, share, (float(gain[0]), float(gain[1]), float(gain[2])), stretch)


def painted(layer: Float[Tensor, "n 4 y x"], looks: Sequence[Look]) -> Float[Tensor, "n 4 y x"]:
    """Return the drawings, with premultiplied alpha, in the colours and lines of their looks."""
    alpha, ways = layer[:, 3:], np.array([look.way for look in looks])  # alpha (n, 1, y, x)
    paint = layer.new_tensor([PAINTS[look.paint] for look in looks])[:, :, None, None]  # (n, 3, 1, 1)
    gain = layer.new_tensor([look.gain for look in looks])[:, :, None, None]
    grey = (layer[:, :3] * layer.new_tensor([0.3, 0.59, 0.11])[:, None, None]).sum(1, keepdim=True)  # (n, 1, y, x), premultiplied
    rgb, opacity = torch.minimum(layer[:, :3] * gain, alpha), alpha.clone()
    for way, filled in ((TINTED, torch.minimum(paint * (0.35 * alpha + 0.9 * grey), alpha)), (SILHOUETTE, paint * alpha)):
        rows = torch.from_numpy(ways == way).to(layer.device)
        rgb[rows] = filled[rows]
    if (rows := torch.from_numpy(ways == OUTLINE).to(layer.device)).any():
        opacity[rows] = _lines(grey[rows], alpha[rows])
        rgb[rows] = paint[rows] * opacity[rows]
    return torch.cat([rgb, opacity], 1)


def _lines(grey: Float[Tensor, "n 1 y x"], alpha: Float[Tensor, "n 1 y x"]) -> Float[Tensor, "n 1 y x"]:
    """Return the opacity of the lines where a drawing on white changes its brightness, and around it."""
    ink = torch.cat([grey + 1 - alpha, alpha], 1)  # (n, 2, y, x)
    change = F.max_pool2d(ink, 3, 1, 1) + F.max_pool2d(-ink, 3, 1, 1)  # the range over the neighbours
    return (EDGE * change.amax(1, keepdim=True) - 0.3).clamp(0, 1)
