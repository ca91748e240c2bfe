"""Stacks of symmetric matrices in little more than half the memory: what is above the diagonal is kept, and near it."""

import itertools

import torch
from jaxtyping import Float, Int
from torch import Tensor

PARTS = 3  # blocks of columns, each down to its last row: 6 of 9 parts, and products stay large enough to be fast
SMALL = 36  # a side, up to which nothing is split


class SymmetricStack:
    """n symmetric k x k matrices, zeros at first."""

    def __init__(self, n: int, k: int, like: Tensor) -> None:
        """
        Args:
            like: A tensor of the type and on the device wanted.
        """
        self.k = k
        self.columns = _columns(k)
        self.blocks = [like.new_zeros(n, c.stop, c.stop - c.start) for c in self.columns]

    @staticmethod
    def numbers(k: int) -> int:
        """How many numbers one matrix takes."""
        return sum(c.stop * (c.stop - c.start) for c in _columns(k))

    def clear(self) -> None:
        """All zeros again."""
        for block in self.blocks:
            block.zero_()

    def put(self, of: slice, full: Float[Tensor, "n k k"]) -> None:
        """Set some matrices."""
        for c, block in zip(self.columns, self.blocks, strict=True):
            block[of] = full[:, : c.stop, c]

    def full(self, of: slice) -> Float[Tensor, "n k k"]:
        """Some matrices, whole."""
        if len(self.blocks) == 1:
            return self.blocks[0][of]
        whole = self.blocks[0].new_empty(len(self.blocks[0][of]), self.k, self.k)
        for c, block in zip(self.columns, self.blocks, strict=True):
            whole[:, : c.stop, c] = block[of]
            whole[:, c, : c.start] = block[of, : c.start].transpose(1, 2)
        return whole

    def pick(self, rows: Int[Tensor, "r"]) -> "SymmetricStack":
        """Copies of some matrices, as a stack of their own."""
        picked = SymmetricStack(0, self.k, self.blocks[0])
        picked.blocks = [block[rows] for block in self.blocks]
        return picked

    def add_outer(self, of: slice, x: Float[Tensor, "n b k"], weight: float = 1.0) -> None:
        """Add weight * x^T x, in the type of the matrices."""
        x = x.to(self.blocks[0])
        for c, block in zip(self.columns, self.blocks, strict=True):
            block[of].baddbmm_(x[..., : c.stop].transpose(1, 2), x[..., c], alpha=weight)

    def times(self, v: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        """M v."""
        product = torch.zeros_like(v)
        for c, block in zip(self.columns, self.blocks, strict=True):
            product[:, : c.stop] += torch.bmm(v[:, None, c], block.transpose(1, 2))[:, 0]
            product[:, c] += torch.bmm(v[:, None, : c.start], block[:, : c.start])[:, 0]
        return product

    def length(self, v: Float[Tensor, "n k"]) -> Float[Tensor, "n"]:
        """The root of v M v^T, where no M has a negative eigenvalue but for rounding."""
        return (v * self.times(v)).sum(1).clamp(min=0).sqrt()

    def quadratic(self, of: slice, x: Float[Tensor, "n b k"], v: Float[Tensor, "n k"] | None = None) -> Float[Tensor, "n b"]:
        """x M x^T - 2 x v^T of every row of x."""
        total = x.new_zeros(x.shape[:2])
        for c, block in zip(self.columns, self.blocks, strict=True):
            diagonal = block[of, c]
            product = torch.bmm(x[..., c], diagonal) if v is None else torch.baddbmm(v[:, None, c], x[..., c], diagonal, beta=-2)
            if c.start:  # what is above the diagonal stands for its mirror image as well
                product.baddbmm_(x[..., : c.start], block[of, : c.start], alpha=2)
            total += product.mul_(x[..., c]).sum(-1)
        return total


def _columns(k: int) -> list[slice]:
    """Columns of each block kept."""
    parts = 1 if k <= SMALL else PARTS
    edges = [round(i * k / parts) for i in range(parts + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(edges)]
