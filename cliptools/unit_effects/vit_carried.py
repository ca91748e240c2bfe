"""Attention of later layers as a pooling reads it, for second-order effects of towers whose output is read from all tokens.

Head h of layer l' carries a change at token i to every token j, and head g of the pooling reads token j (towers/pooling.py):

    eff_i^{l',h,g} = sum over j of beta_j^g alpha_ji^{l',h}          alpha_ji = a_ji / (sigma_i^1 sigma_j^inner sigma_j^attn)

The matrix a [token, token] of a layer is computed a second time once beta is known, from the input of its attention, for a few
queries j at a time; only eff is kept (towers/readout.py).
"""

from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor

from cliptools.towers.hooks import Hooks
from cliptools.towers.readout import keep
from cliptools.towers.tower import Tower


def carried_hooks(tower: Tower, layers: Sequence[int]) -> tuple[Hooks, Callable[[], dict[int, Float[Tensor, "b k token"]]]]:
    """Hooks for a forward pass of a tower with a pooling, and a function that gives eff of these layers after it."""
    assert tower.pooling is not None
    hooks, kept = keep(tower.blocks, layers, slice(None))
    beta: list[Tensor] = []
    if kept:
        hooks += tower.pooling.hooks(beta.append)
    return hooks, lambda: {layer: parts.reach(beta[0]).flatten(1, 2) for layer, parts in kept.items()}  # k = (h, g), g fastest
