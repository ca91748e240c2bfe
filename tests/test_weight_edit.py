"""Edits of weights and masks of hooks, against forward passes that go token by token; float64, random weights of odd shapes."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from helpers.oracles import attention_rows, layer_norm_gain, scale_of
from helpers.resnet_paths import SHAPES as RESNETS
from helpers.resnet_paths import pair_effects, random_resnet
from helpers.resnet_paths import pictures as resnet_pictures
from helpers.second_order import SHAPES, pictures, random_tower
from open_clip.transformer import QuickGELU, VisionTransformer
from torch import Tensor

from cliptools.analysis.token_means import Mask, TokenMeans, head_values
from cliptools.analysis.weight_edit import (
    NeuronGroup,
    PairGroup,
    cut_pairs,
    heads_at_mean,
    largest_overlap,
    largest_overlap_of_pairs,
    neurons_at_mean,
    null_edit,
    null_pairs,
    pair_means_float64,
    path_directions,
    pooled_at_mean,
    row_space,
)
from cliptools.segmentation.vit_baselines import attention_pass
from cliptools.towers.hooks import hooked

TOWERS = range(len(SHAPES))


def frozen_paths(visual: VisionTransformer, edited: VisionTransformer, image: Tensor, layer: int, neuron: int) -> Tensor:
    """Return what a neuron of `edited` adds to the output of `visual`, through each later head and directly: [path, d].

    Every LayerNorm subtracts the mean of what it gets and multiplies by the gain of the real forward pass.
    """
    blocks = list(visual.transformer.resblocks)
    x = visual._embeds(image[None])
    inputs, p = [], torch.zeros(0)
    for index, block in enumerate(blocks):
        inputs.append(x[0])
        x = x + block.ls_1(block.attention(block.ln_1(x)))
        if index == layer:
            p = block.mlp.gelu(block.mlp.c_fc(block.ln_2(x)))[0, :, neuron]  # (token)
        x = x + block.ls_2(block.mlp(block.ln_2(x)))
    A_post = layer_norm_gain(visual.ln_post, x[0, 0])
    written = scale_of(blocks[layer].ls_2) * edited.transformer.resblocks[layer].mlp.c_proj.weight[:, neuron]

    def end(y: Tensor) -> Tensor:
        return (A_post * (y - y.mean())) @ visual.proj

    paths = [end(p[0] * written)]
    for later in range(layer + 1, len(blocks)):
        block, tokens = blocks[later], inputs[later]
        heads, width = block.attn.num_heads, len(written)
        e = width // heads
        rows = attention_rows(block.attn, block.ln_1(tokens))
        for h in range(heads):
            of = slice(h * e, (h + 1) * e)
            total = torch.zeros_like(written)
            for i in range(len(tokens)):
                normed = layer_norm_gain(block.ln_1, tokens[i]) * p[i] * (written - written.mean())
                value = block.attn.in_proj_weight[2 * width :][of] @ normed
                total = total + rows[h, i] * (block.attn.out_proj.weight[:, of] @ value)
            paths.append(end(scale_of(block.ls_1) * total))
    return torch.stack(paths)


def with_weights(visual: torch.nn.Module, weights: dict[str, Tensor]) -> torch.nn.Module:
    edited = copy.deepcopy(visual)
    edited.load_state_dict(edited.state_dict() | weights)
    return edited


@pytest.mark.parametrize("number", TOWERS)
def test_null_edit_ends_all_frozen_paths_along_v_on_every_image(number: int) -> None:
    visual = random_tower(SHAPES[number], seed=number)
    layer = len(visual.transformer.resblocks) - 2
    v = torch.randn(1, visual.output_dim, dtype=torch.float64)
    neurons = torch.tensor([5, 0, 7])
    edit = null_edit(visual, [NeuronGroup(layer, neurons, v)])
    edited = with_weights(visual, edit.weights)
    for image in pictures(visual, 2):
        for neuron in neurons.tolist():
            before, after = (frozen_paths(visual, tower, image, layer, neuron) @ v[0] for tower in (visual, edited))
            assert after.abs().max() < 1e-9 * before.abs().max()
            assert after.abs().max() < 1e-12
    assert largest_overlap(visual, [NeuronGroup(layer, neurons, v)], edit.weights) < 1e-13


def test_null_edit_of_an_early_layer_with_several_texts_leaves_other_neurons() -> None:
    visual = random_tower(SHAPES[3])  # QuickGELU, 28 dimensions
    assert isinstance(visual.transformer.resblocks[0].mlp.gelu, QuickGELU)
    v = torch.randn(2, visual.output_dim, dtype=torch.float64)
    edit = null_edit(visual, [NeuronGroup(4, torch.tensor([1]), v), NeuronGroup(4, torch.tensor([2]), v[:1])])
    edited = with_weights(visual, edit.weights)
    image = pictures(visual, 1)[0]
    for neuron, texts in ((1, v), (2, v[:1])):
        paths = frozen_paths(visual, edited, image, 4, neuron)
        assert (paths @ texts.T).abs().max() < 1e-9
    c, changed = (tower.transformer.resblocks[4].mlp.c_proj.weight for tower in (visual, edited))
    kept = [n for n in range(c.shape[1]) if n not in (1, 2)]
    assert torch.equal(c[:, kept], changed[:, kept])
    assert list(edit.weights) == ["transformer.resblocks.4.mlp.c_proj.weight"]


def test_null_edit_is_the_smallest_change() -> None:
    visual = random_tower(SHAPES[1])  # with LayerScale
    v = torch.randn(1, visual.output_dim, dtype=torch.float64)
    edit = null_edit(visual, [NeuronGroup(2, torch.tensor([4]), v)])
    block = visual.transformer.resblocks[2]
    w = block.ls_2.gamma * block.mlp.c_proj.weight[:, 4]
    changed = block.ls_2.gamma * edit.weights["transformer.resblocks.2.mlp.c_proj.weight"][:, 4]
    g = path_directions(visual, 2, v)  # least squares: the part of w that the directions explain
    part = g.T @ torch.linalg.lstsq(g.T, w[:, None]).solution
    assert torch.allclose(w - changed, part[:, 0], atol=1e-9)
    assert float(edit.removed[0]) == pytest.approx(float(part.norm() / w.norm()), abs=1e-9)


def test_null_edit_with_a_layer_scale_of_zero_stays_finite() -> None:
    visual = random_tower(SHAPES[1])
    visual.transformer.resblocks[2].ls_2.gamma.data[:3] = 0
    group = [NeuronGroup(2, torch.arange(4), torch.randn(1, visual.output_dim, dtype=torch.float64))]
    edit = null_edit(visual, group)
    assert all(weight.isfinite().all() for weight in edit.weights.values())
    assert largest_overlap(visual, group, edit.weights) < 1e-12


def test_row_space_is_orthonormal_and_ignores_lengths() -> None:
    g = torch.randn(3, 7, dtype=torch.float64)
    rows = torch.cat([1e-9 * g, g[:1] + g[1:2], torch.zeros(1, 7, dtype=torch.float64)])
    Q = row_space(rows)
    assert Q.shape == (3, 7)
    assert torch.allclose(Q @ Q.T, torch.eye(3, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(g @ Q.T @ Q, g, atol=1e-12)
    assert row_space(rows[4:]).shape == (0, 7)


@contextmanager
def replaced(visual: VisionTransformer, change: Callable[[int, Tensor], Tensor]) -> Iterator[None]:
    """Replace activations of the MLPs: `change` gets the layer and [b, token, neuron]."""
    handles = [
        block.mlp.gelu.register_forward_hook(lambda _, __, out, layer=layer: change(layer, out.clone()))
        for layer, block in enumerate(visual.transformer.resblocks)
    ]
    yield
    for handle in handles:
        handle.remove()


def activations(visual: VisionTransformer, image: Tensor, layer: int) -> Tensor:
    kept: list[Tensor] = []
    handle = visual.transformer.resblocks[layer].mlp.gelu.register_forward_hook(lambda _, __, out: kept.append(out))
    visual(image)
    handle.remove()
    return kept[0]


@pytest.mark.parametrize("number", [0, 1, 3])
def test_neurons_at_their_mean_equal_a_forward_pass_with_constants(number: int) -> None:
    visual = random_tower(SHAPES[number], seed=3)
    image = pictures(visual, 3)
    neurons = {0: torch.tensor([2, 6]), len(visual.transformer.resblocks) - 1: torch.tensor([1])}
    means = {layer: activations(visual, image, layer).mean((0, 1))[n] for layer, n in neurons.items()}

    def change(layer: int, p: Tensor) -> Tensor:
        for n, mean in zip(neurons.get(layer, torch.zeros(0)).tolist(), means.get(layer, torch.zeros(0)), strict=True):
            p[:, :, int(n)] = mean
        return p

    with replaced(visual, change):
        expected = visual(image)
    edited = with_weights(visual, neurons_at_mean(visual, neurons, means))
    assert not torch.allclose(expected, visual(image), atol=1e-6)
    assert torch.allclose(edited(image), expected, atol=1e-9)


def slow_values(visual: VisionTransformer, image: Tensor, layer: int) -> Tensor:
    """Return z of every head at every token of one image: [token, head, e]."""
    blocks = list(visual.transformer.resblocks)
    x = visual._embeds(image[None])
    for block in blocks[:layer]:
        x = block(x)
    attn, normed = blocks[layer].attn, blocks[layer].ln_1(x)[0]
    e, width = normed.shape[1] // attn.num_heads, normed.shape[1]
    z = torch.zeros(len(normed), attn.num_heads, e, dtype=x.dtype)
    for h in range(attn.num_heads):
        of = slice(h * e, (h + 1) * e)
        parts = zip(attn.in_proj_weight.split(width), attn.in_proj_bias.split(width), strict=True)
        q, k, v = (normed @ W[of].T + b[of] for W, b in parts)
        z[:, h] = torch.softmax(q @ k.T / e**0.5, 1) @ v
    return z


def with_head_outputs(visual: VisionTransformer, image: Tensor, layer: int, z: Tensor) -> Tensor:
    """Return M(I) of one image with these values of the heads in a layer, [token, head, e]."""
    x = visual._embeds(image[None])
    for index, block in enumerate(visual.transformer.resblocks):
        if index == layer:
            attention = z.flatten(1) @ block.attn.out_proj.weight.T + block.attn.out_proj.bias
            x = x + block.ls_1(attention[None])
            x = x + block.ls_2(block.mlp(block.ln_2(x)))
        else:
            x = block(x)
    pooled = visual.ln_post(x[:, 0]) if visual.final_ln_after_pool else visual.ln_post(x)[:, 0]
    return (pooled @ visual.proj)[0]


@pytest.mark.parametrize("number", TOWERS)
def test_heads_of_the_last_layer_at_their_mean_equal_mean_ablated_heads(number: int) -> None:
    visual = random_tower(SHAPES[number], seed=4)
    last, image = len(visual.transformer.resblocks) - 1, pictures(visual, 3)
    heads = torch.tensor([1])
    z = torch.stack([slow_values(visual, one, last) for one in image])  # (image, token, head, e)
    mean = z[:, 0, heads].mean(0)  # (1, e): of the class token
    edited = with_weights(visual, heads_at_mean(visual, {last: heads}, {last: mean}))
    for one, real in zip(image, z, strict=True):
        values = real.clone()
        values[0, heads] = mean  # no later layer reads the other tokens
        assert torch.allclose(edited(one[None])[0], with_head_outputs(visual, one, last, values), atol=1e-9)


@pytest.mark.parametrize("number", TOWERS)
def test_head_values_and_means_at_every_token(number: int) -> None:
    visual = random_tower(SHAPES[number], seed=5)
    image = pictures(visual, 3)
    heads, neurons = {0: torch.tensor([1, 0])}, {1: torch.tensor([3, 1])}
    means = TokenMeans(visual, neurons, heads)
    for part in (image[:2], image[2:]):
        activities, values, embedding = means.read(part)
        assert torch.allclose(embedding, visual(part))
        means.add(activities, values)
    z = torch.stack([slow_values(visual, one, 0) for one in image]).mean(0)
    assert torch.allclose(means.head_means[0], z[:, [1, 0]], atol=1e-9)
    assert torch.allclose(means.neuron_means[1], activations(visual, image, 1).mean(0)[:, [3, 1]], atol=1e-9)
    block = visual.transformer.resblocks[0]
    normed = block.ln_1(visual._embeds(image[:1]))
    assert torch.allclose(head_values(block.attn, normed, torch.tensor([0]))[0, :, 0], slow_values(visual, image[0], 0)[:, 0])


@pytest.mark.parametrize("number", [0, 1, 3])
def test_mask_puts_neurons_and_heads_at_their_means_token_by_token(number: int) -> None:
    visual = random_tower(SHAPES[number], seed=6)
    image, heads = pictures(visual, 2), torch.tensor([2, 0])
    z = torch.stack([slow_values(visual, one, 0) for one in image])  # (image, token, head, e)
    mean = z.mean(0)[:, heads]
    with hooked(Mask({}, {}, {0: heads}, {0: mean}).hooks(visual)):
        outputs = visual(image)
        written_out = attention_pass(visual, image).embedding
    assert torch.allclose(written_out, outputs, atol=1e-9)
    for one, real, output in zip(image, z, outputs, strict=True):
        values = real.clone()
        values[:, heads] = mean
        assert torch.allclose(output, with_head_outputs(visual, one, 0, values), atol=1e-9)
    p = activations(visual, image, 1).mean(0)[:, [4]]  # (token, 1)

    def change(layer: int, activation: Tensor) -> Tensor:
        if layer == 1:
            activation[:, :, 4] = p[:, 0]
        return activation

    with replaced(visual, change):
        expected = visual(image)
    with hooked(Mask({1: torch.tensor([4])}, {1: p}, {}, {}).hooks(visual)):
        assert torch.allclose(visual(image), expected, atol=1e-9)


@pytest.mark.parametrize("number", range(len(RESNETS)))
def test_pooled_units_at_their_means_equal_mean_ablation(number: int) -> None:
    visual = random_resnet(RESNETS[number], seed=number)
    image = resnet_pictures(visual, 3)
    r = torch.stack([pair_effects(visual, one) for one in image])  # (image, neuron, head, d)
    for unit in ([[4, 3, 1], [4, 0, 0], [4, 5, 1]], [[4, 2, -1], [4, 7, -1]], [[4, -1, 2]]):
        units = torch.tensor(unit)
        cut = cut_pairs(visual, units)  # (neuron, head)
        pairs = [(n, h) for n in range(len(cut)) for h in range(cut.shape[1])]
        assert cut.nonzero().tolist() == [[n, h] for n, h in pairs if any((u[1] in (n, -1)) and (u[2] in (h, -1)) for u in unit)]
        mean = r.mean(0)  # (neuron, head, d)
        b = torch.stack([mean[cut_pairs(visual, row[None])].sum(0) for row in units])
        expected = visual(image) + (mean - r)[:, cut].sum(1)
        edited = with_weights(visual, pooled_at_mean(visual, units, b))
        assert torch.allclose(edited(image), expected, atol=1e-9)


@pytest.mark.parametrize("number", range(len(RESNETS)))
def test_pairs_write_only_their_mean_along_the_vectors(number: int) -> None:
    visual = random_resnet(RESNETS[number], seed=number)
    pool, image = visual.attnpool, resnet_pictures(visual, 3)
    r = torch.stack([pair_effects(visual, one) for one in image])  # (image, neuron, head, d)
    mean = r.mean(0)
    e = pool.v_proj.out_features // pool.num_heads
    some = torch.randn(2, r.shape[-1], dtype=r.dtype, generator=torch.Generator().manual_seed(number))
    chosen = [(0, [3, 0, 5], some), (1, [3], some[:1]), (0, [1, 2], some[1:])]
    groups = [PairGroup(head, torch.tensor(neurons), v, mean[neurons, head]) for head, neurons, v in chosen]
    expected, ratios = visual(image), []
    for head, neurons, v in chosen:
        of = slice(head * e, (head + 1) * e)
        basis = torch.linalg.svd(pool.c_proj.weight[:, of], full_matrices=False)[0]  # (d, e): what the head can write
        for n in neurons:
            w = pool.c_proj.weight[:, of] @ pool.v_proj.weight[of, n]
            change = basis @ torch.linalg.pinv(v @ basis) @ (v @ w)  # the smallest with <v, w - change> = 0
            s = r[:, n, head] @ w / (w @ w)  # (image)
            expected = expected + (s.mean() - s)[:, None] * change
            ratios.append(float(change.norm() / w.norm()))
    edit = null_pairs(visual, groups)
    assert torch.allclose(torch.cat(edit.removed), torch.tensor(ratios, dtype=r.dtype), atol=1e-9)
    edited = with_weights(visual, edit.weights)
    assert torch.allclose(edited(image), expected, atol=1e-9)
    after = torch.stack([pair_effects(edited, one) for one in image])
    for head, neurons, v in chosen:
        assert (r[:, neurons, head] @ v.T).abs().max() > 1e-3
        assert torch.allclose(after[:, neurons, head] @ v.T, torch.zeros(1, dtype=r.dtype), atol=1e-12)
    assert largest_overlap_of_pairs(visual, groups, edit.weights) < 1e-12
    untouched = {"attnpool.v_proj.weight": pool.v_proj.weight}
    assert largest_overlap_of_pairs(visual, groups, untouched) > 1e-3


def test_pair_means_are_scalars_times_w() -> None:
    visual = random_resnet(RESNETS[1])
    unit, s = torch.tensor([[4, 3, 1], [4, 8, 0], [4, 5, 1]]), torch.tensor([0.5, -2.0, 0.0])
    pool = visual.attnpool
    e = pool.v_proj.in_features // pool.num_heads
    for row, (_, n, h) in enumerate(unit.tolist()):
        of = slice(h * e, (h + 1) * e)
        w = pool.c_proj.weight[:, of] @ pool.v_proj.weight[of, n]
        assert torch.allclose(pair_means_float64(visual, unit, s)[row], float(s[row]) * w, atol=1e-12)
