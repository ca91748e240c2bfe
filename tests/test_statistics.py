"""One pass over images compared with full matrices: statistics, certificates, order, batches."""

from functools import reduce
from operator import add

import pytest
import torch
from helpers.oracles import centred_statistics
from helpers.second_order import SHAPES, pictures, random_tower
from helpers.statistics import LAWS, batches_of, law, second_look, stack
from hypothesis import given, settings
from hypothesis import strategies as st

from cliptools.streaming.measure import measure
from cliptools.streaming.principal import leading_eigenvectors, principal_coefficients, signs
from cliptools.streaming.ranking import NormHistogram, bracket, rank_of, top_count
from cliptools.streaming.statistics import UnitStatistics
from cliptools.streaming.summary import Settings
from cliptools.unit_effects.factored import UnitBlock
from cliptools.unit_effects.vit_second_order import SecondOrder, directions, scalars, trace

COLUMNS = ("mean", "top_norm", "threshold", "explained_all")


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_bundle_statistics_are_those_of_the_full_matrices(shape: dict) -> None:
    visual, n = random_tower(shape), 240
    images = pictures(visual, n)
    layers = [0, shape["layers"] - 2]
    report = measure(SecondOrder(visual), batches_of(images, torch.randperm(n), 19), layers, n, Settings(top=24, quantile=0.95))
    traced = trace(visual, images, layers)
    at = 0
    for layer in layers:
        phi = torch.einsum("bnk,nkd->bnd", scalars(traced, layer), directions(visual, layer, slice(None)))
        phi = phi * (100 / traced.embedding.norm(dim=-1))[:, None, None]
        expected = centred_statistics(phi, 24, rank_of(0.95, n))
        rows = slice(at, at + phi.shape[1])
        at = rows.stop
        for name in COLUMNS:
            torch.testing.assert_close(getattr(report.effects, name)[rows], expected[name], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(report.effects.component[rows, 0], expected["direction"], rtol=0, atol=1e-9)
        torch.testing.assert_close(report.effects.component_explained[rows, 0], expected["explained"], rtol=1e-9, atol=1e-9)
        assert torch.equal(report.effects.top_image[rows], expected["top_image"])


@pytest.mark.parametrize("filed", [True, False])
def test_batch_size_order_and_memory_change_only_rounding(monkeypatch: pytest.MonkeyPatch, filed: bool) -> None:
    """With little memory the statistics lie in files; without room for these they take further passes."""
    if not filed:
        monkeypatch.setattr("cliptools.streaming.memory_plan.files_fit", lambda size, device: False)
    visual, n = random_tower(SHAPES[1]), 150
    images = pictures(visual, n)
    by_class = torch.arange(n)  # the worst order: sorted by what the pictures show
    images[: n // 3] += 1.5
    runs = [
        measure(SecondOrder(visual), batches_of(images, order, size), [0, 1], n, Settings(top=20, quantile=0.9, memory=memory))
        for order, size, memory in [(by_class, 150, 4e9), (torch.randperm(n), 7, 4e9), (by_class.flip(0), 1, 2e5)]
    ]
    assert runs[2].passes == 1 if filed else runs[2].passes > 2
    for other in runs[1:]:
        assert torch.equal(other.effects.top_image, runs[0].effects.top_image)
        for ours, theirs in zip(runs[0].effects, other.effects, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_fewer_images_than_top() -> None:
    visual = random_tower(SHAPES[2])
    images = pictures(visual, 5)
    effects = measure(SecondOrder(visual), batches_of(images, torch.arange(5), 2), [0], 5, Settings(top=20)).effects
    assert effects.top_norm.shape == (78, 5)
    assert effects.top_image.sort(1).values.eq(torch.arange(5)).all()


def test_silent_neurons_have_zero_directions() -> None:
    visual = random_tower(SHAPES[0])
    visual.transformer.resblocks[1].mlp.c_proj.weight[:, 7] = 0
    images = pictures(visual, 30)
    effects = measure(SecondOrder(visual), batches_of(images, torch.arange(30), 8), [1], 30, Settings(top=10)).effects
    assert effects.component[7].abs().max() == 0 and effects.top_norm[7].max() == 0 and effects.component_explained[7, 0] == 0
    assert all(column[7].isfinite().all() for column in effects)


def test_components_are_orthonormal_and_begin_with_the_direction() -> None:
    visual = random_tower(SHAPES[0])
    images = pictures(visual, 40)
    batches = batches_of(images, torch.arange(40), 16)
    one = measure(SecondOrder(visual), batches, [2], 40, Settings(top=15)).effects
    three = measure(SecondOrder(visual), batches, [2], 40, Settings(top=15, components=3)).effects
    torch.testing.assert_close(three.component[:, :1], one.component, rtol=0, atol=1e-9)
    products = three.component @ three.component.transpose(1, 2)
    torch.testing.assert_close(products, torch.eye(3, dtype=torch.float64).expand_as(products), rtol=0, atol=1e-9)
    assert (three.component_explained.diff(dim=1) <= 0).all() and (three.component_explained.sum(1) <= 1 + 1e-9).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 12), st.integers(1, 9), st.integers(30, 120))
def test_certified_lists_are_exact_whatever_comes_first(seed: int, k: int, top: int, margin: int, n: int) -> None:
    """A drifting stream is hard for a running centre; every certified list must be the true list."""
    random = torch.Generator().manual_seed(seed)
    D = torch.randn(6, k, 7, dtype=torch.float64, generator=random)
    S = torch.randn(n, 6, k, dtype=torch.float64, generator=random) + torch.linspace(-2, 2, n, dtype=torch.float64)[:, None, None]
    measured = UnitStatistics(stack(D @ D.transpose(1, 2)), top, top + margin, n, 0.9)
    for start in range(0, n, 11):
        measured.update(S[start : start + 11], torch.arange(start, min(n, start + 11)))
    finished = measured.finish()
    phi = torch.einsum("bnk,nkd->bnd", S, D)
    norms = (phi - phi.mean(0)).norm(dim=-1).sort(0, descending=True)
    sure = finished.certified
    torch.testing.assert_close(finished.top_norm[sure], norms.values[:top].T[sure], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(finished.mean, S.mean(0), rtol=1e-9, atol=1e-12)
    open_ones = (~sure).nonzero()[:, 0]
    if not len(open_ones):
        return
    second = second_look(measured, finished, S)
    settled = second.finish()
    assert settled.certified.all()
    torch.testing.assert_close(settled.top_norm, norms.values[:top].T[open_ones], rtol=1e-9, atol=1e-9)
    assert torch.equal(settled.top_image, norms.indices[:top].T[open_ones])
    if (rank := rank_of(0.9, n)) <= top + margin:  # else it is bounded
        torch.testing.assert_close(settled.threshold, norms.values[rank - 1, open_ones], rtol=1e-9, atol=1e-9)
    about_mean = measured.moments.about_mean(slice(None))
    torch.testing.assert_close(second.moments.about_mean(slice(None)), about_mean[open_ones], rtol=1e-12, atol=1e-12)


def test_a_second_look_takes_few_images() -> None:
    """The near misses name the images in doubt, and only these are read again."""
    visual, n = random_tower(SHAPES[0]), 1500
    images = pictures(visual, n)
    report = measure(SecondOrder(visual), batches_of(images, torch.arange(n), 32), [1], n, Settings(top=40, margin=3))
    assert report.redone and 0 < report.reread < n // 2
    assert report.passes == 1


@pytest.mark.parametrize("order", ["as drawn", "drifting"])
@pytest.mark.parametrize("name", LAWS)
def test_a_threshold_beyond_the_kept_images_is_within_its_bound(name: str, order: str) -> None:
    """The bound holds for every unit, also if the mean moves far, and is wide only if norms are few or scattered."""
    random = torch.Generator().manual_seed(5)
    units, n, quantile = 20, 3000, 0.9
    D = torch.randn(units, 3, 7, dtype=torch.float64, generator=random) * torch.logspace(-6, 6, units)[:, None, None]
    S = law(name, (n, units, 3), random)
    if order == "drifting":
        S = S[S.sum((1, 2)).argsort()]
    measured = UnitStatistics(stack(D @ D.transpose(1, 2)), 20, 100, n, quantile, at_once=200)
    for start in range(0, n, 250):
        measured.update(S[start : start + 250], torch.arange(start, min(n, start + 250)))
    finished = measured.finish()
    phi = torch.einsum("bnk,nkd->bnd", S, D)
    exact = (phi - phi.mean(0)).norm(dim=-1).sort(0, descending=True).values[rank_of(quantile, n) - 1]
    assert (finished.threshold_bound > 0).all()
    assert ((finished.threshold - exact).abs() <= finished.threshold_bound).all()
    share = finished.threshold_bound / exact
    if order == "as drawn" and name in ("normal", "acts on 2 %"):
        assert share.median() < {"normal": 0.04, "acts on 2 %": 0.6}[name], share


def test_a_threshold_of_the_kept_images_is_exact() -> None:
    """A small quantile asks for a rank above T: more images are kept, and the bound is 0."""
    visual, n = random_tower(SHAPES[2]), 300
    images = pictures(visual, n)
    effects = measure(SecondOrder(visual), batches_of(images, torch.arange(n), 50), [0], n, Settings(top=8, quantile=0.8)).effects
    traced = trace(visual, images, [0])
    phi = torch.einsum("bnk,nkd->bnd", scalars(traced, 0), directions(visual, 0, slice(None)))
    phi = phi * (100 / traced.embedding.norm(dim=-1))[:, None, None]
    expected = centred_statistics(phi, 8, 60)["threshold"]
    torch.testing.assert_close(effects.threshold, expected, rtol=1e-9, atol=1e-9)
    assert effects.threshold_bound.eq(0).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 400), st.integers(1, 3), st.booleans())
def test_brackets_hold_the_norm_of_a_rank(seed: int, n: int, references: int, tied: bool) -> None:
    """For all norms, including zeros and equal ones, counted from centres with the stated error."""
    random = torch.Generator().manual_seed(seed)
    units = 6
    norm = torch.randn(units, n, generator=random).abs() * 10 ** (6 * torch.randn(units, 1, generator=random))
    norm = (norm * 4 / norm.amax(1, keepdim=True)).round() if tied else norm
    delta = [norm.amax(1) * 0.1 * torch.rand(units, generator=random) for _ in range(references)]
    whose = torch.randint(references, (n,), generator=random)
    histograms = [NormHistogram.empty(units, torch.device("cpu")) for _ in delta]
    for i, (histogram, far) in enumerate(zip(histograms, delta, strict=True)):
        mine = norm[:, whose == i]
        shift = (2 * torch.rand(mine.shape, generator=random) - 1) * far[:, None]
        for some in (mine + shift).clamp(min=0).split(37, 1):
            if some.shape[1]:
                histogram.add(slice(0, 2), some[:2])
                histogram.add(slice(2, units), some[2:])
    rank = int(torch.randint(1, n + 1, (), generator=random))
    low, high = bracket(reduce(add, histograms), torch.stack(delta).amax(0), rank)
    exact = norm.sort(1, descending=True).values[:, rank - 1]
    assert (low <= exact).all() and (exact <= high).all()
    if references == 1:
        whole = bracket(histograms[0], torch.zeros(units), rank)
        assert ((whole.high - whole.low) <= 0.04 * norm.amax(1) + 2 * delta[0]).all()
    halves = [NormHistogram.empty(units, torch.device("cpu")) for _ in range(2)]
    for part, half in zip(norm.tensor_split(2, 1), halves, strict=True):
        if part.shape[1]:
            half.add(slice(0, units), part)
    joined, together = halves[0] + halves[1], NormHistogram.empty(units, torch.device("cpu"))
    together.add(slice(0, units), norm)
    assert torch.equal(joined.count, together.count) and torch.equal(joined.top, together.top)


@pytest.mark.parametrize("images", [1, 2, 9, 60, 150, 300, 500, 501, 2000, 5000, 5001, 10**6])
def test_top_images_are_two_percent(images: int) -> None:
    expected = min(100, max(10, -(-images * 2 // 100)))
    assert top_count(images) == max(1, min(expected, images - 1))


def test_t_follows_the_images_that_could_be_read() -> None:
    """Statistics keep the T of the list and reduce it when the number of images is known."""
    visual, listed, read = random_tower(SHAPES[2]), 700, 520
    images = pictures(visual, read)
    effects = measure(SecondOrder(visual), batches_of(images, torch.arange(read), 100), [0], listed, Settings()).effects
    asked = measure(SecondOrder(visual), batches_of(images, torch.arange(read), 100), [0], read, Settings(top=11)).effects
    assert effects.top_norm.shape[1] == 11
    for ours, theirs in zip(effects, asked, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_signs_follow_the_heavy_side_whatever_t_is() -> None:
    """One image in thirty is far out on one side, the others are near the mean, with their majority on the other side."""
    random = torch.Generator().manual_seed(1)
    n, units = 300, 50
    r = torch.nn.functional.normalize(torch.randn(units, 7, dtype=torch.float64, generator=random), dim=1)
    strong = torch.where(torch.rand(n, units, generator=random) < 1 / 30, 10.0, 0.0) + torch.rand(n, units, generator=random)
    S = strong.double()[..., None]
    for top in (6, 30, 150, 300):
        measured = UnitStatistics(stack((r * r).sum(1)[:, None, None]), top, min(n, top + 16), n)
        measured.update(S, torch.arange(n))
        finished = measured.finish()
        acts = finished.top_norm[:, 0] > 5
        projection = (finished.top_x @ torch.ones(units, 1, 1, dtype=torch.float64))[acts]
        assert acts.sum() > 40 and signs(projection).eq(1).all()
        majority = ((projection > 0).sum(1) - (projection < 0).sum(1)).sign()
        assert majority.eq(1).all() if top == 6 else (top < 150 or majority.eq(-1).all())


def test_close_eigenvalues_are_left_to_the_full_solver() -> None:
    random = torch.Generator().manual_seed(2)
    Q = torch.linalg.qr(torch.randn(3, 9, 9, dtype=torch.float64, generator=random)).Q
    values = torch.tensor([[5, 5 - 1e-7, 1], [3, 1, 1], [2, 2, 2]], dtype=torch.float64)
    spectrum = torch.cat([values, torch.zeros(3, 6, dtype=torch.float64)], 1)
    found, vectors = leading_eigenvectors(Q @ torch.diag_embed(spectrum) @ Q.transpose(1, 2), 1)
    torch.testing.assert_close(found[:, 0], values[:, 0], rtol=1e-9, atol=0)
    torch.testing.assert_close(
        (vectors[:2, :, 0] * Q[:2, :, 0]).sum(1).abs(), torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-8
    )


def test_more_components_than_dimensions_are_zeros() -> None:
    X, D = torch.randn(2, 6, 2, dtype=torch.float64), torch.randn(2, 2, 5, dtype=torch.float64)
    found = principal_coefficients(X, D @ D.transpose(1, 2), 4)
    assert found.a.shape == (2, 4, 2) and found.a[:, 2:].abs().max() == 0
    torch.testing.assert_close(found.share.sum(1), torch.ones(2, dtype=torch.float64), rtol=1e-9, atol=0)


def test_ranks() -> None:
    assert [rank_of(0.98, n) for n in (5000, 5124, 2000, 51, 10)] == [100, 103, 40, 2, 1]


def test_slabs_name_their_neurons() -> None:
    visual = random_tower(SHAPES[0])
    paths = SecondOrder(visual)
    scattered = UnitBlock(1, torch.tensor([9, 2]))
    swapped = UnitBlock(1, torch.tensor([0, 2, 1, 3]))  # first and last as those of a run
    every, some, others = paths.read(pictures(visual, 2), [UnitBlock(1, torch.arange(90)), scattered, swapped])[0]
    assert torch.equal(every[:, [9, 2]], some)
    assert torch.equal(every[:, [0, 2, 1, 3]], others)
