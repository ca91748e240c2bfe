"""Presence of texts in images: similarities with a model's embeddings, or labels.

c_t(I) is the presence of text t in image I, a the activity of a unit. For every text of a vocabulary at once, with the unit
embedding e(I) = M(I) / ||M(I)||, its covariance Sigma, and the read direction q = E[(a - E a)(e - E e)],

    c_t = <e, t>     cov(a, c_t) = <q, t>     var(c_t) = t^T Sigma t

The model whose units are judged has the units' own effects in its embeddings: a r is a share b r of e, with b = a / 100 for
effects in unit scale and b = a / ||M|| for raw ones. Without it,

    c_t = <e - b r, t>     cov(a, c_t) = <q, t> - cov(a, b) <r, t>
    var(c_t) = t^T Sigma t - 2 <r, t> cov(b, <e, t>) + var(b) <r, t>^2

With labels c_t is 1 or 0, a column of a sparse matrix.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int
from scipy.sparse import csr_array

from cliptools.streaming.embeddings import AT_ONCE, Embeddings

Weights = Any
"""scipy's sparse matrix [k, texts]: a sum of texts in each row."""
Images = Int[np.ndarray, " i"]
"""Rows of some images, ascending."""


class UnitGroup(NamedTuple):
    """Some units, on all N images."""

    a: Float64[np.ndarray, "N n"]
    """Their activities."""
    r: Float64[np.ndarray, "n d"]
    """Their directions."""


class Moments(NamedTuple):
    """Second moments of n activities and the presence of all texts, over some images."""

    covariance: Float64[np.ndarray, "n text"]
    variance: Float64[np.ndarray, "m text"]
    """Variance of the presence; one row (m = 1) if it is the same for all units."""


@runtime_checkable
class Presence(Protocol):
    """The presence of the texts of a vocabulary in N images."""

    graded: bool
    """True for similarities, which do not say whether an image shows a text."""
    known: Bool[np.ndarray, " text"]
    """The texts whose presence is known."""

    def moments(self, units: UnitGroup, images: Images) -> Moments:
        """Moments with every text, over these images."""
        ...

    def sums(self, units: UnitGroup, images: Images, weights: Weights) -> Float64[np.ndarray, "i k"]:
        """Sums of c_t with weights [k, text] on these images; k is a multiple of n, and row j belongs to unit j modulo n."""
        ...


class Similarity:
    """Similarities with the embeddings of a model."""

    graded = True

    def __init__(self, embeddings: Embeddings, t: Float64[np.ndarray, "text d"], own: str | None = None) -> None:
        """
        Args:
            embeddings: M(I) of the images that are asked for, by row.
            t: Unit text embeddings.
            own: The scale of the effects, `unit` or `raw`, if the units are part of this model.
        """
        self.embeddings, self.t, self.own = embeddings, t, own
        self.known = np.ones(len(t), dtype=bool)
        self._length = np.full(len(embeddings.place), np.nan)  # (N)
        for rows, M in self._embeddings(embeddings.numbers):
            self._length[rows] = np.linalg.norm(M, axis=1)
        self._variances: dict[bytes, Float64[np.ndarray, " text"]] = {}

    def moments(self, units: UnitGroup, images: Images) -> Moments:
        """Implements Presence.moments."""
        variance = self._variance(images)
        covariance = self.read(units, images) @ self.t.T  # (n, d) @ (d, text) -> (n, text)
        if self.own is None:
            return Moments(covariance, variance[None])
        b = _centred(self._share(units.a[images], images))  # (i, n)
        overlap = units.r @ self.t.T  # (n, text): <r, t>
        b_covariance = self._product(b, images) @ self.t.T
        return Moments(covariance, variance - 2 * overlap * b_covariance + (b**2).mean(0)[:, None] * overlap**2)

    def read(self, units: UnitGroup, images: Images) -> Float64[np.ndarray, "n d"]:
        """The read direction over these images, without the units' own share of the embeddings: cov(a, c_t) = <read, t>."""
        a = _centred(units.a[images])  # (i, n)
        q = self._product(a, images)
        if self.own is None:
            return q
        b = _centred(self._share(units.a[images], images))
        return q - (a * b).mean(0)[:, None] * units.r

    def own_share(self, units: UnitGroup, images: Images) -> Float64[np.ndarray, " n"]:
        """beta = cov(a, b) / var(a) over these images; b = beta a for effects in unit scale, and nearly so for raw ones."""
        if self.own is None:
            return np.zeros(len(units.r))
        a, b = _centred(units.a[images]), _centred(self._share(units.a[images], images))  # (i, n)
        square = (a**2).mean(0)
        return np.where(square > 0, (a * b).mean(0) / np.where(square > 0, square, 1), 0.0)

    def covariance(self, images: Images) -> Float64[np.ndarray, "d d"]:
        """Sigma over these images."""
        d = self.t.shape[1]
        first = self._unit(next(self._embeddings(images[:1]))[1])  # a centre near the mean
        total, square = np.zeros(d), np.zeros((d, d))
        for _, M in self._embeddings(images):
            x = self._unit(M) - first  # (i, d)
            total += x.sum(0)
            square += x.T @ x
        mean = total / len(images)
        return square / len(images) - mean[:, None] * mean

    def sums(self, units: UnitGroup, images: Images, weights: Weights) -> Float64[np.ndarray, "i k"]:
        """Implements Presence.sums."""
        v = weights @ self.t  # (k, d)
        sums = np.concatenate([self._unit(M) @ v.T for _, M in self._embeddings(images)])  # (i, k)
        if self.own is None:
            return sums
        copies = len(v) // len(units.r)
        overlap = (v * np.tile(units.r, (copies, 1))).sum(1)  # (k): <r, v>
        return sums - np.tile(self._share(units.a[images], images), (1, copies)) * overlap

    def _share(self, a: Float64[np.ndarray, "i n"], images: Images) -> Float64[np.ndarray, "i n"]:
        """b: the unit's own effect in e is b r."""
        return a / 100 if self.own == "unit" else a / self._length[images, None]

    def _embeddings(self, images: Images) -> Iterator[tuple[Images, Float64[np.ndarray, "i d"]]]:
        """Yield M(I) of some of the images at a time, with their rows."""
        for start in range(0, len(images), AT_ONCE):
            rows = images[start : start + AT_ONCE]
            yield rows, self.embeddings.rows(rows).to(torch.float64).numpy()

    def _unit(self, M: Float64[np.ndarray, "i d"]) -> Float64[np.ndarray, "i d"]:
        return M / np.linalg.norm(M, axis=1, keepdims=True)

    def _product(self, a: Float64[np.ndarray, "i n"], images: Images) -> Float64[np.ndarray, "n d"]:
        """q: the mean of a e over these images, where a has mean 0."""
        total, start = np.zeros((a.shape[1], self.t.shape[1])), 0
        for rows, M in self._embeddings(images):
            total += a[start : start + len(rows)].T @ self._unit(M)
            start += len(rows)
        return total / len(images)

    def _variance(self, images: Images) -> Float64[np.ndarray, " text"]:
        """t^T Sigma t over these images, computed once."""
        key = images.tobytes()
        if key not in self._variances:
            self._variances[key] = ((self.t @ self.covariance(images)) * self.t).sum(1)
        return self._variances[key]


class Labelled:
    """Labels, 1 where an image shows a text."""

    graded = False

    def __init__(self, rows: list[list[int]], known: Bool[np.ndarray, " text"]) -> None:
        """
        Args:
            rows: The texts that each image shows.
        """
        self.known = known
        starts = np.cumsum([0, *map(len, rows)])
        texts = np.array([text for row in rows for text in row], dtype=np.int64)
        self.labels: Any = csr_array((np.ones(len(texts)), texts, starts), shape=(len(rows), len(known)))
        """Sparse matrix [N, text]."""

    def moments(self, units: UnitGroup, images: Images) -> Moments:
        """Implements Presence.moments."""
        labels = self.labels[images]  # (i, text)
        covariance = (labels.T @ _centred(units.a[images])).T / len(images)  # (n, text)
        share = labels.sum(0) / len(images)  # (text)
        return Moments(covariance, (share * (1 - share))[None])

    def sums(self, units: UnitGroup, images: Images, weights: Weights) -> Float64[np.ndarray, "i k"]:
        """Implements Presence.sums."""
        return (self.labels[images] @ weights.T).toarray()


def correlations(a: Float64[np.ndarray, "i n"], moments: Moments) -> Float64[np.ndarray, "n text"]:
    """Correlations of activities and presence from their moments; NaN where one of the two does not vary."""
    deviation = a.std(0)[:, None]  # (n, 1)
    varies = (deviation > 1e-12 * np.abs(a).max(0, initial=0)[:, None]) & (moments.variance > 1e-14)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = moments.covariance / (deviation * np.sqrt(np.maximum(moments.variance, 0)))
    return np.where(varies, value, np.nan)


def _centred(a: Float64[np.ndarray, "i n"]) -> Float64[np.ndarray, "i n"]:
    return a - a.mean(0)
