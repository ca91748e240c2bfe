"""Matching pursuit compared with scikit-learn's, its early ends, its independence of batches, and its memory."""

import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.linear_model import orthogonal_mp
from torch.utils._python_dispatch import TorchDispatchMode

from cliptools.analysis import pursuit
from cliptools.analysis.pursuit import Pursuit, pursue, refit, text_space
from cliptools.errors import TextError

SIZES = [(17, 333, 24, 9), (5, 2053, 40, 20), (3, 7, 30, 7), (4, 16, 8, 8), (2, 1, 5, 1)]
SCREENS = [torch.float64, torch.float32, torch.bfloat16]


def unit(x: torch.Tensor) -> torch.Tensor:
    return x / x.norm(dim=1, keepdim=True)


def related(
    units: int, texts: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return directions and texts that share a few strong themes, as words do."""
    draw = torch.Generator().manual_seed(seed)
    themes = torch.randn(max(d // 8, 2), d, generator=draw, dtype=dtype)
    texts_of = torch.randn(texts, len(themes), generator=draw, dtype=dtype) @ themes / math.sqrt(len(themes))
    noise = torch.randn(texts, d, generator=draw, dtype=dtype)
    targets = torch.randn(units, len(themes), generator=draw, dtype=dtype) @ themes / math.sqrt(len(themes))
    targets = targets + 0.3 * torch.randn(units, d, generator=draw, dtype=dtype)
    return unit(targets), text_space(unit(texts_of + noise))


def scikit(targets: torch.Tensor, atoms: torch.Tensor, m: int) -> torch.Tensor:
    """Return scikit-learn's coefficients, [unit, text]."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # it warns of every early end
        dense = orthogonal_mp(atoms.numpy().T, targets.numpy().T, n_nonzero_coefs=m)
    return torch.from_numpy(np.asarray(dense).reshape(len(atoms), len(targets)).T.copy()).to(targets.dtype)


def dense(found: Pursuit, texts: int) -> torch.Tensor:
    """Return the pursuit's coefficients, [unit, text]."""
    full = found.coefficient.new_zeros(len(found.word), texts + 1)
    return full.scatter(1, torch.where(found.word < 0, texts, found.word), found.coefficient)[:, :texts]


def least_squares(r: torch.Tensor, texts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return coefficients and residual of one direction on some texts."""
    gamma = torch.linalg.lstsq(texts.double().T, r.double()[:, None]).solution[:, 0]
    return gamma, r.double() - texts.double().T @ gamma


def test_the_issues_size_against_scikit_learn() -> None:
    targets, atoms = related(200, 30_000, 512, dtype=torch.float32)
    m = 32
    found = pursue(targets, atoms, m)
    theirs = torch.cat([scikit(part, atoms, m) for part in targets.split(50)])
    agreeing = [set(word) == set(row.nonzero()[:, 0].tolist()) for word, row in zip(found.word.tolist(), theirs, strict=True)]
    for word, gamma, row in zip(found.word[agreeing], found.coefficient[agreeing], theirs[agreeing], strict=True):
        torch.testing.assert_close(gamma, row[word], atol=1e-4, rtol=0)
    # In float32 scikit-learn also ends where a text it has just chosen hardly correlates with the target itself
    others = [unit for unit, same in enumerate(agreeing) if not same]
    assert len(others) <= 20
    exact = scikit(targets[others].double(), atoms.double(), m).float() if others else theirs[:0]
    swaps = 0
    for r, word, gamma, row in zip(targets[others], found.word[others], found.coefficient[others], exact, strict=True):
        support = row.nonzero()[:, 0].tolist()
        if set(word.tolist()) == set(support):
            torch.testing.assert_close(gamma, row[word], atol=1e-4, rtol=0)
            continue
        swaps += 1
        first = next(k for k, j in enumerate(word.tolist()) if j not in support)
        _, left = least_squares(r, atoms[word[:first]])
        correlation = (atoms.double() @ left).abs()
        rivals = [j for j in support if j not in word.tolist()]
        assert min(abs(float(correlation[word[first]] - correlation[j])) for j in rivals) < 1e-6
    assert swaps <= 2


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize(
    ("units", "texts", "d", "m"), [(17, 333, 24, 9), (5, 2053, 40, 20), (3, 7, 30, 7), (4, 16, 8, 8), (2, 1, 5, 1)]
)
def test_float64_agrees_to_rounding(screen: torch.dtype, units: int, texts: int, d: int, m: int) -> None:
    draw = torch.Generator().manual_seed(texts)
    targets, atoms = (torch.randn(n, d, generator=draw, dtype=torch.float64) for n in (units, texts))  # norms of all sizes
    found = pursue(targets, atoms, m, screening=screen)
    torch.testing.assert_close(dense(found, texts), scikit(targets, atoms, m), atol=1e-9, rtol=1e-9)
    for k in range(1, m + 1):
        for r, word, norm in zip(targets, found.word, found.path[:, k - 1], strict=True):
            _, left = least_squares(r, atoms[word[:k]])
            torch.testing.assert_close(norm, left.norm(), atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(found.residual, found.path[:, -1], atol=1e-9, rtol=1e-9)


def test_a_prefix_is_the_pursuit_with_fewer_texts() -> None:
    targets, atoms = related(20, 500, 32)
    found = pursue(targets, atoms, 12)
    for k in (1, 4, 11):
        fewer = pursue(targets, atoms, k)
        assert torch.equal(fewer.word, found.word[:, :k])
        torch.testing.assert_close(refit(targets, atoms, found.word[:, :k]), fewer.coefficient, atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(fewer.residual, found.path[:, k - 1], atol=1e-9, rtol=1e-9)
        for r, word, gamma in zip(targets, fewer.word, fewer.coefficient, strict=True):
            torch.testing.assert_close(gamma, least_squares(r, atoms[word])[0], atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("screen", SCREENS)
def test_exact_fits_end_early(dtype: torch.dtype, screen: torch.dtype) -> None:
    _, atoms = related(1, 400, 48, dtype=dtype)
    targets = torch.stack([atoms[3], -2.5 * atoms[7], atoms[10] + 0.5 * atoms[20], 0.3 * atoms[1] - atoms[2] + atoms[399]])
    found = pursue(targets, atoms, 10, screening=screen)
    assert [sorted(row[row >= 0].tolist()) for row in found.word[:2]] == [[3], [7]]
    torch.testing.assert_close(found.coefficient[:2, 0], torch.tensor([1, -2.5], dtype=dtype))
    small = 1e-5 if dtype == torch.float32 else 1e-12
    assert found.residual.max() < small
    assert (found.coefficient[found.word < 0] == 0).all()
    assert (found.word[2:, -1] == -1).all()
    theirs = scikit(targets, atoms, 10)
    torch.testing.assert_close(dense(found, 400), theirs, atol=10 * small, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_duplicate_and_collinear_texts_end_a_unit_as_in_scikit_learn(dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    basis = torch.randn(5, 12, generator=draw, dtype=dtype)
    atoms = unit(torch.randn(40, 5, generator=draw, dtype=dtype) @ basis)  # 40 texts in 5 dimensions
    atoms = torch.cat([atoms, atoms[:8], -atoms[:8]])  # and some of them twice, or mirrored
    targets = unit(torch.randn(9, 12, generator=draw, dtype=dtype))  # mostly outside of them
    found = pursue(targets, atoms, 8)
    assert ((found.word >= 0).sum(dim=1) == 5).all()
    assert (found.word[:, 5:] == -1).all()
    assert found.word.max() < 48  # of two equal texts the first
    theirs = scikit(targets, atoms, 8)
    assert ((theirs != 0).sum(dim=1) == 5).all()
    tolerance = 1e-4 if dtype == torch.float32 else 1e-9
    torch.testing.assert_close(dense(found, len(atoms)) @ atoms, theirs @ atoms, atol=tolerance, rtol=0)
    assert all(torch.isfinite(part).all() for part in found)


def test_steps_beyond_what_the_texts_span_end_a_unit() -> None:
    """The pool of a narrow text tower spans few dimensions; only rounding leads out of them, and must not be fitted."""
    draw = torch.Generator().manual_seed(1)
    atoms = unit(torch.randn(2000, 20, generator=draw) @ torch.randn(20, 48, generator=draw))
    targets = unit(torch.randn(40, 48, generator=draw))
    found = pursue(targets, atoms, 30)
    assert ((found.word >= 0).sum(1) <= 20).all() and ((found.word >= 0).sum(1) >= 17).all()
    assert (found.path.diff(dim=1) <= 1e-6).all()
    assert found.coefficient.abs().max() < 100
    span = torch.linalg.lstsq(atoms.double().T, targets.double().T, driver="gelsd", rcond=1e-5).solution
    outside = (targets.double() - span.T @ atoms.double()).norm(dim=1)
    torch.testing.assert_close(found.residual.double(), outside, atol=0.02, rtol=0)


def test_zero_targets_have_no_texts() -> None:
    targets, atoms = related(6, 100, 16, dtype=torch.float32)
    targets[[0, 4]] = 0
    found = pursue(targets, atoms, 4)
    assert (found.word[[0, 4]] == -1).all()
    assert (found.coefficient[[0, 4]] == 0).all()
    assert found.residual[[0, 4]].tolist() == [0, 0]
    others = [1, 2, 3, 5]
    assert torch.equal(found.word[others], pursue(targets[others], atoms, 4).word)
    none = pursue(torch.zeros(3, 16), atoms, 4)
    assert (none.word == -1).all()


def test_no_units_more_texts_than_there_are_and_texts_of_no_length() -> None:
    targets, atoms = related(3, 30, 16)
    empty = pursue(targets[:0], atoms, 40)
    assert [tuple(part.shape) for part in empty] == [(0, 40), (0, 40), (0,), (0, 40)]
    found = pursue(targets, atoms, 40)  # 16 texts span everything
    assert found.word.shape == found.path.shape == (3, 40)
    assert (found.word[:, 16:] == -1).all()
    assert found.residual.max() < 1e-12
    atoms[5:] = 0
    assert pursue(targets, atoms, 3).word.max() < 5
    assert (pursue(targets, torch.zeros(4, 16, dtype=torch.float64), 2).word == -1).all()


def test_nothing_but_the_numbers_decides() -> None:
    targets, atoms = related(70, 2100, 64, dtype=torch.float32)
    whole = pursue(targets, atoms, 16)
    for chunk in (3, 64):
        assert torch.equal(pursue(targets, atoms, 16, units_chunk=chunk).word, whole.word)
    for screen in SCREENS:
        assert torch.equal(pursue(targets, atoms, 16, screening=screen).word, whole.word)
    for scale in (1e-6, 1e6):
        scaled = pursue(targets * scale, atoms, 16)
        assert torch.equal(scaled.word, whole.word)
        torch.testing.assert_close(scaled.coefficient, whole.coefficient * scale, rtol=1e-3, atol=1e-6 * scale)


def test_coarse_products_allowed_elsewhere_do_no_harm() -> None:
    targets, atoms = related(40, 3000, 64, dtype=torch.float32)
    whole = pursue(targets, atoms, 16)
    torch.set_float32_matmul_precision("medium")
    try:
        for screen in SCREENS[1:]:
            found = pursue(targets, atoms, 16, screening=screen)
            assert torch.equal(found.word, whole.word)
            assert torch.equal(found.coefficient, whole.coefficient)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_screening_finds_the_largest_where_many_are_close() -> None:
    draw = torch.Generator().manual_seed(0)
    r = unit(torch.randn(8, 64, generator=draw))
    near = r[:1] + 1e-3 * torch.randn(5000, 64, generator=draw)  # closer together than bfloat16 can tell
    atoms = unit(near)
    for screen in SCREENS[1:]:
        laid_out = pursuit.Screen.of(atoms, screen)
        found = pursuit.strongest(laid_out, r, torch.ones(8, dtype=torch.bool))
        correlation = (atoms @ r.T).abs()  # (text, unit)
        assert (correlation.amax(dim=0) - correlation[found, range(8)]).max() < 2e-7


def test_neither_gram_nor_dense_matrix() -> None:
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for value in result if isinstance(result, tuple | list) else (result,):
                if isinstance(value, torch.Tensor):
                    largest = max(largest, value.untyped_storage().nbytes())
            return result

    targets, atoms = related(600, 6000, 8, dtype=torch.float32)
    with Watch():
        pursue(targets, atoms, 4, units_chunk=32)
    assert largest < 600 * 6000 * 4 / 10


@pytest.mark.parametrize("center", ["pool", "none"])
def test_text_space_as_the_paper_and_as_its_code(center: str) -> None:
    t = unit(torch.randn(50, 6, dtype=torch.float64) + 1)
    centred = t - t.mean(dim=0) if center == "pool" else t
    by_text = text_space(t, center, "texts")
    torch.testing.assert_close(by_text, centred / centred.norm(dim=1, keepdim=True), atol=1e-12, rtol=1e-12)
    by_dimension = text_space(t, center, "dimensions")
    torch.testing.assert_close(by_dimension, centred / centred.norm(dim=0, keepdim=True), atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(by_dimension.norm(dim=0), torch.ones(6, dtype=torch.float64))


def test_a_text_that_is_the_mean_is_left_at_zero() -> None:
    a, b = unit(torch.randn(2, 6))
    t = torch.stack([a, b, (a + b) / 2])
    for normalize in ("texts", "dimensions"):
        space = text_space(t, "pool", normalize)
        assert torch.isfinite(space).all()
        assert (space[2] == 0).all()


def test_a_pool_of_one_text_leaves_nothing() -> None:
    with pytest.raises(TextError, match="nothing after centring"):
        text_space(unit(torch.randn(1, 6)))
    assert text_space(unit(torch.randn(1, 6)), "none").norm() == pytest.approx(1)
