"""Things that a model takes for other things: units that see one thing and write another.

A unit writes its direction r_n, and sees the images on which its activity a_n is large (streaming/embeddings.py). The texts s and
t are less the mean of the vocabulary: the unit sees more of s than of the average text, and writes more of t. Then

    see_n(s)   = max(0, corr(a_n, <e, s>)) = max(0, <q_n, s>) / (sd(a_n) sqrt(s^T Sigma s)), at most 1
    write_n(t) = max(0, <r_n, t>)
    G[s, t]    = sum over n of see_n(s) write_n(t) sd(a_n)

measures how much of t the units write that see s. sd(a_n) cancels. Three more numbers make G readable:

* z[s, t], by which pairs are ranked: G[s, t] less the mean of its row, over the standard deviation of the row, without t = s.
  G itself is large for every t where many units see s, and says little about t.
* together[s, t], the cosine of see(s) and see(t) over the units. Where things look alike, the same units see both, and
  rightly write both. Where a thing is taken for another one, the units that see s do not see t.
* own[s, t] = s^T Sigma t, the covariance over the images of the model's similarities to s and to t, with its own z: the control,
  which the model's outputs give without any unit.

A vocabulary of T texts has T^2 pairs. They are computed in blocks, and no array of units x texts is held for a large vocabulary.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cliptools.analysis.seen import ReadDirections

AT_ONCE = 1 << 24  # numbers of an array
ALIKE = 0.8  # cosine `together` from which on things look alike


class Scores(NamedTuple):
    """Numbers of pairs of things: a row for each s, a column for each text t of the vocabulary."""

    G: Float[Tensor, "*s t"]
    z: Float[Tensor, "*s t"]
    together: Float[Tensor, "*s t"]
    similarity: Float[Tensor, "*s t"]
    """Cosine of the two texts."""
    own: Float[Tensor, "*s t"]
    own_z: Float[Tensor, "*s t"]


class Pairs(NamedTuple):
    """Pairs of things, the largest z first."""

    s: Int[Tensor, " p"]
    t: Int[Tensor, " p"]
    scores: Scores
    """The numbers of each pair."""
    own_rank: Int[Tensor, " p"]
    """Rank of the pair by own_z among all pairs that could be listed."""


def written(r: Float[Tensor, "u d"], t: Float[Tensor, "t d"]) -> Float[Tensor, "u t"]:
    """write_n(t) of every unit."""
    return (r @ t.T).clamp(min=0)


def standing_out(x: Float[Tensor, "s t"], other: Bool[Tensor, "s t"]) -> Float[Tensor, "s t"]:
    """x less the mean of its row, over the standard deviation of the row.

    Args:
        other: False for the entry of s itself, which does not count.
    """
    count = other.sum(1, keepdim=True).clamp(min=1)
    difference = x - (x * other).sum(1, keepdim=True) / count
    deviation = ((difference.square() * other).sum(1, keepdim=True) / count).sqrt()
    return difference / deviation.clamp(min=torch.finfo(x.dtype).tiny)


def unit_rows(x: Float[Tensor, "x d"]) -> Float[Tensor, "x d"]:
    """The rows at unit norm."""
    return torch.nn.functional.normalize(x, dim=1)


class Mismatch:
    """Scores of pairs of things, over the units of a bundle."""

    def __init__(
        self,
        read: ReadDirections,
        r: Float[Tensor, "u d"],
        texts: Float[Tensor, "t d"],
        near: float = 0.7,
        alike: bool = False,
        at_once: int = AT_ONCE,
    ) -> None:
        """
        Args:
            r: Directions.
            texts: Unit embeddings of the vocabulary.
            near: `similarity` from which on things are alike.
            alike: Pairs of things that are alike may be listed too.
            at_once: Numbers of an array to hold in memory.
        """
        self.read, self.r, self.near, self.with_alike = read, r, near, alike
        self.mean = texts.mean(0)
        self.t = texts - self.mean  # (t, d)
        self.columns = torch.arange(len(texts), device=texts.device)
        self.text_blocks = self.columns.split(max(1, at_once // max(1, len(r))))
        self.row_blocks = self.columns.split(max(1, at_once // len(texts)))

    def scores(self, s: Float[Tensor, "s d"], other: Bool[Tensor, "s t"]) -> Scores:
        """Scores of these things s, less the mean of the vocabulary, with all texts.

        Args:
            other: False where the text is s itself.
        """
        see_s = self._seen(s)  # (u, s)
        G, together = [], []
        for block in self.text_blocks:
            t = self.t[block]  # (block, d)
            G.append(see_s.T @ written(self.r, t))  # (s, u) @ (u, block)
            together.append(unit_rows(see_s.T) @ unit_rows(self._seen(t).T).T)
        total, own = torch.cat(G, 1), s @ self.read.covariance @ self.t.T  # (s, t)
        similarity = unit_rows(s) @ unit_rows(self.t).T
        return Scores(total, standing_out(total, other), torch.cat(together, 1), similarity, own, standing_out(own, other))

    def alike(self, scores: Scores) -> Bool[Tensor, "*s t"]:
        """True for pairs of things that look alike, or whose texts are similar."""
        return (scores.together >= ALIKE) | (scores.similarity >= self.near)

    def of_cue(self, cue: Float[Tensor, " d"], number: int | None, count: int) -> Pairs:
        """The texts that a thing calls up most.

        Args:
            cue: Unit embedding of the thing.
            number: Its place in the vocabulary, if it has one.
            count: Number of pairs.

        Returns:
            Pairs with s = 0.
        """
        other = (self.columns != (-1 if number is None else number))[None]
        scores = self.scores((cue - self.mean)[None], other)
        listed = self._listed(scores, other)
        best = _first(scores, listed, self.columns[:1] * 0, count)
        own = scores.own_z[listed].sort().values
        return Pairs(*best, len(own) - torch.searchsorted(own, best.scores.own_z, right=True) + 1)

    def largest(self, count: int, shown: Callable[[Iterator[Int[Tensor, " s"]]], Iterator[Int[Tensor, " s"]]] = iter) -> Pairs:
        """The pairs of texts of largest z.

        Args:
            count: Number of pairs.
            shown: Passes the blocks of rows on, twice, and shows the progress.
        """
        best: _Best | None = None
        for rows in shown(iter(self.row_blocks)):
            scores, listed = self._rows(rows)
            first = _first(scores, listed, rows, count)
            best = first if best is None else _merged(best, first, count)
        assert best is not None  # a vocabulary has texts
        larger = torch.ones_like(best.s)
        for rows in shown(iter(self.row_blocks)):  # again: only now is it known whose ranks are wanted
            scores, listed = self._rows(rows)
            own = scores.own_z[listed].sort().values
            larger += len(own) - torch.searchsorted(own, best.scores.own_z, right=True)
        return Pairs(*best, larger)

    def _rows(self, rows: Int[Tensor, " s"]) -> tuple[Scores, Bool[Tensor, "s t"]]:
        """Scores of a block of texts with all texts, and the pairs that may be listed."""
        other = rows[:, None] != self.columns
        scores = self.scores(self.t[rows], other)
        return scores, self._listed(scores, other)

    def _listed(self, scores: Scores, other: Bool[Tensor, "s t"]) -> Bool[Tensor, "s t"]:
        pairs = other & (scores.G > 0)  # some unit sees s and writes t
        return pairs if self.with_alike else pairs & ~self.alike(scores)

    def parts(self, s: Float[Tensor, " d"], t: int) -> tuple[Float[Tensor, " u"], Float[Tensor, " u"]]:
        """see_n(s) sd(a_n) and write_n(t) of every unit, for one pair; the sum of their products is G.

        Args:
            s: Unit embedding of the thing.
            t: Number of the text.
        """
        return self._seen((s - self.mean)[None])[:, 0], written(self.r, self.t[t : t + 1])[:, 0]

    def _seen(self, s: Float[Tensor, "s d"]) -> Float[Tensor, "u s"]:
        """see_n(s) sd(a_n) of every unit."""
        return self.read.correlations(s).clamp(min=0) * self.read.deviation[:, None]


class _Best(NamedTuple):
    """Pairs of largest z, without ranks."""

    s: Int[Tensor, " p"]
    t: Int[Tensor, " p"]
    scores: Scores


def _first(scores: Scores, listed: Bool[Tensor, "s t"], rows: Int[Tensor, " s"], count: int) -> _Best:
    """The pairs of largest z among those that may be listed."""
    z = torch.where(listed, scores.z, -torch.inf).flatten()
    place = z.topk(min(count, int(listed.sum()))).indices
    width = listed.shape[1]
    return _Best(rows[place // width], place % width, Scores(*(column.flatten()[place] for column in scores)))


def _merged(one: _Best, other: _Best, count: int) -> _Best:
    """The pairs of largest z of two lists; of equal ones those of the first list."""
    scores = Scores(*(torch.cat(columns) for columns in zip(one.scores, other.scores, strict=True)))
    order = scores.z.argsort(descending=True, stable=True)[:count]
    s, t = torch.cat([one.s, other.s])[order], torch.cat([one.t, other.t])[order]
    return _Best(s, t, Scores(*(column[order] for column in scores)))
