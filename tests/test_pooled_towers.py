"""Towers that pool by attention with learned queries: effects compared with literal passes through the tower's own modules."""

import copy
from typing import Any

import pytest
import torch
from helpers.other_towers import SHAPES as OTHER_SHAPES
from helpers.other_towers import Frozen, pictures, timm_tower
from helpers.pooled_towers import KINDS, pooled_tower
from torch import Tensor

from cliptools.analysis.ablation import joint_mean_ablation
from cliptools.analysis.weight_edit import NeuronGroup, largest_overlap, neurons_at_mean, null_edit
from cliptools.errors import ModelError, UsageError
from cliptools.models.names import tower_fault
from cliptools.segmentation.towers import choose_method
from cliptools.segmentation.vit_methods import effect_maps
from cliptools.streaming.vit_indirect import Indirect, token_means
from cliptools.towers import tower
from cliptools.towers.hooks import hooked
from cliptools.towers.kinds import tower_of
from cliptools.unit_effects.factored import UnitBlock, total_of
from cliptools.unit_effects.pairs import pair_means, unit_directions
from cliptools.unit_effects.select import Choice, choose_effects, factored_effect
from cliptools.unit_effects.vit_direct import FirstOrder, Heads
from cliptools.unit_effects.vit_pooled_second_order import SecondOrderPooled
from cliptools.unit_effects.vit_pooling import TokenNeurons, TokenPairs
from cliptools.unit_effects.vit_second_order import SecondOrder, trace


def close(value: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


def model(visual: Any) -> torch.nn.Module:
    clip = torch.nn.Module()
    clip.visual = visual
    return clip


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_effects_are_those_of_a_second_pass_with_frozen_statistics(kind: str, number: int) -> None:
    visual = pooled_tower(kind, number)
    images, adapter = pictures(visual, 2 if number == 0 else 1), tower_of(visual)
    plain = visual(images)
    for layer in (0, adapter.depth - 2, adapter.depth - 1):
        frozen = Frozen(visual, images, layer)
        torch.testing.assert_close(frozen.output, plain, rtol=1e-12, atol=1e-12)
        neurons = torch.tensor([3, adapter.blocks[layer].output.in_features - 1])
        coefficients = [frozen.coefficients(int(neuron)) for neuron in neurons]
        block = UnitBlock(layer, neurons)
        for crossed, effect in enumerate((TokenNeurons(visual), SecondOrder(visual))[: 1 + (layer < adapter.depth - 1)]):
            (S,), M = effect.read(images, [block])
            assert torch.equal(M, plain)
            D = effect.directions(block)
            assert D.shape[:2] == (2, effect.size(layer)[1]) and S.shape[2] == D.shape[1]
            close(torch.einsum("bnk,nkd->bnd", S, D), torch.stack([powers[crossed] for powers in coefficients], 1))
            close(effect.total(block, S), torch.einsum("bnk,nkd->bd", S, D))
            close(effect.along(block, M[0]), D @ M[0])


@pytest.mark.parametrize("kind", ["siglip", "pe", "coca-mean"])
def test_pairs_are_the_paths_of_neurons(kind: str) -> None:
    visual = pooled_tower(kind, 1)
    images, pairs, neurons = pictures(visual, 3), TokenPairs(visual), TokenNeurons(visual)
    layer, G = 2, pairs.heads
    chosen = torch.tensor([1, 6, 2 * G, 5 * G - 1, 2 * G + 1])  # in any order
    block, whole = UnitBlock(layer, chosen), UnitBlock(layer, torch.arange(neurons.size(layer)[0]))
    (s, all_pairs), _ = pairs.read(images, [block, UnitBlock(layer, torch.arange(pairs.size(layer)[0]))])
    (S,), _ = neurons.read(images, [whole])
    D = neurons.directions(whole).flatten(0, 1)  # (n g, d)
    assert torch.equal(all_pairs[..., 0], S.flatten(1)) and torch.equal(s, all_pairs[:, chosen])
    close(pairs.directions(block)[:, 0], D[chosen])
    close(pairs.gram(block)[:, 0, 0], D[chosen].square().sum(1))
    close(pairs.along(block, D[0])[:, 0], D[chosen] @ D[0])
    close(pairs.total(block, s), s[..., 0] @ D[chosen])
    units = pairs.units(layer)
    assert units[chosen[1]].tolist() == [layer, 6 // G, 6 % G] and not len(pairs.units(3)) and not len(neurons.units(-1))
    sign, mean = torch.tensor([1, -1, 0, 1, -1]), torch.randn(5)
    r = unit_directions(pairs, units[chosen], sign)
    torch.testing.assert_close(r, (torch.nn.functional.normalize(D[chosen], dim=1) * sign[:, None]).float())
    torch.testing.assert_close(pair_means(pairs, units[chosen], mean), (D[chosen] * mean[:, None]).float())
    assert unit_directions(pairs, units[:0], sign[:0]).shape == (0, D.shape[1])


@pytest.mark.parametrize("kind", ["siglip", "coca"])
def test_more_paths_than_dimensions_give_the_effects_themselves(kind: str) -> None:
    visual = pooled_tower(kind, 0)
    images, effect, plain = pictures(visual), SecondOrderPooled(visual), SecondOrder(visual)
    wide = [plain.size(layer)[1] > tower_of(visual).projection.shape[1] for layer in (0, 2)]
    assert wide == [True, False]
    for layer in (0, 2):
        block = UnitBlock(layer, torch.tensor([5, 0, 9]))
        (S,), _ = effect.read(images, [block])
        (expected,), _ = plain.read(images, [block])
        phi = torch.einsum("bnk,nkd->bnd", expected, plain.directions(block))
        D = effect.directions(block)
        assert D.shape[1] == effect.size(layer)[1] == S.shape[2]
        close(torch.einsum("bnk,nkd->bnd", S, D), phi)
        close(total_of(effect, block, S), phi.sum(1))
        close(effect.along(block, phi[0, 0]), D @ phi[0, 0])


def test_rows_of_attention_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    visual = pooled_tower("pe", 0)
    images, block = pictures(visual), UnitBlock(1, torch.arange(4))
    (whole,), _ = SecondOrder(visual).read(images, [block])
    monkeypatch.setattr(tower, "ROW_BYTES", 1)  # one query at a time
    (sliced,), _ = SecondOrder(visual).read(images, [block])
    close(sliced, whole)


@pytest.mark.parametrize("kind", ["siglip", "pe", "coca"])
def test_indirect_effects_and_edits(kind: str) -> None:
    visual = pooled_tower(kind, 0)
    images, adapter = pictures(visual, 3), tower_of(visual)
    sample, numbers = {0: torch.tensor([1, 4]), 3: torch.tensor([0])}, list(range(3))
    means = token_means(visual, iter([(numbers, images)]), sample, 3)
    phi, M = Indirect(visual, sample, means, 3).read(images, [UnitBlock(0, torch.arange(2)), UnitBlock(3, torch.arange(1))])
    for place, (layer, row) in enumerate(((0, 0), (0, 1), (3, 0))):
        alone = joint_mean_ablation(visual, images, {layer: sample[layer][[row]]}, {layer: means[layer][:, [row]]})
        close(phi[min(place // 2, 1)][:, row], M - alone)
    close(M, visual(images))
    v = torch.randn(2, adapter.projection.shape[1]).double()
    for layer in (0, 3):
        group = NeuronGroup(layer, torch.tensor([2, 7]), v)
        edit = null_edit(visual, [group])
        assert largest_overlap(visual, [group], edit.weights) < 1e-10
        frozen, changed = Frozen(visual, images, layer, centred=True), copy.deepcopy(adapter.blocks[layer].output.weight)
        before = [powers @ v.T for powers in frozen.coefficients(2)[:2]]
        changed.data = edit.weights[f"{adapter.blocks[layer].output_name}.weight"]
        adapter.blocks[layer].output.weight = changed
        after = [powers @ v.T for powers in frozen.coefficients(2)[:2]]
        assert all(float(powers.abs().max()) > 1e-3 for powers in before)
        assert all(float(powers.abs().max()) < 1e-9 for powers in after)
    output = adapter.blocks[3].output
    weights = neurons_at_mean(visual, {3: torch.tensor([0])}, {3: means[3].mean(0)})
    assert set(weights) == {f"{adapter.blocks[3].output_name}.{name}" for name in ("weight", "bias")} and output.bias is not None


def test_maps_of_effects_add_up_to_the_effects() -> None:
    visual = pooled_tower("siglip", 0)
    images, neurons, t = pictures(visual), torch.tensor([1, 8]), torch.randn(24).double()
    maps = effect_maps(visual, trace(visual, images, [1]), 1, neurons, 1, t)
    effect, block = SecondOrder(visual), UnitBlock(1, neurons)
    (S,), _ = effect.read(images, [block])
    assert maps.shape == (6,)
    close(maps.sum(), effect.total(block, S)[1] @ t)


@pytest.mark.parametrize("kind", ["siglip", "siglip-class", "pe"])
def test_the_parts_of_a_pooling_add_up(kind: str) -> None:
    visual = pooled_tower(kind, 1)
    images, adapter = pictures(visual), tower_of(visual)
    assert adapter.pooling is not None
    outputs = []
    for part in ("attention", "mlp"):
        with hooked(adapter.pooling.part_hooks(part)):
            outputs.append(visual(images))
    bias = getattr(visual.trunk.head, "bias", 0)  # which both outputs have
    close(outputs[0] + outputs[1] - bias, visual(images))
    frozen = Frozen(visual, images, 2)
    mlp = visual.trunk.head(frozen.mlps[visual.trunk.attn_pool.mlp][:, 0])
    close(outputs[1], mlp)


def test_the_choice_of_effects() -> None:
    clip = model(pooled_tower("siglip", 0))
    assert choose_effects(clip, None, None, None) == Choice("pooled", "pairs", (2, 3))
    assert choose_effects(clip, None, "neurons", [3, 0]) == Choice("pooled", "neurons", (3, 0))
    assert choose_effects(clip, None, "heads", None) == Choice("pooled", "heads", (4,))
    assert choose_effects(clip, "pooled", "heads", [3, 2]) == Choice("pooled", "heads", (3, 2))
    assert choose_effects(clip, "second", None, None) == Choice("second", "neurons", (2,))
    assert choose_effects(clip, "indirect", None, [3]) == Choice("indirect", "neurons", (3,))
    for effect, units, layers, reason in (
        ("second", "heads", None, "the heads of an attention pooling have pooled effects only"),
        (None, "heads", [3, 4], "name 4 alone"),
        ("first", None, None, "which all neurons cross"),
        ("second", "pairs", None, "a pair has a pooled effect"),
        ("second", None, [3], "has no later attention layer"),
        (None, None, [4], "layer 4 does not exist"),
    ):
        with pytest.raises(UsageError, match=reason):
            choose_effects(clip, effect, units, layers)
    assert type(factored_effect(clip, "second", "neurons")) is SecondOrderPooled
    assert choose_method(None, clip) == "neurons"
    with pytest.raises(UsageError, match="the bundle's model is a ViT that pools by attention"):
        choose_method("gradcam", clip)


def test_parts_that_need_a_class_token_are_refused_by_name() -> None:
    visual = pooled_tower("coca", 0)
    for effect in (FirstOrder, Heads):
        with pytest.raises(ModelError, match="direct effects need a class token"):
            effect(visual)
    with pytest.raises(ModelError, match="has no attention pooling"):
        TokenPairs(timm_tower("vit", OTHER_SHAPES[0], 13))


FAULTS: dict[str, tuple[Any, str]] = {
    "another kind": (lambda trunk: setattr(trunk, "attn_pool", torch.nn.Identity()), "attention pooling of the kind Identity"),
    "several queries": (lambda trunk: setattr(trunk.attn_pool, "latent_len", 2), "with several queries"),
    "norm behind": (lambda trunk: setattr(trunk, "fc_norm", torch.nn.LayerNorm(24)), "or one behind it"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_unknown_poolings_are_refused_by_name(fault: str) -> None:
    visual = pooled_tower("siglip", 0)
    change, reason = FAULTS[fault]
    change(visual.trunk)
    with pytest.raises(ModelError, match=reason):
        tower_of(visual)


def test_open_clip_s_towers_that_pool_by_attention_have_adapters() -> None:
    """Each is built without memory; 156 of the 196 tags or more have supported towers."""
    import open_clip

    kinds: dict[str, list[str]] = {}
    for name in open_clip.list_models():
        settings = open_clip.get_model_config(name)
        image = settings["vision_cfg"]
        if image.get("timm_pool") == "map" or image.get("attentional_pool"):
            assert tower_fault(settings) is None, name
            kinds.setdefault(str(image.get("timm_model_name") or image), []).append(name)
    assert len(kinds) >= 20
    for name in (names[0] for names in kinds.values()):
        settings = open_clip.get_model_config(name)
        with torch.device("meta"):
            tower = tower_of(open_clip.model._build_vision_tower(settings["embed_dim"], settings["vision_cfg"]))
        assert tower.pooling is not None and tower.readouts in (8, 12, 16), name
        assert tower.projection.shape[1] == settings["embed_dim"] == tower.pooling.ends().shape[2], name
        assert tower.stride[0] == settings["vision_cfg"]["image_size"] // tower.grid[0], name  # 27 patches of 14 for 384 pixels
    tags = [name for name, _ in open_clip.list_pretrained()]
    assert sum(tower_fault(open_clip.get_model_config(name)) is None for name in tags) >= 156 and len(tags) >= 196
