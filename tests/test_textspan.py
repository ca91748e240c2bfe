"""TextSpan from moments compared with the paper's selection on full matrices, and effects of heads with the equation."""

import pytest
import torch
from helpers.oracles import layer_norm_gain
from helpers.second_order import SHAPES, pictures, random_tower
from helpers.textspan import greedy, head_effects

from cliptools.analysis.textspan import head_directions, text_span, text_spans
from cliptools.errors import UsageError
from cliptools.streaming.measure import measure
from cliptools.streaming.summary import Settings
from cliptools.unit_effects.factored import UnitBlock
from cliptools.unit_effects.vit_direct import Heads, choose_head_layers


@pytest.mark.parametrize("seed", range(3))
def test_the_choice_is_that_on_the_whole_matrix(seed: int) -> None:
    torch.manual_seed(seed)
    n, k, d, pool = 90, 7, 19, 40
    D = torch.randn(k, d, dtype=torch.float64)
    x = torch.randn(n, k, dtype=torch.float64) @ torch.randn(k, k, dtype=torch.float64) + 2
    t = torch.nn.functional.normalize(torch.randn(pool, d, dtype=torch.float64) + 0.5, dim=1)
    t[11] = t[3]  # a synonym: the first of the two is taken, and nothing is left of the other
    chosen, shares = greedy(x @ D, t, 12)
    found = text_span(torch.cov(x.T, correction=0), D, t, 12)
    word, share = found
    assert word.tolist() == chosen + [-1] * (12 - len(chosen)) and 11 not in chosen
    assert len(chosen) == k  # then the texts span all outputs
    torch.testing.assert_close(share[:k], torch.tensor(shares, dtype=torch.float64), rtol=0, atol=1e-9)
    assert float(share.sum()) == pytest.approx(1, abs=1e-9) and share[k:].tolist() == [0] * (12 - k)


def test_a_head_that_never_acted_has_no_words() -> None:
    t = torch.eye(5, dtype=torch.float64)
    found = text_spans(torch.zeros(2, 3, 3, dtype=torch.float64), torch.randn(2, 3, 5, dtype=torch.float64), t, 4)
    assert found.word.tolist() == [[-1] * 4] * 2 and not found.coefficient.any() and found.residual.tolist() == [1, 1]
    assert text_spans(torch.zeros(0, 3, 3), torch.zeros(0, 3, 5), t, 4).word.shape == (0, 4)


@pytest.mark.parametrize("shape", SHAPES)
def test_factored_form_is_the_equation(shape: dict) -> None:
    visual = random_tower(shape)
    images, paths = pictures(visual, 3), Heads(visual)
    slabs = [UnitBlock(layer, torch.arange(paths.size(layer)[0]).flip(0)) for layer in range(shape["layers"])]
    S, embedding = paths.read(images, slabs)
    torch.testing.assert_close(embedding, visual(images), rtol=1e-12, atol=1e-12)
    for slab, scalars in zip(slabs, S, strict=True):
        phi = torch.einsum("bnk,nkd->bnd", scalars, paths.directions(slab))
        expected = torch.stack([head_effects(visual, image, slab.layer) for image in images]).flip(1)
        torch.testing.assert_close(phi, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))
    assert paths.units(1)[:2].tolist() == [[1, -1, 0], [1, -1, 1]]


def test_all_heads_make_the_attentions_part_of_the_output() -> None:
    visual = random_tower(SHAPES[1])
    (image,) = pictures(visual, 1)
    total = sum(head_effects(visual, image, layer).sum(0) for layer in range(SHAPES[1]["layers"]))
    x, added = visual._embeds(image[None]), 0
    for block in visual.transformer.resblocks:
        bias = block.attn.out_proj.weight @ block.attn.in_proj_bias[2 * x.shape[-1] :] + block.attn.out_proj.bias
        attended = block.ls_1(block.attention(block.ln_1(x)))
        added, x = added + (attended - block.ls_1(bias))[0, 0], x + attended
        x = x + block.ls_2(block.mlp(block.ln_2(x)))
    torch.testing.assert_close(total, (layer_norm_gain(visual.ln_post, x[0, 0]) * added) @ visual.proj, rtol=1e-9, atol=1e-9)


def test_moments_from_the_stream_choose_as_the_outputs_do() -> None:
    """From images to words in one pass, including scale and second look, compared with explicit outputs."""
    visual, n = random_tower(SHAPES[2]), 41  # heads 13 wide, d = 9: a head's outputs fill the joint space
    images = pictures(visual, n)
    batches = [(list(range(i, min(n, i + 9))), images[i : i + 9]) for i in range(0, n, 9)]
    settings = Settings(top=7, margin=0, moments=True)
    effects = measure(Heads(visual), lambda only=None: _only(batches, only), [0, 2], n, settings).effects
    phi = torch.cat([torch.stack([head_effects(visual, image, layer) for image in images]) for layer in (0, 2)], 1)
    phi = phi * (100 / visual(images).norm(dim=-1))[:, None, None]
    torch.testing.assert_close(effects.mean, phi.mean(0), rtol=1e-9, atol=1e-9)
    D = head_directions(Heads(visual), effects.unit)
    t = torch.nn.functional.normalize(torch.randn(30, 9, dtype=torch.float64), dim=1)
    found = text_spans(effects.moment, D, t, 5)
    for unit in range(4):
        chosen, shares = greedy(phi[:, unit], t, 5)
        assert found.word[unit].tolist() == chosen
        torch.testing.assert_close(found.coefficient[unit], torch.tensor(shares, dtype=torch.float64), rtol=0, atol=1e-9)
        assert float(found.path[unit, 1]) == pytest.approx((1 - sum(shares[:2])) ** 0.5, abs=1e-9)


def _only(batches: list, only: set | None) -> list:
    """Return only these images of the batches."""
    kept = []
    for numbers, pixels in batches:
        rows = [row for row, number in enumerate(numbers) if only is None or number in only]
        kept += [([numbers[row] for row in rows], pixels[rows])] if rows else []
    return iter(kept)


def test_the_last_four_layers_unless_asked() -> None:
    visual = random_tower(SHAPES[3])
    assert choose_head_layers(visual, None) == (2, 3, 4, 5) and choose_head_layers(visual, [0, 5]) == (0, 5)
    assert choose_head_layers(random_tower(SHAPES[2]), None) == (0, 1, 2)
    with pytest.raises(UsageError, match="layers 0 to 5"):
        choose_head_layers(visual, [6])
