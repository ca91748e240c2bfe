"""Symmetric matrices stored as halves compared with full ones."""

import pytest
import torch

from cliptools.streaming.principal import SMALL, SymmetricStack


@pytest.mark.parametrize("k", [1, 7, SMALL, SMALL + 1, 50])
def test_half_a_matrix_is_a_whole_one(k: int) -> None:
    n, some = 5, slice(1, 4)
    x = torch.randn(n, 9, k, dtype=torch.float64)
    start = torch.randn(n, k, k, dtype=torch.float64)
    whole = start @ start.transpose(1, 2)
    stack = SymmetricStack(n, k, x)
    stack.put(slice(None), whole)
    stack.add_outer(some, x[some])
    whole[some] += x[some].transpose(1, 2) @ x[some]
    torch.testing.assert_close(stack.full(slice(0, n)), whole, rtol=1e-12, atol=1e-12)
    expected = torch.einsum("nbi,nij,nbj->nb", x[some], whole[some], x[some])
    torch.testing.assert_close(stack.norms(some, x[some]), expected.sqrt(), rtol=1e-11, atol=1e-11)
    v = torch.randn(n, k, dtype=torch.float64)
    torch.testing.assert_close(stack.times(v), torch.einsum("nij,nj->ni", whole, v), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(stack.pick(torch.tensor([3, 0])).full(slice(None)), whole[[3, 0]], rtol=1e-12, atol=1e-12)


def test_less_is_kept_than_a_whole() -> None:
    stack = SymmetricStack(2, 132, torch.zeros(()))
    kept = sum(block[0].numel() for block in stack.blocks)
    assert kept == SymmetricStack.numbers(132) < 0.67 * 132**2
    assert SymmetricStack.numbers(12) == 144
