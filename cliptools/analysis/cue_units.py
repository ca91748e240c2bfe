"""Scores of units that see a cue and write a class: the units through which a model takes one thing for another.

With the read direction q_n, the direction r_n, sd(a_n) and the covariance Sigma of a bundle, and texts s of cues and t of
classes, less the mean of the vocabulary:

    see_n(s)    = corr(a_n, <e, s>) = <q_n, s> / (sd(a_n) sqrt(s' Sigma s))
    score_n     = sum over s and t of max(0, see_n(s)) max(0, <r_n, t>) sd(a_n)
    rather      the same with the factor max(0, see_n(s) - see_n(t)): units that see the cue rather than the class
"""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from cliptools.devices import to_float64

BY = ("cue", "cue-not-class")


def sight(
    q: Float[Tensor, "u d"], deviation: Float[Tensor, " u"], covariance: Float[Tensor, "d d"], s: Float[Tensor, "s d"]
) -> Float64[Tensor, "u s"]:
    """see_n(s); 0 for a unit that never acted."""
    q, deviation, covariance, s = (to_float64(x) for x in (q, deviation, covariance, s))
    variance = ((s @ covariance) * s).sum(1)  # (s): s' Sigma s
    scale = deviation[:, None] * variance.clamp(min=0).sqrt()  # (u, s)
    return torch.where(scale > 0, (q @ s.T) / torch.where(scale > 0, scale, 1.0), 0.0)


def cue_scores(
    q: Float[Tensor, "u d"],
    r: Float[Tensor, "u d"],
    deviation: Float[Tensor, " u"],
    covariance: Float[Tensor, "d d"],
    s: Float[Tensor, "s d"],
    t: Float[Tensor, "t d"],
    rather: bool,
) -> Float64[Tensor, " u"]:
    """score_n of every unit, at least 0."""
    see = sight(q, deviation, covariance, s)  # (u, s)
    write = (to_float64(r) @ to_float64(t).T).clamp(min=0)  # (u, t)
    product = see.clamp(min=0)[:, :, None] * write[:, None, :]  # (u, s, t)
    if rather:
        product = product * (see[:, :, None] - sight(q, deviation, covariance, t)[:, None, :]).clamp(min=0)
    return product.sum((1, 2)) * to_float64(deviation)


def write_scores(r: Float[Tensor, "u d"], deviation: Float[Tensor, " u"], t: Float[Tensor, "t d"]) -> Float64[Tensor, " u"]:
    """Sum over t of max(0, <r_n, t>) sd(a_n): the score of units whatever they see."""
    return (to_float64(r) @ to_float64(t).T).clamp(min=0).sum(1) * to_float64(deviation)
