"""First-order effects of a ViT's neurons: what each adds to the output directly, at the class token.

Paper 1 (arXiv 2406.04341), Sec. 3.2: P p_0 w_n, here as second-order effects are taken, with the final LayerNorm of the
real forward pass frozen (App. A.6). It is the factored form with a single path:

    phi_n(I) = S[n](I) D[n]
    S[n] = p_0^n / sigma_post
    D[n] = P (gamma_post * ls2_l * w_n)

Every layer has them, the last one too. Bias shares are left out.

Direct effects of a ViT's attention heads: what each adds to the output at the class token.

Gandelsman et al. 2024 (arXiv 2310.05916), Sec. 3, with the final LayerNorm of the real forward pass frozen, as first-order
effects of neurons have it. Head h of layer l adds W_O^h times sum over i of a_i v_i to the class token, where a is the class
token's attention and v_i = W_V^h LN(x_i). In factored form, with a path for each of the e dimensions of the head's values:

    phi_{l,h}(I) = sum over j of S[j](I) D[j]
    S[j] = 1 / sigma_post sum over i of a_i v_i[j]
    D[j] = P (gamma_post * ls1_l * W_O^h[:, j])

Every layer has them, the last one too. Bias shares are left out, that of the values (W_O^h b_V^h) included.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cliptools.effects.factored import Hooks, Listener, UnitBlock, head_units, index_of, neuron_units, wide
from cliptools.effects.vit_second_order import (
    class_attention,
    default_layers,
    keep_sigma_post,
    neurons_per_layer,
    norm_gain,
    overheard,
    reach_of,
    tracing,
    written,
)
from cliptools.errors import UsageError
from cliptools.models.clip_parts import VisionTransformer


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
        self, image: Float[Tensor, "b 3 y x"], slabs: Sequence[UnitBlock]
    ) -> tuple[Iterable[Float[Tensor, "b n 1"]], Float[Tensor, "b d"]]:
        """S of every slab, and M(I), from one forward pass."""
        return overheard(self.visual, image, self.listen(slabs))

    def listen(self, slabs: Sequence[UnitBlock]) -> Listener:
        """Activations of the slabs' layers at the class token."""
        hooks, traced = tracing(self.visual, sorted({slab.layer for slab in slabs}))

        def of(embedding: Float[Tensor, "b d"]) -> list[Float[Tensor, "b n 1"]]:
            trace = traced(embedding)
            sigma = trace.sigma_post[:, None]  # (b, 1)
            p_0 = [trace.p[slab.layer][:, 0, slab.neurons.to(sigma.device)] for slab in slabs]  # (b, n) each
            return [(p.to(sigma.dtype) / sigma)[..., None] for p in p_0]

        return Listener(hooks, of)

    @torch.inference_mode()
    def directions(self, slab: UnitBlock) -> Float[Tensor, "n 1 d"]:
        """D of some of a layer's neurons."""
        return self._direct(written(self.visual, slab.layer, slab.neurons.to(self.visual.proj.device)).T)[:, None]

    @torch.inference_mode()
    def total(self, slab: UnitBlock, S: Float[Tensor, "b n 1"]) -> Float[Tensor, "b d"]:
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


LAYERS = 4  # by default the last, as the paper: attention of earlier layers has next to no direct effect


class Heads:
    """Units are attention heads; paths are the dimensions of their values."""

    def __init__(self, visual: VisionTransformer) -> None:
        self.visual = visual

    def size(self, layer: int) -> tuple[int, int]:
        """Heads of the layer, and e."""
        attn = self.visual.transformer.resblocks[layer].attn
        return attn.num_heads, attn.embed_dim // attn.num_heads

    def units(self, layer: int) -> Int[Tensor, "n 3"]:
        """Layer and number of every head."""
        known = 0 <= layer < len(self.visual.transformer.resblocks)
        return head_units(layer, torch.arange(self.size(layer)[0] if known else 0))

    @torch.inference_mode()
    def read(
        self, image: Float[Tensor, "b 3 y x"], slabs: Sequence[UnitBlock]
    ) -> tuple[Iterable[Float[Tensor, "b n k"]], Float[Tensor, "b d"]]:
        """S of every slab, and M(I), from one forward pass."""
        return overheard(self.visual, image, self.listen(slabs))

    def listen(self, slabs: Sequence[UnitBlock]) -> Listener:
        """What the slabs' layers' heads carry to the class token."""
        carried: dict[int, Tensor] = {}
        sigma_post: list[Tensor] = []
        blocks = self.visual.transformer.resblocks
        hooks: Hooks = [(self.visual.ln_post, keep_sigma_post(sigma_post))]
        hooks += [(blocks[layer].ln_1, _carry(carried, layer, blocks[layer].attn)) for layer in {slab.layer for slab in slabs}]

        def of(embedding: Float[Tensor, "b d"]) -> Iterator[Float[Tensor, "b n k"]]:
            sigma = sigma_post[0][:, None, None]  # (b, 1, 1)
            return (carried[slab.layer][:, index_of(slab.neurons, sigma.device)] / sigma for slab in slabs)

        return Listener(hooks, of)

    @torch.inference_mode()
    def directions(self, slab: UnitBlock) -> Float[Tensor, "n k d"]:
        """D of some of a layer's heads."""
        D = reach_of(self.visual, slab.layer)  # (head, e, d)
        return D[index_of(slab.neurons, D.device)]


def choose_head_layers(visual: VisionTransformer, asked: Sequence[int] | None) -> tuple[int, ...]:
    """The layers asked for, by default the last four.

    Raises:
        UsageError: a layer that does not exist.
    """
    depth = len(visual.transformer.resblocks)
    return choose_any_layers(visual, range(max(0, depth - LAYERS), depth) if asked is None else asked)


def _carry(store: dict[int, Tensor], layer: int, attn: nn.MultiheadAttention) -> Callable[..., None]:
    def hook(norm: nn.LayerNorm, given: tuple[Tensor, ...], normed: Float[Tensor, "b token width"]) -> None:
        W_V = wide(attn.in_proj_weight[2 * normed.shape[-1] :]).unflatten(0, (attn.num_heads, -1))  # (head, e, width)
        a = class_attention(attn, normed)  # (b, head, token)
        store[layer] = torch.einsum("bhw,hew->bhe", a @ wide(normed), W_V)

    return hook
