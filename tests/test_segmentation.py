"""Heat maps, masks and their metrics compared with literal forms, scikit-learn and torchmetrics."""

import numpy as np
import open_clip
import pytest
import torch
from helpers.oracles import layer_norm_gain, scale_of
from helpers.second_order import SHAPES, pictures, random_tower
from sklearn.metrics import average_precision_score, jaccard_score
from torch import Tensor
from torchmetrics.classification import BinaryAccuracy, MulticlassJaccardIndex

from cliptools.images.loader import fitted_size, same_shapes
from cliptools.segmentation.masks import at_size, bounding_box, label_map, mask_of, min_max
from cliptools.segmentation.metrics import Fit, LabelFit, average_precision, fit, label_fit
from cliptools.segmentation.towers import on_grid
from cliptools.segmentation.vit_baselines import attention_pass, chefer, direct_effects, gradcam, raw_attention, rollout
from cliptools.segmentation.vit_methods import (
    ATTENTION_MAPS,
    GRADIENT_MAPS,
    Heat,
    baseline,
    best_text,
    cosines,
    effect_method,
    neuron_method,
    sliding_heat,
    window_corners,
)
from cliptools.towers.open_clip_vit import resized_positions

EXACT = {"rtol": 1e-9, "atol": 1e-11}
TEXTS = 3


def slow_pass(visual: open_clip.transformer.VisionTransformer, image: Tensor, given: dict[int, Tensor], read: dict[int, Tensor]):
    """M(I) of one image, head by head; attention of some layers, or what it reads, as given.

    Returns M(I), each layer's attention [head, token, token], what it read, activations and the last class token.
    """
    x = visual._embeds(image[None])[0]
    attentions, reads, activations = [], [], []
    for layer, block in enumerate(visual.transformer.resblocks):
        normed = read.get(layer, block.ln_1(x))
        width, heads = normed.shape[-1], block.attn.num_heads
        e = width // heads
        W, bias = block.attn.in_proj_weight, block.attn.in_proj_bias
        A = []
        for h in range(heads):
            of = slice(h * e, (h + 1) * e)
            q, k = normed @ W[:width][of].T + bias[:width][of], normed @ W[width : 2 * width][of].T + bias[width : 2 * width][of]
            A.append(torch.softmax(q @ k.T / e**0.5, 1))
        attention = given.get(layer, torch.stack(A))
        out = []
        for h in range(heads):
            of = slice(2 * width + h * e, 2 * width + (h + 1) * e)
            out.append(attention[h] @ (normed @ W[of].T + bias[of]))
        x = x + scale_of(block.ls_1) * (torch.cat(out, 1) @ block.attn.out_proj.weight.T + block.attn.out_proj.bias)
        p = block.mlp.gelu(block.mlp.c_fc(block.ln_2(x)))
        x = x + scale_of(block.ls_2) * block.mlp.c_proj(p)
        attentions.append(attention)
        reads.append(normed)
        activations.append(p)
    return visual.ln_post(x[0]) @ visual.proj, attentions, reads, activations, x[0]


def unit_texts(visual: open_clip.transformer.VisionTransformer, count: int = TEXTS) -> Tensor:
    t = torch.randn(count, visual.output_dim, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return torch.nn.functional.normalize(t, dim=1)


@pytest.fixture(params=range(len(SHAPES)), ids=lambda i: f"shape{i}")
def tower(request: pytest.FixtureRequest):
    visual = random_tower(SHAPES[request.param], seed=request.param)
    return visual, pictures(visual, 2)


@pytest.fixture(params=[1, 2], ids=lambda i: f"shape{i}")
def small_tower(request: pytest.FixtureRequest):
    """Return a small tower for oracles that compute token by token."""
    visual = random_tower(SHAPES[request.param], seed=request.param)
    return visual, pictures(visual, 2)


def test_attention_pass_is_the_model(tower) -> None:
    visual, images = tower
    seen = attention_pass(visual, images)
    torch.testing.assert_close(seen.embedding, visual(images), **EXACT)
    for b, image in enumerate(images):
        _, attentions, reads, _, last = slow_pass(visual, image, {}, {})
        for layer, A in enumerate(attentions):
            torch.testing.assert_close(seen.attention[layer][b], A, **EXACT)
            torch.testing.assert_close(seen.normed[layer][b], reads[layer], **EXACT)
        sigma = ((last - last.mean()).square().mean() + visual.ln_post.eps).sqrt()
        torch.testing.assert_close(seen.beta[b], 1 / sigma[None], **EXACT)


def test_attention_and_rollout(tower) -> None:
    visual, images = tower
    seen = attention_pass(visual, images)
    for b, image in enumerate(images):
        _, attentions, *_ = slow_pass(visual, image, {}, {})
        torch.testing.assert_close(raw_attention(seen.attention)[b], attentions[-1][:, 0, 1:].mean(0), **EXACT)
        R = torch.eye(len(attentions[0][0]), dtype=torch.float64)
        for A in attentions:
            half = 0.5 * A.mean(0) + 0.5 * torch.eye(len(R), dtype=torch.float64)
            R = (half / half.sum(1, keepdim=True)) @ R
        torch.testing.assert_close(rollout(seen.attention)[b], R[0, 1:], **EXACT)


def test_gradcam_and_chefer_by_gradients_of_leaves(tower) -> None:
    """Each layer's attention in turn is a leaf of a separate pass."""
    visual, images = tower
    t = unit_texts(visual, len(images))
    seen = attention_pass(visual, images, gradients=True)
    cam, relevance = gradcam(seen, t), chefer(seen, t)
    for b, image in enumerate(images):
        _, attentions, reads, *_ = slow_pass(visual, image, {}, {})
        R = torch.eye(len(reads[0]), dtype=torch.float64)
        for layer, A in enumerate(attentions):
            leaf = A.detach().clone().requires_grad_()
            (slow_pass(visual, image, {layer: leaf}, {})[0] @ t[b]).backward()
            R = R + (leaf.grad * A).clamp(min=0).mean(0) @ R
        torch.testing.assert_close(relevance[b], R[0, 1:], **EXACT)
        final = len(reads) - 1
        leaf = reads[final].detach().clone().requires_grad_()
        (slow_pass(visual, image, {}, {final: leaf})[0] @ t[b]).backward()
        expected = [max(0.0, float(leaf.grad[1:].mean(0) @ token)) for token in reads[final][1:]]
        torch.testing.assert_close(cam[b], torch.tensor(expected, dtype=torch.float64), **EXACT)


def test_direct_effects_token_by_token(small_tower) -> None:
    visual, images = small_tower
    t = unit_texts(visual)
    depth = len(visual.transformer.resblocks)
    found = direct_effects(visual, attention_pass(visual, images), t.expand(len(images), -1, -1), layers=2)
    for b, image in enumerate(images):
        _, attentions, reads, _, last = slow_pass(visual, image, {}, {})
        sigma = torch.sqrt(((last - last.mean()) ** 2).mean() + visual.ln_post.eps)

        def adds(x: Tensor, sigma: Tensor = sigma) -> Tensor:
            return t @ ((visual.ln_post.weight * (x - x.mean()) / sigma) @ visual.proj)

        expected = torch.zeros(TEXTS, len(reads[0]), dtype=torch.float64)
        everything = torch.zeros(TEXTS, dtype=torch.float64)
        for layer in range(depth):
            block, width = visual.transformer.resblocks[layer], len(last)
            e = width // block.attn.num_heads
            for h in range(block.attn.num_heads):
                of = slice(2 * width + h * e, 2 * width + (h + 1) * e)
                W_O = block.attn.out_proj.weight[:, h * e : (h + 1) * e]
                for i, token in enumerate(reads[layer]):
                    v = block.attn.in_proj_weight[of] @ token + block.attn.in_proj_bias[of]
                    share = adds(scale_of(block.ls_1) * (W_O @ (attentions[layer][h, 0, i] * v)))
                    everything += share
                    if layer >= depth - 2:
                        expected[:, i] += share
        torch.testing.assert_close(found[b], expected, **EXACT)
        whole = direct_effects(visual, attention_pass(visual, image[None]), t[None], layers=depth)[0].sum(1)
        torch.testing.assert_close(whole, everything, **EXACT)


def units_of(visual: open_clip.transformer.VisionTransformer, layers: list[int], keep: float = 0.7) -> Tensor:
    """Return some neurons of some layers in random order, like a selection of a bundle."""
    g = torch.Generator().manual_seed(4)
    N = visual.transformer.resblocks[0].mlp.c_proj.in_features
    every = torch.tensor([[layer, n, -1] for layer in layers for n in range(N)], dtype=torch.int32)
    return every[torch.randperm(len(every), generator=g)[: int(keep * len(every))]]


@pytest.mark.parametrize("signed", [False, True])
def test_neurons_one_by_one(tower, signed: bool) -> None:
    visual, images = tower
    depth = len(visual.transformer.resblocks)
    unit = units_of(visual, [depth - 2, 0] if depth > 3 else [1])
    r = torch.nn.functional.normalize(torch.randn(len(unit), visual.output_dim, dtype=torch.float64), dim=1)
    t = unit_texts(visual)
    heat = neuron_method(visual, unit, r, 7, signed)(images, t.expand(len(images), -1, -1))
    torch.testing.assert_close(heat.embedding, visual(images), **EXACT)
    for b, image in enumerate(images):
        _, _, _, activations, _ = slow_pass(visual, image, {}, {})
        for j, text in enumerate(t):
            along = [float(row @ text) for row in r]
            best = sorted(range(len(along)), key=lambda u: -abs(along[u]))[:7]
            weight = {u: along[u] / sum(abs(along[v]) for v in best) if signed else 1 / 7 for u in best}
            expected = sum(weight[u] * activations[int(unit[u, 0])][1:, int(unit[u, 1])] for u in best)
            torch.testing.assert_close(heat.scores[b, j].flatten(), expected, **EXACT)


def test_effects_patch_by_patch(small_tower) -> None:
    visual, images = small_tower
    blocks = visual.transformer.resblocks
    depth = len(blocks)
    unit = units_of(visual, [depth - 2] if depth < 4 else [depth - 3, depth - 2])
    r = torch.nn.functional.normalize(torch.randn(len(unit), visual.output_dim, dtype=torch.float64), dim=1)
    t = unit_texts(visual, 2)
    heat = effect_method(visual, unit, r, 5)(images[:1], t[None])
    _, attentions, _, activations, last = slow_pass(visual, images[0], {}, {})
    inputs = [visual._embeds(images[:1])]
    for block in blocks:
        inputs.append(block(inputs[-1]))
    A_post = layer_norm_gain(visual.ln_post, last)
    for j, text in enumerate(t):
        best = sorted(range(len(r)), key=lambda u: -abs(float(r[u] @ text)))[:5]
        expected = torch.zeros(len(last := inputs[0][0]), dtype=torch.float64)
        for layer, n, _ in unit[best].tolist():
            w = scale_of(blocks[layer].ls_2) * blocks[layer].mlp.c_proj.weight[:, n]
            for later in range(layer + 1, depth):
                attn, width = blocks[later].attn, len(w)
                e = width // attn.num_heads
                for h in range(attn.num_heads):
                    W_VO = attn.out_proj.weight[:, h * e : (h + 1) * e] @ attn.in_proj_weight[2 * width :][h * e : (h + 1) * e]
                    for i in range(len(last)):
                        A = layer_norm_gain(blocks[later].ln_1, inputs[later][0, i])
                        carried = scale_of(blocks[later].ls_1) * (W_VO @ (A * w))
                        share = activations[layer][i, n] * attentions[later][h, 0, i] * (A_post * carried) @ visual.proj
                        expected[i] += share @ text
        torch.testing.assert_close(heat.scores[0, j].flatten(), expected[1:].clamp(min=0), **EXACT)


@pytest.mark.parametrize("name", [*ATTENTION_MAPS, *GRADIENT_MAPS])
def test_baselines_give_every_text_its_map(tower, name: str) -> None:
    visual, images = tower
    t = torch.stack([unit_texts(visual), -unit_texts(visual)])
    heat = baseline(name, visual)(images, t)
    rows, columns = visual.grid_size
    assert heat.scores.shape == (2, TEXTS, rows, columns) and not heat.scores.requires_grad
    for b in range(2):
        for j in range(TEXTS):
            alone = baseline(name, visual)(images[b : b + 1], t[b : b + 1, j : j + 1])
            torch.testing.assert_close(heat.scores[b, j], alone.scores[0, 0], **EXACT)
    torch.testing.assert_close(heat.embedding, visual(images), **EXACT)


def test_windows_cover_and_average() -> None:
    assert window_corners(10, 7, (4, 4), 3) == [(y, x) for y in (0, 3, 6) for x in (0, 3)]
    assert window_corners(4, 4, (4, 4), 1) == [(0, 0)]
    image = torch.randn(2, 3, 11, 8, dtype=torch.float64)

    def brightness(part: Tensor, t: Tensor) -> Heat:
        return Heat(part.mean(1, keepdim=True) * t.sum(-1)[..., None, None], part.mean((2, 3)))

    t = torch.randn(2, 2, 3, dtype=torch.float64)
    corners = window_corners(11, 8, (5, 5), 2)
    heat = sliding_heat(brightness, image, t, corners, (5, 5))
    torch.testing.assert_close(heat.scores, image.mean(1, keepdim=True) * t.sum(-1)[..., None, None], **EXACT)
    expected = torch.stack([image[..., y : y + 5, x : x + 5].mean((2, 3)) for y, x in corners]).mean(0)
    torch.testing.assert_close(heat.embedding, expected, **EXACT)


def test_best_text_and_cosines() -> None:
    t = torch.nn.functional.normalize(torch.randn(6, 5, dtype=torch.float64), dim=1)
    assert best_text(3 * t, t).tolist() == list(range(6))
    torch.testing.assert_close(cosines(4 * t, t[:, None])[:, 0], torch.ones(6, dtype=torch.float64), **EXACT)


def test_positions_as_open_clip_resizes_them() -> None:
    from open_clip.model import resize_pos_embed

    small = random_tower(SHAPES[0]).float()
    large = random_tower({**SHAPES[0], "image_size": 72}).float()
    state = {"visual.positional_embedding": small.positional_embedding.clone()}
    resize_pos_embed(state, torch.nn.ModuleDict({"visual": large}))
    torch.testing.assert_close(resized_positions(small.positional_embedding, (5, 5), 9, 9), state["visual.positional_embedding"])
    kept = small.positional_embedding
    with pytest.raises(RuntimeError), on_grid(small, 3, 7):
        assert small(torch.randn(1, 3, 24, 56)).shape == (1, 23)
        raise RuntimeError
    assert small.positional_embedding is kept
    with on_grid(small, 5, 5):
        assert small.positional_embedding is kept


def test_positions_follow_the_picture_not_its_order() -> None:
    """A ramp across the columns stays a ramp for any number of rows and columns."""
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(6.0), indexing="ij")
    grid = torch.stack([rows.flatten(), columns.flatten()], 1).double()
    resized = resized_positions(torch.cat([torch.full((1, 2), 9.0).double(), grid]), (6, 6), 12, 18)
    assert resized[0].tolist() == [9, 9]
    field = resized[1:].unflatten(0, (12, 18))
    assert (field[4:8, :, 0].diff(dim=0) > 0).all() and (field[:, 4:14, 1].diff(dim=1) > 0).all()
    torch.testing.assert_close(field[:, 5, 1], field[0, 5, 1].expand(12))


def test_sizes_keep_the_aspect_in_whole_patches() -> None:
    assert fitted_size(64, 64, 64, (8, 8)) == (64, 64)
    assert fitted_size(500, 333, 224, (32, 32)) == (352, 224)
    assert fitted_size(300, 900, 100, (14, 14)) == (98, 294)
    assert fitted_size(1, 100, 16, (32, 32)) == (32, 1600)


def test_batches_are_of_one_shape_and_in_order() -> None:
    shapes = [4, 4, 4, 5, None, 5, 4, 4]
    items = [(i, None if s is None else torch.full((s,), float(i))) for i, s in enumerate(shapes)]
    batches = [(held, None if t is None else t.shape) for held, t in same_shapes(items, 2)]
    assert [held for held, _ in batches] == [[0, 1], [2], [3], [4], [5], [6, 7]]
    assert batches[3][1] is None and batches[5][1] == (2, 4)


def test_maps_masks_and_boxes() -> None:
    scores = torch.tensor([[[0.0, 2.0], [4.0, 2.0]], [[7.0, 7.0], [7.0, 7.0]]], dtype=torch.float64)
    heat = min_max(at_size(scores, 2, 2))
    assert heat[0].tolist() == [[0, 0.5], [1, 0.5]] and not heat[1].any()
    assert mask_of(heat)[0].tolist() == [[False, True], [True, True]] and not mask_of(heat)[1].any()
    assert mask_of(heat, 0.6)[0].sum() == 1 and mask_of(heat, "mean")[0].sum() == 3
    mask = np.zeros((5, 6), bool)
    assert bounding_box(mask) is None
    mask[1:3, 4] = True
    assert bounding_box(mask) == [4, 1, 5, 3]


def test_bilinear_between_centres() -> None:
    scores = torch.randn(1, 3, 4, dtype=torch.float64)
    big = at_size(scores, 9, 20)
    for y, x in ((0, 0), (4, 7), (8, 19), (2, 13)):
        v, u = (y + 0.5) * 3 / 9 - 0.5, (x + 0.5) * 4 / 20 - 0.5
        v, u = max(v, 0.0), max(u, 0.0)
        i, j = int(v), int(u)
        a, b = v - i, u - j
        i2, j2 = min(i + 1, 2), min(j + 1, 3)
        s = scores[0]
        expected = (1 - a) * ((1 - b) * s[i, j] + b * s[i, j2]) + a * ((1 - b) * s[i2, j] + b * s[i2, j2])
        torch.testing.assert_close(big[0, y, x], expected, **EXACT)


def test_label_map_pixel_by_pixel() -> None:
    heat = min_max(torch.randn(4, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(6)))
    heat[3] *= 0  # a text with nothing to say never wins
    labels = label_map(heat, 0.7)
    for y in range(7):
        for x in range(5):
            z = {i: float((heat[i, y, x] - heat[i].mean()) / heat[i].std(correction=0)) for i in range(3) if heat[i, y, x] >= 0.7}
            assert int(labels[y, x]) == (1 + max(z, key=z.get) if z else 0)
    assert {0, 1, 2, 3} == set(labels.flatten().tolist())


def test_metrics_against_scikit_learn_and_torchmetrics() -> None:
    rng = np.random.default_rng(0)
    total, jaccard, accuracy, both, objects = Fit(), MulticlassJaccardIndex(2), BinaryAccuracy(), [], []
    for side in (4, 9, 17):
        truth = rng.random((side, side + 3)) < 0.3
        heat = np.round(np.clip(0.6 * truth + rng.random(truth.shape) * 0.7, 0, 1), 2)  # with ties
        mask = heat >= 0.5
        one = fit(heat, mask, truth)
        total += one
        jaccard.update(torch.from_numpy(mask).long().flatten(), torch.from_numpy(truth).long().flatten())
        accuracy.update(torch.from_numpy(mask).int().flatten(), torch.from_numpy(truth).int().flatten())
        h, t = heat.ravel(), truth.ravel()
        objects.append(average_precision_score(t, h))
        both.append(average_precision_score(np.concatenate([~t, t]), np.concatenate([1 - h, h])))
        assert one.mean_precision == pytest.approx(both[-1], abs=1e-12)
        assert one.mean_object_precision == pytest.approx(objects[-1], abs=1e-12)
        assert one.accuracy == pytest.approx((mask == truth).mean())
    assert total.mean_iou == pytest.approx(float(jaccard.compute()), abs=1e-6)
    assert total.accuracy == pytest.approx(float(accuracy.compute()), abs=1e-6)
    assert total.mean_precision == pytest.approx(np.mean(both)) and total.images == 3
    assert total.mean_object_precision == pytest.approx(np.mean(objects))


def test_metrics_where_a_class_is_missing() -> None:
    empty, heat = np.zeros((3, 3), bool), np.linspace(0, 1, 9).reshape(3, 3)
    nothing = fit(heat, empty, empty)
    assert nothing.iou[0] == 1 and np.isnan(nothing.iou[1]) and nothing.mean_iou == 1 and nothing.accuracy == 1
    assert np.isnan(nothing.mean_object_precision) and nothing.mean_precision > 0  # which ranks the ground of both
    assert average_precision(heat.ravel(), empty.ravel()) == 0
    everything = fit(heat, ~empty, ~empty)
    assert everything.object_precision == 1 and np.isnan(everything.iou[0]) and everything.mean_iou == 1
    assert fit(heat, heat > 0.9, empty).iou == (pytest.approx(8 / 9), 0)  # the mask alone has it: 0, and in the mean
    assert np.isnan([Fit().mean_iou, Fit().accuracy, Fit().mean_precision]).all()
    uncounted = fit(heat, empty, empty, ~empty)
    assert uncounted.pixels == 0 and np.isnan(uncounted.accuracy) and uncounted.object_precision == 0


@pytest.mark.parametrize("absent", ["object", "ground", "neither", "truth"])
def test_both_mean_ious_follow_torchmetrics_and_scikit_learn(absent: str) -> None:
    """A class in neither mask nor truth is left out of the mean: for two or many classes, for an image and for a data set."""
    rng = np.random.default_rng(3)
    value = {"object": 0.0, "ground": 1.0}.get(absent)
    total, labels, jaccard = Fit(), LabelFit.empty(2), MulticlassJaccardIndex(2, average="none")
    everything: list[tuple[np.ndarray, np.ndarray]] = []
    for side in (5, 8):
        mask, truth = (rng.random((side, side)) < (0.4 if value is None else value) for _ in range(2))
        truth = np.zeros_like(truth) if absent == "truth" else truth
        one, same = fit(rng.random(truth.shape), mask, truth), label_fit(mask.astype(int), truth.astype(int), 2)
        np.testing.assert_array_equal(one.iou, same.iou)
        assert one.mean_iou == same.mean_iou == pytest.approx(_mean_iou(mask, truth))
        total += one
        labels += same
        everything.append((mask.ravel(), truth.ravel()))
        jaccard.update(torch.from_numpy(mask).long(), torch.from_numpy(truth).long())
    mask, truth = (np.concatenate(part) for part in zip(*everything, strict=True))
    assert total.mean_iou == labels.mean_iou == pytest.approx(_mean_iou(mask, truth))
    shown = [i for i in range(2) if ((mask == i) | (truth == i)).any()]
    np.testing.assert_allclose(np.array(total.iou)[shown], jaccard.compute().numpy()[shown], atol=1e-6)
    macro = MulticlassJaccardIndex(2, average="macro")  # leaves absent classes out as well
    assert total.mean_iou == pytest.approx(float(macro(torch.from_numpy(mask).long(), torch.from_numpy(truth).long())), abs=1e-6)


def _mean_iou(mask: np.ndarray, truth: np.ndarray) -> float:
    present = np.unique(np.concatenate([mask.ravel(), truth.ravel()]))
    return float(jaccard_score(truth.ravel(), mask.ravel(), labels=present, average="macro"))


def test_void_pixels_are_in_no_figure() -> None:
    rng = np.random.default_rng(6)
    truth, void = rng.random((12, 9)) < 0.3, rng.random((12, 9)) < 0.2
    heat = np.round(np.clip(0.6 * truth + rng.random(truth.shape) * 0.7, 0, 1), 2)
    mask = heat >= 0.5
    one = fit(heat, mask, truth, void)
    h, m, t = heat[~void], mask[~void], truth[~void]
    jaccard = MulticlassJaccardIndex(2, ignore_index=255, average="macro")
    ignored = np.where(void, 255, truth)
    assert one.mean_iou == pytest.approx(
        float(jaccard(torch.from_numpy(mask).long(), torch.from_numpy(ignored).long())), abs=1e-6
    )
    assert one.mean_iou == pytest.approx(_mean_iou(m, t)) and one.accuracy == pytest.approx((m == t).mean())
    assert one.mean_object_precision == pytest.approx(average_precision_score(t, h)) and one.pixels == (~void).sum()
    both = average_precision_score(np.concatenate([~t, t]), np.concatenate([1 - h, h]))
    assert one.mean_precision == pytest.approx(both)
    elsewhere = fit(np.where(void, 1 - heat, heat), mask ^ void, truth ^ void, void)
    assert elsewhere.mean_iou == one.mean_iou and elsewhere.mean_precision == one.mean_precision


def test_object_precision_is_a_mean_over_images_that_show_it() -> None:
    rng = np.random.default_rng(8)
    total = Fit()
    for truth in (rng.random((5, 5)) < 0.4, np.zeros((5, 5), bool), rng.random((5, 5)) < 0.2):
        total += fit(rng.random((5, 5)), truth, truth)
        last = total.mean_object_precision
    assert total.images == 3 and total.objects == 2 and last == total.object_precision / 2
