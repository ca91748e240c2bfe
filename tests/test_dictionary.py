"""Effects of a dictionary's latents against a literal second pass, and their sum with error and bias."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.dictionaries import encoded, plain, residual_after, second_pass, weights
from helpers.other_towers import pictures as other_pictures
from helpers.pooled_towers import pooled_tower
from helpers.second_order import SHAPES, pictures, random_tower
from torch import Tensor

from cliptools.errors import ModelError, UsageError
from cliptools.models.dictionary_file import open_dictionary
from cliptools.towers.dictionary import Dictionary, with_dictionary
from cliptools.towers.hooks import hooked
from cliptools.towers.kinds import tower_of
from cliptools.towers.tower import Tower
from cliptools.unit_effects.factored import UnitBlock, along_of, total_of
from cliptools.unit_effects.select import choose_effects, factored_effect
from cliptools.unit_effects.vit_direct import FirstOrder
from cliptools.unit_effects.vit_second_order import SecondOrder, trace

LATENTS = 29
ENCODERS: dict[str, dict[str, Any]] = {
    "relu": {"activation": "relu"},
    "topk": {"activation": "topk", "k": 7},
    "batchtopk": {"activation": "batchtopk", "threshold": 1.3},
    "jumprelu": {"activation": "jumprelu"},
}


def open_plain(path: Path, tensors: dict[str, Tensor], **config: Any) -> Dictionary:
    return Dictionary(open_dictionary(str(plain(path / "sae.safetensors", tensors, **config))))


def effects(tower: Tower, images: Tensor, layer: int) -> Tensor:
    effect, block = SecondOrder(tower), UnitBlock(layer, torch.arange(LATENTS))
    S = next(iter(effect.read(images, [block])[0]))
    phi = torch.einsum("bnk,nkd->bnd", S, effect.directions(block))
    torch.testing.assert_close(total_of(effect, block, S), phi.sum(1), rtol=1e-9, atol=1e-9)
    v = torch.randn(phi.shape[2], dtype=phi.dtype)
    torch.testing.assert_close((S * along_of(effect, block, v)).sum(2), phi @ v, rtol=1e-9, atol=1e-9)
    return phi


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("shape", SHAPES[:4])
def test_effects_are_those_of_a_literal_second_pass(tmp_path: Path, shape: dict, encoder: str) -> None:
    visual, config = random_tower(shape), ENCODERS[encoder]
    layer, tensors = shape["layers"] - 3, weights(shape["width"], LATENTS)
    saved = tensors | ({"threshold": torch.rand(LATENTS, dtype=torch.float64)} if encoder == "jumprelu" else {})
    tower = with_dictionary(visual, open_plain(tmp_path, saved, hook_name=f"blocks.{layer}.hook_resid_post", **config))
    images = pictures(visual, 2)
    phi = effects(tower, images, layer)
    for b, image in enumerate(images):
        x = residual_after(visual, image, layer)
        threshold = saved.get("threshold", config.get("threshold", 0.0))
        p = torch.stack([encoded(tensors, y, encoder, config.get("k", 0), threshold) for y in x])  # [token, n]
        written = [p[:, n, None] * tensors["W_dec"][n] for n in range(LATENTS)]
        expected = torch.stack([second_pass(visual, image, layer, v) for v in written])
        scale = float(expected.abs().max())
        assert scale > 0
        torch.testing.assert_close(phi[b], expected, rtol=1e-9, atol=1e-9 * scale)
        bias = tensors["b_dec"].expand(len(x), -1)
        error = x - p @ tensors["W_dec"] - bias
        whole = phi[b].sum(0) + second_pass(visual, image, layer, bias) + second_pass(visual, image, layer, error)
        torch.testing.assert_close(whole, second_pass(visual, image, layer, x), rtol=1e-9, atol=1e-9 * scale)


@pytest.mark.parametrize("scaling", ["layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("tokens", ["class", "patches"])
def test_scaled_tokens_and_some_of_them(tmp_path: Path, scaling: str, tokens: str) -> None:
    visual, tensors = random_tower(SHAPES[1]), weights(30, LATENTS)
    settings = {"cls_token_only": tokens == "class", "use_patches_only": tokens == "patches"}
    dictionary = open_plain(
        tmp_path, tensors, hook_point_layer=1, layer_subtype="hook_resid_post", activation_fn_str="relu",
        normalize_activations=scaling, **settings,
    )  # fmt: skip
    image = pictures(visual, 1)
    phi, x = effects(with_dictionary(visual, dictionary), image, 1)[0], residual_after(visual, image[0], 1)
    p = torch.zeros(len(x), LATENTS, dtype=x.dtype)
    for i, token in enumerate(x):
        if (i == 0) == (tokens == "class"):
            sigma = token.std() if scaling == "layer_norm" else token.norm() / 30**0.5
            y = (token - token.mean()) / (sigma + 1e-5) if scaling == "layer_norm" else token / sigma
            p[i] = sigma * encoded(tensors, y, "relu")
    expected = torch.stack([second_pass(visual, image[0], 1, p[:, n, None] * tensors["W_dec"][n]) for n in range(LATENTS)])
    torch.testing.assert_close(phi, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


@pytest.mark.parametrize("reads", ["hook_mlp_out", "ln2.hook_normalized"])
def test_dictionaries_of_an_mlp_write_where_it_writes(tmp_path: Path, reads: str) -> None:
    visual, tensors = random_tower(SHAPES[1]), weights(30, LATENTS)
    if reads != "hook_mlp_out":
        tensors["b_dec_out"] = torch.ones(30, dtype=torch.float64)
    config = {"is_transcoder": reads != "hook_mlp_out", "out_hook_point_layer": 1, "layer_out_subtype": "hook_mlp_out"}
    hook = {"hook_point_layer": 1, "layer_subtype": reads, "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 5}}
    dictionary = open_plain(tmp_path, tensors, **hook, **config)
    image, block = pictures(visual, 1), visual.transformer.resblocks[1]
    phi = effects(with_dictionary(visual, dictionary), image, 1)[0]
    x = residual_after(visual, image[0], 0)
    normed = block.ln_2(x + block.ls_1(block.attention(block.ln_1(x[None])))[0])
    read = normed if reads != "hook_mlp_out" else block.ls_2(block.mlp(normed))
    p = torch.stack([encoded(tensors, y, "topk", 5) for y in read])
    expected = torch.stack([second_pass(visual, image[0], 1, p[:, n, None] * tensors["W_dec"][n]) for n in range(LATENTS)])
    torch.testing.assert_close(phi, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


def test_first_order_effects_of_the_last_layer_are_the_output(tmp_path: Path) -> None:
    visual, tensors = random_tower(SHAPES[2]), weights(26, LATENTS)
    tower = with_dictionary(visual, open_plain(tmp_path, tensors, hook_name="blocks.2.hook_resid_post", activation="relu"))
    image, block = pictures(visual, 1), UnitBlock(2, torch.arange(LATENTS))
    effect = FirstOrder(tower)
    S = next(iter(effect.read(image, [block])[0]))
    x = residual_after(visual, image[0], 2)[0]
    gain = visual.ln_post.weight / (x.var(unbiased=False) + visual.ln_post.eps).sqrt()
    direct = [(gain * encoded(tensors, x, "relu")[n] * tensors["W_dec"][n]) @ visual.proj for n in range(LATENTS)]
    phi = S[0] * effect.directions(block)[:, 0]  # [n, 1] * [n, d]
    torch.testing.assert_close(phi, torch.stack(direct), rtol=1e-9, atol=1e-9)


def test_only_the_layer_of_the_dictionary_has_units(tmp_path: Path) -> None:
    visual, tensors = random_tower(SHAPES[0]), weights(36, LATENTS)
    tower = with_dictionary(visual, open_plain(tmp_path, tensors, hook_name="blocks.2.hook_resid_pre", activation="relu"))
    assert [len(SecondOrder(tower).units(layer)) for layer in range(5)] == [0, LATENTS, 0, 0, 0]
    assert [len(FirstOrder(tower).units(layer)) for layer in range(5)] == [0, LATENTS, 0, 0, 0]
    assert len(SecondOrder(visual).units(1)) == 90  # the tower itself is as before
    assert torch.equal(trace(tower, pictures(visual, 1), [1]).embedding, visual(pictures(visual, 1)))


@pytest.mark.parametrize("kind", ["siglip", "pe", "coca-mean"])
def test_pooled_effects_are_what_the_pooling_reads(tmp_path: Path, kind: str) -> None:
    visual: Any = pooled_tower(kind, 1)
    tower, clip, image = tower_of(visual), torch.nn.Module(), other_pictures(visual, 1)
    clip.visual, layer = visual, tower.depth - 1
    tensors = weights(tower.blocks[0].output.out_features, LATENTS)
    plain(tmp_path / "sae.safetensors", tensors, layer=layer, activation="relu")
    units = f"sae:{tmp_path / 'sae.safetensors'}"
    choice = choose_effects(clip, None, units, None)
    assert (choice.effect, choice.units, choice.layers) == ("pooled", "latents", (layer,))
    effect, block = factored_effect(clip, *choice[:2], choice.dictionary), UnitBlock(layer, torch.arange(LATENTS))
    S = next(iter(effect.read(image, [block])[0]))
    phi = torch.einsum("bnk,nkd->bnd", S, effect.directions(block))[0]
    beta: list[Tensor] = []
    x: list[Tensor] = []
    assert tower.pooling is not None
    with hooked([*tower.pooling.hooks(beta.append), (tower.blocks[layer].module, lambda _, inputs, output: x.append(output))]):
        visual(image)
    p = torch.stack([encoded(tensors, y, "relu") for y in x[0][0]])  # [token, n]
    A = tower.pooling.matrices()  # [g, d, width]
    read = torch.einsum("gt,tn,nw->ngw", beta[0][0], p, tensors["W_dec"])
    torch.testing.assert_close(phi, torch.einsum("gdw,ngw->nd", A, read), rtol=1e-9, atol=1e-9)
    with pytest.raises(UsageError, match="which all latents cross"):
        choose_effects(clip, "first", units, None)
    if not tower.prefix:
        with pytest.raises(ModelError, match="a dictionary of class tokens"):
            choose_effects(clip, None, f"{units},tokens=class", None)
