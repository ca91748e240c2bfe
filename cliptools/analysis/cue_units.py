"""Scores of units that see a cue and write a class: the units through which a model takes one thing for another.

With the read direction q_n, the direction r_n, sd(a_n) and the covariance Sigma of a bundle, and texts s of cues and t of
classes, less the mean of the vocabulary:

    see_n(s)    = corr(a_n, <e, s>) = <q_n, s> / (sd(a_n) sqrt(s' Sigma s)), of analysis/seen.py
    score_n     = sum over s and t of max(0, see_n(s)) max(0, <r_n, t>) sd(a_n)
    rather      the same with the factor max(0, see_n(s) - see_n(t)): units that see the cue rather than the class
"""

from jaxtyping import Float, Float64
from torch import Tensor

from cliptools.analysis.seen import ReadDirections
from cliptools.devices import to_float64

BY = ("cue", "cue-not-class")


def cue_scores(
    read: ReadDirections, r: Float[Tensor, "u d"], s: Float[Tensor, "s d"], t: Float[Tensor, "t d"], rather: bool
) -> Float64[Tensor, " u"]:
    """score_n of every unit, at least 0."""
    read, r, s, t = read.in_float64(), to_float64(r), to_float64(s), to_float64(t)
    see = read.correlations(s)  # (u, s)
    write = (r @ t.T).clamp(min=0)  # (u, t)
    product = see.clamp(min=0)[:, :, None] * write[:, None, :]  # (u, s, t)
    if rather:
        product = product * (see[:, :, None] - read.correlations(t)[:, None, :]).clamp(min=0)
    return product.sum((1, 2)) * read.deviation


def write_scores(r: Float[Tensor, "u d"], deviation: Float[Tensor, " u"], t: Float[Tensor, "t d"]) -> Float64[Tensor, " u"]:
    """Sum over t of max(0, <r_n, t>) sd(a_n): the score of units whatever they see."""
    return (to_float64(r) @ to_float64(t).T).clamp(min=0).sum(1) * to_float64(deviation)
