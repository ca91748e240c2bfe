"""Effects of a ViT's neurons where attention with learned queries reads the last residual stream (SigLIP, CoCa), factored.

Neuron n of any layer l, the last one too, writes p_j^n w_n into the residual stream at every token j. Head g of the pooling reads
it there (towers/pooling.py has beta and A_g). With everything else frozen, the neuron reaches the output through this head as

    r^{n,g}(I) = s^{n,g}(I) A_g w_n          s^{n,g} = sum over j of beta_j^g p_j^n

which is exactly of rank one, as the neuron-head pairs of paper 2 (arXiv 2509.19943) in a ResNet's pooling are. No later
self-attention is crossed. These are factored effects (factored.py, Eq. 1):

    pairs (n, g):                       K = 1           S = s^{n,g}        D = A_g w_n
    neurons n, sums over the heads:     K = heads       S[g] = s^{n,g}     D[g] = A_g w_n

Token j's part of s is beta_j^g p_j^n. The heads of the pooling have direct effects, as those of self-attention have where the
output is read from a class token (vit_direct.py): what head g adds to the output, without the bias of the values. They and the
constant parts of the pooling, its MLP among them, add up to M(I) (towers/pooling.py has the terms):

    heads g of the pooling, K = e:      S[k] = sum over j of beta_j^g sigma_j^in W_V^g[k] y_j
                                        D[k] = P gamma_out W_O^g[:, k]

Heads h of self-attention in layer l reach the output through the pooling alone, K = heads of the pooling times e. Heads of the
pooling have the number of layers, L, for their layer, which no block has.

vit_pooled_second_order.py has the effects through one later layer and the pooling.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cliptools.devices import to_float64, to_like
from cliptools.errors import ModelError, UsageError
from cliptools.towers.hooks import Hooks
from cliptools.towers.kinds import tower_of
from cliptools.towers.pooling import Pooling
from cliptools.towers.readout import PoolingRead, keep, pooling_read_hooks
from cliptools.towers.tower import Tower
from cliptools.unit_effects.factored import Listener, UnitBlock, head_units, index_of, neuron_units
from cliptools.unit_effects.vit_direct import choose_any_layers
from cliptools.unit_effects.vit_second_order import (
    TowerEffect,
    default_layers,
    has_units,
    head_directions,
    neuron_outputs,
    neurons_per_layer,
)


class PooledTokens(TowerEffect):
    """The common part of pairs and neurons as factored effects."""

    def __init__(self, visual: nn.Module | Tower) -> None:
        """
        Raises:
            ModelError: a tower that does not pool by attention with learned queries, or with unknown parts.
        """
        super().__init__(tower_of(visual))
        self.pooling = pooling_of(self.tower)
        self.heads = self.pooling.heads
        self._matrices: tuple[Tensor, Tensor] | None = None

    @abstractmethod
    def scalars(self, s: Float[Tensor, "b neuron g"]) -> Float[Tensor, "b n k"]:
        """S of all units of a layer, from s of all its pairs."""

    @abstractmethod
    def token_scalars(
        self, p: Float[Tensor, "token neuron"], beta: Float[Tensor, "g token"], block: UnitBlock
    ) -> Float[Tensor, "token n k"]:
        """The part of each token in S of the block's units, on one image."""

    def listen(self, blocks: Sequence[UnitBlock]) -> Listener:
        """Hooks for activations of the blocks' layers, and for the pooling's attention."""
        p: dict[int, Tensor] = {}
        beta: list[Tensor] = []
        hooks: Hooks = self.pooling.hooks(beta.append)
        for layer in sorted({block.layer for block in blocks}):
            hooks += self.tower.blocks[layer].activation_hooks(p, layer)

        def scalars_of(embedding: Float[Tensor, "b d"]) -> Iterator[Float[Tensor, "b n k"]]:
            layer, S = -1, embedding
            for block in blocks:
                if block.layer != layer:
                    layer = block.layer
                    S = self.layer_scalars(p[layer], beta[0])
                yield S[:, index_of(block.neurons, S.device)]

        return Listener(hooks, scalars_of)

    def layer_scalars(self, p: Float[Tensor, "b token neuron"], beta: Float[Tensor, "b g token"]) -> Float[Tensor, "b n k"]:
        """S of all units of a layer."""
        return self.scalars(p.to(beta).transpose(1, 2) @ beta.transpose(1, 2))  # s: [b, neuron, g]

    def _along(self, layer: int, v: Float[Tensor, " d"]) -> Float[Tensor, "neuron g"]:
        """<A_g w_n, v> of all pairs of a layer: through the pooling first, one vector of the residual stream for each head."""
        W_V, ends = self.matrices
        g = torch.einsum("ge,gew->gw", ends @ v.to(ends), W_V)
        return (g @ self._outputs(layer)).T

    def _through(self, layer: int, s: Float[Tensor, "b neuron g"]) -> Float[Tensor, "b d"]:
        """Sum over neurons and heads of s A_g w_n: over the neurons first, head by head, in the type of s."""
        W_V, ends = self.matrices
        x = s.permute(2, 0, 1) @ self._outputs(layer).to(s).T  # [g, b, width]
        return (x @ W_V.to(s).transpose(1, 2) @ ends.to(s)).sum(0)  # [g, b, e] @ [g, e, d]

    def _pairs(self, layer: int, neurons: Int[Tensor, "n"]) -> Float[Tensor, "n g d"]:
        """A_g w_n of some neurons and all heads."""
        W_V, ends = self.matrices
        return ((W_V @ self._outputs(layer, neurons)).transpose(1, 2) @ ends).transpose(0, 1)  # [g, n, e] @ [g, e, d]

    def _outputs(self, layer: int, neurons: slice | Int[Tensor, "n"] = slice(None)) -> Float[Tensor, "width n"]:
        return neuron_outputs(self.tower, layer, neurons)

    @property
    def matrices(self) -> tuple[Float[Tensor, "g e width"], Float[Tensor, "g e d"]]:
        """The two factors of A_g."""
        if self._matrices is None:
            self._matrices = self.pooling.value_matrix(), self.pooling.ends()
        return self._matrices


class TokenPairs(PooledTokens):
    """Units are pairs of a neuron and a head of the pooling, neuron by neuron; the only path is the pair itself."""

    def __init__(self, visual: nn.Module | Tower) -> None:
        super().__init__(visual)
        self._norm2: dict[int, Tensor] = {}  # by layer [n]: ||A_g w_n||^2 of all pairs

    def size(self, layer: int) -> tuple[int, int]:
        """Number of pairs, and 1."""
        return neurons_per_layer(self.tower, layer) * self.heads, 1

    def units(self, layer: int) -> Int[Tensor, "n 3"]:
        """Layer, neuron and head of every pair."""
        number = torch.arange(self.size(layer)[0] if has_units(self.tower, layer) else 0)
        return torch.stack([torch.full_like(number, layer), number // self.heads, number % self.heads], 1)

    def scalars(self, s: Float[Tensor, "b neuron g"]) -> Float[Tensor, "b n 1"]:
        """s of every pair."""
        return s.flatten(1)[..., None]

    def token_scalars(
        self, p: Float[Tensor, "token neuron"], beta: Float[Tensor, "g token"], block: UnitBlock
    ) -> Float[Tensor, "token n 1"]:
        """beta_j^g p_j^n of the block's pairs."""
        pair = block.neurons.to(beta.device)
        return (p[:, pair // self.heads].to(beta) * beta[pair % self.heads].T)[..., None]

    @torch.inference_mode()
    def gram(self, block: UnitBlock) -> Float[Tensor, "n 1 1"]:
        """||A_g w_n||^2 of the block's pairs; no direction is formed."""
        if block.layer not in self._norm2:
            W_V, ends = (to_float64(matrix) for matrix in self.matrices)
            values = W_V @ to_float64(self._outputs(block.layer))  # [g, e, neuron]
            square = (values * (ends @ ends.transpose(1, 2) @ values)).sum(1)  # [g, neuron]
            self._norm2[block.layer] = to_like(square.T.flatten().clamp(min=0), self.matrices[0])
        norm2 = self._norm2[block.layer]
        return norm2[block.neurons.to(norm2.device)][:, None, None]

    @torch.inference_mode()
    def along(self, block: UnitBlock, v: Float[Tensor, " d"]) -> Float[Tensor, "n 1"]:
        """<A_g w_n, v> of the block's pairs; no direction is formed."""
        along = self._along(block.layer, v).flatten()
        return along[index_of(block.neurons, along.device), None]

    @torch.inference_mode()
    def total(self, block: UnitBlock, S: Float[Tensor, "b n 1"]) -> Float[Tensor, "b d"]:
        """Sum over the block's pairs of s A_g w_n; no direction is formed."""
        s = S.new_zeros(len(S), self.size(block.layer)[0])
        s[:, index_of(block.neurons, S.device)] = S[..., 0]
        return self._through(block.layer, s.unflatten(1, (-1, self.heads)))

    @torch.inference_mode()
    def directions(self, block: UnitBlock) -> Float[Tensor, "n 1 d"]:
        """A_g w_n of the block's pairs."""
        pair = block.neurons.to(self.tower.weight.device)
        neurons, row = torch.unique(pair // self.heads, return_inverse=True)
        return self._pairs(block.layer, neurons)[row, pair % self.heads][:, None]


class TokenNeurons(PooledTokens):
    """Units are neurons; paths are the pooling's heads."""

    def size(self, layer: int) -> tuple[int, int]:
        """Numbers of neurons and of heads."""
        return neurons_per_layer(self.tower, layer), self.heads

    def units(self, layer: int) -> Int[Tensor, "n 3"]:
        """Layer and number of every neuron."""
        return neuron_units(layer, torch.arange(self.size(layer)[0] if has_units(self.tower, layer) else 0))

    def scalars(self, s: Float[Tensor, "b neuron g"]) -> Float[Tensor, "b n k"]:
        """s of every neuron's pairs."""
        return s

    def token_scalars(
        self, p: Float[Tensor, "token neuron"], beta: Float[Tensor, "g token"], block: UnitBlock
    ) -> Float[Tensor, "token n k"]:
        """beta_j^g p_j^n of the block's neurons and all heads."""
        return p[:, index_of(block.neurons, beta.device), None].to(beta) * beta.T[:, None]

    @torch.inference_mode()
    def along(self, block: UnitBlock, v: Float[Tensor, " d"]) -> Float[Tensor, "n k"]:
        """<A_g w_n, v> of all pairs of the block's neurons; no direction is formed."""
        along = self._along(block.layer, v)
        return along[index_of(block.neurons, along.device)]

    @torch.inference_mode()
    def total(self, block: UnitBlock, S: Float[Tensor, "b n k"]) -> Float[Tensor, "b d"]:
        """Sum over the block's neurons and over all heads of s A_g w_n; no direction is formed."""
        s = S.new_zeros(len(S), self.size(block.layer)[0], self.heads)
        s[:, index_of(block.neurons, S.device)] = S
        return self._through(block.layer, s)

    @torch.inference_mode()
    def directions(self, block: UnitBlock) -> Float[Tensor, "n k d"]:
        """A_g w_n of the block's neurons and all heads."""
        return self._pairs(block.layer, block.neurons.to(self.tower.weight.device))


class TokenHeads(TowerEffect):
    """Units are heads: of the pooling, as layer L, or of self-attention in another layer; paths are dimensions of values."""

    def __init__(self, visual: nn.Module | Tower) -> None:
        """
        Raises:
            ModelError: a tower that does not pool by attention with learned queries, or with unknown parts.
        """
        super().__init__(tower_of(visual))
        self.pooling = pooling_of(self.tower)
        self.layer = self.tower.depth

    def size(self, layer: int) -> tuple[int, int]:
        """Number of heads in the layer, and the width of the pooling's heads, or G times that of the layer's."""
        if layer == self.layer:
            return self.pooling.heads, self.pooling.ends().shape[1]
        attention = self.tower.blocks[layer].attention
        return attention.heads, self.pooling.heads * attention.head_width

    def units(self, layer: int) -> Int[Tensor, "n 3"]:
        """Layer and number of every head."""
        return head_units(layer, torch.arange(self.size(layer)[0] if 0 <= layer <= self.layer else 0))

    def listen(self, blocks: Sequence[UnitBlock]) -> Listener:
        """Hooks for what the pooling reads, and for the attention of the blocks' layers."""
        read: list[PoolingRead] = []
        hooks, kept = keep(self.tower.blocks, {block.layer for block in blocks} - {self.layer}, slice(None))
        hooks += pooling_read_hooks(self.pooling, read.append)

        def scalars_of(embedding: Float[Tensor, "b d"]) -> Iterator[Float[Tensor, "b n k"]]:
            for block in blocks:
                parts = kept.get(block.layer)
                S = self.pooled_values(read[0]) if parts is None else parts.values(parts.rows(read[0].beta)).flatten(2)
                yield S[:, index_of(block.neurons, S.device)]

        return Listener(hooks, scalars_of)

    def pooled_values(self, read: PoolingRead) -> Float[Tensor, "b g e"]:
        """S of the pooling's heads."""
        return read.values(self.pooling.value_matrix(gain=False))

    def token_scalars(self, read: PoolingRead, image: int, block: UnitBlock) -> Float[Tensor, "token n k"]:
        """The part of each token in S of some of the pooling's heads, on one image."""
        W_V = self.pooling.value_matrix(gain=False)[index_of(block.neurons, read.y.device)]  # [n, e, width]
        rows = read.rows[image][index_of(block.neurons, read.y.device)]  # [n, token]
        return torch.einsum("nt,tw,new->tne", rows, read.y[image], W_V)

    @torch.inference_mode()
    def directions(self, block: UnitBlock) -> Float[Tensor, "n k d"]:
        """D of the block's heads."""
        if block.layer == self.layer:
            D = self.pooling.ends()
        else:  # [(head, g), e, d] -> [head, g e, d]
            D = head_directions(self.tower, block.layer).unflatten(0, (-1, self.pooling.heads)).flatten(1, 2)
        return D[index_of(block.neurons, D.device)]


def pooling_of(tower: Tower) -> Pooling:
    """The tower's pooling.

    Raises:
        ModelError: it has none.
    """
    if tower.pooling is None:
        raise ModelError(f"this image tower ({type(tower.visual).__name__}) has no attention pooling")
    return tower.pooling


def choose_pooled_layers(visual: nn.Module | Tower, requested: Sequence[int] | None) -> tuple[int, ...]:
    """The requested layers, which may include the last; by default those of second-order effects and the last.

    Raises:
        UsageError: a layer that does not exist.
    """
    depth = tower_of(visual).depth
    return choose_any_layers(visual, sorted({*default_layers(depth), depth - 1}) if requested is None else requested)


def choose_pooling_heads(visual: nn.Module | Tower, requested: Sequence[int] | None) -> tuple[int, ...]:
    """The layers of heads: that of the pooling, L, by default; or layers of self-attention.

    Raises:
        UsageError: a layer that does not exist, or the pooling with other layers, whose effects its heads contain.
    """
    depth = tower_of(visual).depth
    layers = (depth,) if requested is None else tuple(requested)
    if missing := [layer for layer in layers if layer > depth]:
        raise UsageError(
            f"--layers: layer {missing[0]} does not exist, heads of this model have layers 0 to {depth - 1}, and {depth}, its "
            "pooling"
        )
    if depth in layers and len(layers) > 1:
        raise UsageError(f"--layers: heads of the pooling ({depth}) read what heads of other layers write; name {depth} alone")
    return layers
