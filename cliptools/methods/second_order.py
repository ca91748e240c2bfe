"""Second-order effects of a ViT's neurons (vit_paths.py), as the engine wants them."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from open_clip.transformer import VisionTransformer
from torch import Tensor

from cliptools.methods.paths import Slab, index_of, neuron_units
from cliptools.methods.vit_paths import directions, neurons_per_layer, paths_per_unit, scalars, trace


class SecondOrder:
    """Units are neurons, paths are the heads of later layers."""

    def __init__(self, visual: VisionTransformer) -> None:
        self.visual = visual
        self._reach: dict[int, torch.Tensor] = {}

    def size(self, layer: int) -> tuple[int, int]:
        """Neurons of the layer's MLP and later heads."""
        return neurons_per_layer(self.visual, layer), paths_per_unit(self.visual, layer)

    def units(self, layer: int) -> Int[Tensor, "n 3"]:
        """Layer and number of every neuron."""
        known = 0 <= layer < len(self.visual.transformer.resblocks) - 1
        return neuron_units(layer, torch.arange(self.size(layer)[0] if known else 0))

    @torch.inference_mode()
    def read(
        self, image: Float[Tensor, "b 3 y x"], slabs: Sequence[Slab]
    ) -> tuple[Iterator[Float[Tensor, "b n k"]], Float[Tensor, "b d"]]:
        """S of every slab, each made when its turn comes, and M(I), from one forward pass."""
        weight = self.visual.conv1.weight
        traced = trace(self.visual, image.to(weight.device, weight.dtype), sorted({slab.layer for slab in slabs}))
        S = (scalars(traced, slab.layer, index_of(slab.neurons, weight.device)) for slab in slabs)
        return S, traced.embedding

    @torch.inference_mode()
    def directions(self, slab: Slab) -> Float[Tensor, "n k d"]:
        """D of some of a layer's neurons."""
        return directions(self.visual, slab.layer, index_of(slab.neurons, self.visual.conv1.weight.device), self._reach)
