"""What a head's outputs are made of, as texts: TextSpan (Gandelsman et al. 2024, arXiv 2310.05916, Algorithm 1), from moments.

The outputs c of a head over images, centred, and texts t, projected onto the span of the head's outputs. Then m times: take
the text along which outputs vary most, j = argmax of Var <c, t_j>, and project its direction q = t_j / ||t_j|| out of all c
and all t.

No output is needed, only the second moments. With c = D^T x, x centred scalars of covariance V, and D^T = Q R (Q of
orthonormal columns), outputs have the covariance C = R V R^T in the coordinates of Q, and texts are Q^T t. What is projected
out of a text is orthogonal to what is left of it, so outputs need no projecting: Var <c, t> = t^T C t holds for what is left
of t all the way, and q^T C q is the variance that the choice explains.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cliptools.ground.progress import progress

NOTHING = 1e-12  # share of the variance: what is left of texts is rounding where none reaches it


class Spanned(NamedTuple):
    """What was chosen for each head, texts in the order chosen."""

    word: Int[Tensor, "unit m"]
    """Row of the pool; −1 after an early end, where the texts chosen span all outputs."""
    share: Float[Tensor, "unit m"]
    """Share of the variance that each explains; 0 after an early end."""


def text_span(V: Float[Tensor, "k k"], D: Float[Tensor, "k d"], t: Float[Tensor, "text d"], m: int) -> Spanned:
    """The greedy choice for one head; in float64.

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
        j = variance.argmax()
        if not variance[j] > NOTHING * total:
            break
        q = t[j] / t[j].norm()
        word[step], share[step] = j, (q @ C @ q) / total
        t = t - (t @ q)[:, None] * q
    return Spanned(word[None], share[None])


def text_spans(V: Float[Tensor, "unit k k"], D: Float[Tensor, "unit k d"], t: Float[Tensor, "text d"], m: int) -> Spanned:
    """The greedy choice for every head; see text_span."""
    heads = progress(zip(V, D, strict=True), "heads", len(V))
    parts = [text_span(moments, directions, t, m) for moments, directions in heads]
    if not parts:
        return Spanned(torch.zeros(0, m, dtype=torch.int64), t.new_zeros(0, m, dtype=torch.float64))
    return Spanned(*(torch.cat(column) for column in zip(*parts, strict=True)))
