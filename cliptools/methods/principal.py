"""The first principal directions of factored effects, from the small side of the problem.

The rows phi = X D of n images span at most K dimensions, so the right singular vectors of the [T, d] matrix X D come from
a min(T, K) eigenproblem in which D enters through its Gram matrix G = D D^T alone. Nothing is inverted.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

SQUARINGS, MULTIPLICATIONS = 6, 12
TOLERANCE = 1e-13  # of ||B v - lambda v|| / trace, in float64


class Principal(NamedTuple):
    """Leading directions of [T, d] rows, as combinations of D's rows: r = a D."""

    a: Float[Tensor, "n c k"]
    """Zeros where the rows vanish."""
    share: Float[Tensor, "n c"]
    """Share of the rows' squared norm along each direction."""


def principal_coefficients(X: Float[Tensor, "n T k"], G: Float[Tensor, "n k k"], count: int = 1) -> Principal:
    """The `count` first right singular vectors of X D (paper 1, Sec. 3.3: rows are centred effects, not centred again).

    Works in float64. `count` may exceed the rank; surplus directions are zeros.
    """
    X, G = X.double(), G.double()
    R = torch.linalg.qr(X, mode="r").R if X.shape[1] > X.shape[2] else X  # (n, m, k), m = min(T, K)
    B = R @ G @ R.transpose(1, 2)  # (n, m, m)
    total = B.diagonal(dim1=1, dim2=2).sum(-1)  # (n)
    values, vectors = leading_eigenvectors(B, count)  # (n, c), (n, m, c)
    values = values.clamp(min=0)
    alive = values > 1e-24 * total.clamp(min=torch.finfo(torch.float64).tiny)[:, None]
    length = torch.where(alive, values, 1).sqrt()
    a = torch.where(alive[..., None], vectors.transpose(1, 2) @ R / length[..., None], 0.0)
    share = torch.where(alive, values / torch.where(total > 0, total, 1)[:, None], 0.0)
    return Principal(a, share)


def signs(projection: Float[Tensor, "n T c"]) -> Float[Tensor, "n c"]:
    """1 or -1 for each direction, so that it points where the weight of its rows is: the sign of the sum of cubed projections.

    Effects are one-sided with a heavy tail: a few images far out on one side, many near the mean on the other. Most of the
    rows lie on the far side only while they are few of all images (paper 1: 100 of 5,000, where a majority gives the same
    sign); the cubes find it however many rows there are.
    """
    return torch.where((projection**3).sum(1) < 0, -1.0, 1.0).to(projection.dtype)


def leading_eigenvectors(B: Float[Tensor, "n m m"], count: int) -> tuple[Float[Tensor, "n c"], Float[Tensor, "n m c"]]:
    """The largest eigenvalues of symmetric positive matrices, with their vectors (fewer than `count` are filled with zeros)."""
    n, m, _ = B.shape
    if count == 1:
        value, vector, converged = _power(B)
        rest = (~converged).nonzero()[:, 0]
    else:
        value, vector, rest = B.new_zeros(n, count), B.new_zeros(n, m, count), torch.arange(n, device=B.device)
    if len(rest):
        values, vectors = torch.linalg.eigh(B[rest])
        taken = min(count, m)
        value[rest, :taken] = values.flip(-1)[:, :taken]
        vector[rest, :, :taken] = vectors.flip(-1)[:, :, :taken]
    return value, vector


def _power(B: Float[Tensor, "n m m"]) -> tuple[Float[Tensor, "n 1"], Float[Tensor, "n m 1"], Tensor]:
    """Power iteration with a squared matrix: B^64, twelve times. Close seconds do not converge and are left to eigh."""
    tiny = torch.finfo(B.dtype).tiny
    scale = B.diagonal(dim1=1, dim2=2).sum(-1).clamp(min=tiny)[:, None, None]
    unit = P = B / scale
    for _ in range(SQUARINGS):
        P = P @ P
        P = P / P.diagonal(dim1=1, dim2=2).sum(-1).clamp(min=tiny)[:, None, None]
    start = P.diagonal(dim1=1, dim2=2).argmax(-1)
    v = P[torch.arange(len(P), device=P.device), :, start][..., None]  # (n, m, 1)
    for _ in range(MULTIPLICATIONS):
        v = P @ v
        v = v / v.norm(dim=1, keepdim=True).clamp(min=tiny)
    Bv = unit @ v
    value = (v * Bv).sum(1)  # (n, 1), of the scaled matrix
    converged = (Bv - value[:, None] * v).norm(dim=1)[:, 0] < TOLERANCE
    return value * scale[:, 0], v, converged
