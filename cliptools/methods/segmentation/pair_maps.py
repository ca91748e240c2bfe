"""Where in an image a text is, by neuron-head pairs (arXiv 2509.19943, its segmentation), and by half of each pair alone.

A pair's map for text c is its neuron's activation times how far what its head says of the token lies along the text:

    logit_i(c) = 1/k sum over (n, h) in S_c of Z_i[n] <r_i^h, t_c>,    r_i^h = a_i^h W_O^h (W_V^h x_i + b_V^h) + b_O / (H tokens)

r_i^h, which add up to M(I) over heads and tokens, at unit norm. Pairs of one head share what it says, so only sums over
heads are ever held:

    logit_i(c) = 1/k sum over h of <r_i^h, t_c> sum over n: (n, h) in S_c of Z_i[n]
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from cliptools.ground.clip_parts import ModifiedResNet
from cliptools.methods.resnet_paths import value_output
from cliptools.methods.segmentation.pair_selection import Selection
from cliptools.methods.segmentation.pool_tokens import PoolTokens
from cliptools.methods.segmentation.sink import repaired


def pair_maps(
    visual: ModifiedResNet, seen: PoolTokens, t: Float[Tensor, "text d"], chosen: Selection, sink: bool
) -> Float[Tensor, "b text patch"]:
    """The pairs' logits.

    Args:
        sink: Repair the corner token, in the neurons' maps and in the heads'.
    """
    Z = repaired(seen.Z, seen.grid) if sink else seen.Z
    total = Z.new_zeros(len(Z), Z.shape[1], len(t))  # (b, patch, text)
    for h, r in enumerate(each_head(visual, seen, sink)):
        neurons = Z @ chosen.S[:, h].to(Z.dtype).T  # (b, patch, text): sum over n: (n, h) in S_c
        total += neurons * (r @ t.T)
    return (total / chosen.k).transpose(1, 2)


def neuron_maps(seen: PoolTokens, chosen: Selection, sink: bool) -> Float[Tensor, "b text patch"]:
    """Neurons alone: the mean of Z_i[n] over the pairs (n, h) of S_c."""
    Z = repaired(seen.Z, seen.grid) if sink else seen.Z
    times = chosen.S.sum(1, dtype=torch.int32).to(Z.dtype)  # (text, neuron): heads by which S_c has the neuron
    return (Z @ times.T / chosen.k).transpose(1, 2)


def head_maps(
    visual: ModifiedResNet, seen: PoolTokens, t: Float[Tensor, "text d"], chosen: Selection, sink: bool
) -> Float[Tensor, "b text patch"]:
    """Heads alone: the mean of <r_i^h, t_c> over the pairs (n, h) of S_c."""
    times = chosen.S.sum(2, dtype=torch.int32).to(seen.Z.dtype)  # (text, head): neurons by which S_c has the head
    total = seen.Z.new_zeros(*seen.Z.shape[:2], len(t))  # (b, patch, text)
    for h, r in enumerate(each_head(visual, seen, sink)):
        total += times[:, h] * (r @ t.T)
    return (total / chosen.k).transpose(1, 2)


def each_head(visual: ModifiedResNet, seen: PoolTokens, sink: bool) -> Iterator[Float[Tensor, "b patch d"]]:
    """r_i^h at every token of the grid and at unit norm, a repaired corner too; head by head."""
    W_V, W_O, _ = value_output(visual)
    pool = visual.attnpool
    b_V, b_O = (layer.bias.to(W_V.dtype) for layer in (pool.v_proj, pool.c_proj))
    share = b_O / seen.a[0].numel()  # (d,): of one head at one token
    for h, b in enumerate(b_V.unflatten(0, (pool.num_heads, -1))):
        v = seen.x[:, 1:] @ W_V[h].T + b  # (b, patch, e)
        r = seen.a[:, h, 1:, None] * (v @ W_O[h].T) + share
        yield F.normalize(repaired(r, seen.grid) if sink else r, dim=-1)
