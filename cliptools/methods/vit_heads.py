"""Direct effects of a ViT's attention heads: what each adds to the output at the class token.

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

from cliptools.ground.clip_parts import VisionTransformer
from cliptools.methods.first_order import choose_any_layers
from cliptools.methods.paths import Hooks, Listener, Slab, head_units, index_of, wide
from cliptools.methods.vit_paths import class_attention, keep_sigma_post, overheard, reach_of

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
        self, image: Float[Tensor, "b 3 y x"], slabs: Sequence[Slab]
    ) -> tuple[Iterable[Float[Tensor, "b n k"]], Float[Tensor, "b d"]]:
        """S of every slab, and M(I), from one forward pass."""
        return overheard(self.visual, image, self.listen(slabs))

    def listen(self, slabs: Sequence[Slab]) -> Listener:
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
    def directions(self, slab: Slab) -> Float[Tensor, "n k d"]:
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
