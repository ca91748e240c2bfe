"""Outputs that are read from many tokens: beta of a mean, and the sums over the rows of attention that effects on them need.

CLIPA's towers and ViTamin's have no output at a class token: P reads the mean of the patches, with the final LayerNorm behind the
mean or before it. With J tokens j in the mean and all LayerNorms frozen (tower.py),

    LayerNorm of the mean:      beta_j = 1 / (J sigma_post),   sigma_post that of the mean
    LayerNorm of the tokens:    beta_j = 1 / (J sigma_j^post)

and 0 for tokens that are not in the mean, such as a class token, which attends and is attended to like any other. An effect that
crosses attention needs sum over j of beta_j alpha_ji of each head. Where attention pools (pooling.py), head g of the pooling
reads all tokens, and head h of layer l' carries a change at token i to each of them:

    eff_i^{l',h,g} = sum over j of beta_j^g alpha_ji^{l',h}          alpha_ji = a_ji / (sigma_i^1 sigma_j^inner sigma_j^attn)

beta is known after the last block, so hooks keep the input of each layer's attention, and rows of attention are computed a second
time after the pass, some at a time.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cliptools.towers.hooks import Hooks, deviation
from cliptools.towers.pooling import Pooling
from cliptools.towers.tower import VALUES, Beta, Block, Readout, Tower
from cliptools.unit_effects.factored import wide


@dataclass
class Kept:
    """Values that hooks keep of one layer's attention: its input, and the deviations of those LayerNorms that the layer has."""

    block: Block
    tokens: slice
    """The tokens j whose rows of attention are summed."""
    x: Float[Tensor, "b token width"] | None = None
    """Its input."""
    fused: Float[Tensor, "b token qkv"] | None = None
    """Its queries, keys and values, where one module computes them."""
    sigma_1: Float[Tensor, "b token"] | None = None
    sigma_inner: Float[Tensor, "b j"] | None = None
    sigma_attn: Float[Tensor, "b j"] | None = None

    def hooks(self) -> Hooks:
        """Hooks that fill it in."""
        block = self.block
        norms = (("sigma_1", block.norm_1), ("sigma_inner", block.attention.inner), ("sigma_attn", block.norm_attn))
        hooks = block.attention.listen(block.norm_1, partial(setattr, self, "x"))
        if block.attention.fused is not None:
            hooks.append((block.attention.fused, lambda _, inputs, output: setattr(self, "fused", output)))
        return hooks + [(norm, self._sigma(name)) for name, norm in norms if norm is not None]

    def rows(self, beta: Float[Tensor, "b g j"]) -> Float[Tensor, "b head g token"]:
        """Sum over j of beta_j^g a_ji / (sigma_j^inner sigma_j^attn)."""
        assert self.x is not None  # the forward pass is over
        for sigma in (self.sigma_inner, self.sigma_attn):
            beta = beta if sigma is None else beta / sigma[:, None]
        return self.block.attention.row_sums(self.x, beta, self.tokens, self.fused)

    def reach(self, rows: Float[Tensor, "b head g token"]) -> Float[Tensor, "b head g token"]:
        """Sum over j of beta_j^g alpha_ji: the rows over the deviations of the layer's input."""
        return rows if self.sigma_1 is None else rows / self.sigma_1[:, None, None]

    def values(self, rows: Float[Tensor, "b head g token"]) -> Float[Tensor, "b head g e"]:
        """Sum over i of the rows times W_V x_i, without the bias of the values."""
        assert self.x is not None  # the forward pass is over
        attention = self.block.attention
        W_V = wide(attention.weights(VALUES)[0]).unflatten(0, (attention.heads, -1))  # [head, e, width]
        return torch.einsum("bhgw,hew->bhge", rows @ wide(self.x)[:, None], W_V)

    def token_values(
        self, rows: Float[Tensor, "b head g token"], image: int, heads: slice | Int[Tensor, "n"]
    ) -> Float[Tensor, "token n g e"]:
        """The part of each token in `values` of some heads, on one image."""
        assert self.x is not None  # the forward pass is over
        attention = self.block.attention
        W_V = wide(attention.weights(VALUES)[0]).unflatten(0, (attention.heads, -1))[heads]  # [n, e, width]
        return torch.einsum("ngt,tw,new->tnge", rows[image][heads], wide(self.x[image]), W_V)

    def _sigma(self, name: str) -> Callable[..., None]:
        """A hook that keeps a LayerNorm's deviations: of all tokens for attention's input, of the tokens j for its output."""
        tokens = slice(None) if name == "sigma_1" else self.tokens

        def hook(norm: nn.LayerNorm, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            setattr(self, name, deviation(inputs[0][:, tokens], norm))

        return hook


def keep(blocks: Sequence[Block], layers: Iterable[int], tokens: slice) -> tuple[Hooks, dict[int, Kept]]:
    """Hooks that keep what these layers' rows of attention depend on, and the places where they keep it."""
    kept = {layer: Kept(blocks[layer], tokens) for layer in layers}
    return [hook for parts in kept.values() for hook in parts.hooks()], kept


def carried_hooks(tower: Tower, layers: Sequence[int]) -> tuple[Hooks, Callable[[], dict[int, Float[Tensor, "b k token"]]]]:
    """Hooks for a forward pass of a tower with a pooling, and a function that gives eff of these layers after it."""
    assert tower.pooling is not None
    hooks, kept = keep(tower.blocks, layers, slice(None))
    beta: list[Tensor] = []
    if kept:
        hooks += tower.pooling.hooks(beta.append)
    return hooks, lambda: {layer: eff_of(parts, parts.rows(beta[0])) for layer, parts in kept.items()}


def eff_of(parts: Kept, rows: Float[Tensor, "b head g token"]) -> Float[Tensor, "b k token"]:
    """eff of a layer, whose paths k are (head, head of the pooling), the latter fastest."""
    return parts.reach(rows).flatten(1, 2)


class PoolingRead(NamedTuple):
    """What a pooling reads in a forward pass."""

    beta: Float[Tensor, "b g token"]
    rows: Float[Tensor, "b g token"]
    """beta sigma^in: the attention of the queries, over the deviations of the LayerNorm `out` where a tower has one."""
    y: Float[Tensor, "b token width"]
    """Output of the LayerNorm `in`; in float32 at least."""

    def values(self, W_V: Float[Tensor, "g e width"]) -> Float[Tensor, "b g e"]:
        """Sum over j of the rows times W_V^g y_j, without the bias of the values."""
        return torch.einsum("bgw,gew->bge", self.rows @ self.y, W_V)


def pooling_read_hooks(pooling: Pooling, use: Callable[[PoolingRead], None]) -> Hooks:
    """Hooks that give `use` what the pooling has read, at the end of a forward pass."""
    kept: list[tuple[Tensor, Tensor]] = []

    def keep_input(norm: nn.LayerNorm, inputs: tuple[Tensor, ...], y: Float[Tensor, "b token width"]) -> None:
        kept.append((deviation(inputs[0], norm), wide(y)))

    def finish(beta: Float[Tensor, "b g token"]) -> None:
        sigma, y = kept.pop()
        use(PoolingRead(beta, beta * sigma[:, None], y))

    return [(pooling.norm_in, keep_input), *pooling.hooks(finish)]


@dataclass(frozen=True)
class MeanOfTokens(Readout):
    """The mean of tokens."""

    tokens: slice
    """The tokens j of the mean."""
    norm_first: bool
    """True if the final LayerNorm reads the tokens, false if it reads their mean."""

    def beta(self, x: Float[Tensor, "b token width"], norm: nn.LayerNorm) -> Beta:
        """Implements Readout.beta."""
        y = wide(x[:, self.tokens])  # [b, j, width]
        sigma = deviation(y if self.norm_first else y.mean(1, keepdim=True), norm)  # [b, j] or [b, 1]
        return 1 / (y.shape[1] * sigma.expand(-1, y.shape[1]))

    def row_hooks(
        self, blocks: Sequence[Block], layers: Iterable[int]
    ) -> tuple[Hooks, Callable[[Beta], dict[int, Float[Tensor, "b head token"]]]]:
        """Implements Readout.row_hooks."""
        hooks, kept = keep(blocks, layers, self.tokens)
        return hooks, lambda beta: {layer: parts.reach(parts.rows(beta[:, None]))[:, :, 0] for layer, parts in kept.items()}

    def value_hooks(
        self, blocks: Sequence[Block], layers: Iterable[int]
    ) -> tuple[Hooks, Callable[[Beta], dict[int, Float[Tensor, "b head e"]]]]:
        """Implements Readout.value_hooks."""
        hooks, kept = keep(blocks, layers, self.tokens)
        return hooks, lambda beta: {layer: parts.values(parts.rows(beta[:, None]))[:, :, 0] for layer, parts in kept.items()}
