"""CLIP in the formats of the transformers library: folders, files, parts and hub caches, compared with its own model."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.weights_files import registered, state_of
from torch.nn.functional import normalize

from cliptools.errors import ModelError
from cliptools.library_patches import ensure_torchvision
from cliptools.models.load import LoadedModel, load_model, load_recorded_model
from cliptools.models.text_encoder import encode_texts, tokenizer_of

WORDS = ["a cat", "an old red house"]
VIEW = {
    "hidden_size": 16,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {
    "hidden_size": 12,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": 16,
}
ENDS = {"vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407}
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
}


@pytest.fixture(scope="module", autouse=True)
def tiny_names(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with registered(tmp_path_factory.mktemp("configs")):
        yield


def random_clip(image: dict[str, Any], text: dict[str, Any], width: int = 10) -> Any:
    """Return a model of transformers in which every tensor is random, including biases and gains."""
    ensure_torchvision()
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(vision_config=image, text_config=text, projection_dim=width)).eval()
    for value in model.parameters():
        value.data = 0.2 * torch.randn_like(value) + (value.ndim == 1)
    model.logit_scale.data = torch.tensor(2.5)
    return model


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """Return a model and its folder."""
    model = random_clip(VIEW, TEXT | ENDS)
    folder = tmp_path_factory.mktemp("theirs")
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"size": {"shortest_edge": 32}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3, "resample": 2})
    )
    return model, folder


def features(model: Any, images: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return transformers' own features with unit norm; its versions return different types."""
    answers = [model.get_image_features(pixel_values=images), model.get_text_features(input_ids=tokens)]
    tensors = [answer if isinstance(answer, torch.Tensor) else answer.pooler_output for answer in answers]
    return normalize(tensors[0], dim=1), normalize(tensors[1], dim=1)


@torch.no_grad()
def assert_equal_features(loaded: LoadedModel, model: Any) -> None:
    clip: Any = loaded.clip
    images = torch.randn(3, 3, *clip.visual.image_size, generator=torch.Generator().manual_seed(1))
    tokens = tokenizer_of(loaded)(WORDS)
    image, text = features(model, images, tokens)
    torch.testing.assert_close(clip.encode_image(images, normalize=True), image, rtol=0, atol=8e-7)
    torch.testing.assert_close(clip.encode_text(tokens, normalize=True), text, rtol=0, atol=8e-7)
    torch.testing.assert_close(encode_texts(loaded, WORDS), text, rtol=0, atol=8e-7)
    assert torch.equal(clip.logit_scale, model.logit_scale)


def test_a_folder_computes_what_transformers_computes(theirs: tuple[Any, Path], capsys: pytest.CaptureFixture[str]) -> None:
    model, folder = theirs
    loaded = load_model(f"local-dir:{folder}", None, "cpu")
    assert_equal_features(loaded, model)
    assert loaded.identity["activation"] == {"image": "QuickGELU", "text": "QuickGELU"} and loaded.identity["grid"] == [4, 4]
    assert loaded.preprocessing["mean"] == [0.5] * 3 and loaded.preprocessing["interpolation"] == "bilinear"
    assert loaded.sources["activation"].startswith("config.json; model.safetensors has QuickGELU")
    assert "warning" not in capsys.readouterr().err
    assert load_recorded_model(loaded.identity).sha256 == loaded.sha256


def forms(model: Any, folder: Path, where: Path) -> Iterator[str]:
    """Return names of the model in other forms."""
    shutil.copytree(folder, where / "pickled")
    torch.save(
        model.state_dict() | {"text_model.embeddings.position_ids": torch.arange(16)[None]},
        where / "pickled" / "pytorch_model.bin",
    )
    (where / "pickled" / "model.safetensors").unlink()
    yield f"local-dir:{where / 'pickled'}"
    model.save_pretrained(where / "parts", max_shard_size="400KB")
    assert len(list((where / "parts").glob("*.safetensors"))) > 1
    yield f"local-dir:{where / 'parts'}"
    cache = where / "hub" / "models--openai--clip-tiny"
    shutil.copytree(folder, cache / "snapshots" / ("0" * 40))
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0" * 40)
    yield f"local-dir:{cache}"
    yield "hf-hub:openai/clip-tiny"


def test_forms_of_it(theirs: tuple[Any, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pickles, several files and hub caches give one digest, with the tokenizer."""
    model, folder = theirs
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    plain = load_model(f"local-dir:{folder}", None, "cpu")
    for name in forms(model, folder, tmp_path):
        loaded = load_model(name, None, "cpu")
        assert loaded.sha256 == plain.sha256 and loaded.identity["architecture"], name
        assert torch.equal(tokenizer_of(loaded)(WORDS), tokenizer_of(plain)(WORDS))


def test_files_under_a_name_of_open_clip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file alone can be named; the activation comes from the config beside it."""
    model = random_clip(VIEW | {"intermediate_size": 64}, SIZES | {"vocab_size": 100, "eos_token_id": 99}, 12)
    model.save_pretrained(tmp_path)
    loaded = load_model("Tiny-8-quickgelu", str(tmp_path / "model.safetensors"), "cpu")
    assert set(loaded.clip.state_dict()) == set(state_of("Tiny-8"))
    assert "all numbers will be off" not in capsys.readouterr().err
    folder = load_model(f"local-dir:{tmp_path}", None, "cpu")
    assert folder.sha256 == loaded.sha256 and folder.identity["architecture"] == loaded.identity["architecture"]
    load_model("Tiny-8", str(tmp_path), "cpu")
    assert "was trained with QuickGELU (config.json beside it has hidden_act quick_gelu)" in capsys.readouterr().err
    with pytest.raises(ModelError, match=r"layers 2, expected 3; it fits --model Tiny-8"):
        load_model("Tiny-8-deep", str(tmp_path / "model.safetensors"), "cpu")


def test_an_image_tower_of_transformers(tmp_path: Path) -> None:
    ensure_torchvision()
    from transformers import CLIPVisionModelWithProjection

    model = random_clip(VIEW | {"intermediate_size": 64}, SIZES | {"vocab_size": 100, "eos_token_id": 99}, 12)
    model.save_pretrained(tmp_path / "whole")
    model.config.vision_config.projection_dim = 12
    alone = CLIPVisionModelWithProjection(model.config.vision_config)
    alone.load_state_dict({key: value for key, value in model.state_dict().items() if key.startswith("vis")})
    alone.save_pretrained(tmp_path / "image")
    plain = load_model("Tiny-8-quickgelu", str(tmp_path / "whole"), "cpu")
    for place in (tmp_path / "image", tmp_path / "image" / "model.safetensors"):
        with pytest.raises(ModelError, match="an image tower alone"):
            load_model("Tiny-8-quickgelu", str(place), "cpu")
        loaded = load_model("Tiny-8-quickgelu", str(place), "cpu", text_from=str(tmp_path / "whole"))
        assert loaded.sha256 == plain.sha256
    with pytest.raises(ModelError, match="of an image tower alone: --model NAME --pretrained FILE --text-from TAG or FILE"):
        load_model(f"local-dir:{tmp_path / 'image'}", None, "cpu")


@pytest.mark.parametrize(
    ("image", "text"),
    [
        ({"hidden_act": "gelu"}, {"hidden_act": "gelu"}),
        ({"hidden_act": "gelu_new", "layer_norm_eps": 1e-3}, {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-2}),
        ({"num_attention_heads": 4, "image_size": 24}, {"eos_token_id": 2}),
    ],
)
def test_settings_of_a_config(image: dict[str, Any], text: dict[str, Any], tmp_path: Path) -> None:
    model = random_clip(VIEW | image, TEXT | ENDS | text)
    model.save_pretrained(tmp_path)
    assert_equal_features(load_model(f"local-dir:{tmp_path}", None, "cpu"), model)


def test_an_end_token_that_is_not_the_last_id(tmp_path: Path) -> None:
    model = random_clip(VIEW, TEXT | {"vocab_size": 120, "eos_token_id": 99})
    model.save_pretrained(tmp_path)
    tokens = torch.tensor([[5, 110, 7, 99, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], [99, *range(15)]])
    clip: Any = load_model(f"local-dir:{tmp_path}", None, "cpu").clip
    with torch.no_grad():
        expected = features(model, torch.zeros(1, 3, 32, 32), tokens)[1]
        torch.testing.assert_close(clip.encode_text(tokens, normalize=True), expected, rtol=0, atol=8e-7)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": "chinese_clip"}, "of transformers' model_type 'chinese_clip'; supported are its clip and siglip"),
        ({"model_type": None, "architecture": "vit_base_patch16_224"}, r"its config.json is timm's \(vit_base_patch16_224\)"),
        ({"vision_config": None}, "no vision_config and text_config"),
        ({"vision_config": VIEW | {"hidden_act": "relu"}}, "has hidden_act 'relu', expected one of quick_gelu, gelu"),
        ({"vision_config": VIEW | {"hidden_act": "gelu"}}, "has hidden_act gelu for images and quick_gelu for texts"),
        ({"vision_config": VIEW | {"num_attention_heads": 0}}, "has sizes that are not whole numbers above 0"),
        ({"text_config": TEXT | {"hidden_size": "wide"}}, "has sizes that are not whole numbers above 0"),
    ],
)
def test_other_configs_are_refused_before_weights_are_read(
    change: dict[str, Any], reason: str, theirs: tuple[Any, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = json.loads((theirs[1] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ModelError, match=reason):
        load_model(f"local-dir:{tmp_path}", None, "cpu")


def test_a_folder_without_weights(theirs: tuple[Any, Path], tmp_path: Path) -> None:
    shutil.copy(theirs[1] / "config.json", tmp_path)
    with pytest.raises(ModelError, match=r"no weights in this folder, expected one of model.safetensors"):
        load_model(f"local-dir:{tmp_path}", None, "cpu")


def test_names_of_hubs_and_folders_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="a hub's model is named hf-hub:openai/clip-vit-base-patch32"):
        load_model("openai/clip-vit-base-patch32", None, "cpu")
    with pytest.raises(ModelError, match=f"a folder is named local-dir:{tmp_path}"):
        load_model(str(tmp_path), None, "cpu")
