"""Partials of parts of the images, merged in any order, compared with full matrices and with one run over all images."""

from collections.abc import Sequence

import pytest
import torch
from helpers.second_order import SHAPES, pictures, random_tower
from helpers.statistics import LAWS, batches_of, law, second_look, stack
from hypothesis import given, settings
from hypothesis import strategies as st

from cliptools.streaming.embeddings import Embeddings
from cliptools.streaming.measure import list_capacity, measure
from cliptools.streaming.moments import Basis
from cliptools.streaming.ranking import rank_of
from cliptools.streaming.shard_statistics import (
    ShardStatistics,
    add,
    centres_differ,
    restored_statistics,
    shard_statistics_of,
)
from cliptools.streaming.shards import Conclusion, conclude, measure_shard
from cliptools.streaming.statistics import UnitStatistics
from cliptools.streaming.summary import Effects, Settings
from cliptools.unit_effects.factored import UnitBlock
from cliptools.unit_effects.vit_second_order import SecondOrder

UNITS = 4
COLUMNS = ("mean", "top_norm", "threshold", "explained_all", "component_explained", "component")


def part(
    S: torch.Tensor, images: torch.Tensor, G: torch.Tensor, basis: Basis, top: int, margin: int, quantile: float
) -> ShardStatistics:
    """Return a partial of some images of S [image, unit, k]."""
    measured = UnitStatistics(stack(G), top, top + margin, len(S), quantile, basis, 5)
    for chunk in images.split(7):
        measured.update(S[chunk], chunk)
    return shard_statistics_of(measured)


def added(parts: Sequence[ShardStatistics], capacity: int, random: torch.Generator) -> ShardStatistics:
    """Merge the partials in a random order, by a random tree."""
    waiting = list(parts)
    while len(waiting) > 1:
        a, b = (waiting.pop(int(torch.randint(len(waiting), (), generator=random))) for _ in range(2))
        waiting.append(add(a, b, capacity))
    return waiting[0]


def same(one: ShardStatistics, other: ShardStatistics) -> bool:
    return one.seen == other.seen and all(torch.equal(a, b) for a, b in zip(one[1:], other[1:], strict=True))


def drawn(seed: int, n: int, k: int, whole: bool) -> tuple[torch.Tensor, torch.Tensor, Basis, torch.Generator]:
    """Return S [n, unit, k] and D: of integers, with exact and often equal norms, or drifting, with a bad centre."""
    random = torch.Generator().manual_seed(seed)
    if whole:
        S = torch.randint(-2, 3, (n, UNITS, k), generator=random).double()
        D = torch.randint(-2, 3, (UNITS, k, 7), generator=random).double()
        centre = torch.randint(-1, 2, (UNITS, k), generator=random).double()
    else:
        S = torch.randn(n, UNITS, k, dtype=torch.float64, generator=random)
        S += torch.linspace(-2, 2, n, dtype=torch.float64)[:, None, None]
        S[:, 0] *= 1e-6
        D = torch.randn(UNITS, k, 7, dtype=torch.float64, generator=random)
        centre = S[: max(1, n // 3)].mean(0)
    phi = torch.einsum("bnk,nkd->bnd", S - centre, D)
    spread = (S - centre).square().mean(0).amax(1).sqrt()
    return S, D, Basis(centre, phi.square().sum(2).mean(0).sqrt().clamp(min=1e-9), spread), random


SIZES = {
    "seed": st.integers(0, 10**6),
    "n": st.integers(1, 90),
    "k": st.integers(1, 4),
    "of": st.integers(1, 6),
    "top": st.integers(1, 12),
    "margin": st.integers(1, 9),
    "whole": st.booleans(),
}


@settings(max_examples=60, deadline=None)
@given(**SIZES)
def test_any_order_gives_the_same_bytes(seed: int, n: int, k: int, of: int, top: int, margin: int, whole: bool) -> None:
    """Also with equal norms, shards without images, and fewer images than are kept."""
    S, D, basis, random = drawn(seed, n, k, whole)
    G, shard = D @ D.transpose(1, 2), torch.randint(of, (n,), generator=random)
    parts = [part(S, (shard == i).nonzero()[:, 0], G, basis, top, margin, 0.5) for i in range(of)]
    one = added(parts, top + margin, random)
    assert same(one, added(parts, top + margin, random))
    assert one.seen == n and one.norm.shape == (UNITS, min(n, top + margin))
    x = S - basis.centre
    norms = torch.einsum("bnk,nkd->bnd", x, D).norm(dim=-1).T  # (unit, n)
    ranked = norms.sort(1, descending=True).values
    torch.testing.assert_close(one.norm, ranked[:, : top + margin], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(norms.gather(1, one.image), one.norm, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(x.transpose(0, 1).gather(1, one.image[..., None].expand(-1, -1, k)), one.x, rtol=0, atol=0)
    assert all(len(set(row)) == len(row) for row in one.image.tolist())
    torch.testing.assert_close(one.sum, x.sum(0), rtol=1e-11, atol=1e-11)
    row, column = torch.triu_indices(k, k)
    torch.testing.assert_close(one.moment, torch.einsum("bnj,bnk->njk", x, x)[:, row, column], rtol=1e-11, atol=1e-11)
    near, rest = one.near_image >= 0, ranked[:, top + margin :]
    assert near.sum(1).tolist() == [min(rest.shape[1], top)] * UNITS
    torch.testing.assert_close(one.near_norm[near].view(UNITS, -1), rest[:, :top], rtol=1e-12, atol=1e-12)
    assert (one.lost >= rest[:, top:].amax(1) - 1e-12).all() if rest.shape[1] > top else (one.lost == -1).all()
    if one.histogram.shape[1]:
        assert one.histogram.sum(1).tolist() == [n] * UNITS


@settings(max_examples=60, deadline=None)
@given(**SIZES)
def test_what_is_certified_is_exact_and_doubts_are_named(
    seed: int, n: int, k: int, of: int, top: int, margin: int, whole: bool
) -> None:
    S, D, basis, random = drawn(seed, n, k, whole)
    G, shard = D @ D.transpose(1, 2), torch.randint(of, (n,), generator=random)
    parts = [part(S, (shard == i).nonzero()[:, 0], G, basis, top, margin, 0.9) for i in range(of)]
    if not whole:  # another machine's rounding
        parts = [each._replace(centre=each.centre) if i else away(each, 1e-9) for i, each in enumerate(parts)]
    measured = restored_statistics(added(parts, top + margin, random), stack(G), top, 0.9, n)
    finished = measured.finish()
    phi = torch.einsum("bnk,nkd->bnd", S, D)
    norms = (phi - phi.mean(0)).norm(dim=-1).T  # (unit, n)
    ranked = norms.sort(1, descending=True).values
    torch.testing.assert_close(finished.mean, S.mean(0), rtol=1e-9, atol=1e-12)
    x = S - S.mean(0)
    moment = torch.einsum("bnj,bnk->njk", x, x)
    torch.testing.assert_close(n * measured.moments.about_mean(slice(None)), moment, rtol=1e-9, atol=1e-9)
    sure, tolerance = finished.certified, {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(finished.top_norm[sure], ranked[sure, :top], **tolerance)
    torch.testing.assert_close(norms.gather(1, finished.top_image), finished.top_norm, **tolerance)
    rows = (~sure).nonzero()[:, 0]
    if not len(rows):
        return
    settled = second_look(measured, finished, S).finish()
    assert settled.certified.all()
    torch.testing.assert_close(settled.top_norm, ranked[rows, :top], **tolerance)
    torch.testing.assert_close(norms[rows].gather(1, settled.top_image), settled.top_norm, **tolerance)
    if rank_of(0.9, n) <= top + margin:
        torch.testing.assert_close(settled.threshold, ranked[rows, rank_of(0.9, n) - 1], **tolerance)


def away(each: ShardStatistics, by: float) -> ShardStatistics:
    """Return the same images with a centre that is off by a given distance."""
    d = torch.full_like(each.centre, by)
    row, column = torch.triu_indices(d.shape[1], d.shape[1])
    across = each.sum[:, row] * d[:, column] + d[:, row] * each.sum[:, column]
    moment = each.moment - across + each.seen * d[:, row] * d[:, column]
    return each._replace(centre=each.centre + d, sum=each.sum - each.seen * d, moment=moment, x=each.x - d[:, None])


def test_centres_that_differ_by_more_than_rounding_are_told() -> None:
    S, D, basis, _ = drawn(3, 40, 3, False)
    one = part(S, torch.arange(40), D @ D.transpose(1, 2), basis, 5, 5, 0.9)
    assert not centres_differ(one, away(one, 1e-9)).any() and centres_differ(one, away(one, 10.0)).all()


@pytest.mark.parametrize("name", LAWS)
def test_a_threshold_beyond_what_is_kept_is_within_its_bound(name: str) -> None:
    """Norms are counted from the provisional mean, and the bound includes its distance to the mean."""
    random = torch.Generator().manual_seed(5)
    D = torch.randn(UNITS, 3, 7, dtype=torch.float64, generator=random)
    S = law(name, (3000, UNITS, 3), random)
    phi = torch.einsum("bnk,nkd->bnd", S, D)
    norms = (phi - phi.mean(0)).norm(dim=-1)
    centre = S[:256].mean(0)
    basis = Basis(centre, norms.square().mean(0).sqrt(), (S - centre).square().mean(0).amax(1).sqrt())
    parts = [part(S, torch.arange(i, 3000, 3), D @ D.transpose(1, 2), basis, 20, 20, 0.9) for i in range(3)]
    finished = restored_statistics(added(parts, 40, random), stack(D @ D.transpose(1, 2)), 20, 0.9, 3000).finish()
    exact = norms.sort(0, descending=True).values[299]
    assert (finished.threshold_bound > 0).all()
    assert ((finished.threshold - exact).abs() <= finished.threshold_bound).all()
    if name == "normal":
        assert (finished.threshold_bound < 0.08 * exact).all()


class Sharded:
    """The images of a random tower in shards."""

    def __init__(
        self, shape: dict, n: int, asked: Settings, layers: Sequence[int], sample: int, unread: Sequence[int] = ()
    ) -> None:
        self.paths, self.images = SecondOrder(random_tower(shape)), pictures(random_tower(shape), n)
        self.asked, self.layers, self.sample = asked, layers, sample
        order = torch.randperm(n, generator=torch.Generator().manual_seed(1))
        self.listed, self.order = n, order[~torch.isin(order, torch.tensor(unread, dtype=torch.int64))]

    def batches(self, own: torch.Tensor, size: int = 19):
        return batches_of(self.images, own, size)

    def parts(self, of: int) -> list[dict[int, ShardStatistics]]:
        """Return the partials of each shard, by layer."""
        made = []
        for i in range(of):
            own, sample = self.order[i::of], self.batches(self.order[: self.sample], 32)
            slabs = measure_shard(
                self.paths, sample, self.batches(own), self.layers, self.listed, len(own), self.asked, Embeddings(self.listed)
            )
            made.append({slab.layer: found for slab, found in slabs})
        return made

    def merged(self, of: int, again: bool) -> Conclusion:
        parts = self.parts(of)

        def joined(slab: UnitBlock) -> ShardStatistics:
            whole = parts[-1][slab.layer]
            for other in parts[:-1]:
                whole = add(whole, other[slab.layer], list_capacity(self.asked, self.listed))
            return ShardStatistics(whole.seen, *(column[slab.neurons] for column in whole[1:]))

        batches = self.batches(self.order) if again else None
        return conclude(self.paths, self.layers, joined, self.listed, self.asked, batches)

    def one(self) -> Effects:
        return measure(self.paths, self.batches(self.order, 32), self.layers, self.listed, self.asked).effects


@pytest.fixture(scope="module")
def study() -> Sharded:
    return Sharded(SHAPES[1], 330, Settings(top=24, margin=30, quantile=0.95, components=2), [0, 1], 64, unread=[7, 30, 31])


@pytest.fixture(scope="module")
def one(study: Sharded) -> Effects:
    return study.one()


@pytest.mark.parametrize("of", [1, 2, 3, 7])
def test_shards_are_one_run(study: Sharded, one: Effects, of: int) -> None:
    found = study.merged(of, again=True)
    assert torch.equal(found.effects.top_image, one.top_image) and torch.equal(found.effects.unit, one.unit)
    for name in COLUMNS:
        torch.testing.assert_close(getattr(found.effects, name), getattr(one, name), rtol=1e-9, atol=1e-9, msg=name)
    assert not len(found.uncertain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("n", "asked"), [(330, Settings(top=24, margin=30, quantile=0.95)), (40, Settings(top=9)), (700, Settings())]
)
def test_a_run_of_one_shard_is_a_plain_run_to_the_bit(n: int, asked: Settings, dtype: torch.dtype) -> None:
    """Also with fewer images than the sample has, and with more images than places in a list."""
    visual = random_tower(SHAPES[2]).to(dtype)
    images, order = pictures(random_tower(SHAPES[2]), n).to(dtype), torch.randperm(n, generator=torch.Generator().manual_seed(1))
    effect, batches = SecondOrder(visual), batches_of(images, order, 19)
    plain = measure(effect, batches, [0], n, asked).effects
    parts = [found for _, found in measure_shard(effect, None, batches, [0], n, n, asked, Embeddings(n))]
    assert len(parts) == 1

    def whole(block: UnitBlock) -> ShardStatistics:
        return ShardStatistics(parts[0].seen, *(column[block.neurons] for column in parts[0][1:]))

    merged = conclude(effect, [0], whole, n, asked, batches).effects
    for name, ours, theirs in zip(plain._fields, plain, merged, strict=True):
        assert torch.equal(ours, theirs), name


def test_units_in_doubt_are_listed_and_settled() -> None:
    """The provisional mean is bad, from few images, and the margin is small."""
    study = Sharded(SHAPES[2], 240, Settings(top=12, quantile=0.97, margin=6), [0], 100)
    one, found = study.one(), study.merged(3, again=False)
    assert 0 < len(found.uncertain) < len(one.unit) and found.doubtful is not None and found.doubtful < 240
    sure = ~(one.unit[:, None] == found.uncertain).all(2).any(1)
    assert torch.equal(found.effects.top_image[sure], one.top_image[sure])
    settled = study.merged(3, again=True)
    assert settled.reread == found.doubtful and not len(settled.uncertain)
    assert torch.equal(settled.effects.top_image, one.top_image)
    for name in COLUMNS:
        torch.testing.assert_close(getattr(settled.effects, name), getattr(one, name), rtol=1e-9, atol=1e-9, msg=name)


def test_more_shards_than_images() -> None:
    """All images of a short list are kept."""
    study = Sharded(SHAPES[2], 5, Settings(top=20), [0], 64)
    one, found = study.one(), study.merged(7, again=False)
    assert found.effects.top_norm.shape == (78, 5) and not len(found.uncertain)
    assert torch.equal(found.effects.top_image, one.top_image)
    torch.testing.assert_close(found.effects.component, one.component, rtol=1e-9, atol=1e-9)


def test_little_memory_takes_passes_and_gives_the_same(study: Sharded) -> None:
    (whole,) = study.parts(1)
    study.asked, before = study.asked._replace(memory=2e5), study.asked
    order = study.order
    sample, embeddings = study.batches(order[:64], 32), Embeddings(330)
    slabs = list(measure_shard(study.paths, sample, study.batches(order), [0, 1], 330, 327, study.asked, embeddings))
    study.asked = before
    assert len(slabs) > 2
    for slab, found in slabs:
        expected = ShardStatistics(whole[slab.layer].seen, *(column[slab.neurons] for column in whole[slab.layer][1:]))
        for ours, theirs in zip(found[1:], expected[1:], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(LAWS), st.integers(1, 300), st.sampled_from([0.1, 0.5, 0.9, 0.98]), st.booleans())
def test_bounds_hold_for_shards_of_any_sizes_in_single_precision(
    seed: int, name: str, n: int, quantile: float, drifting: bool
) -> None:
    """Empty and unequal shards, a shard with all images on which units act, and a list with unreadable images."""
    random = torch.Generator().manual_seed(seed)
    D = torch.randn(UNITS, 2, 7, generator=random) * torch.logspace(-4, 4, UNITS)[:, None, None]
    S = law(name, (n, UNITS, 2), random).float()
    S = S[S.sum((1, 2)).argsort()] if drifting else S
    G, listed, kept = stack(D @ D.transpose(1, 2)), n + n // 5, 9
    sample = UnitStatistics(G, 1, n, n, 1.0)
    sample.update(S[::3], torch.arange(0, n, 3))
    sample.settle_centre()
    assert sample.basis is not None
    basis, parts = sample.basis, []
    cuts = sorted(int(cut) for cut in torch.randint(n + 1, (4,), generator=random))
    for start, stop in zip([0, *cuts], [*cuts, n], strict=True):
        measured = UnitStatistics(G, 4, kept, listed, quantile, basis, 7)
        for images in torch.arange(start, stop).split(50):
            measured.update(S[images], images)
        parts.append(shard_statistics_of(measured))
    finished = restored_statistics(added(parts, kept, random), G, 4, quantile, listed).finish()
    phi = torch.einsum("bnk,nkd->bnd", S.double(), D.double())
    exact = (phi - phi.mean(0)).norm(dim=-1).sort(0, descending=True).values[rank_of(quantile, n) - 1]
    digits = 1e-6 * phi.norm(dim=-1).amax(0)  # S has no more
    assert ((finished.threshold - exact).abs() <= finished.threshold_bound + digits).all()
