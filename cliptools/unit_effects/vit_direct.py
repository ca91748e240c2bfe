"""Direct effects in a ViT, of neurons and of attention heads: what each adds to the output where it is read.

First-order effects of neurons are those of paper 1 (arXiv 2406.04341), Sec. 3.2: P p_0 w_n. Direct effects of heads are those of
Gandelsman et al. 2024 (arXiv 2310.05916), Sec. 3: head h of layer l adds W_O^h sum over i of a_i v_i to the class token, where a
is the class token's attention and v_i = W_V^h LN(x_i). Both are taken with the final LayerNorm of the real forward pass, frozen
(App. A.6), as second-order effects are. They are factored effects (factored.py, Eq. 1):

    neurons, K = 1:                    S[n] = p_0^n / sigma_post
                                       D[n] = P (gamma_post * ls2_l * w_n)
    heads, K = e, the head's width:    S[j] = 1 / sigma_post sum over i of a_i v_i[j]
                                       D[j] = P (gamma_post * ls1_l * W_O^h[:, j])

If the output is read from the mean of tokens, S is the sum over these tokens j, with beta_j in place of 1 / sigma_post
(towers/readout.py), and D is the same. Every layer has them, the last one too. Bias shares are left out, that of the values
(W_O^h b_V^h) included.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cliptools.errors import ModelError, UsageError
from cliptools.towers.kinds import tower_of
from cliptools.towers.tower import Tower, norm_gain
from cliptools.unit_effects.factored import Listener, UnitBlock, head_units, index_of, neuron_units
from cliptools.unit_effects.vit_second_order import (
    TowerEffect,
    Trace,
    default_layers,
    has_units,
    head_directions,
    neuron_outputs,
    neurons_per_layer,
    trace_hooks,
)

HEAD_LAYERS = 4  # default number of last layers, as in the paper: heads of earlier layers have next to no direct effect


class FirstOrder(TowerEffect):
    """First-order effects: units are neurons; the only path is the residual stream of the tokens that are read."""

    def __init__(self, visual: nn.Module | Tower) -> None:
        """
        Raises:
            ModelError: a tower that pools by attention.
        """
        super().__init__(directly_read_tower(visual))

    def size(self, layer: int) -> tuple[int, int]:
        """Number of neurons in the layer's MLP, and 1."""
        return neurons_per_layer(self.tower, layer), 1

    def units(self, layer: int) -> Int[Tensor, "n 3"]:
        """Layer and number of every neuron."""
        exists = has_units(self.tower, layer)
        return neuron_units(layer, torch.arange(self.size(layer)[0] if exists else 0))

    def listen(self, blocks: Sequence[UnitBlock]) -> Listener:
        """Hooks for activations of the blocks' layers at the tokens that the output is read from."""
        hooks, trace_of = trace_hooks(self.tower, sorted({block.layer for block in blocks}), rows=False)

        def scalars_of(embedding: Float[Tensor, "b d"]) -> list[Float[Tensor, "b n 1"]]:
            trace, device = trace_of(embedding), embedding.device
            return [direct_scalars(self.tower, trace, block.layer, index_of(block.neurons, device)) for block in blocks]

        return Listener(hooks, scalars_of)

    @torch.inference_mode()
    def directions(self, block: UnitBlock) -> Float[Tensor, "n 1 d"]:
        """D of the block's neurons."""
        w = neuron_outputs(self.tower, block.layer, block.neurons.to(self.tower.weight.device))  # [width, n]
        return self._direct(w.T)[:, None]

    @torch.inference_mode()
    def total(self, block: UnitBlock, S: Float[Tensor, "b n 1"]) -> Float[Tensor, "b d"]:
        """Sum of phi_n over the block's neurons: first in the residual stream, then through P."""
        w = neuron_outputs(self.tower, block.layer, index_of(block.neurons, S.device))  # [width, n]
        return self._direct(S[..., 0] @ w.to(S).T)  # [b, n] @ [n, width] -> [b, d]

    def _direct(self, x: Float[Tensor, "i width"]) -> Float[Tensor, "i d"]:
        """P (gamma_post * x): where vectors of the residual stream end in the joint space."""
        return (norm_gain(self.tower.final_norm, x).to(x) * x) @ self.tower.projection.to(x)


def direct_scalars(
    tower: Tower, trace: Trace, layer: int, neurons: slice | Int[Tensor, "n"] = slice(None)
) -> Float[Tensor, "b n 1"]:
    """S of neurons' direct effects: sum over the tokens j that the output is read from of beta_j p_j."""
    p = trace.p[layer][:, tower.readout.tokens][..., neurons].to(trace.beta.dtype)  # [b, j, n]
    return p.transpose(1, 2) @ trace.beta[..., None]


class Heads(TowerEffect):
    """Direct effects of attention heads: units are heads; paths are the dimensions of their values."""

    def __init__(self, visual: nn.Module | Tower) -> None:
        """
        Raises:
            ModelError: a tower that pools by attention.
        """
        super().__init__(directly_read_tower(visual))

    def size(self, layer: int) -> tuple[int, int]:
        """Number of heads in the layer, and their width e."""
        attention = self.tower.blocks[layer].attention
        return attention.heads, attention.head_width

    def units(self, layer: int) -> Int[Tensor, "n 3"]:
        """Layer and number of every head."""
        exists = 0 <= layer < self.tower.depth
        return head_units(layer, torch.arange(self.size(layer)[0] if exists else 0))

    def listen(self, blocks: Sequence[UnitBlock]) -> Listener:
        """Hooks for the attention-weighted values of the heads in the blocks' layers."""
        beta: list[Tensor] = []
        hooks, values_of = self.tower.readout.value_hooks(self.tower.blocks, {block.layer for block in blocks})
        hooks += self.tower.beta_hooks(beta)

        def scalars_of(embedding: Float[Tensor, "b d"]) -> Iterator[Float[Tensor, "b n k"]]:
            values = values_of(beta[0])
            return (values[block.layer][:, index_of(block.neurons, embedding.device)] for block in blocks)

        return Listener(hooks, scalars_of)

    @torch.inference_mode()
    def directions(self, block: UnitBlock) -> Float[Tensor, "n k d"]:
        """D of the block's heads."""
        D = head_directions(self.tower, block.layer)  # [head, e, d]
        return D[index_of(block.neurons, D.device)]


def directly_read_tower(visual: nn.Module | Tower) -> Tower:
    """The adapter of a tower whose output is read from the class token or a mean of tokens.

    Raises:
        ModelError: another kind of tower.
    """
    tower = tower_of(visual)
    if tower.pooling is not None:
        raise ModelError(
            "this image tower pools by attention (SigLIP's or CoCa's kind); direct effects need a class token or a mean of tokens"
        )
    return tower


def choose_any_layers(visual: nn.Module | Tower, requested: Sequence[int] | None) -> tuple[int, ...]:
    """The requested layers, which may include the last; by default those of second-order effects, so that bundles compare.

    Raises:
        UsageError: a layer that does not exist.
    """
    depth = tower_of(visual).depth
    if requested is None:
        return default_layers(depth)
    for layer in requested:
        if layer >= depth:
            raise UsageError(f"--layers: layer {layer} does not exist, this model has layers 0 to {depth - 1}")
    return tuple(requested)


def choose_head_layers(visual: nn.Module | Tower, requested: Sequence[int] | None) -> tuple[int, ...]:
    """The requested layers; by default the last four.

    Raises:
        UsageError: a layer that does not exist.
    """
    depth = tower_of(visual).depth
    return choose_any_layers(visual, range(max(0, depth - HEAD_LAYERS), depth) if requested is None else requested)
