"""A head's outputs in texts: TextSpan (Gandelsman et al. 2024, arXiv 2310.05916, Algorithm 1), from moments.

The outputs c of a head over images, centred, and texts t, projected onto the span of all that the head can write (the paper: of
the outputs seen, which is the same once there are more images than the head has values). Then m times: take the text along
which outputs vary most, j = argmax of Var <c, t_j>, and project its direction q = t_j / ||t_j|| out of all c and all t.

No output is needed, only the second moments. With c = D^T x, x centred scalars of covariance V, and D^T = Q R (Q of
orthonormal columns), outputs have the covariance C = R V R^T in the coordinates of Q, and texts are Q^T t. What is projected
out of a text is orthogonal to what is left of it, so outputs need no projecting: Var <c, t> = t^T C t holds for what is left
of t all the way, and q^T C q is the variance that the choice explains.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cliptools.analysis.pursuit import Pursuit
from cliptools.console import progress
from cliptools.effects.factored import FactoredEffect, unit_blocks_of

NOTHING = 1e-12  # share of the variance: what is left of texts is rounding where none reaches it


def text_span(
    V: Float[Tensor, "k k"], D: Float[Tensor, "k d"], t: Float[Tensor, "text d"], m: int
) -> tuple[Int[Tensor, " m"], Float[Tensor, " m"]]:
    """The greedy choice for one head, in float64: rows of the pool in the order chosen, and the share of the variance of each.

    −1 and 0 after an early end, where the texts chosen span all outputs.

    Args:
        V: Covariance of the head's scalars over the images.
        D: Where the head takes a unit of each, in the joint space.
        t: The pool's texts as they are to be compared with outputs; their norms matter, as in the paper.
        m: Texts, at most.
    """
    Q, R = torch.linalg.qr(D.double().T)  # (d, k), (k, k)
    C = R @ V.double() @ R.T
    total = C.trace()
    t = t.double() @ Q  # (text, k)
    word = torch.full((m,), -1, device=t.device)
    share = t.new_zeros(m)
    for step in range(m):
        variance = ((t @ C) * t).sum(1)  # (text)
        if not variance.max() > NOTHING * total:
            break
        j = (variance == variance.max()).nonzero()[0, 0]  # of equal ones the first
        q = t[j] / t[j].norm()
        word[step], share[step] = j, (q @ C @ q) / total
        t = t - (t @ q)[:, None] * q
    return word, share


def text_spans(V: Float[Tensor, "unit k k"], D: Float[Tensor, "unit k d"], t: Float[Tensor, "text d"], m: int) -> Pursuit:
    """The greedy choice for every head, as a pursuit has it.

    Returns:
        Shares for coefficients. Residuals are what is left of the outputs' root mean square, as a share of it:
        residual^2 = 1 - sum of the shares.
    """
    word = torch.full((len(V), m), -1, device=t.device)
    share = t.new_zeros(len(V), m, dtype=torch.float64)
    for unit in progress(range(len(V)), "heads", len(V)):
        word[unit], share[unit] = text_span(V[unit], D[unit], t, m)
    path = (1 - share.cumsum(1)).clamp(min=0).sqrt()
    return Pursuit(word, share.to(t.dtype), path[:, -1].to(t.dtype), path.to(t.dtype))


def head_directions(paths: FactoredEffect, unit: Int[Tensor, "unit 3"]) -> Float[Tensor, "unit k d"]:
    """D of these units, whose values must all have the same width.

    Raises:
        StreamError: a unit that the paths do not know.
    """
    slabs, rows = unit_blocks_of(paths, unit)
    return torch.cat([paths.directions(slab) for slab in slabs])[torch.cat(rows).argsort()]
