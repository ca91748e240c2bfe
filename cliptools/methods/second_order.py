"""Second-order effects of a ViT's neurons (vit_paths.py), as the engine wants them."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cliptools.ground.clip_parts import VisionTransformer
from cliptools.methods.paths import Listener, Slab, index_of, neuron_units
from cliptools.methods.vit_paths import (
    carried_sum,
    directions,
    neurons_per_layer,
    overheard,
    paths_per_unit,
    scalars,
    tracing,
)


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
    ) -> tuple[Iterable[Float[Tensor, "b n k"]], Float[Tensor, "b d"]]:
        """S of every slab, each made when its turn comes, and M(I), from one forward pass."""
        return overheard(self.visual, image, self.listen(slabs))

    def listen(self, slabs: Sequence[Slab]) -> Listener:
        """Activations of the slabs' layers, and the class token's attention in those after."""
        hooks, traced = tracing(self.visual, sorted({slab.layer for slab in slabs}))
        device = self.visual.conv1.weight.device

        def of(embedding: Float[Tensor, "b d"]) -> Iterator[Float[Tensor, "b n k"]]:
            trace = traced(embedding)
            return (scalars(trace, slab.layer, index_of(slab.neurons, device)) for slab in slabs)

        return Listener(hooks, of)

    @torch.inference_mode()
    def directions(self, slab: Slab) -> Float[Tensor, "n k d"]:
        """D of some of a layer's neurons."""
        return directions(self.visual, slab.layer, index_of(slab.neurons, self.visual.conv1.weight.device), self._reach)

    @torch.inference_mode()
    def total(self, slab: Slab, S: Float[Tensor, "b n k"]) -> Float[Tensor, "b d"]:
        """Sum over some of a layer's neurons of phi_n; neither D nor phi is formed."""
        return carried_sum(self.visual, slab.layer, index_of(slab.neurons, S.device), S, self._reach)
