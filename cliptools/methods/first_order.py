"""First-order effects of a ViT's neurons: what each adds to the output directly, at the class token.

Paper 1 (arXiv 2406.04341), Sec. 3.2: P p_0 w_n, here as second-order effects are taken, with the final LayerNorm of the
real forward pass frozen (App. A.6). It is the factored form with a single path:

    phi_n(I) = S[n](I) D[n]
    S[n] = p_0^n / sigma_post
    D[n] = P (gamma_post * ls2_l * w_n)

Every layer has them, the last one too. Bias shares are left out.
"""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cliptools.ground.clip_parts import VisionTransformer
from cliptools.ground.errors import UsageError
from cliptools.methods.paths import Listener, Slab, index_of, neuron_units
from cliptools.methods.vit_paths import default_layers, neurons_per_layer, norm_gain, overheard, tracing, written


class FirstOrder:
    """Units are neurons; the one path is the residual stream of the class token."""

    def __init__(self, visual: VisionTransformer) -> None:
        self.visual = visual

    def size(self, layer: int) -> tuple[int, int]:
        """Neurons of the layer's MLP, and 1."""
        return neurons_per_layer(self.visual, layer), 1

    def units(self, layer: int) -> Int[Tensor, "n 3"]:
        """Layer and number of every neuron."""
        known = 0 <= layer < len(self.visual.transformer.resblocks)
        return neuron_units(layer, torch.arange(self.size(layer)[0] if known else 0))

    @torch.inference_mode()
    def read(
        self, image: Float[Tensor, "b 3 y x"], slabs: Sequence[Slab]
    ) -> tuple[Iterable[Float[Tensor, "b n 1"]], Float[Tensor, "b d"]]:
        """S of every slab, and M(I), from one forward pass."""
        return overheard(self.visual, image, self.listen(slabs))

    def listen(self, slabs: Sequence[Slab]) -> Listener:
        """Activations of the slabs' layers at the class token."""
        hooks, traced = tracing(self.visual, sorted({slab.layer for slab in slabs}))

        def of(embedding: Float[Tensor, "b d"]) -> list[Float[Tensor, "b n 1"]]:
            trace = traced(embedding)
            sigma = trace.sigma_post[:, None]  # (b, 1)
            p_0 = [trace.p[slab.layer][:, 0, slab.neurons.to(sigma.device)] for slab in slabs]  # (b, n) each
            return [(p.to(sigma.dtype) / sigma)[..., None] for p in p_0]

        return Listener(hooks, of)

    @torch.inference_mode()
    def directions(self, slab: Slab) -> Float[Tensor, "n 1 d"]:
        """D of some of a layer's neurons."""
        return self._direct(written(self.visual, slab.layer, slab.neurons.to(self.visual.proj.device)).T)[:, None]

    @torch.inference_mode()
    def total(self, slab: Slab, S: Float[Tensor, "b n 1"]) -> Float[Tensor, "b d"]:
        """Sum over some of a layer's neurons of phi_n: first in the residual stream."""
        w = written(self.visual, slab.layer, index_of(slab.neurons, S.device))  # (width, n)
        return self._direct(S[..., 0] @ w.to(S).T)

    def _direct(self, x: Float[Tensor, "i width"]) -> Float[Tensor, "i d"]:
        """P (gamma_post * x): where a part of the residual stream ends."""
        return (norm_gain(self.visual.ln_post, x).to(x) * x) @ self.visual.proj.to(x)


def choose_any_layers(visual: VisionTransformer, asked: Sequence[int] | None) -> tuple[int, ...]:
    """The layers asked for, the last one allowed; by default those of second-order effects, so that bundles compare.

    Raises:
        UsageError: a layer that does not exist.
    """
    depth = len(visual.transformer.resblocks)
    if asked is None:
        return default_layers(depth)
    for layer in asked:
        if layer >= depth:
            raise UsageError(f"--layers: layer {layer} does not exist, this model has layers 0 to {depth - 1}")
    return tuple(asked)
