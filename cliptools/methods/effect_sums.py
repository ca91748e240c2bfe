"""Sums of effects over units, without a vector for each unit.

    sum over n of phi_n(I) = sum over n and k of S[n, k](I) D[n, k, :]

What carries each path's share to the output is linear and the same for all units of a layer. So the shares are added up before
they are carried: of a ViT's neurons first over n, [b, k, width], then through W_V of each later head and on to the joint
space. Paths that can do so say it (paths.Sums); of others D is formed, a few units at a time.
"""

from jaxtyping import Float
from torch import Tensor

from cliptools.methods.paths import Paths, Slab, Sums, slices


def total_of(paths: Paths, slab: Slab, S: Float[Tensor, "b n k"]) -> Float[Tensor, "b d"]:
    """Sum over the slab's units of phi_n = sum_k S[n, k] D[n, k], in the type of S."""
    if isinstance(paths, Sums):
        return paths.total(slab, S)
    total: Tensor | float = 0.0
    for of in slices(S.shape[1], S.shape[2]):
        D = paths.directions(Slab(slab.layer, slab.neurons[of])).to(S)  # (n, k, d)
        total = total + S[:, of].flatten(1) @ D.flatten(0, 1)
    assert isinstance(total, Tensor)  # a slab has units
    return total
