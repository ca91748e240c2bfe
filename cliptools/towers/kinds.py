"""Choice of the adapter of an image tower, by the tower's class; no other module decides this."""

from typing import Any

from torch import nn

from cliptools.errors import ModelError
from cliptools.models.clip_parts import ModifiedResNet, TimmModel, VisionTransformer
from cliptools.models.names import SUPPORTED
from cliptools.towers.open_clip_vit import OpenClipTower
from cliptools.towers.timm_vit import TimmTower
from cliptools.towers.tower import Tower


def tower_of(visual: nn.Module | Tower) -> Tower:
    """The adapter of an image tower, or the adapter that is given; it is cheap to make, and holds the tower's own modules.

    Raises:
        ModelError: another kind of tower, with the reason.
    """
    if isinstance(visual, Tower):
        return visual
    if isinstance(visual, VisionTransformer):
        return OpenClipTower(visual)
    if isinstance(visual, TimmModel):
        return TimmTower(visual)
    raise ModelError(f"this image tower is a {type(visual).__name__}; supported are {SUPPORTED}")


def output_width(visual: nn.Module) -> int:
    """d: the width of any supported image tower's output, a ResNet's too."""
    return visual.output_dim if isinstance(visual, ModifiedResNet) else tower_of(visual).projection.shape[1]


def supported_tower(clip: nn.Module) -> Tower:
    """The adapter of a model's image tower.

    Raises:
        ModelError: another kind of tower, with the reason.
    """
    visual: Any = clip.visual
    return tower_of(visual)
