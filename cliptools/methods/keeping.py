"""Keeping the units that act most, and what the others add up to on average (paper 2, arXiv 2509.19943: a fifth of the pairs)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cliptools.ground.double_precision import exact, home
from cliptools.methods.engine import Effects
from cliptools.methods.paths import Paths, Slab
from cliptools.methods.resnet_paths import LAYER, Pairs


def strongest(top_norm: Float[Tensor, "u T"], share: float) -> Bool[Tensor, " u"]:
    """Which units are among this share of largest mean top norm: at least one, the first of equal ones."""
    count = max(1, round(share * len(top_norm)))
    kept = torch.zeros(len(top_norm), dtype=torch.bool)
    kept[top_norm.double().mean(1).argsort(descending=True, stable=True)[:count].cpu()] = True
    return kept


def rest_mean(paths: Paths, effects: Effects, kept: Bool[Tensor, " u"]) -> Float[Tensor, "d"]:
    """The mean over the images of the sum of the effects of all units that are not kept, in float64.

    Args:
        effects: Of all units that the paths have; compact ones are of pairs.
    """
    mean = effects.mean.double() * ~kept[:, None].to(effects.mean.device)  # (u, d), or (u, 1) where compact
    if not isinstance(paths, Pairs):
        return mean.sum(0)
    weight = paths.directions(Slab(LAYER, torch.arange(1)))
    S = mean[None] if home(weight) is weight else mean[None].to(weight.dtype).to(weight.device)
    return exact(paths.total(Slab(LAYER, torch.arange(len(mean))), S)[0])
