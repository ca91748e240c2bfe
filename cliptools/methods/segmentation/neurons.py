"""Heat maps from neurons whose second-order effects point at a text (arXiv 2406.04341, section 5.2).

The paper's map is the mean activation of the neurons chosen. It knows nothing of what later heads read of it: a neuron that is
active on the ground counts there, even if no head looks. `effect_maps` are the same neurons' second-order effects along the
text, patch by patch, so that it does not count.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cliptools.ground.clip_parts import VisionTransformer
from cliptools.methods.vit_paths import Trace, directions


def neuron_weights(
    r: Float[Tensor, "unit d"], t: Float[Tensor, "b text d"], neurons: int, signed: bool
) -> Float[Tensor, "b text unit"]:
    """Weights of the activations: of the `neurons` units with the largest |<r_n, t>|, 0 for all others.

    Args:
        signed: Weigh by <r_n, t>, over the sum of their absolute values; else, as the paper does, all alike.
    """
    along = t @ r.T  # (b, text, unit)
    size, chosen = along.abs().topk(min(neurons, len(r)), dim=-1)
    picked = along.gather(-1, chosen) / size.sum(-1, keepdim=True).clamp(min=1e-12) if signed else size * 0 + 1 / size.shape[-1]
    return torch.zeros_like(along).scatter(-1, chosen, picked)


def neuron_maps(p: Sequence[Float[Tensor, "b token _"]], weight: Float[Tensor, "b text unit"]) -> Float[Tensor, "b text patch"]:
    """Weighted sum of the neurons' patch activations; the units are those of `p`, one layer after the other."""
    sizes = [activations.shape[-1] for activations in p]
    parts = [w @ a[:, 1:].to(w.dtype).transpose(1, 2) for a, w in zip(p, weight.split(sizes, dim=-1), strict=True)]
    return torch.stack(parts).sum(0)  # (layer, b, text, patch) -> (b, text, patch)


def chosen_neurons(r: Float[Tensor, "unit d"], t: Float[Tensor, " d"], neurons: int) -> Int[Tensor, " chosen"]:
    """The `neurons` units with the largest |<r_n, t>|, in the units' order."""
    return (r @ t).abs().topk(min(neurons, len(r))).indices.sort().values


def effect_maps(
    visual: VisionTransformer, traced: Trace, layer: int, neurons: Int[Tensor, " n"], image: int, t: Float[Tensor, " d"]
) -> Float[Tensor, " patch"]:
    """What one layer's neurons add to <M(I), t> at each patch by way of later heads: sum over n, k of p_i a_i^k <D[n, k], t>.

    a_i^k is the class token's attention in head k over the LayerNorm deviations of patch and output (vit_paths.py).
    """
    along = directions(visual, layer, neurons) @ t  # (n, k)
    a = torch.cat([traced.alpha[later][image] for later in sorted(traced.alpha) if later > layer]).to(t)  # (k, token)
    p = traced.p[layer][image][:, neurons].to(t)  # (token, n)
    return torch.einsum("in,nk,ki->i", p, along, a / traced.sigma_post[image])[1:]
