"""What the output would be if second-order effects were their means, or their first principal component.

Paper 1, Sec. 3.3: of all neurons of the chosen layers at once, the effect phi_n of each on each image is replaced

    by its mean over the images         phi_n -> b_n
    by its reconstruction from PC 1     phi_n -> b_n + <phi_n - b_n, r_n> r_n

Sums over neurons need no vector per neuron: sum_n phi_n is the MLP's output sent through the later heads, and
<phi_n, r_n> = sum_k S[n, k] <D[n, k], r_n> needs only [n, k] inner products.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from cliptools.methods.paths import Paths, Slab, scale_of, slices


class Ablated(NamedTuple):
    """The output, scaled by 100 / ||M(I)|| of its image, as it is and with effects replaced."""

    untouched: Float[Tensor, "b d"]
    mean: Float[Tensor, "b d"]
    pc: Float[Tensor, "b d"]


class Replacement:
    """Effects of some slabs' units replaced, for one batch of images after the other."""

    def __init__(self, paths: Paths, slabs: Sequence[Slab], means: Sequence[Tensor], rs: Sequence[Tensor]) -> None:
        """
        Args:
            means: b of each slab's units [n, d].
            rs: Their unit directions r [n, d].
        """
        self.paths, self.slabs, self.rs = paths, slabs, rs
        self.along = [self._along(slab, r) for slab, r in zip(slabs, rs, strict=True)]  # <D[n, k], r_n>: [n, k]
        self.base = [b.sum(0) for b in means]  # (d)
        self.shadow = [(b * r).sum(-1) for b, r in zip(means, rs, strict=True)]  # <b_n, r_n>: [n]

    def _along(self, slab: Slab, r: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        parts = []
        for of in slices(len(r), self.paths.size(slab.layer)[1]):
            D = self.paths.directions(Slab(slab.layer, slab.neurons[of]))
            parts.append(torch.einsum("nkd,nd->nk", D, r[of].to(D.dtype)))
        return torch.cat(parts)

    def __call__(self, image: Float[Tensor, "b 3 y x"]) -> Ablated:
        """The output for a batch of images, three ways."""
        S, embedding = self.paths.read(image, self.slabs)
        scale = scale_of(embedding, True)
        untouched = embedding * scale[:, None]
        mean, pc = untouched, untouched
        for i, (slab, s) in enumerate(zip(self.slabs, S, strict=True)):
            scaled = s * scale[:, None, None]
            moved = self._sum(slab, scaled) - self.base[i]  # (b, d): sum of phi_n - b_n
            x = torch.einsum("bnk,nk->bn", scaled, self.along[i]) - self.shadow[i]
            mean = mean - moved
            pc = pc - moved + x @ self.rs[i].to(x.dtype)
        return Ablated(untouched, mean, pc)

    def _sum(self, slab: Slab, S: Float[Tensor, "b n k"]) -> Float[Tensor, "b d"]:
        """Sum over the slab's units of phi_n = sum_k S[n, k] D[n, k]."""
        total = S.new_zeros(len(S), len(self.base[0]))
        for of in slices(S.shape[1], S.shape[2]):
            D = self.paths.directions(Slab(slab.layer, slab.neurons[of]))
            total = total + S[:, of].flatten(1) @ D.flatten(0, 1)
        return total
