"""Attention of later layers as a pooling reads it, for second-order effects of towers whose output is read from all tokens.

Head h of layer l' carries a change at token i to every token j, and head g of the pooling reads token j (towers/pooling.py):

    eff_i^{l',h,g} = sum over j of beta_j^g alpha_ji^{l',h}          alpha_ji = a_ji / (sigma_i^1 sigma_j^inner sigma_j^attn)

The matrix a [token, token] of a layer is computed a second time once beta is known, from the input of its attention, for a few
queries j at a time; only eff is kept.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cliptools.towers.hooks import Hooks
from cliptools.towers.tower import KEYS, QUERIES, Attention, Block, Tower, deviation
from cliptools.unit_effects.factored import wide

NUMBERS_AT_ONCE = 1 << 24  # numbers of attention matrices held at a time: 64 MB


class _Kept:
    """What one layer's eff depends on, from a forward pass."""

    def __init__(self, block: Block) -> None:
        self.block = block
        self.x: Tensor | None = None
        self.sigma_in: Tensor | float = 1.0
        self.sigma_out: Tensor | float = 1.0

    def hooks(self) -> Hooks:
        """Hooks that fill it."""
        block = self.block
        hooks: Hooks = [] if block.norm_1 is None else [(block.norm_1, self._read)]
        hooks += [(norm, self._written) for norm in (block.attention.inner, block.norm_attn) if norm is not None]
        return hooks + block.attention.listen(block.norm_1, self._keep)

    def _keep(self, x: Float[Tensor, "b token width"]) -> None:
        self.x = x

    def _read(self, norm: nn.LayerNorm, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.sigma_in = deviation(inputs[0], norm)[:, None, None]  # [b, 1, 1, token]

    def _written(self, norm: nn.LayerNorm, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.sigma_out = self.sigma_out * deviation(inputs[0], norm)[:, None]  # [b, 1, token]

    def carried(self, beta: Float[Tensor, "b g token"]) -> Float[Tensor, "b k token"]:
        """eff of the paths k = (h, g), g fastest."""
        assert self.x is not None
        eff = carried_rows(self.block.attention, self.x, beta / self.sigma_out)
        return (eff / self.sigma_in).flatten(1, 2)  # [b, h, g, token] -> [b, k, token]


def carried_rows(
    attention: Attention, x: Float[Tensor, "b token width"], beta: Float[Tensor, "b g token"]
) -> Float[Tensor, "b head g token"]:
    """Sum over j of beta_j^g a_ji^h for every head."""
    q = attention.turned(attention.projected(QUERIES, x)) * attention.head_width**-0.5  # [b, head, token, e]
    k = attention.turned(attention.projected(KEYS, x)).transpose(-1, -2)
    b, heads, tokens, _ = q.shape
    eff = beta.new_zeros(b, heads, beta.shape[1], tokens)
    step = max(1, NUMBERS_AT_ONCE // (b * heads * tokens))
    for j in torch.arange(tokens).split(step):
        rows = slice(int(j[0]), int(j[-1]) + 1)
        a = wide(q[:, :, rows] @ k).softmax(-1)  # [b, head, j, token]
        eff += beta[:, None, :, rows].to(a) @ a  # [b, 1, g, j] @ [b, head, j, token]
    return eff


def carried_hooks(tower: Tower, layers: Sequence[int]) -> tuple[Hooks, Callable[[], dict[int, Float[Tensor, "b k token"]]]]:
    """Hooks for a forward pass of a tower with a pooling, and a function that gives eff of these layers after it."""
    assert tower.pooling is not None
    kept = {layer: _Kept(tower.blocks[layer]) for layer in layers}
    beta: list[Tensor] = []
    hooks = [hook for layer in kept.values() for hook in layer.hooks()]
    if kept:
        hooks += tower.pooling.hooks(beta.append)
    return hooks, lambda: {layer: parts.carried(beta[0]) for layer, parts in kept.items()}
