"""SigLIP and SigLIP2 in the format of the transformers library: features compared with its own model, texts, forms, refusals."""

import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.siglip_folder import PREPROCESSOR, TEXT, VIEW, WORDS, random_siglip, save_siglip
from torch.nn.functional import normalize

from cliptools.errors import ModelError
from cliptools.models.architecture import architecture_facts
from cliptools.models.checkpoints.transformers_form import DEFAULTS, build_model, open_clip_config
from cliptools.models.load import load_model, load_recorded_model
from cliptools.models.text_encoder import encode_texts, text_tower_digest, tokenizer_of
from cliptools.towers.kinds import tower_of

TEXTS = ["a photo of cat", "Dog!", "pizza, rocket.", "a"]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """Return a model and its folder."""
    model = random_siglip()
    return model, save_siglip(model, tmp_path_factory.mktemp("siglip"))


def features(model: Any, images: torch.Tensor, tokens: torch.Tensor) -> list[torch.Tensor]:
    """Return transformers' own features; its versions return different types."""
    answers = [model.get_image_features(pixel_values=images), model.get_text_features(input_ids=tokens)]
    return [answer if isinstance(answer, torch.Tensor) else answer.pooler_output for answer in answers]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
@pytest.mark.parametrize(
    ("view", "text"),
    [
        ({}, {}),
        ({"hidden_act": "gelu", "layer_norm_eps": 1e-3}, {"hidden_act": "gelu_new", "layer_norm_eps": 1e-2}),
        ({"image_size": 24, "patch_size": 8, "num_attention_heads": 4}, {"max_position_embeddings": 5}),
        ({"hidden_size": 56, "intermediate_size": 488, "num_hidden_layers": 1}, {"projection_size": 56, "vocab_size": 49408}),
        ({"hidden_size": 20, "num_attention_heads": 2, "layer_norm_eps": 1e-5}, {"projection_size": None}),
    ],
)
def test_a_folder_computes_what_transformers_computes(
    view: dict[str, Any], text: dict[str, Any], dtype: torch.dtype, tolerance: float, tmp_path: Path
) -> None:
    view = {"num_attention_heads": 4 if "hidden_size" in view else 3} | view
    model = random_siglip(view, text)
    clip: Any = load_model(f"local-dir:{save_siglip(model, tmp_path)}", None, "cpu").clip
    model.to(dtype), clip.to(dtype)
    images = torch.randn(3, 3, *clip.visual.image_size, dtype=dtype)
    tokens = torch.randint(0, 50, (4, clip.context_length))
    with torch.no_grad():
        image, words = features(model, images, tokens)
        torch.testing.assert_close(clip.encode_image(images), image, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(clip.encode_text(tokens), words, rtol=tolerance, atol=tolerance)
        logits = model(input_ids=tokens, pixel_values=images).logits_per_image
        torch.testing.assert_close(clip.get_logits(images, tokens)[0], logits, rtol=tolerance, atol=10 * tolerance)


def test_all_that_the_folder_says_is_used(theirs: tuple[Any, Path], capsys: pytest.CaptureFixture[str]) -> None:
    loaded = load_model(f"local-dir:{theirs[1]}", None, "cpu")
    assert loaded.identity["activation"] == {"image": "GELUTanh", "text": "GELU(tanh)"} and loaded.identity["grid"] == [4, 4]
    assert loaded.preprocessing["mean"] == [0.5] * 3 and loaded.preprocessing["resize_mode"] == "squash"
    assert loaded.preprocessing["interpolation"] == "bilinear" and loaded.sources["preprocessing"] == "preprocessor_config.json"
    assert "has hidden_act gelu_pytorch_tanh" in loaded.sources["activation"]
    assert capsys.readouterr().err == ""
    assert load_recorded_model(loaded.identity).sha256 == loaded.sha256


@torch.no_grad()
def test_texts_are_those_of_transformers(theirs: tuple[Any, Path]) -> None:
    """Lower case and no punctuation; texts are padded to the whole length, which changes what the last position reads."""
    from transformers import AutoTokenizer

    model, folder = theirs
    loaded = load_model(f"local-dir:{folder}", None, "cpu")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    cleaned = ["a photo of cat", "dog", "pizza rocket", "a"]
    tokens = tokenizer(cleaned, padding="max_length", max_length=9, truncation=True, return_tensors="pt").input_ids
    assert torch.equal(tokenizer_of(loaded)(TEXTS), tokens) and tokens[3].tolist() == [3] + [1] * 8
    expected = normalize(features(model, torch.zeros(1, 3, 31, 31), tokens)[1], dim=1)
    torch.testing.assert_close(encode_texts(loaded, TEXTS), expected, rtol=0, atol=1e-6)
    alone = torch.cat([encode_texts(loaded, [text]) for text in TEXTS])  # a short text is not cut
    torch.testing.assert_close(alone, expected, rtol=0, atol=1e-6)
    cut = normalize(model.get_text_features(input_ids=tokens[3:, :2]).pooler_output, dim=1)
    assert float((cut @ expected[3:].T).abs()) < 0.99


def test_the_sigmoid_s_bias_changes_no_direction(theirs: tuple[Any, Path], tmp_path: Path) -> None:
    folder = theirs[1]
    shutil.copytree(folder, tmp_path / "other")
    other = random_siglip()
    other.logit_bias.data = torch.tensor([3.0])
    other.save_pretrained(tmp_path / "other")
    pair: list[Any] = [load_model(f"local-dir:{place}", None, "cpu") for place in (folder, tmp_path / "other")]
    assert pair[0].sha256 != pair[1].sha256 and [float(loaded.clip.logit_bias) for loaded in pair] == [-7, 3]
    assert torch.equal(encode_texts(pair[0], WORDS), encode_texts(pair[1], WORDS))
    images, tokens = torch.randn(2, 3, 31, 31), tokenizer_of(pair[0])(TEXTS)
    logits = [loaded.clip.get_logits(images, tokens)[0] for loaded in pair]
    torch.testing.assert_close(logits[0] + 10, logits[1], rtol=1e-5, atol=1e-5)
    assert torch.equal(logits[0].argsort(), logits[1].argsort())
    assert torch.equal(tower_of(pair[0].clip.visual).projection, tower_of(pair[1].clip.visual).projection)


def forms(model: Any, folder: Path, where: Path) -> Iterator[str]:
    """Return names of the model in other forms."""
    shutil.copytree(folder, where / "pickled")
    torch.save({f"model.{key}": value for key, value in model.state_dict().items()}, where / "pickled" / "pytorch_model.bin")
    (where / "pickled" / "model.safetensors").unlink()
    yield f"local-dir:{where / 'pickled'}"
    shutil.copytree(folder, where / "parts")
    (where / "parts" / "model.safetensors").unlink()
    model.save_pretrained(where / "parts", max_shard_size="60KB")
    assert len(list((where / "parts").glob("*.safetensors"))) > 1
    yield f"local-dir:{where / 'parts'}"
    cache = where / "hub" / "models--google--siglip-tiny"
    shutil.copytree(folder, cache / "snapshots" / ("0" * 40))
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0" * 40)
    yield f"local-dir:{cache}"
    yield "hf-hub:google/siglip-tiny"


def test_forms_of_it(theirs: tuple[Any, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pickles, several files and hub caches give one digest, with the tokenizer and the preprocessing."""
    model, folder = theirs
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    plain = load_model(f"local-dir:{folder}", None, "cpu")
    for name in forms(model, folder, tmp_path):
        loaded = load_model(name, None, "cpu")
        assert loaded.sha256 == plain.sha256 and loaded.identity["architecture"] == plain.identity["architecture"], name
        assert loaded.preprocessing == plain.preprocessing and text_tower_digest(loaded) == text_tower_digest(plain), name
        assert torch.equal(tokenizer_of(loaded)(TEXTS), tokenizer_of(plain)(TEXTS))


def test_a_tokenizer_that_pads_in_another_way_has_its_own_entry_in_the_cache(theirs: tuple[Any, Path], tmp_path: Path) -> None:
    shutil.copytree(theirs[1], tmp_path / "folder")
    path = tmp_path / "folder" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"padding_side": "left"}))
    loaded, other = (load_model(f"local-dir:{folder}", None, "cpu") for folder in (theirs[1], tmp_path / "folder"))
    assert loaded.sha256 == other.sha256 and text_tower_digest(loaded) != text_tower_digest(other)
    assert tokenizer_of(other)(["a"])[0, -2:].tolist() == [3, 1]


def test_settings_of_pictures_beside_those_of_texts(theirs: tuple[Any, Path], tmp_path: Path) -> None:
    """transformers 5 saves both in one file; without any file, all SigLIPs have the same settings."""
    shutil.copytree(theirs[1], tmp_path / "folder")
    (tmp_path / "folder" / "preprocessor_config.json").unlink()
    loaded = load_model(f"local-dir:{tmp_path / 'folder'}", None, "cpu")
    assert loaded.preprocessing["mean"] == loaded.preprocessing["std"] == [0.5] * 3
    assert loaded.preprocessing["resize_mode"] == "squash" and loaded.sources["preprocessing"] == "default (SigLIP's)"
    both = {"image_processor": PREPROCESSOR | {"image_mean": [0.25] * 3}, "processor_class": "SiglipProcessor"}
    (tmp_path / "folder" / "processor_config.json").write_text(json.dumps(both))
    loaded = load_model(f"local-dir:{tmp_path / 'folder'}", None, "cpu")
    assert loaded.preprocessing["mean"] == [0.25] * 3 and loaded.sources["preprocessing"] == "processor_config.json"


def test_real_configurations_have_the_architecture_of_open_clip_s_models() -> None:
    """The hub's configurations of Base state only their types. timm's Base has exact GELUs, which are left out here."""
    import open_clip

    base = {"model_type": "siglip", "text_config": {"model_type": "siglip_text_model"}, "vision_config": {}}
    sizes = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
    image = sizes | {"patch_size": 16, "image_size": 256}
    cases = {
        "ViT-B-16-SigLIP": base,
        "ViT-SO400M-16-SigLIP2-256": base | {"text_config": sizes | {"vocab_size": 256000}, "vision_config": image},
    }
    for name, config in cases.items():
        with torch.device("meta"):
            expected = open_clip.create_model(name, load_weights=False, device="meta")
            clip: Any = build_model(open_clip_config(config))
        shapes, wanted = ({key: value.shape for key, value in model.state_dict().items()} for model in (clip, expected))
        assert shapes == wanted
        facts, others = (architecture_facts(model, {"size": 224}) for model in (clip, expected))
        if name == "ViT-B-16-SigLIP":
            for side in ("image", "text"):
                assert facts[side].pop("activation") != others[side].pop("activation")
        assert facts == others
    assert DEFAULTS["siglip"][1]["vocab_size"] == 32000


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": "siglip2"}, r"of a SigLIP2 for pictures of any shape \(NaFlex\); for those of one size it has 'siglip'"),
        ({"model_type": "siglip_vision_model"}, "an image tower alone"),
        ({"vision_config": VIEW | {"vision_use_head": False}}, "vision_use_head false: an image tower without the pooling"),
        (
            {"vision_config": VIEW | {"hidden_act": "quick_gelu"}},
            "has hidden_act 'quick_gelu', expected one of gelu, gelu_pytorch",
        ),
        ({"text_config": TEXT | {"projection_size": None}}, "has outputs of 36 numbers for images and 20 for texts"),
        ({"vision_config": VIEW | {"image_size": "large"}}, "has sizes that are not whole numbers above 0"),
    ],
)
def test_other_configurations_are_refused_before_weights_are_read(
    change: dict[str, Any], reason: str, theirs: tuple[Any, Path], tmp_path: Path
) -> None:
    config = json.loads((theirs[1] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ModelError, match=reason):
        load_model(f"local-dir:{tmp_path}", None, "cpu")


def test_weights_that_do_not_fit_their_configuration(theirs: tuple[Any, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(theirs[1], tmp_path / "folder")
    tensors = load_file(theirs[1] / "model.safetensors")
    for change, reason in (
        (
            {"vision_model.embeddings.patch_embedding.weight": torch.zeros(36, 147)},
            r"SigLIP2 for pictures of any shape \(NaFlex\)",
        ),
        ({"vision_model.head.probe": torch.zeros(1, 1, 35)}, r"1 has another shape or type \(visual.trunk.attn_pool.latent"),
        (
            {"vision_model.head.attention.in_proj_bias": torch.zeros(107)},
            r"1 is not known to it \(vision_model.head.attention.in",
        ),
    ):
        save_file(tensors | change, tmp_path / "folder" / "model.safetensors")
        with pytest.raises(ModelError, match=reason):
            load_model(f"local-dir:{tmp_path / 'folder'}", None, "cpu")


@pytest.mark.skipif(importlib.util.find_spec("sentencepiece") is not None, reason="sentencepiece is installed")
def test_a_tokenizer_that_needs_a_package(theirs: tuple[Any, Path], tmp_path: Path) -> None:
    shutil.copytree(theirs[1], tmp_path / "folder")
    path = tmp_path / "folder" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "SiglipTokenizer"}))
    with pytest.raises(
        ModelError, match=r"its tokenizer cannot be loaded \(it needs sentencepiece, which is not installed: pip i"
    ):
        tokenizer_of(load_model(f"local-dir:{tmp_path / 'folder'}", None, "cpu"))
