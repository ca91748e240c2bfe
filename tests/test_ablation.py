"""Replaced effects against full effects replaced one by one, and the word score against a loop."""

import numpy as np
import torch
from test_second_order import SHAPES, pictures, random_tower

from cliptools.methods.ablation import Replacement
from cliptools.methods.paths import Slab
from cliptools.methods.second_order import SecondOrder
from cliptools.methods.vit_paths import directions, scalars, trace
from cliptools.methods.word_score import strongest_positive, word_score


def test_replacement_is_literal_ablation() -> None:
    visual = random_tower(SHAPES[0])
    images = pictures(visual, 6)
    layers = [1, 3]
    traced = trace(visual, images, layers)
    scale = 100 / traced.embedding.norm(dim=-1)
    untouched = traced.embedding * scale[:, None]
    slabs, means, rs = [], [], []
    mean, pc = untouched.clone(), untouched.clone()
    for layer in layers:
        phi = torch.einsum("bnk,nkd->bnd", scalars(traced, layer), directions(visual, layer, slice(None))) * scale[:, None, None]
        b = phi.mean(0)
        r = torch.nn.functional.normalize(torch.randn_like(b), dim=-1)
        for n in range(phi.shape[1]):
            mean += b[n] - phi[:, n]
            pc += b[n] + ((phi[:, n] - b[n]) @ r[n])[:, None] * r[n] - phi[:, n]
        slabs.append(Slab(layer, torch.arange(phi.shape[1])))
        means.append(b)
        rs.append(r)
    found = Replacement(SecondOrder(visual), slabs, means, rs)(images)
    for ours, literal in zip(found, (untouched, mean, pc), strict=True):
        torch.testing.assert_close(ours, literal, rtol=1e-9, atol=1e-9)


def test_word_score_is_a_count() -> None:
    rng = np.random.default_rng(0)
    shown = rng.random((30, 10, 12)) < 0.2
    word = np.stack([rng.choice(20, 6, replace=False) for _ in range(30)])
    coefficient = rng.normal(size=(30, 6))
    word[3], coefficient[5] = -1, -1.0
    concept_of = np.array([i if i < 12 else -1 for i in range(20)])
    words = strongest_positive(word, coefficient, 3)
    expected = []
    for u in range(30):
        positive = sorted(((c, w) for c, w in zip(coefficient[u], word[u], strict=True) if c > 0 and w >= 0), reverse=True)[:3]
        assert [w for w in words[u] if w >= 0] == [w for _, w in positive]
        named = {w for _, w in positive if w < 12}
        expected.append(np.mean([bool(named & set(np.flatnonzero(image))) for image in shown[u]]))
    score = word_score(words, concept_of, shown)
    assert np.isclose(score.share, np.mean(expected)) and score.neurons == 30
    assert 0 < score.shuffled < 1 and score.ratio == score.share / score.shuffled
