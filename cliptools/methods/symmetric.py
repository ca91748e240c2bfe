"""Stacks of symmetric matrices in little more than half the memory: only the blocks on and above the diagonal are kept."""

import itertools

import torch
from jaxtyping import Float, Int
from torch import Tensor

PARTS = 3  # blocks a side: 6 of 9 are kept, and products stay large enough for a fast matrix product
SMALL = 36  # a side, up to which nothing is split


class SymmetricStack:
    """n symmetric k x k matrices, zeros at first."""

    def __init__(self, n: int, k: int, like: Tensor) -> None:
        """
        Args:
            like: A tensor of the type and on the device wanted.
        """
        self.k = k
        self.pairs = _blocks(k)
        self.blocks = [like.new_zeros(n, r.stop - r.start, c.stop - c.start) for r, c in self.pairs]

    @staticmethod
    def numbers(k: int) -> int:
        """How many numbers one matrix takes."""
        return sum((r.stop - r.start) * (c.stop - c.start) for r, c in _blocks(k))

    def clear(self) -> None:
        """All zeros again."""
        for block in self.blocks:
            block.zero_()

    def put(self, of: slice, full: Float[Tensor, "n k k"]) -> None:
        """Set some matrices."""
        for (r, c), block in zip(self.pairs, self.blocks, strict=True):
            block[of] = full[:, r, c]

    def full(self, of: slice) -> Float[Tensor, "n k k"]:
        """Some matrices, whole."""
        if len(self.blocks) == 1:
            return self.blocks[0][of]
        whole = self.blocks[0].new_empty(len(self.blocks[0][of]), self.k, self.k)
        for (r, c), block in zip(self.pairs, self.blocks, strict=True):
            whole[:, r, c] = block[of]
            if r != c:
                whole[:, c, r] = block[of].transpose(1, 2)
        return whole

    def pick(self, rows: Int[Tensor, "r"]) -> "SymmetricStack":
        """Copies of some matrices, as a stack of their own."""
        picked = SymmetricStack(0, self.k, self.blocks[0])
        picked.blocks = [block[rows] for block in self.blocks]
        return picked

    def add_outer(self, of: slice, x: Float[Tensor, "n b k"], weight: float = 1.0) -> None:
        """Add weight * x^T x, in the type of the matrices."""
        x = x.to(self.blocks[0])
        for (r, c), block in zip(self.pairs, self.blocks, strict=True):
            block[of].baddbmm_(x[..., r].transpose(1, 2), x[..., c], alpha=weight)

    def times(self, v: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        """M v."""
        product = torch.zeros_like(v)
        for (r, c), block in zip(self.pairs, self.blocks, strict=True):
            product[:, r] += torch.bmm(block, v[:, c, None])[..., 0]
            if r != c:
                product[:, c] += torch.bmm(block.transpose(1, 2), v[:, r, None])[..., 0]
        return product

    def quadratic(self, of: slice, x: Float[Tensor, "n b k"]) -> Float[Tensor, "n b"]:
        """x M x^T of every row of x."""
        total = x.new_zeros(x.shape[:2])
        for (r, c), block in zip(self.pairs, self.blocks, strict=True):
            # A block above the diagonal stands for its mirror image as well.
            total += (torch.bmm(x[..., r], block[of]) * x[..., c]).sum(-1) * (1 if r == c else 2)
        return total


def _blocks(k: int) -> list[tuple[slice, slice]]:
    """Rows and columns of each block kept."""
    parts = 1 if k <= SMALL else PARTS
    edges = [round(i * k / parts) for i in range(parts + 1)]
    sides = [slice(start, stop) for start, stop in itertools.pairwise(edges)]
    return [(sides[i], sides[j]) for i in range(parts) for j in range(i, parts)]
