"""Unit embeddings of the images of a run: their mean and covariance, and what units see.

A unit writes r, its direction. It sees the images on which it acts. With the unit embedding e(I) = M(I) / ||M(I)||, its mean mu
and covariance Sigma over all images, and the activity a_n(I) = <phi_n(I) - b_n, r_n>, the covariance of activity and similarity
to a text t is linear in t:

    cov(a_n, <e, t>) = <q_n, t>      q_n = mean of a_n(I) (e(I) - mu), the read direction
    corr(a_n, <e, t>) = <q_n, t> / (sd(a_n) sqrt(t^T Sigma t))

r_n is known after the last image only, so the sum in q_n goes over the top images, whose activity is known and which make up most
of it. The unit's own effect is a part of M(I), and would be found again in every image on which the unit acts: it is subtracted.

Embeddings are kept by image (`Scratch`). They are summed in the order
of the image numbers, so that a run and its shards give equal sums.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cliptools.devices import to_float64
from cliptools.io.spools import Scratch

AT_ONCE = 1024  # embeddings
NUMBERS_AT_ONCE = 1 << 22  # of embeddings of top images


class EmbeddingMoments(NamedTuple):
    """Mean and covariance of the unit embeddings of all images."""

    mean: Float[Tensor, " d"]
    covariance: Float[Tensor, "d d"]


class Embeddings:
    """Embeddings M(I) of the images of a run by image number, on the CPU."""

    def __init__(self, listed: int) -> None:
        """
        Args:
            listed: Number of images in the whole list.
        """
        self.place = np.full(listed, -1, np.int64)
        """Place of each image in the file; -1 without an embedding."""
        self.count = 0
        self.d = 0
        self._dtype = np.dtype(np.float32)
        self._file = Scratch("embeddings")

    def add(self, images: Sequence[int] | Int[np.ndarray, " b"], embedding: Float[Tensor, "b d"]) -> None:
        """Add images that have not been added before.

        Raises:
            CliptoolsError: the temporary file cannot be written.
        """
        if not len(images):
            return
        rows = embedding.detach().cpu()
        values = (rows if rows.dtype == torch.float64 else rows.float()).numpy()  # (b, d)
        self.d, self._dtype = values.shape[1], values.dtype
        self._file.put(self.count * self._row_bytes, values)
        self.place[np.asarray(images)] = np.arange(self.count, self.count + len(values))
        self.count += len(values)

    @property
    def _row_bytes(self) -> int:
        return self.d * self._dtype.itemsize

    @property
    def numbers(self) -> Int[np.ndarray, " n"]:
        """Numbers of the images, ascending."""
        return (self.place >= 0).nonzero()[0]

    def rows(self, images: Int[np.ndarray, " b"]) -> Float[Tensor, "b d"]:
        """M(I) of images that have been added."""
        values = np.empty((len(images), self.d), self._dtype)
        start = 0
        places = self.place[images]
        for run in np.split(places, (np.diff(places) != 1).nonzero()[0] + 1):  # consecutive places are read at once
            part = self._file.get(int(run[0]) * self._row_bytes, len(run) * self.d, self._dtype)
            values[start : start + len(run)] = part.reshape(len(run), self.d)
            start += len(run)
        return torch.from_numpy(values)

    def batches(self) -> Iterator[tuple[Int[np.ndarray, " b"], Float[Tensor, "b d"]]]:
        """Yield image numbers and M(I) in ascending order."""
        numbers = self.numbers
        for start in range(0, len(numbers), AT_ONCE):
            part = numbers[start : start + AT_ONCE]
            yield part, self.rows(part)

    def moments(self) -> EmbeddingMoments:
        """Mean and covariance of M(I) / ||M(I)||, in float64."""
        total, square = torch.zeros(self.d, dtype=torch.float64), torch.zeros(self.d, self.d, dtype=torch.float64)
        first = torch.nn.functional.normalize(self.rows(self.numbers[:1]).double(), dim=1)  # a centre near the mean
        for _, rows in self.batches():
            x = torch.nn.functional.normalize(rows.double(), dim=1) - first  # (b, d)
            total += x.sum(0)
            square.addmm_(x.T, x)
        mean = total / self.count
        return EmbeddingMoments(first[0] + mean, square / self.count - mean[:, None] * mean)


def read_directions(
    embeddings: Embeddings,
    mean: Float[Tensor, " d"],
    image: Int[Tensor, "u T"],
    along: Float[Tensor, "u T"],
    direction: Float[Tensor, "u d"],
    scaled: bool,
) -> Float[Tensor, "u d"]:
    """q: over all images, the sum of a (e - mu - own share of e) over the top images divided by the number of images.

    Args:
        mean: mu.
        image: Numbers of the top images.
        along: a on these images.
        direction: r.
        scaled: a is times 100 / ||M(I)||, so that a r / 100 is the unit's share of e; else it is a r / ||M(I)||.
    """
    q = []
    for rows in torch.arange(len(image)).split(max(1, NUMBERS_AT_ONCE // (image.shape[1] * embeddings.d))):
        numbers, place = np.unique(image[rows].cpu().numpy(), return_inverse=True)
        M = embeddings.rows(numbers).double()  # (i, d)
        length = M.norm(dim=1)  # (i)
        e = M / length[:, None] - mean
        index = torch.from_numpy(place.reshape(image[rows].shape))  # (n, T) -> image
        a = to_float64(along[rows]).cpu()  # (n, T)
        own = (a.square() / (100 if scaled else length[index])).sum(1)  # (n)
        total = (a[:, None] @ e[index])[:, 0]  # (n, 1, T) @ (n, T, d) -> (n, d)
        q.append((total - own[:, None] * to_float64(direction[rows]).cpu()) / embeddings.count)
    return torch.cat(q)
