"""Towers of timm's, custom blocks and means of tokens: every quantity compared with literal passes through their modules."""

from typing import Any

import pytest
import torch
from helpers.other_towers import (
    CLIPA,
    CUSTOM,
    CUSTOM_SHAPES,
    EVA,
    MEANS,
    SHAPES,
    VIT,
    WIDTHS,
    Frozen,
    attention_as,
    custom_tower,
    mean_tower,
    pictures,
    timm_tower,
)
from torch import Tensor

from cliptools.analysis.ablation import joint_mean_ablation
from cliptools.analysis.token_means import Mask, TokenMeans
from cliptools.analysis.weight_edit import NeuronGroup, heads_at_mean, largest_overlap, neurons_at_mean, null_edit
from cliptools.errors import ModelError
from cliptools.segmentation.towers import on_grid
from cliptools.segmentation.vit_baselines import attention_pass, direct_effects
from cliptools.streaming.vit_indirect import Indirect
from cliptools.towers.hooks import hooked
from cliptools.towers.kinds import tower_of
from cliptools.towers.open_clip_vit import TorchAttention
from cliptools.unit_effects.factored import UnitBlock
from cliptools.unit_effects.vit_direct import FirstOrder, Heads
from cliptools.unit_effects.vit_second_order import SecondOrder, trace

KINDS = [*EVA, *VIT, *MEANS, *(f"custom-{kind}" for kind in CUSTOM), *(f"mean-{kind}" for kind in CLIPA)]
PROJECTIONS = ("head", "proj", "both")


def tower(kind: str, number: int) -> Any:
    if kind.startswith("custom-"):
        return custom_tower(kind.removeprefix("custom-"), CUSTOM_SHAPES[number], number)
    if kind.startswith("mean-"):
        return mean_tower(kind.removeprefix("mean-"), CUSTOM_SHAPES[number], number)
    return timm_tower(kind, SHAPES[number], WIDTHS[number], number, PROJECTIONS[number])


def close(value: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_effects_are_those_of_a_second_pass_with_frozen_statistics(kind: str, number: int) -> None:
    visual = tower(kind, number)
    images, adapter = pictures(visual), tower_of(visual)
    plain = visual(images)
    for layer in range(adapter.depth):
        frozen = Frozen(visual, images, layer)
        torch.testing.assert_close(frozen.output, plain, rtol=1e-12, atol=1e-12)
        neurons = torch.tensor([0, 3, 8, adapter.blocks[layer].output.in_features - 1])
        coefficients = [frozen.coefficients(int(neuron)) for neuron in neurons]
        for crossed, effect in enumerate((FirstOrder(visual), SecondOrder(visual))[: 1 + (layer < adapter.depth - 1)]):
            block = UnitBlock(layer, neurons)
            (S,), M = effect.read(images, [block])
            assert torch.equal(M, plain)
            D = effect.directions(block)
            close(torch.einsum("bnk,nkd->bnd", S, D), torch.stack([powers[crossed] for powers in coefficients], 1))
            close(effect.total(block, S), torch.einsum("bnk,nkd->bd", S, D))
            if isinstance(effect, SecondOrder):
                close(effect.along(block, M[0]), D @ M[0])


@pytest.mark.parametrize("kind", KINDS)
def test_indirect_effects_and_masks_are_passes_with_replaced_activations(kind: str) -> None:
    visual = tower(kind, 0)
    images, adapter = pictures(visual, 3), tower_of(visual)
    sample = {layer: torch.tensor([1, 4]) for layer in (0, adapter.depth - 1)}
    means = TokenMeans(visual, sample, {1: torch.tensor([0, 2])})
    means.add(*means.read(images)[:2])
    indirect = Indirect(visual, sample, means.neuron_means, 3)
    phi, M = indirect.read(images, [UnitBlock(layer, torch.arange(2)) for layer in sample])
    for layer, effects in zip(sample, phi, strict=True):
        for place, neuron in enumerate(sample[layer].tolist()):
            output = _replaced(visual, adapter.blocks[layer].output, [neuron], means.neuron_means[layer][:, [place]], images)
            close(effects[:, place], M - output)
    both = joint_mean_ablation(visual, images, {0: sample[0]}, {0: means.neuron_means[0]})
    close(both, _replaced(visual, adapter.blocks[0].output, [1, 4], means.neuron_means[0], images))
    mask = Mask({}, {}, {1: torch.tensor([0, 2])}, means.head_means)
    attention = adapter.blocks[1].attention
    columns = torch.arange(attention.output.in_features).unflatten(0, (attention.heads, -1))[[0, 2]].flatten()
    with hooked(mask.hooks(visual)):
        masked = visual(images)
    close(masked, _replaced(visual, attention.output, columns.tolist(), means.head_means[1].flatten(1), images))


def _replaced(visual: Any, matrix: Any, columns: list[int], mean: Tensor, images: Tensor) -> Tensor:
    """M(I) with columns of a matrix's input at their means, token by token."""

    def changed(y: Tensor) -> Tensor:
        y = y.clone()
        y[..., columns] = mean
        return y

    layers = [layer for layer, block in enumerate(tower_of(visual).blocks) if block.attention.output is matrix]
    if layers and isinstance(tower_of(visual).blocks[0].attention, TorchAttention):  # does not call the matrix as a module
        calls = iter(range(tower_of(visual).depth))

        def attend(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> Tensor:
            z = ((q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ v).transpose(1, 2)  # (b, token, head, e)
            z = changed(z.flatten(2)).unflatten(2, z.shape[2:]) if next(calls) == layers[0] else z
            return z.transpose(1, 2)

        with attention_as(attend):
            return visual(images)
    handle = matrix.register_forward_pre_hook(lambda module, inputs: (changed(inputs[0]),))
    output = visual(images)
    handle.remove()
    return output


@pytest.mark.parametrize("kind", KINDS)
def test_edits_do_to_a_pass_what_they_say(kind: str) -> None:
    visual = tower(kind, 0)
    images, adapter = pictures(visual), tower_of(visual)
    v, neurons, heads = torch.randn(2, adapter.projection.shape[1]).double(), torch.tensor([2, 7]), torch.tensor([1])
    for layer in (0, adapter.depth - 2):
        edit = null_edit(visual, [NeuronGroup(layer, neurons, v)])
        assert largest_overlap(visual, [NeuronGroup(layer, neurons, v)], edit.weights) < 1e-10
        block, frozen = adapter.blocks[layer], Frozen(visual, images, layer, centred=True)
        before = [frozen.coefficients(neuron)[:2] for neuron in neurons.tolist()]
        original = block.output.weight.data.clone()
        block.output.weight.data = edit.weights[f"{block.output_name}.weight"]
        for neuron, effects in zip(neurons.tolist(), before, strict=True):
            for changed, plain in zip(frozen.coefficients(neuron)[:2], effects, strict=True):
                assert float((changed @ v.T).abs().max()) < 1e-9 * float((plain @ v.T).abs().max()) + 1e-12
        block.output.weight.data = original
    mean = torch.tensor([0.3, -0.2]).double()
    for weights, matrix, columns, value in (
        (neurons_at_mean(visual, {1: neurons}, {1: mean}), adapter.blocks[1].output, neurons.tolist(), mean),
        _heads_case(visual, adapter, heads),
    ):
        expected = _replaced(visual, matrix, columns, value, images)
        edited = tower(kind, 0)
        edited.load_state_dict(edited.state_dict() | weights)
        close(edited(images), expected)


def _heads_case(visual: Any, adapter: Any, heads: Tensor) -> tuple[dict[str, Tensor], Any, list[int], Tensor]:
    attention = adapter.blocks[1].attention
    z = torch.randn(1, attention.head_width).double()
    first = int(heads[0]) * attention.head_width
    return heads_at_mean(visual, {1: heads}, {1: z}), attention.output, list(range(first, first + attention.head_width)), z[0]


@pytest.mark.parametrize("kind", KINDS)
def test_written_out_attention_is_the_tower_s_and_heads_add_up(kind: str) -> None:
    """Direct effects of heads, by tokens and by heads, agree up to the mean that the final LayerNorm takes away."""
    visual = tower(kind, 1)
    images, adapter = pictures(visual), tower_of(visual)
    forward = attention_pass(visual, images)
    close(forward.embedding, visual(images))
    for A, recorded in zip(forward.attention, Frozen(visual, images, 0).attention, strict=True):
        close(A, recorded[0])
    assert forward.prefix == adapter.tokens - forward.grid[0] * forward.grid[1]
    close(adapter.rest(attention_pass_until(visual, images, 0), 0), visual(images))
    heads, last = Heads(visual), adapter.depth - 1
    block = UnitBlock(last, torch.arange(heads.size(last)[0]))
    (S,), _ = heads.read(images, [block])
    attention = adapter.blocks[last].attention
    bias = attention.weights(2)[1]
    if attention.inner is None and adapter.blocks[last].norm_attn is None and bias is not None:
        t = torch.randn(2, 1, adapter.projection.shape[1]).double()
        D = heads.directions(block)
        shares = direct_effects(visual, forward, t, layers=1).sum(-1)[:, 0]  # (b,)
        beta = trace(visual, images, [last]).beta.sum(1)  # (b,)
        with_bias = S + bias.unflatten(0, (attention.heads, -1)) * beta[:, None, None]
        uncentred = torch.einsum("bhe,hed,bd->b", with_bias, D, t[:, 0])
        W_O = adapter.blocks[last].output_matrix().unflatten(1, (attention.heads, -1))  # (width, head, e)
        mean = torch.einsum("bhe,whe->bw", with_bias, W_O).mean(-1)  # (b,): taken away by the final LayerNorm
        gamma_P = (adapter.projection * adapter.final_norm.weight[:, None]).sum(0)  # (d,)
        close(shares, uncentred - mean * (t[:, 0] @ gamma_P))


def attention_pass_until(visual: Any, images: Tensor, layer: int) -> Tensor:
    """The residual stream after a layer, as the block's module gives it."""
    store: list[Tensor] = []
    handle = tower_of(visual).blocks[layer].module.register_forward_hook(lambda m, i, o: store.append(o))
    visual(images)
    handle.remove()
    return store[0]


@pytest.mark.parametrize("kind", [*EVA, *VIT, *MEANS, "mean-clipa"])
def test_pictures_of_other_sizes_leave_the_tower_as_it_was(kind: str) -> None:
    visual = tower(kind, 0)
    images, adapter = pictures(visual), tower_of(visual)
    before = visual(images)
    with on_grid(visual, 2, 5):
        resized = tower_of(visual)
        assert (kind == "mean-clipa" or resized.grid == (2, 5)) and resized.stride == adapter.stride
        larger = torch.randn(1, 3, 2 * adapter.stride[0], 5 * adapter.stride[1], dtype=torch.float64)
        forward = attention_pass(visual, larger)
        close(forward.embedding, visual(larger))
        assert forward.grid == (2, 5) and forward.attention[0].shape[-1] == adapter.prefix + 10
    assert torch.equal(visual(images), before)


FAULTS: dict[str, tuple[Any, str]] = {
    "maximum": (lambda trunk: setattr(trunk, "global_pool", "max"), "pools by 'max', not by its class token"),
    "no class token": (lambda trunk: setattr(trunk, "num_prefix_tokens", 0), "pools by 'token', not by its class token"),
    "another class": (
        lambda trunk: setattr(trunk, "__class__", torch.nn.Sequential),
        "is not one of its VisionTransformer",
    ),
    "another block": (lambda trunk: trunk.blocks.append(torch.nn.Identity()), "has a block of the kind Identity in layer 4"),
    "gates": (lambda trunk: setattr(trunk.blocks[1].attn, "gate", torch.nn.Identity()), "attention with gates or shared keys"),
    "another norm": (lambda trunk: setattr(trunk.blocks[0], "norm1", torch.nn.RMSNorm(24)), "a norm of the kind RMSNorm"),
    "no norm": (
        lambda trunk: setattr(trunk, "norm", torch.nn.Identity()),
        "has several LayerNorms, or none, before its output",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_unknown_parts_of_timm_are_refused_by_name(fault: str) -> None:
    visual = tower("vit", 0)
    change, reason = FAULTS[fault]
    change(visual.trunk)
    with pytest.raises(ModelError, match=reason):
        tower_of(visual)


def test_a_nonlinear_projection_is_refused_by_name() -> None:
    visual = tower("vit", 0)
    visual.head.add_module("mlp", torch.nn.Identity())
    with pytest.raises(ModelError, match=r"has a nonlinear projection \(mlp\)"):
        tower_of(visual)


def test_an_output_matrix_without_a_bias_cannot_hold_a_mean() -> None:
    visual = tower("vit", 0)
    visual.trunk.blocks[0].mlp.fc2.bias = None
    with pytest.raises(ModelError, match="has no bias, in which an edit could put means"):
        neurons_at_mean(visual, {0: torch.tensor([1])}, {0: torch.tensor([0.5])})
