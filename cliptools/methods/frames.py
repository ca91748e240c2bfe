"""Norms and projections of effects, from their scalars alone.

Of phi_n(I) = sum_k S[n, k] D[n, k, :] this file gives ||phi_n - b_n|| and <phi_n - b_n, r_n> without forming phi. With D = L Q,
the rows of Q [k, d] orthonormal (so that L L^T = D D^T is the Gram matrix),

    phi - b      = (S L - b Q^T) Q - b_rest,       b_rest = b - b Q^T Q
    ||phi - b||^2 = ||S L - b Q^T||^2 + ||b_rest||^2
    <phi - b, r>  = S (D r) - <b, r>

A unit keeps k x k numbers for it. Differences are taken before squares, so that float32 loses nothing where an image does
little to a unit; b is a mean of effects, so b_rest is rounding.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from cliptools.ground.double_precision import back, home
from cliptools.methods.paths import Paths, Slab, slices


class Norms(NamedTuple):
    """What centred norms of some units of a layer need; j = min(k, d)."""

    L: Float[Tensor, "n k j"]
    """Of D = L Q."""
    b: Float[Tensor, "n j"]
    """b Q^T."""
    rest: Float[Tensor, " n"]
    """||b_rest||^2."""

    def __call__(self, S: Float[Tensor, "b n k"], scale: Float[Tensor, " b"]) -> Float[Tensor, "b n"]:
        """||phi - b||, phi times the image's scale."""
        inner = (S.transpose(0, 1) @ self.L).transpose(0, 1) * scale[:, None, None] - self.b  # (b, n, j): phi - b in the frame Q
        return (inner.square().sum(-1) + self.rest).sqrt()


class Along(NamedTuple):
    """What projections of some units of a layer on c directions each need."""

    Dr: Float[Tensor, "n k c"]
    """<D[n, k], r_nc>."""
    br: Float[Tensor, "n c"]
    """<b_n, r_nc>."""

    def __call__(self, S: Float[Tensor, "b n k"], scale: Float[Tensor, " b"]) -> Float[Tensor, "b n c"]:
        """<phi - b, r>, phi times the image's scale."""
        return (S.transpose(0, 1) @ self.Dr).transpose(0, 1) * scale[:, None, None] - self.br


Frame = TypeVar("Frame", Norms, Along)


def norms_of(paths: Paths, slab: Slab, b: Float[Tensor, "n d"]) -> Norms:
    """From D, a few units at a time."""
    return _joined(_norms(D, b[of]) for of, D in _directions(paths, slab))


def along_of(paths: Paths, slab: Slab, b: Float[Tensor, "n d"], r: Float[Tensor, "n c d"]) -> Along:
    """From D, a few units at a time."""
    return _joined(_along(D, b[of], r[of]) for of, D in _directions(paths, slab))


def overlaps_of(paths: Paths, slab: Slab, r: Float[Tensor, "n c d"]) -> Float[Tensor, "n k c"]:
    """<D[n, k], r_nc>, a few units at a time."""
    return torch.cat([D @ r[of].to(D).transpose(1, 2) for of, D in _directions(paths, slab)])


def frames_of(paths: Paths, slab: Slab, b: Float[Tensor, "n d"], r: Float[Tensor, "n c d"]) -> tuple[Norms, Along]:
    """Both, from D formed once."""
    norms, alongs = zip(*((_norms(D, b[of]), _along(D, b[of], r[of])) for of, D in _directions(paths, slab)), strict=True)
    return _joined(norms), _joined(alongs)


def _directions(paths: Paths, slab: Slab) -> Iterator[tuple[slice, Float[Tensor, "n k d"]]]:
    """D, a few units at a time, and which these are."""
    for of in slices(len(slab.neurons), paths.size(slab.layer)[1]):
        yield of, paths.directions(Slab(slab.layer, slab.neurons[of]))


def _norms(D: Float[Tensor, "n k d"], b: Float[Tensor, "n d"]) -> Norms:
    b = b.to(D)
    Q, L = (back(part, D) for part in torch.linalg.qr(home(D.transpose(1, 2))))  # (n, d, j), (n, j, k)
    inner = torch.einsum("nd,ndj->nj", b, Q)
    rest = b - torch.einsum("nj,ndj->nd", inner, Q)
    return Norms(L.transpose(1, 2), inner, rest.square().sum(-1))


def _along(D: Float[Tensor, "n k d"], b: Float[Tensor, "n d"], r: Float[Tensor, "n c d"]) -> Along:
    r = r.to(D)
    return Along(D @ r.transpose(1, 2), torch.einsum("nd,ncd->nc", b.to(D), r))


def _joined(parts: Iterable[Frame]) -> Frame:
    """Of some units, then the next."""
    some = list(parts)
    return type(some[0])(*(torch.cat(column) for column in zip(*some, strict=True)))
