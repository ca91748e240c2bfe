"""Texts that units see, to which images are most similar when a unit acts; and units that see a cue and write a class.

With the unit embedding e(I) of an image, its covariance Sigma, the activity a_n(I) = <phi_n(I) - b_n, r_n> of a unit and its read
direction q_n = cov(a_n, e) (streaming/embeddings.py), for every text t

    corr(a_n, <e, t>) = <q_n, t> / (sd(a_n) sqrt(t^T Sigma t))

A unit's *seen* words have the largest correlation. Its *agreement* is the correlation of its first written word: the unit acts on
images of what it writes. A q_n of a bundle comes from the top images alone, so these correlations are too small, by a factor that
depends on the unit and not on the text.

Units through which a model takes a cue for a class see the one and write the other. With the direction r_n, texts s of cues and
texts t of classes, less the mean of the vocabulary:

    see_n(s)    = corr(a_n, <e, s>)
    score_n     = sum over s and t of max(0, see_n(s)) max(0, <r_n, t>) sd(a_n)
    rather      the same with the factor max(0, see_n(s) - see_n(t)): units that see the cue rather than the class
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from cliptools.devices import to_float64

AT_ONCE = 1 << 24  # correlations computed at a time
SCORES = ("cue", "cue-not-class")
"""Names of the scores of units that see a cue and write a class."""


class ReadDirections(NamedTuple):
    """Read directions of u units, with what turns them into correlations.

    A q of few images, or one that lacks the unit's own share, can be larger than Sigma allows: correlations end at -1 and 1.
    """

    q: Float[Tensor, "u d"]
    deviation: Float[Tensor, " u"]
    """sd(a)."""
    covariance: Float[Tensor, "d d"]
    """Sigma."""

    def correlations(self, t: Float[Tensor, "text d"]) -> Float[Tensor, "u text"]:
        """corr(a_n, <e, t>) of all units and texts; 0 for a unit or a text without variance."""
        spread = torch.einsum("td,de,te->t", t, self.covariance, t).clamp(min=0).sqrt()  # (text): sd(<e, t>)
        scale = self.deviation[:, None] * spread  # (u, text)
        positive = scale > 0
        return torch.where(positive, self.q @ t.T / torch.where(positive, scale, 1), 0.0).clamp(-1, 1)

    def with_own_text(self, t: Float[Tensor, "u d"]) -> Float[Tensor, " u"]:
        """corr(a_n, <e, t_n>) of each unit and a text of its own."""
        spread = torch.einsum("ud,de,ue->u", t, self.covariance, t).clamp(min=0).sqrt()
        scale = self.deviation * spread  # (u)
        positive = scale > 0
        return torch.where(positive, (self.q * t).sum(1) / torch.where(positive, scale, 1), 0.0).clamp(-1, 1)

    def in_float64(self) -> "ReadDirections":
        """The same in float64, on the CPU where the device has none."""
        return ReadDirections(*map(to_float64, self))

    def part(self, units: slice) -> "ReadDirections":
        """Those of a slice of the units."""
        return ReadDirections(self.q[units], self.deviation[units], self.covariance)


class Ranked(NamedTuple):
    """The s best texts of each of u units, best first."""

    text: Int[Tensor, "u s"]
    """Indices into the vocabulary; -1 for a unit without texts."""
    value: Float[Tensor, "u s"]

    def of_units(self, mask: Bool[Tensor, " u"]) -> "Ranked":
        """The texts of the units of a mask; all others have none, and values of 0."""
        return Ranked(torch.where(mask[:, None], self.text, -1), torch.where(mask[:, None], self.value, 0))


def seen_texts(read: ReadDirections, t: Float[Tensor, "text d"], count: int) -> Ranked:
    """The texts with the largest correlations; none for a unit whose activity does not vary."""
    units = max(1, AT_ONCE // len(t))
    parts = [
        read.part(slice(start, start + units)).correlations(t).topk(min(count, len(t))) for start in range(0, len(read.q), units)
    ]
    return _joined([Ranked(part.indices, part.values) for part in parts], count, read.q).of_units(read.deviation > 0)


def overlapping_texts(r: Float[Tensor, "u d"], t: Float[Tensor, "text d"], count: int) -> Ranked:
    """The texts with the largest <r, t>; none for a unit that never acted, whose r is 0."""
    units = max(1, AT_ONCE // len(t))
    parts = [(part @ t.T).topk(min(count, len(t))) for part in r.split(units)]
    return _joined([Ranked(part.indices, part.values) for part in parts], count, r).of_units(r.any(1))


def _joined(parts: list[Ranked], count: int, like: Float[Tensor, "u d"]) -> Ranked:
    if not parts:
        return Ranked(torch.zeros(0, count, dtype=torch.int64), like.new_zeros(0, count))
    return Ranked(torch.cat([part.text for part in parts]), torch.cat([part.value for part in parts]))


def first_positive(word: Int[Tensor, "u m"], coefficient: Float[Tensor, "u m"]) -> Int[Tensor, " u"]:
    """The text of each unit's largest positive coefficient; -1 for a unit without one."""
    largest, place = torch.where(word >= 0, coefficient, 0).max(1)
    return torch.where(largest > 0, word.gather(1, place[:, None])[:, 0], -1)


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
