"""Image towers that are rejected by their configuration, before weights are downloaded or read, and unusual ones that work."""

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run
from helpers.weights_files import CONFIGS, VIT, config, local_dir, registered, save, state_of
from PIL import Image

from cliptools.errors import ModelError, UsageError
from cliptools.models.load import load_model
from cliptools.models.names import architecture_names, tower_fault
from cliptools.segmentation.towers import native_size
from cliptools.towers.kinds import supported_tower, tower_of
from cliptools.towers.readout import MeanOfTokens
from cliptools.unit_effects.factored import UnitBlock
from cliptools.unit_effects.select import choose_effects, factored_effect
from tools import towers_table

OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "Other-timm": (config({"timm_model_name": "convnext_atto", "image_size": 32}), "timm's convnext_atto"),
    "Other-max": (
        config({"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "max", "image_size": 32}),
        r"which pools by timm_pool='max', not by its class token \('token'\), a mean \('avg'\) or attention",
    ),
    "Other-siglip": (
        config({"timm_model_name": "vit_tiny_patch16_siglip_224", "timm_pool": "token", "image_size": 32}),
        "timm's vit_tiny_patch16_siglip_224, which pools by timm_pool='token'",
    ),
    "Other-coca": (
        config(VIT | {"attentional_pool": "parallel"}, multimodal_cfg={"width": 16}, custom_text=True),
        "pools by attention of the kind 'parallel'",
    ),
    "Other-pool": (config(VIT | {"attentional_pool": "cascade", "attn_pooler_heads": 2}), "pools by attention of the kind 'ca"),
    "Other-none": (config(VIT | {"pool_type": "none"}), "pool_type='none'"),
    "Other-cosine": (
        config(VIT | {"scaled_cosine_attn": True}),
        "which open_clip's own code does not run",
    ),
    "Other-relpos": (
        config({"timm_model_name": "vit_relpos_medium_patch16_cls_224", "timm_pool": ""}),
        "timm's vit_relpos_m",
    ),
    "Other-mlp": (
        config({"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "token", "timm_proj": "mlp"}),
        "timm's vit_tiny_patch16_224 with a nonlinear projection",
    ),
}


@pytest.fixture(scope="module", autouse=True)
def names(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, (settings, _) in OTHERS.items():
            patch.setitem(CONFIGS, name, settings)
        with registered(tmp_path_factory.mktemp("configs")):
            yield


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test if weights are downloaded, read or created."""
    import open_clip
    from huggingface_hub import file_download

    from cliptools.models import load, origin

    def touched(*_: Any, **__: Any) -> None:
        pytest.fail("weights are touched")

    for place, function in (
        (open_clip, "create_model"), (open_clip.factory, "download_pretrained"),
        (open_clip.factory, "download_pretrained_from_hf"), (origin, "read_checkpoint"),
        (load, "load_weights"), (torch, "load"),
    ):  # fmt: skip
        monkeypatch.setattr(place, function, touched)
    kept = file_download.hf_hub_download

    def config_alone(hub_id: str, name: str, **options: Any) -> str:
        assert name.endswith(".json") and not name.endswith(".index.json"), "weights are fetched"
        return str(kept(hub_id, name, **options))

    monkeypatch.setattr("huggingface_hub.hf_hub_download", config_alone)


@pytest.mark.parametrize("name", OTHERS)
def test_names_with_tags_and_files(name: str, untouched: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import open_clip

    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, name, {"ours": {"url": "x"}})
    (tmp_path / "w.safetensors").write_bytes(b"not weights")
    for pretrained in ("ours", str(tmp_path / "w.safetensors"), "random"):
        with pytest.raises(
            ModelError,
            match=f"model '{name}': .*{OTHERS[name][1]}.*; supported are open_clip's ViTs and timm",
        ):
            load_model(name, pretrained, "cpu")


@pytest.mark.parametrize("name", OTHERS)
def test_folders_and_hub_caches(name: str, untouched: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    folder = tmp_path / "models--somebody--other" / "snapshots" / ("0" * 40)
    folder.mkdir(parents=True)
    (folder.parents[1] / "refs").mkdir()
    (folder.parents[1] / "refs" / "main").write_text("0" * 40)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIGS[name]}))
    for source in (f"local-dir:{folder}", "hf-hub:somebody/other"):  # no weights in either
        with pytest.raises(ModelError, match=OTHERS[name][1]):
            load_model(source, None, "cpu")


def test_the_command_says_it_in_one_line(run: Run, tmp_path: Path) -> None:
    Image.new("RGB", (30, 24), "red").save(tmp_path / "photo.png")
    for name, tag in (("convnext_xxlarge", "laion2b_s34b_b82k_augreg"), ("MobileCLIP-S1", "datacompdr")):
        ended = run("effects", tmp_path / "photo.png", "--model", name, "--pretrained", tag)
        (line,) = ended.stderr.decode().splitlines()
        assert ended.returncode == 1 and line.startswith(f"clip-effects: model {name!r}: ") and "supported are" in line


def test_open_clip_s_configurations_are_judged_as_their_towers_are() -> None:
    """The configuration gives the same decision as the built tower, for all names that can be built small."""
    import open_clip

    names = open_clip.list_models()
    supported = {name for name in names if tower_fault(open_clip.get_model_config(name)) is None}
    assert {"ViT-B-32", "RN50", "ViT-bigG-14", "RN50x64"} <= supported and set(architecture_names()) <= supported
    timm = {name for name in names if "timm_model_name" in open_clip.get_model_config(name)["vision_cfg"]}
    timm = {name for name in timm if open_clip.get_model_config(name)["vision_cfg"].get("timm_pool") != "map"}
    assert timm & supported == {
        "EVA01-g-14", "EVA01-g-14-plus", "EVA02-B-16", "EVA02-E-14", "EVA02-E-14-plus", "EVA02-L-14", "EVA02-L-14-336",
        "MobileCLIP-B", "MobileCLIP2-B", "MobileCLIP2-L-14", "vit_medium_patch16_gap_256", "ViTamin-S", "ViTamin-S-LTT",
        "ViTamin-B", "ViTamin-B-LTT", "ViTamin-L", "ViTamin-L-256", "ViTamin-L-336", "ViTamin-L-384", "ViTamin-L2",
        "ViTamin-L2-256", "ViTamin-L2-336", "ViTamin-L2-384", "ViTamin-XL-256", "ViTamin-XL-336", "ViTamin-XL-384",
    }  # fmt: skip
    for name, (settings, _) in OTHERS.items():
        if "timm" in str(settings) or "multimodal_cfg" in settings:
            continue
        assert name not in supported
        clip = open_clip.model.CLIP(**copy.deepcopy(settings))
        with pytest.raises(ModelError):
            supported_tower(clip)


def test_towers_of_all_supported_architectures_have_an_adapter() -> None:
    import open_clip

    means = set()
    for name in open_clip.list_models():
        settings = open_clip.get_model_config(name)
        if tower_fault(settings) is not None or isinstance(settings["vision_cfg"].get("layers"), list):
            continue
        with torch.device("meta"):
            tower = tower_of(open_clip.model._build_vision_tower(settings["embed_dim"], copy.deepcopy(settings["vision_cfg"])))
        assert tower.projection.shape[1] == settings["embed_dim"], name
        if tower.pooling is not None:
            continue  # of test_pooled_towers.py
        assert tower.prefix == ("ViTamin" not in name and "gap" not in name), name
        sides = tuple(stride * patches for stride, patches in zip(tower.stride, tower.grid, strict=True))
        assert sides == ((384, 384) if name == "ViTamin-XL-384" else native_size(tower.visual)), name  # it states 256
        if isinstance(tower.readout, MeanOfTokens):
            means.add(name)
            assert tower.readout == MeanOfTokens(slice(tower.prefix, None), "gap" in name), name
    assert means == {name for name in open_clip.list_models() if any(kind in name for kind in ("CLIPA", "ViTamin", "_gap_"))}


def test_the_table_of_towers_is_that_of_open_clip_s_lists() -> None:
    page = towers_table.PAGE.read_text(encoding="utf-8")
    assert towers_table.filled(page) == page, "make man"
    assert "| CLIPA | 6: ViT-L-14-CLIPA, ViT-L-14-CLIPA-336 … | 7 | mean of patches |" in page


def test_the_size_of_pictures_is_that_of_timm_s_positions(tmp_path: Path) -> None:
    import open_clip

    image = {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "avg", "image_size": 96}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config(image, custom_text=True)}))
    clip = open_clip.create_model(f"local-dir:{tmp_path}", load_weights=False)
    save(clip.state_dict(), tmp_path / "open_clip_model.safetensors")
    model = load_model(f"local-dir:{tmp_path}", None, "cpu")
    assert model.clip.visual.image_size == (224, 224) and model.preprocessing["size"] == [224, 224]
    picture = model.transform(Image.new("RGB", (50, 40)))
    assert model.clip.encode_image(picture[None]).shape == (1, 12)


def test_open_clip_s_tags_are_supported_or_not() -> None:
    import open_clip

    tags = open_clip.list_pretrained()
    refused = [name for name, _ in tags if tower_fault(open_clip.get_model_config(name)) is not None]
    means = [name for name, _ in tags if name not in refused and ("CLIPA" in name or "ViTamin" in name)]
    assert len(means) == 22 and len(tags) - len(refused) >= 139
    assert not [name for name in refused if not re.search("convnext|coca|SigLIP|siglip|PE-Core|MobileCLIP2?-S", name)]


def test_a_judge_may_have_any_tower(tmp_path: Path) -> None:
    import open_clip

    torch.manual_seed(0)
    weights = open_clip.create_model("Other-none").state_dict()
    model = load_model("Other-none", str(save(weights, tmp_path / "w.safetensors")), "cpu", any_tower=True)
    assert torch.equal(model.clip.state_dict()["visual.proj"], weights["visual.proj"])


UNUSUAL: dict[str, dict[str, Any]] = {
    "output_tokens": {"output_tokens": True},
    "patch dropout": {"patch_dropout": 0.5},
    "norm after pooling": {"final_ln_after_pool": True},
    "no norm before": {"no_ln_pre": True},
    "layer scale": {"ls_init_value": 0.3},
    "norms without gains": {"norm_kwargs": {"elementwise_affine": False}},
    "norms without biases": {"norm_kwargs": {"bias": False}},
    "default blocks": {"block_type": "default", "scale_fc": True},
    "tanh": {"act_kwargs": {"approximate": "tanh"}},
    "mean": {"pool_type": "avg", "final_ln_after_pool": True},
    "mean of norms": {"pool_type": "avg", "ls_init_value": 0.3},
}


@pytest.mark.parametrize("kind", UNUSUAL)
def test_unusual_towers_give_the_effects_of_plain_ones(kind: str, tmp_path: Path) -> None:
    """Direct effects of heads and MLPs, the first residual stream and biases sum to M(I), so the equations hold here."""
    from open_clip.model import CLIP

    settings = config(VIT | {"layers": 3} | UNUSUAL[kind])
    torch.manual_seed(0)
    clip = CLIP(**copy.deepcopy(settings))
    for value in clip.parameters():
        value.data = 0.3 * torch.randn_like(value) + (value.ndim == 1)
    save(clip.state_dict(), tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": settings}))
    loaded: Any = load_model(f"local-dir:{tmp_path}", None, "cpu").clip.double()
    visual, images = loaded.visual, torch.randn(2, 3, 32, 32, dtype=torch.float64)
    choice = choose_effects(loaded, None, None, None)
    assert choice.effect == "second" and choice.layers
    with torch.no_grad():
        embedding = visual(images)
        assert isinstance(embedding, torch.Tensor) and isinstance(loaded.encode_image(images), torch.Tensor)
        total = direct_total(loaded, images)
    torch.testing.assert_close(total, embedding, rtol=1e-9, atol=1e-9)


def direct_total(clip: Any, images: torch.Tensor) -> torch.Tensor:
    """Return M(I) from the suite's direct effects of all heads and neurons, plus explicit forms of the remaining terms."""
    visual = clip.visual
    blocks = visual.transformer.resblocks
    x = visual._embeds(images)
    last = x
    for block in blocks:
        last = block(last)
    norm = visual.ln_post
    gamma = torch.ones_like(last[0, 0]) if norm.weight is None else norm.weight
    beta = torch.zeros_like(last[0, 0]) if norm.bias is None else norm.bias

    def pooled(x: torch.Tensor) -> torch.Tensor:
        return x[:, 1:].mean(1) if visual.pool_type == "avg" else x[:, 0]

    def deviation(x: torch.Tensor) -> torch.Tensor:
        return ((x - x.mean(-1, keepdim=True)).square().mean(-1, keepdim=True) + norm.eps).sqrt()

    def read_out(part: torch.Tensor) -> torch.Tensor:
        if visual.final_ln_after_pool:
            return (gamma * pooled(part) / deviation(pooled(last))) @ visual.proj
        return pooled(gamma * part / deviation(last)) @ visual.proj

    left = x - last.mean(-1, keepdim=True)
    total = beta @ visual.proj
    for layer, block in enumerate(blocks):
        gains = [getattr(scale, "gamma", 1.0) for scale in (block.ls_1, block.ls_2)]
        W_V_bias = block.attn.in_proj_bias[2 * block.attn.embed_dim :]
        left = left + gains[0] * (W_V_bias @ block.attn.out_proj.weight.T + block.attn.out_proj.bias)
        left = left + gains[1] * block.mlp.c_proj.bias
        for effect, units in (("first", "neurons"), ("first", "heads")):
            paths = factored_effect(clip, effect, units)
            slab = UnitBlock(layer, torch.arange(paths.size(layer)[0]))
            (S,), _ = paths.read(images, [slab])
            total = total + torch.einsum("bnk,nkd->bd", S, paths.directions(slab))
    return total + read_out(left)


def test_a_vit_of_one_layer(tmp_path: Path) -> None:
    """It has no second-order effects, and the direct effects of its only layer."""
    from open_clip.model import CLIP

    settings = config(VIT | {"layers": 1})
    clip = CLIP(**copy.deepcopy(settings)).eval()
    for layers in (None, [0]):
        with pytest.raises(
            UsageError, match="one layer, which no later attention layer reads: no second-order effects; use --effect fi"
        ):
            choose_effects(clip, None, None, layers)
        assert choose_effects(clip, "first", None, layers).layers == (0,) == choose_effects(clip, "indirect", None, layers).layers
    clip = clip.double()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(direct_total(clip, images), clip.visual(images), rtol=1e-9, atol=1e-9)


def test_a_vit_of_one_layer_through_the_command(run: Run, tmp_path: Path) -> None:
    for number, colour in enumerate(("red", "green", "blue")):
        Image.effect_noise((40 + number, 40), 90).convert("RGB").save(tmp_path / f"{colour}.png")
    folder = local_dir(tmp_path / "model", "Tiny-8")
    save({key: value for key, value in state_of("Tiny-8").items() if "visual" not in key or ".1." not in key}, folder / "w.pt")
    (folder / "open_clip_model.safetensors").unlink()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config(VIT | {"layers": 1, "output_tokens": True})}))
    words = (*sorted(tmp_path.glob("*.png")), "--model", f"local-dir:{folder}", "-f", "jsonl", "-q")
    for effect, status in (("first", 0), ("indirect", 0), (None, 2)):
        ended = run("effects", *words, *(("--effect", effect) if effect else ()))
        assert ended.returncode == status, ended.stderr.decode()
    (line,) = ended.stderr.decode().splitlines()
    assert "this ViT has one layer" in line


def test_heat_maps_read_a_norm_without_gains_as_one_with_gains_of_one() -> None:
    from open_clip.model import CLIP

    from cliptools.segmentation.vit_baselines import attention_pass, direct_effects

    bare = CLIP(**config(VIT | {"norm_kwargs": {"elementwise_affine": False}})).eval().requires_grad_(False)
    plain = CLIP(**config(VIT)).eval().requires_grad_(False)
    plain.load_state_dict(bare.state_dict(), strict=False)  # a new LayerNorm's gains are ones, its biases zeros
    images, texts = torch.randn(2, 3, 32, 32), torch.randn(2, 3, 12)
    maps = [direct_effects(clip.visual, attention_pass(clip.visual, images), texts) for clip in (bare, plain)]
    torch.testing.assert_close(*maps)
