"""Principal directions of factored effects, from the smaller side of the problem, and the stack of Gram matrices for it.

Paper 1 (arXiv 2406.04341), Sec. 3.3: r is the first right singular vector of the T rows phi - b of largest norm, not centred
again. In factored form these rows are X D, with X = S - mean [T, K] and D [K, d], and span at most K dimensions. With
G = D D^T and X = Q R,

    B = R G R^T = V diag(lambda) V^T      a min(T, K) eigenproblem
    r_c = a_c D                           unit vectors of the joint space, with a_c = v_c^T R / sqrt(lambda_c)
    share_c = lambda_c / trace B          variance explained

D enters through its Gram matrix alone, and nothing is inverted. `SymmetricStack` keeps Gram matrices and moments.
"""

import itertools
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cliptools.streaming.storage import Storage

SQUARINGS, MULTIPLICATIONS = 6, 12
TOLERANCE = 1e-13  # largest ||B v - lambda v|| / trace of a vector that has converged, in float64


class Principal(NamedTuple):
    """Leading c directions of each unit's rows, as combinations of the rows of D: r = a D."""

    a: Float[Tensor, "n c k"]
    """Zeros beyond the rank of the rows."""
    share: Float[Tensor, "n c"]
    """Share of the rows' squared norm along each direction."""


def principal_coefficients(X: Float[Tensor, "n T k"], G: Float[Tensor, "n k k"], count: int = 1) -> Principal:
    """The first `count` right singular vectors of X D, in float64.

    `count` may exceed the rank; surplus directions are zeros.
    """
    X, G = X.double(), G.double()
    R = torch.linalg.qr(X, mode="r").R if X.shape[1] > X.shape[2] else X  # [n, m, k], m = min(T, K)
    B = R @ G @ R.transpose(1, 2)  # [n, m, m]
    total = B.diagonal(dim1=1, dim2=2).sum(-1)  # [n]
    values, vectors = leading_eigenvectors(B, count)  # [n, c], [n, m, c]
    values = values.clamp(min=0)
    nonzero = values > 1e-24 * total.clamp(min=torch.finfo(torch.float64).tiny)[:, None]
    length = torch.where(nonzero, values, 1).sqrt()
    a = torch.where(nonzero[..., None], vectors.transpose(1, 2) @ R / length[..., None], 0.0)  # [n, c, k]
    share = torch.where(nonzero, values / torch.where(total > 0, total, 1)[:, None], 0.0)
    return Principal(a, share)


def signs(projection: Float[Tensor, "n T c"]) -> Float[Tensor, "n c"]:
    """1 or -1 for each direction, so that it points to its rows of largest projection: the sign of the sum of their cubes.

    Effects are one-sided with a heavy tail: a few images far out on one side, many near the mean on the other. A majority of
    the rows is on the far side only if T is a small share of all images (paper 1: 100 of 5,000, where a majority gives the same
    sign); the sum of cubes is, for any T.
    """
    return torch.where((projection**3).sum(1) < 0, -1.0, 1.0).to(projection.dtype)


def leading_eigenvectors(B: Float[Tensor, "n m m"], count: int) -> tuple[Float[Tensor, "n c"], Float[Tensor, "n m c"]]:
    """The largest eigenvalues of symmetric positive matrices and their vectors; zeros where m is less than `count`."""
    n, m, _ = B.shape
    if count == 1:
        value, vector, converged = _power(B)
        remaining = (~converged).nonzero()[:, 0]
    else:
        value, vector, remaining = B.new_zeros(n, count), B.new_zeros(n, m, count), torch.arange(n, device=B.device)
    if len(remaining):
        values, vectors = torch.linalg.eigh(B[remaining])  # [r, m], [r, m, m]
        c = min(count, m)
        value[remaining, :c] = values.flip(-1)[:, :c]  # eigh sorts in ascending order
        vector[remaining, :, :c] = vectors.flip(-1)[:, :, :c]
    return value, vector


def _power(B: Float[Tensor, "n m m"]) -> tuple[Float[Tensor, "n 1"], Float[Tensor, "n m 1"], Tensor]:
    """Power iteration with B^64, twelve times; the third result is true where it has converged.

    It does not converge where the second eigenvalue is close to the first; eigh solves such matrices.
    """
    tiny = torch.finfo(B.dtype).tiny
    scale = B.diagonal(dim1=1, dim2=2).sum(-1).clamp(min=tiny)[:, None, None]
    unit = P = B / scale
    for _ in range(SQUARINGS):
        P = P @ P
        P = P / P.diagonal(dim1=1, dim2=2).sum(-1).clamp(min=tiny)[:, None, None]
    start = P.diagonal(dim1=1, dim2=2).argmax(-1)
    v = P[torch.arange(len(P), device=P.device), :, start][..., None]  # [n, m, 1]: the column of largest diagonal
    for _ in range(MULTIPLICATIONS):
        v = P @ v
        v = v / v.norm(dim=1, keepdim=True).clamp(min=tiny)
    Bv = unit @ v
    value = (v * Bv).sum(1)  # [n, 1], of the scaled matrix
    converged = (Bv - value[:, None] * v).norm(dim=1)[:, 0] < TOLERANCE
    return value * scale[:, 0], v, converged


PARTS = 3  # blocks of columns, each stored down to its last diagonal row: 6 of 9 parts, in products large enough to be fast
SMALL = 36  # largest k for which full matrices are stored


class SymmetricStack:
    """n symmetric k x k matrices, initially zero, in two thirds of the memory: only the part above and near the diagonal."""

    def __init__(self, n: int, k: int, like: Tensor, storage: Storage | None = None) -> None:
        """
        Args:
            like: A tensor of the wanted type and device.
            storage: Memory for the matrices.
        """
        self.k = k
        self.storage = Storage() if storage is None else storage
        self.columns = _columns(k)
        self.blocks = [self.storage.zeros(like, n, c.stop, c.stop - c.start) for c in self.columns]  # [n, rows, columns] a block

    @staticmethod
    def numbers(k: int) -> int:
        """Count of numbers that a matrix stores."""
        return sum(c.stop * (c.stop - c.start) for c in _columns(k))

    def put(self, part: slice, full: Float[Tensor, "n k k"]) -> None:
        """Set the matrices of a slice."""
        for c, block in zip(self.columns, self.blocks, strict=True):
            block[part] = full[:, : c.stop, c]

    def full(self, part: slice) -> Float[Tensor, "n k k"]:
        """The matrices of a slice as a plain tensor."""
        if len(self.blocks) == 1:
            return self.blocks[0][part]
        full = self.blocks[0].new_empty(len(self.blocks[0][part]), self.k, self.k)
        for c, block in zip(self.columns, self.blocks, strict=True):
            full[:, : c.stop, c] = block[part]
            full[:, c, : c.start] = block[part, : c.start].transpose(1, 2)
        return full

    def pick(self, rows: Int[Tensor, "r"]) -> "SymmetricStack":
        """Copies of these matrices, as a stack of their own."""
        picked = SymmetricStack(0, self.k, self.blocks[0])
        picked.blocks = [block[rows] for block in self.blocks]
        return picked

    def add_outer(self, part: slice, x: Float[Tensor, "n b k"]) -> None:
        """Add x^T x, in the type of the matrices."""
        x = x.to(self.blocks[0])
        for c, block in zip(self.columns, self.blocks, strict=True):
            block[part].baddbmm_(x[..., : c.stop].transpose(1, 2), x[..., c])

    def times(self, v: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        """M v."""
        product = torch.zeros_like(v)
        for c, block in zip(self.columns, self.blocks, strict=True):
            product[:, : c.stop] += torch.bmm(v[:, None, c], block.transpose(1, 2))[:, 0]
            product[:, c] += torch.bmm(v[:, None, : c.start], block[:, : c.start])[:, 0]
        return product

    def length(self, v: Float[Tensor, "n k"]) -> Float[Tensor, "n"]:
        """The root of v M v^T, for matrices without negative eigenvalues (but for rounding)."""
        return (v * self.times(v)).sum(1).clamp(min=0).sqrt()

    def norms(self, part: slice, x: Float[Tensor, "n b k"]) -> Float[Tensor, "n b"]:
        """The root of x M x^T for every row of x, for matrices without negative eigenvalues (but for rounding)."""
        total = x.new_zeros(x.shape[:2])
        for c, block in zip(self.columns, self.blocks, strict=True):
            product = torch.bmm(x[..., c], block[part, c])
            if c.start:  # the part above the diagonal stands for its mirror image as well
                product.baddbmm_(x[..., : c.start], block[part, : c.start], alpha=2)
            total += product.mul_(x[..., c]).sum(-1)
        return total.clamp_(min=0).sqrt_()


def _columns(k: int) -> list[slice]:
    """The columns of each block that is stored."""
    parts = 1 if k <= SMALL else PARTS
    edges = [round(i * k / parts) for i in range(parts + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(edges)]
