"""Second-order effects of a ViT's neurons through one later layer and an attention pooling with learned queries, factored.

These are the effects of vit_second_order.py, with the pooling (towers/pooling.py) in place of a class token: K = heads of the
pooling times heads of later layers. Where that is more than d, phi itself takes the place of S, and D is the identity.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cliptools.towers.tower import Tower
from cliptools.unit_effects.factored import Listener, UnitBlock, index_of, slices, wide
from cliptools.unit_effects.vit_pooling import pooling_of
from cliptools.unit_effects.vit_second_order import SecondOrder, neuron_outputs


class SecondOrderPooled(SecondOrder):
    """Second-order effects through a later layer and the pooling; in layers with more than d paths, S is phi itself."""

    def __init__(self, visual: nn.Module | Tower) -> None:
        super().__init__(visual)
        self.pooling = pooling_of(self.tower)
        self._inner: dict[int, tuple[Tensor, Tensor]] = {}  # by layer, as `_carried` fills it

    def _whole(self, layer: int) -> bool:
        """True for a layer in which S is phi."""
        return super().size(layer)[1] > self.tower.projection.shape[1]

    def size(self, layer: int) -> tuple[int, int]:
        """Numbers of neurons in the layer's MLP and of paths, at most d."""
        n, k = super().size(layer)
        return n, min(k, self.tower.projection.shape[1])

    def listen(self, blocks: Sequence[UnitBlock]) -> Listener:
        """Hooks for activations of the blocks' layers, the attention of later layers and of the pooling."""
        hooks, scalars = super().listen(blocks)

        def scalars_of(embedding: Float[Tensor, "b d"]) -> Iterator[Float[Tensor, "b n k"]]:
            pairs = zip(blocks, scalars(embedding), strict=True)
            return (self._phi(block, S) if self._whole(block.layer) else S for block, S in pairs)

        return Listener(hooks, scalars_of)

    def _phi(self, block: UnitBlock, S: Float[Tensor, "b n k"]) -> Float[Tensor, "b n d"]:
        """phi of the block's neurons. D is not formed: paths are summed where each head of the pooling collects its values.

        D[n, k] = A_g U^h w_n = ends_g v[n, k] with k = (l', h, g), so phi_n = sum over g of ends_g (sum over (l', h) of S v).
        """
        ends = self.pooling.ends().to(S)  # [g, f, d]
        parts = []
        for rows in slices(S.shape[1], max(1, S.shape[2] * ends.shape[1] // ends.shape[2]), 1):
            v = self._carried(block.part(rows)).to(S)  # [h, n, g, f], h = (l', h)
            y = torch.einsum("bnhg,hngf->bngf", S[:, rows].unflatten(2, (len(v), -1)), v)
            parts.append(y.flatten(2) @ ends.flatten(0, 1))  # [b, n, g f] @ [g f, d]
        return torch.cat(parts, 1)

    def _carried(self, block: UnitBlock) -> Float[Tensor, "h n g f"]:
        """v: what each head g of the pooling collects of a unit activation of each neuron through every later head."""
        w = neuron_outputs(self.tower, block.layer, index_of(block.neurons, self.tower.weight.device))  # [width, n]
        carried = []
        for later in range(block.layer + 1, self.tower.depth):
            if later not in self._inner:
                module = self.tower.blocks[later]
                inner = self.pooling.value_matrix() @ module.output_matrix()  # [g, f, head e]
                self._inner[later] = module.value_matrix(), inner.unflatten(2, (module.attention.heads, -1)).permute(2, 3, 0, 1)
            W_V, inner = self._inner[later]  # [head, e, width], [head, e, g, f]
            values = (W_V @ w).transpose(1, 2)  # [head, n, e]
            carried.append((values @ inner.flatten(2)).unflatten(2, inner.shape[2:]))  # [head, n, e] @ [head, e, g f]
        return torch.cat(carried)

    @torch.inference_mode()
    def directions(self, block: UnitBlock) -> Float[Tensor, "n k d"]:
        """D of the block's neurons: the identity where S is phi."""
        if not self._whole(block.layer):
            return super().directions(block)
        like = wide(self.tower.projection)
        d = like.shape[1]
        return torch.eye(d, dtype=like.dtype, device=like.device).expand(len(block.neurons), d, d)

    @torch.inference_mode()
    def along(self, block: UnitBlock, v: Float[Tensor, " d"]) -> Float[Tensor, "n k"]:
        """<D[n, k], v>."""
        if not self._whole(block.layer):
            return super().along(block, v)
        return v.to(wide(self.tower.projection)).expand(len(block.neurons), -1)

    @torch.inference_mode()
    def total(self, block: UnitBlock, S: Float[Tensor, "b n k"]) -> Float[Tensor, "b d"]:
        """Sum of phi_n over the block's neurons."""
        return S.sum(1) if self._whole(block.layer) else super().total(block, S)
