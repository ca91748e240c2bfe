"""The output as the mean of tokens: beta, and the sums over the rows of attention that effects on it need.

CLIPA's towers and ViTamin's have no output at a class token: P reads the mean of the patches, with the final LayerNorm behind the
mean or before it. With J tokens j in the mean and all LayerNorms frozen (tower.py),

    LayerNorm of the mean:      beta_j = 1 / (J sigma_post),   sigma_post that of the mean
    LayerNorm of the tokens:    beta_j = 1 / (J sigma_j^post)

and 0 for tokens that are not in the mean, such as a class token, which attends and is attended to like any other. An effect that
crosses attention needs sum over j of beta_j alpha_ji of each head. beta is known after the last block, so hooks keep the input of
attention, of a layer at a time, and rows of attention are computed after the pass, some at a time.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cliptools.towers.hooks import Hooks
from cliptools.towers.tower import VALUES, Beta, Block, Readout, deviation
from cliptools.unit_effects.factored import wide


@dataclass
class Kept:
    """What hooks keep of one layer's attention; the deviation of a LayerNorm that is absent is 1."""

    x: Float[Tensor, "b token width"] | None = None
    """Its input."""
    sigma_1: Float[Tensor, "b token"] | float = 1.0
    sigma_inner: Float[Tensor, "b j"] | float = 1.0
    sigma_attn: Float[Tensor, "b j"] | float = 1.0


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
        hooks, kept = self._keep(blocks, layers)

        def rows(layer: int, beta: Beta) -> Float[Tensor, "b head token"]:
            sigma_1 = kept[layer].sigma_1
            a = self._rows(blocks[layer], kept[layer], beta)
            return a / sigma_1[:, None] if isinstance(sigma_1, Tensor) else a

        return hooks, lambda beta: {layer: rows(layer, beta) for layer in kept}

    def value_hooks(
        self, blocks: Sequence[Block], layers: Iterable[int]
    ) -> tuple[Hooks, Callable[[Beta], dict[int, Float[Tensor, "b head e"]]]]:
        """Implements Readout.value_hooks."""
        hooks, kept = self._keep(blocks, layers)

        def values(layer: int, beta: Beta) -> Float[Tensor, "b head e"]:
            attention, x = blocks[layer].attention, kept[layer].x
            assert x is not None  # the forward pass is over
            mixed = self._rows(blocks[layer], kept[layer], beta) @ wide(x)  # [b, head, width]
            W_V = wide(attention.weights(VALUES)[0]).unflatten(0, (attention.heads, -1))  # [head, e, width]
            return torch.einsum("bhw,hew->bhe", mixed, W_V)

        return hooks, lambda beta: {layer: values(layer, beta) for layer in kept}

    def _rows(self, block: Block, kept: Kept, beta: Beta) -> Float[Tensor, "b head token"]:
        """Sum over j of beta_j a_ji / (sigma_j^inner sigma_j^attn)."""
        assert kept.x is not None  # the forward pass is over
        weight = beta / kept.sigma_inner / kept.sigma_attn  # [b, j]
        return block.attention.row_sums(kept.x, weight[:, None], self.tokens)[:, :, 0]

    def _keep(self, blocks: Sequence[Block], layers: Iterable[int]) -> tuple[Hooks, dict[int, Kept]]:
        """Hooks that fill in what is kept of these layers."""
        kept = {layer: Kept() for layer in layers}
        hooks: Hooks = []
        for layer, parts in kept.items():
            block = blocks[layer]
            norms = (("sigma_1", block.norm_1), ("sigma_inner", block.attention.inner), ("sigma_attn", block.norm_attn))
            hooks += block.attention.listen(block.norm_1, partial(setattr, parts, "x"))
            hooks += [(norm, self._keep_sigma(parts, name)) for name, norm in norms if norm is not None]
        return hooks, kept

    def _keep_sigma(self, parts: Kept, name: str) -> Callable[..., None]:
        """A hook that keeps a LayerNorm's deviations: of all tokens for attention's input, of the tokens j for its output."""
        tokens = slice(None) if name == "sigma_1" else self.tokens

        def hook(norm: nn.LayerNorm, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            setattr(parts, name, deviation(inputs[0][:, tokens], norm))

        return hook
