"""Forward passes from which the shares of a margin are computed, for ViTs of all poolings and CLIP-ResNets (margin_tower.py).

The paths of units, and the heads that they go through:

    ViT, neurons of layer l                 path k is head k of the layers after l; where attention pools, k over its G heads
    pairs and heads                         all paths of a unit are its head
    pooled effects of neurons               path k is head k of the pooling
"""

from collections.abc import Collection, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cliptools.analysis.margin_tower import ExplainedTower, ForwardPass, HeadName
from cliptools.models.clip_parts import ModifiedResNet
from cliptools.segmentation.towers import native_size, token_stride
from cliptools.towers.hooks import hooked
from cliptools.towers.kinds import tower_of
from cliptools.towers.readout import Kept, PoolingRead, eff_of, keep, pooling_read_hooks
from cliptools.towers.tower import Tower
from cliptools.unit_effects.factored import FactoredEffect, UnitBlock, index_of, wide
from cliptools.unit_effects.resnet_pooling import LAYER, Pooled, PooledHeads, PooledNeurons, PoolTrace, trace_pool
from cliptools.unit_effects.vit_direct import FirstOrder, Heads, direct_scalars
from cliptools.unit_effects.vit_pooling import PooledTokens, TokenHeads, TokenNeurons, TokenPairs
from cliptools.unit_effects.vit_second_order import SecondOrder, Trace, has_units, scalars, trace_hooks

PoolingEffect = TokenPairs | TokenNeurons | TokenHeads | SecondOrder
"""The effects of a ViT that pools by attention."""


class VitTower(ExplainedTower):
    """A ViT that reads a class token or a mean of tokens; units are neurons, or latents of one layer, with second-order
    effects.
    """

    carried = True

    def __init__(self, tower: Tower) -> None:
        depth = tower.depth
        self.image_tower, self._heads = tower, Heads(tower)
        self.effect, self.head_effect = SecondOrder(tower), self._heads
        self.layers = [layer for layer in range(depth - 1) if has_units(tower, layer)]
        self.head_blocks = [UnitBlock(layer, torch.arange(self._heads.size(layer)[0])) for layer in range(depth)]
        self.heads = [HeadName(block.layer, head) for block in self.head_blocks for head in block.neurons.tolist()]
        self.grid, self.prefix = tower.grid, tower.prefix

    @torch.inference_mode()
    def read(self, image: Float[Tensor, "b 3 y x"]) -> ForwardPass:
        """Implements ExplainedTower.read."""
        tower = self.image_tower
        neurons = tower_of(tower.visual)  # has neurons also where the units are latents
        hooks, trace_of = trace_hooks(tower, self.layers)
        mlp_hooks, mlps_of = trace_hooks(neurons, range(len(self.head_blocks)), rows=False)
        listener = self._heads.listen(self.head_blocks)
        with hooked([*hooks, *mlp_hooks, *listener.hooks]):
            embedding = tower.visual(image.to(tower.weight.device, tower.weight.dtype))
        return VitPass(trace_of(embedding), list(listener.scalars(embedding)), direct_sum(neurons, mlps_of(embedding)))

    def path_heads(self, block: UnitBlock) -> Int[Tensor, "n k"]:
        """Implements ExplainedTower.path_heads."""
        first = next(number for number, head in enumerate(self.heads) if head.layer > block.layer)
        return torch.arange(first, len(self.heads)).expand(len(block.neurons), -1)


class VitPass(ForwardPass):
    """A forward pass of a ViT."""

    def __init__(self, trace: Trace, head_scalars: list[Float[Tensor, "b head e"]], mlps: Float[Tensor, "b d"]) -> None:
        self.trace, self.embedding, self.head_scalars = trace, wide(trace.embedding), head_scalars
        self.parts = {"mlps": mlps}

    def scalars(self, block: UnitBlock) -> Float[Tensor, "b n k"]:
        """Implements ForwardPass.scalars."""
        return scalars(self.trace, block.layer, index_of(block.neurons, self.embedding.device))

    def token_scalars(self, image: int, block: UnitBlock) -> Float[Tensor, "token n k"]:
        """Implements ForwardPass.token_scalars."""
        return token_scalars(self.trace, image, block)


def token_scalars(trace: Trace, image: int, block: UnitBlock) -> Float[Tensor, "token n k"]:
    """The part of each token in S of second-order effects, on one image: S of a picture with this token alone."""
    neurons = index_of(block.neurons, trace.embedding.device)
    p = trace.p[block.layer][image][:, None][..., neurons]  # [token, 1, n]
    reach = {layer: a[image].T[..., None] for layer, a in trace.reach.items()}  # [token, path, 1]
    return scalars(Trace(trace.embedding, trace.beta, reach, {block.layer: p}), block.layer)


class PoolingTower(ExplainedTower):
    """A ViT that pools by attention; units are pairs, neurons or heads with pooled effects, or neurons with second-order effects.

    `heads` are those of the pooling where nothing else is between the units and the output, or where it has the units; else
    they are those of self-attention.
    """

    head_effect: TokenHeads

    def __init__(self, effect: PoolingEffect, layers: Collection[int]) -> None:
        """
        Args:
            layers: Those of the units.
        """
        tower = effect.tower
        self.image_tower, self.head_effect, self.grid, self.prefix = tower, TokenHeads(tower), tower.grid, tower.prefix
        self.pooling, self.depth = self.head_effect.pooling, tower.depth
        self.neuron_blocks = tower_of(tower.visual).blocks
        """Blocks that have neurons also where the units are latents."""
        self.carried = isinstance(effect, SecondOrder)
        self.effect = SecondOrder(tower) if self.carried else effect  # its paths, where `SecondOrderPooled` has phi for S
        own = isinstance(effect, TokenHeads) and self.depth in layers
        read = range(self.depth - 1 if self.carried else self.depth)
        self.layers = (self.depth,) if own else [layer for layer in read if has_units(tower, layer)]
        self.read_layers = range(0 if own else self.depth)
        """Layers whose neurons and heads are parts of the margin."""
        head_layers = (self.depth,) if own or isinstance(effect, PooledTokens) else range(self.depth)
        self.head_blocks = [UnitBlock(layer, torch.arange(self.head_effect.size(layer)[0])) for layer in head_layers]
        self.heads = [HeadName(block.layer, head) for block in self.head_blocks for head in block.neurons.tolist()]

    @torch.inference_mode()
    def read(self, image: Float[Tensor, "b 3 y x"]) -> ForwardPass:
        """Implements ExplainedTower.read."""
        tower, blocks = self.image_tower, self.neuron_blocks
        neurons: dict[int, Tensor] = {}
        p = neurons if tower.unit_layers is None else dict[int, Tensor]()
        reads: list[PoolingRead] = []
        added: list[Tensor] = []
        hooks, kept = keep(blocks, self.read_layers, slice(None))
        hooks += [hook for layer in self.read_layers for hook in blocks[layer].activation_hooks(neurons, layer)]
        hooks += [hook for layer in tower.unit_layers or () for hook in tower.blocks[layer].activation_hooks(p, layer)]
        hooks += pooling_read_hooks(self.pooling, reads.append) + self.pooling.mlp_hooks(added.append)
        with hooked(hooks):
            embedding = tower.visual(image.to(tower.weight.device, tower.weight.dtype))
        parts = {"pooling_mlp": added[0]} if added else {}
        return PoolingPass(self, wide(embedding), reads[0], p, neurons, kept, parts)

    def path_heads(self, block: UnitBlock) -> Int[Tensor, "n k"]:
        """Implements ExplainedTower.path_heads."""
        paths = self.effect.size(block.layer)[1]
        if self.carried:
            later = [number for number, head in enumerate(self.heads) if head.layer > block.layer]
            return torch.tensor(later).repeat_interleave(self.pooling.heads).expand(len(block.neurons), -1)
        if isinstance(self.effect, TokenNeurons):
            return torch.arange(paths).expand(len(block.neurons), -1)
        head = self.effect.units(block.layer)[block.neurons, 2]  # [n]
        first = next(number for number, name in enumerate(self.heads) if name.layer in (block.layer, self.depth))
        return (first + head)[:, None].expand(-1, paths)


class PoolingPass(ForwardPass):
    """A forward pass of a ViT that pools by attention."""

    def __init__(
        self,
        tower: PoolingTower,
        embedding: Float[Tensor, "b d"],
        read: PoolingRead,
        p: dict[int, Tensor],
        neurons: dict[int, Tensor],
        kept: dict[int, Kept],
        parts: dict[str, Tensor],
    ) -> None:
        self.tower, self.embedding, self.read, self.kept = tower, embedding, read, kept
        self.rows = {layer: held.rows(read.beta) for layer, held in kept.items()}  # [b, head, g, token] a layer
        self.values = {layer: held.values(self.rows[layer]) for layer, held in kept.items()}  # [b, head, g, e] a layer
        reach = {layer: eff_of(held, self.rows[layer]) for layer, held in kept.items()} if tower.carried else {}
        self.trace = Trace(embedding, embedding.new_ones(len(embedding), 0), reach, p)
        self.head_scalars = [self._of_heads(block) for block in tower.head_blocks]
        self.parts = {}
        if kept and isinstance(tower.effect, PooledTokens):
            # Latents of the stream contain what heads before them have written, so that their sum and that of heads overlap.
            if tower.image_tower.unit_layers is None:
                self.parts["heads"] = self._through([self._attention(layer) for layer in kept])
        elif kept:
            self.parts["mlps"] = self._through([self._neurons(layer, a) for layer, a in neurons.items()])
        self.parts |= parts

    def scalars(self, block: UnitBlock) -> Float[Tensor, "b n k"]:
        """Implements ForwardPass.scalars."""
        effect, neurons = self.tower.effect, index_of(block.neurons, self.embedding.device)
        if isinstance(effect, PooledTokens):
            return effect.layer_scalars(self.trace.p[block.layer], self.read.beta)[:, neurons]
        return self._of_heads(block) if isinstance(effect, TokenHeads) else scalars(self.trace, block.layer, neurons)

    def token_scalars(self, image: int, block: UnitBlock) -> Float[Tensor, "token n k"]:
        """Implements ForwardPass.token_scalars."""
        effect = self.tower.effect
        if isinstance(effect, PooledTokens):
            return effect.token_scalars(self.trace.p[block.layer][image], self.read.beta[image], block)
        if not isinstance(effect, TokenHeads):
            return token_scalars(self.trace, image, block)
        if block.layer == self.tower.depth:
            return effect.token_scalars(self.read, image, block)
        heads = index_of(block.neurons, self.embedding.device)
        return self.kept[block.layer].token_values(self.rows[block.layer], image, heads).flatten(2)

    def _of_heads(self, block: UnitBlock) -> Float[Tensor, "b n k"]:
        """S of heads."""
        pooled = block.layer == self.tower.depth
        S = self.tower.head_effect.pooled_values(self.read) if pooled else self.values[block.layer].flatten(2)
        return S[:, index_of(block.neurons, S.device)]

    def _attention(self, layer: int) -> Float[Tensor, "b g width"]:
        """The outputs of a layer's heads, summed over the tokens with the weights of the pooling's heads."""
        values = self.values[layer].transpose(1, 2).flatten(2)  # [b, head, g, e] -> [b, g, head e]
        return values @ self.tower.image_tower.blocks[layer].output_matrix().to(values).T

    def _neurons(self, layer: int, p: Float[Tensor, "b token neuron"]) -> Float[Tensor, "b g width"]:
        """The same of what the neurons of a layer write."""
        s = self.read.beta @ p.to(self.read.beta)  # [b, g, neuron]
        return s @ self.tower.neuron_blocks[layer].neuron_outputs(slice(None)).to(s).T

    def _through(self, written: Sequence[Float[Tensor, "b g width"]]) -> Float[Tensor, "b d"]:
        """Their sum, through the pooling."""
        pooling = self.tower.pooling
        return torch.einsum("bgw,gew,ged->bd", torch.stack(list(written)).sum(0), pooling.value_matrix(), pooling.ends())


def direct_sum(tower: Tower, trace: Trace) -> Float[Tensor, "b d"]:
    """Sum of the direct effects of all neurons of the trace's layers."""
    first, total = FirstOrder(tower), torch.zeros_like(wide(trace.embedding))
    for layer in trace.p:
        S = direct_scalars(tower, trace, layer)  # [b, n, 1]
        total += first.total(UnitBlock(layer, torch.arange(S.shape[1])), S)
    return total


class ResNetTower(ExplainedTower):
    """A CLIP-ResNet; units are pairs, neurons or heads of its attention pooling."""

    def __init__(self, effect: Pooled) -> None:
        visual = effect.visual
        self.visual, self._units, self._heads = visual, effect, PooledHeads(visual)
        self.effect, self.head_effect = _as_factored(effect), self._heads
        self.layers = (LAYER,)
        self.head_blocks = [UnitBlock(LAYER, torch.arange(effect.heads))]
        self.heads = [HeadName(LAYER, head) for head in range(effect.heads)]
        self.grid = _grid(visual)

    @torch.inference_mode()
    def read(self, image: Float[Tensor, "b 3 y x"]) -> ForwardPass:
        """Implements ExplainedTower.read."""
        weight = self.visual.conv1.weight
        trace = trace_pool(self.visual, image.to(weight.device, weight.dtype))
        return ResNetPass(self._units, trace, [self._heads.scalars(trace)])

    def path_heads(self, block: UnitBlock) -> Int[Tensor, "n k"]:
        """Implements ExplainedTower.path_heads."""
        paths = self.effect.size(LAYER)[1]
        if isinstance(self.effect, PooledNeurons):
            return torch.arange(paths).expand(len(block.neurons), -1)
        head = self.effect.units(LAYER)[block.neurons, 2]  # [n]
        return head[:, None].expand(-1, paths)


class ResNetPass(ForwardPass):
    """A forward pass of a CLIP-ResNet."""

    def __init__(self, effect: Pooled, trace: PoolTrace, head_scalars: list[Float[Tensor, "b head e"]]) -> None:
        self.effect, self.trace, self.parts = effect, trace, {}
        self.embedding, self.head_scalars = wide(trace.embedding), head_scalars

    def scalars(self, block: UnitBlock) -> Float[Tensor, "b n k"]:
        """Implements ForwardPass.scalars."""
        return next(self.effect.scalars_of(self.trace, [block]))

    def token_scalars(self, image: int, block: UnitBlock) -> Float[Tensor, "token n k"]:
        """Implements ForwardPass.token_scalars."""
        x = self.trace.x[image, :, None]  # [token, 1, neuron]
        a = self.trace.attention[image].T[..., None]  # [token, head, 1]
        return next(self.effect.scalars_of(PoolTrace(self.embedding, x, a), [block]))


def explained_tower(effect: FactoredEffect, layers: Collection[int] = ()) -> ExplainedTower:
    """The tower of an effect: second-order effects of a ViT's neurons, or pooled effects.

    Args:
        layers: Those of the units.
    """
    if isinstance(effect, Pooled):
        return ResNetTower(effect)
    assert isinstance(effect, PoolingEffect)
    return VitTower(effect.tower) if effect.tower.pooling is None else PoolingTower(effect, layers)


def _as_factored(effect: Pooled) -> FactoredEffect:
    """The effect, checked to have all methods of factored effects, which its abstract class leaves to its kinds."""
    assert isinstance(effect, FactoredEffect)
    return effect


def _grid(visual: ModifiedResNet) -> tuple[int, int]:
    """Rows and columns of tokens for pictures of the tower's own size."""
    (height, width), (down, across) = native_size(visual), token_stride(visual)
    return height // down, width // across
