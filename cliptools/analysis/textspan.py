"""Outputs of a head in texts: TextSpan (Gandelsman et al. 2024, arXiv 2310.05916, Algorithm 1), from second moments.

c are the centred outputs of a head over images. The texts t are projected on the span of all outputs that the head can write
(in the paper, of the outputs over the images; both are the same for more images than the head is wide). Then m times: take the
text along which outputs vary most, j = argmax of Var <c, t_j>, and project its direction q = t_j / ||t_j|| out of all c and t.

The second moments suffice, no output is needed. With c = D^T x, x centred scalars of covariance V, and D^T = Q R (Q of
orthonormal columns), outputs have the covariance C = R V R^T in the coordinates of Q, and texts are Q^T t. The directions
projected out of a text are orthogonal to its remainder, so outputs need no projection: Var <c, t> = t^T C t holds for the
remainder at every step, and q^T C q is the variance that the choice explains.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cliptools.analysis.pursuit import Pursuit
from cliptools.console import progress
from cliptools.unit_effects.factored import FactoredEffect, unit_blocks_of

NEGLIGIBLE = 1e-12  # share of the variance: where no text reaches it, the remainders of the texts are rounding


def text_span(
    V: Float[Tensor, "k k"], D: Float[Tensor, "k d"], t: Float[Tensor, "text d"], m: int
) -> tuple[Int[Tensor, " m"], Float[Tensor, " m"]]:
    """The greedy choice for one head, in float64: rows of the vocabulary in order of choice, and their shares of the variance.

    −1 and 0 after an early end, where the chosen texts span all outputs.

    Args:
        V: Covariance of the head's scalars over the images.
        D: The joint-space vector of each scalar.
        t: The vocabulary's embeddings, centred and scaled as the caller likes; their norms matter, as in the paper.
        m: Number of texts, at most.
    """
    Q, R = torch.linalg.qr(D.double().T)  # (d, k), (k, k)
    C = R @ V.double() @ R.T  # (k, k)
    total = C.trace()
    t = t.double() @ Q  # (text, d) -> (text, k)
    word = torch.full((m,), -1, device=t.device)
    share = t.new_zeros(m)
    for step in range(m):
        variance = ((t @ C) * t).sum(1)  # (text)
        if not variance.max() > NEGLIGIBLE * total:
            break
        j = (variance == variance.max()).nonzero()[0, 0]  # the first of equal ones
        q = t[j] / t[j].norm()
        word[step], share[step] = j, (q @ C @ q) / total
        t = t - (t @ q)[:, None] * q
    return word, share


def text_spans(V: Float[Tensor, "unit k k"], D: Float[Tensor, "unit k d"], t: Float[Tensor, "text d"], m: int) -> Pursuit:
    """The greedy choice for every head, in the form of a pursuit.

    Returns:
        Shares of the variance as coefficients. Residuals are the part of the outputs' root mean square that is not explained,
        as a share of the whole: residual^2 = 1 - sum of the shares.
    """
    word = torch.full((len(V), m), -1, device=t.device)
    share = t.new_zeros(len(V), m, dtype=torch.float64)
    for unit in progress(range(len(V)), "heads", len(V)):
        word[unit], share[unit] = text_span(V[unit], D[unit], t, m)
    path = (1 - share.cumsum(1)).clamp(min=0).sqrt()
    return Pursuit(word, share.to(t.dtype), path[:, -1].to(t.dtype), path.to(t.dtype))


def head_directions(effect: FactoredEffect, unit: Int[Tensor, "unit 3"]) -> Float[Tensor, "unit k d"]:
    """D of these units, which must all have the same K.

    Raises:
        StreamError: a unit that the effect does not have.
    """
    blocks, rows = unit_blocks_of(effect, unit)
    return torch.cat([effect.directions(block) for block in blocks])[torch.cat(rows).argsort()]  # back in the order of `unit`
