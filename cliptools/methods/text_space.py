"""The space in which directions are written as sums of texts: a pool's embeddings, centred and scaled (paper 1, section 4)."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from cliptools.ground.double_precision import back, exact
from cliptools.ground.errors import TextError

Center = Literal["pool", "none"]
Normalize = Literal["texts", "dimensions"]
NOTHING = 1e-6  # a unit-norm text whose centred norm is below this equals the mean up to rounding


def text_space(t: Float[Tensor, "text d"], center: Center = "pool", normalize: Normalize = "texts") -> Float[Tensor, "text d"]:
    """The atoms of matching pursuit made of unit-norm text embeddings (paper 1, section 4, "sparse text").

    Args:
        t: Embeddings of the pool's texts, each of unit norm.
        center: `pool` subtracts the mean over the pool, as the paper does; `none` subtracts nothing.
        normalize: `texts` gives each centred text unit norm again, so that pursuit picks by angle. `dimensions` divides each
            embedding dimension by its norm over all texts, as the paper's public code does.

    Raises:
        TextError: centring leaves nothing, because all texts have the same embedding.
    """
    t64 = exact(t)
    mean = t64.mean(dim=0) if center == "pool" else torch.zeros_like(t64[0])
    centred = t64 - mean
    norm = centred.norm(dim=1, keepdim=True)  # (text, 1)
    centred = torch.where(norm > NOTHING, centred, 0)
    if not bool(centred.any()):
        raise TextError(f"pool: {len(t)} text(s) of one and the same embedding leave nothing after centring; try --center none")
    scale = norm.clamp(min=NOTHING) if normalize == "texts" else centred.norm(dim=0, keepdim=True).clamp(min=NOTHING)
    return back(centred / scale, t)
