"""Forward passes from which the shares of a margin are computed, for ViTs and CLIP-ResNets.

A `Tower` has the effect of the units and the direct effects of all heads. Its pass over some images has the scalars S of units
(unit_effects/factored.py, Eq. 1), also of each token alone: S is a sum over tokens, so that a pass with a single token gives that
token's part. Heads are numbered through the tower, and `path_heads` names the head of each path of a unit:

    ViT, neurons of layer l        path k is head k of the layers after l
    ResNet, pairs and heads        all paths of a unit are its head
    ResNet, neurons                path k is head k
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from cliptools.errors import ModelError
from cliptools.models.clip_parts import ModifiedResNet
from cliptools.segmentation.towers import native_size, token_stride
from cliptools.towers.hooks import hooked
from cliptools.towers.tower import Tower as ImageTower
from cliptools.unit_effects.factored import FactoredEffect, UnitBlock, along_of, index_of, unit_blocks_of, wide
from cliptools.unit_effects.resnet_pooling import LAYER, Pooled, PooledHeads, PooledNeurons, PoolTrace, trace_pool
from cliptools.unit_effects.vit_direct import FirstOrder, Heads, direct_scalars
from cliptools.unit_effects.vit_second_order import SecondOrder, Trace, scalars, trace_hooks


class HeadName(NamedTuple):
    """A head of a tower."""

    layer: int
    head: int


class ForwardPass(ABC):
    """One forward pass over b images."""

    embedding: Float[Tensor, "b d"]
    """M(I), not normalised; in float32 at least."""
    head_scalars: list[Float[Tensor, "b head e"]]
    """S of the direct effects of all heads, one tensor for each layer of `Tower.head_blocks`."""
    mlps: Float[Tensor, "b d"] | None
    """Sum of the direct effects of all neurons; None for a ResNet, where neurons have no such effect."""

    @abstractmethod
    def scalars(self, block: UnitBlock) -> Float[Tensor, "b n k"]:
        """S of the block's units."""

    @abstractmethod
    def token_scalars(self, image: int, block: UnitBlock) -> Float[Tensor, "token n k"]:
        """Parts of S that come from each token of one image; a class token or mean token is the first."""


class Tower(ABC):
    """An image tower, with the units to explain by and its heads."""

    effect: FactoredEffect
    """The effect of the units."""
    layers: Sequence[int]
    """All layers that have units."""
    heads: list[HeadName]
    head_effect: FactoredEffect
    """Direct effects of the heads."""
    head_blocks: list[UnitBlock]
    """All heads, in the order of `heads`."""
    grid: tuple[int, int]
    """Rows and columns of tokens."""
    prefix: int = 1
    """Number of tokens before those of the grid: a class token with registers, a mean token, or none."""

    @abstractmethod
    def read(self, image: Float[Tensor, "b 3 y x"]) -> ForwardPass:
        """One forward pass over these images."""

    @abstractmethod
    def path_heads(self, block: UnitBlock) -> Int[Tensor, "n k"]:
        """Number in `heads` of the head of each path."""


class VitTower(Tower):
    """A ViT; units are neurons with second-order effects."""

    def __init__(self, tower: ImageTower) -> None:
        depth = tower.depth
        self.image_tower, self._heads = tower, Heads(tower)
        self.effect, self.head_effect = SecondOrder(tower), self._heads
        self.layers = range(depth - 1)
        self.head_blocks = [UnitBlock(layer, torch.arange(self._heads.size(layer)[0])) for layer in range(depth)]
        self.heads = [HeadName(block.layer, head) for block in self.head_blocks for head in block.neurons.tolist()]
        self.grid, self.prefix = tower.grid, tower.prefix

    @torch.inference_mode()
    def read(self, image: Float[Tensor, "b 3 y x"]) -> ForwardPass:
        """Implements Tower.read."""
        tower = self.image_tower
        hooks, trace_of = trace_hooks(tower, range(len(self.head_blocks)))
        listener = self._heads.listen(self.head_blocks)
        with hooked([*hooks, *listener.hooks]):
            embedding = tower.visual(image.to(tower.weight.device, tower.weight.dtype))
        return VitPass(tower, trace_of(embedding), list(listener.scalars(embedding)))

    def path_heads(self, block: UnitBlock) -> Int[Tensor, "n k"]:
        """Implements Tower.path_heads."""
        first = next(number for number, head in enumerate(self.heads) if head.layer > block.layer)
        return torch.arange(first, len(self.heads)).expand(len(block.neurons), -1)


class VitPass(ForwardPass):
    """A forward pass of a ViT."""

    def __init__(self, tower: ImageTower, trace: Trace, head_scalars: list[Float[Tensor, "b head e"]]) -> None:
        self.trace, self.embedding, self.head_scalars = trace, wide(trace.embedding), head_scalars
        first = FirstOrder(tower)
        self.mlps = torch.zeros_like(self.embedding)
        for layer in trace.p:
            S = direct_scalars(tower, trace, layer)  # [b, n, 1]
            self.mlps += first.total(UnitBlock(layer, torch.arange(S.shape[1])), S)

    def scalars(self, block: UnitBlock) -> Float[Tensor, "b n k"]:
        """Implements ForwardPass.scalars."""
        return scalars(self.trace, block.layer, index_of(block.neurons, self.embedding.device))

    def token_scalars(self, image: int, block: UnitBlock) -> Float[Tensor, "token n k"]:
        """Implements ForwardPass.token_scalars."""
        trace = self.trace
        p = trace.p[block.layer][image, :, None]  # [token, 1, neuron]
        reach = {layer: a[image].T[..., None] for layer, a in trace.reach.items()}  # [token, head, 1]
        alone = Trace(trace.embedding, trace.beta, reach, {block.layer: p})
        return scalars(alone, block.layer, block.neurons.to(self.embedding.device))


class ResNetTower(Tower):
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
        """Implements Tower.read."""
        weight = self.visual.conv1.weight
        trace = trace_pool(self.visual, image.to(weight.device, weight.dtype))
        return ResNetPass(self._units, trace, [self._heads.scalars(trace)])

    def path_heads(self, block: UnitBlock) -> Int[Tensor, "n k"]:
        """Implements Tower.path_heads."""
        paths = self.effect.size(LAYER)[1]
        if isinstance(self.effect, PooledNeurons):
            return torch.arange(paths).expand(len(block.neurons), -1)
        head = self.effect.units(LAYER)[block.neurons, 2]  # [n]
        return head[:, None].expand(-1, paths)


class ResNetPass(ForwardPass):
    """A forward pass of a CLIP-ResNet."""

    def __init__(self, effect: Pooled, trace: PoolTrace, head_scalars: list[Float[Tensor, "b head e"]]) -> None:
        self.effect, self.trace, self.mlps = effect, trace, None
        self.embedding, self.head_scalars = wide(trace.embedding), head_scalars

    def scalars(self, block: UnitBlock) -> Float[Tensor, "b n k"]:
        """Implements ForwardPass.scalars."""
        return next(self.effect.scalars_of(self.trace, [block]))

    def token_scalars(self, image: int, block: UnitBlock) -> Float[Tensor, "token n k"]:
        """Implements ForwardPass.token_scalars."""
        x = self.trace.x[image, :, None]  # [token, 1, neuron]
        a = self.trace.attention[image].T[..., None]  # [token, head, 1]
        return next(self.effect.scalars_of(PoolTrace(self.embedding, x, a), [block]))


def tower_of(effect: FactoredEffect) -> Tower:
    """The tower of an effect: second-order effects of a ViT's neurons, or pooled effects of a ResNet.

    Raises:
        ModelError: a ViT that pools by attention, whose margin has no such parts.
    """
    if isinstance(effect, Pooled):
        return ResNetTower(effect)
    if not isinstance(effect, SecondOrder) or effect.tower.pooling is not None:
        raise ModelError("this image tower is a ViT that pools by attention; margins are explained for a class token or a ResNet")
    return VitTower(effect.tower)


@torch.inference_mode()
def unit_maps(
    tower: Tower, unit: Int[Tensor, " 3"], r: Float[Tensor, " d"] | None, image: Float[Tensor, "b 3 y x"]
) -> Float64[Tensor, "b row column"]:
    """Where a unit acts: parts of <phi, r> from every token of the grid, with the sign by which the sum over them is positive.

    Together with the parts of the tokens before the grid, these add up to <phi, r>, times the sign.

    Args:
        r: Direction of the unit; None for a unit with a single path, whose D is its direction.

    Raises:
        StreamError: a unit that the model does not have.
    """
    blocks, _ = unit_blocks_of(tower.effect, unit[None])
    weight = torch.ones(1, dtype=torch.float64) if r is None else along_of(tower.effect, blocks[0], r)[0]  # (k,)
    forward = tower.read(image)
    tokens = [
        forward.token_scalars(number, blocks[0])[:, 0].cpu().double() @ weight.cpu().double() for number in range(len(image))
    ]
    maps = torch.stack(tokens)[:, tower.prefix :]  # (b, row column)
    sign = torch.where(maps.sum(1, keepdim=True) < 0, -1.0, 1.0)
    return (maps * sign).unflatten(1, tower.grid)


def _as_factored(effect: Pooled) -> FactoredEffect:
    """The effect, checked to have all methods of factored effects, which its abstract class leaves to its kinds."""
    assert isinstance(effect, FactoredEffect)
    return effect


def _grid(visual: ModifiedResNet) -> tuple[int, int]:
    """Rows and columns of tokens for pictures of the tower's own size."""
    (height, width), (down, across) = native_size(visual), token_stride(visual)
    return height // down, width // across
