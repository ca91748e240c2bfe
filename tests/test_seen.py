"""What units see: embeddings kept by image, read directions, seen words and agreement, compared with all effects in full."""

import numpy as np
import pytest
import torch
from helpers.second_order import SHAPES, pictures, random_tower
from helpers.statistics import batches_of
from torch import Tensor

from cliptools.analysis.seen import ReadDirections, first_positive, overlapping_texts, seen_texts
from cliptools.errors import CliptoolsError
from cliptools.streaming import embeddings as module
from cliptools.streaming.embeddings import Embeddings, read_directions
from cliptools.streaming.measure import measure
from cliptools.streaming.summary import Effects, Settings
from cliptools.unit_effects.vit_second_order import SecondOrder, directions, scalars, trace


def measured(n: int, scale: bool, top: int = 7, **settings: float) -> tuple[Effects, Embeddings, Tensor, Tensor]:
    """Return the statistics of a random tower's units, its embeddings, all effects phi [b, n, d], and M(I)."""
    visual = random_tower(SHAPES[1])
    images = pictures(visual, n)
    asked = Settings(top=top, quantile=0.9, scale=scale, **settings)
    report = measure(SecondOrder(visual), batches_of(images, torch.randperm(n), 11), [0], n, asked)
    traced = trace(visual, images, [0])
    phi = torch.einsum("bnk,nkd->bnd", scalars(traced, 0), directions(visual, 0, slice(None)))
    return report.effects, report.embeddings, phi, traced.embedding


@pytest.mark.parametrize("scale", [True, False])
def test_read_directions_are_those_of_all_effects(scale: bool) -> None:
    n = 90
    effects, embeddings, phi, M = measured(n, scale)
    length = M.norm(dim=1)
    e = M / length[:, None]
    phi = phi * (100 / length)[:, None, None] if scale else phi
    r = effects.component[:, 0]
    a = torch.einsum("bnd,nd->bn", phi - phi.mean(0), r)  # all images, all units
    torch.testing.assert_close(effects.deviation, a.square().mean(0).sqrt(), rtol=1e-9, atol=1e-12)
    mean, covariance = embeddings.moments()
    torch.testing.assert_close(mean, e.mean(0), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(covariance, torch.cov(e.T, correction=0), rtol=1e-8, atol=1e-12)
    q = read_directions(embeddings, mean, effects.top_image, effects.top_along, r, scale)
    for unit in range(len(r)):
        expected = torch.zeros_like(r[unit])
        for image in effects.top_image[unit].tolist():
            own = a[image, unit] * r[unit] / (100 if scale else length[image])
            expected += a[image, unit] * (e[image] - e.mean(0) - own) / n
        torch.testing.assert_close(q[unit], expected, rtol=1e-8, atol=1e-12)


def test_without_its_own_share_a_unit_does_not_see_what_it_writes() -> None:
    """A unit that acts at random on images of nothing: what is left of q is noise, and with its own share it is r."""
    generator = torch.Generator().manual_seed(0)
    n, d = 20_000, 40
    a = torch.randn(n, generator=generator, dtype=torch.float64)
    r = torch.nn.functional.one_hot(torch.tensor(2), d).double()
    rest = torch.randn(n, d, generator=generator, dtype=torch.float64)
    embeddings = Embeddings(n)
    M = 10 * torch.nn.functional.normalize(rest + 0.05 * a[:, None] * r, dim=1)
    embeddings.add(range(n), M)
    image = torch.arange(n)[None]
    along = (0.05 * 100 * a / (rest + 0.05 * a[:, None] * r).norm(dim=1))[None]  # in unit scale
    mean = embeddings.moments().mean
    q = read_directions(embeddings, mean, image, along, r[None], True)[0]
    own = along.square().mean() / 100
    assert float(q[2].abs()) < 0.3 * float(own)


def test_correlations_are_those_of_activity_and_similarity() -> None:
    """With all images as top images, <q, t> gives the correlation of what is left of the similarity to the letter."""
    n = 60
    effects, embeddings, _, M = measured(n, True, top=n)
    e = torch.nn.functional.normalize(M, dim=1)
    r, texts = effects.component[:, 0], torch.nn.functional.normalize(torch.randn(23, M.shape[1], dtype=torch.float64), dim=1)
    mean, covariance = embeddings.moments()
    read = ReadDirections(
        read_directions(embeddings, mean, effects.top_image, effects.top_along, r, True), effects.deviation, covariance
    )
    found = read.correlations(texts)
    for unit in (0, 3, len(r) - 1):
        a = torch.zeros(n, dtype=torch.float64)
        a[effects.top_image[unit]] = effects.top_along[unit]
        for text in range(len(texts)):
            without = e @ texts[text] - a / 100 * (r[unit] @ texts[text])
            covariance_of = ((a - a.mean()) * (without - without.mean())).mean()
            expected = covariance_of / (a.std(correction=0) * (e @ texts[text]).std(correction=0))
            assert float(found[unit, text]) == pytest.approx(float(expected), rel=1e-8, abs=1e-10)
    seen = seen_texts(read, texts, 4)
    assert torch.equal(seen.text, found.argsort(1, descending=True)[:, :4])
    torch.testing.assert_close(read.with_own_text(texts[seen.text[:, 0]]), seen.value[:, 0], rtol=1e-9, atol=1e-12)


def test_blocks_of_units_give_the_same_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    q, t = torch.randn(17, 5, generator=generator), torch.randn(9, 5, generator=generator)
    read = ReadDirections(q, torch.rand(17, generator=generator), torch.eye(5))
    whole, overlap = seen_texts(read, t, 3), overlapping_texts(q, t, 20)
    monkeypatch.setattr("cliptools.analysis.seen.AT_ONCE", 30)
    assert torch.equal(seen_texts(read, t, 3).text, whole.text) and torch.equal(overlapping_texts(q, t, 20).text, overlap.text)
    assert overlap.text.shape == (17, 9)
    silent = ReadDirections(q, torch.zeros(17), torch.eye(5))
    assert (
        silent.correlations(t).eq(0).all() and ReadDirections(q, read.deviation, torch.zeros(5, 5)).with_own_text(q).eq(0).all()
    )
    assert seen_texts(silent, t, 3).text.eq(-1).all() and seen_texts(silent, t, 3).value.eq(0).all()
    never_acted = overlapping_texts(q * torch.arange(17)[:, None].ne(4), t, 3)
    assert never_acted.text[4].eq(-1).all() and never_acted.value[4].eq(0).all() and never_acted.text[5:].ge(0).all()
    none = ReadDirections(q[:0], read.deviation[:0], read.covariance)
    assert len(seen_texts(none, t, 3).text) == len(overlapping_texts(q[:0], t, 3).text) == 0


def test_the_first_written_word_is_the_one_of_largest_coefficient() -> None:
    word = torch.tensor([[4, 7, 1], [2, -1, -1], [3, 5, -1]])
    coefficient = torch.tensor([[0.2, 0.5, -0.9], [-0.3, 0.0, 0.0], [0.4, 0.1, 0.0]])
    assert first_positive(word, coefficient).tolist() == [7, -1, 3]


def test_embeddings_beyond_memory_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cliptools.io.spools.IN_MEMORY", 500)
    monkeypatch.setattr(module, "AT_ONCE", 7)
    generator = np.random.default_rng(0)
    M = torch.from_numpy(generator.normal(size=(40, 6))).float()
    numbers = generator.permutation(55)[:40]
    store = Embeddings(55)
    for part in np.array_split(np.arange(40), 9):
        store.add(numbers[part], M[part])
    assert store.count == 40 and store.numbers.tolist() == sorted(numbers.tolist())
    some = numbers[[5, 3, 20, 21, 22, 39]]
    assert torch.equal(store.rows(some), M[[5, 3, 20, 21, 22, 39]])
    order = np.argsort(numbers)
    assert torch.equal(torch.cat([rows for _, rows in store.batches()]), M[order])
    e = torch.nn.functional.normalize(M[order].double(), dim=1)
    torch.testing.assert_close(store.moments().covariance, torch.cov(e.T, correction=0), rtol=1e-9, atol=1e-12)


def test_a_full_disk_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Embeddings(3)

    def full(_: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store._file._file, "write", full)
    with pytest.raises(CliptoolsError, match=r"embeddings cannot be kept here .*No space left.*TMPDIR"):
        store.add([0, 1], torch.ones(2, 4))
