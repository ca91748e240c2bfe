"""A pipeline from local files for each family of image towers: effects, words, and every command on their bundle, as processes.

Towers of open_clip that have a mean of tokens are in test_mean_towers.py, SigLIP and CoCa in open_clip's form in
test_pooled_pipelines.py.
"""

import json
import string
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run
from helpers.families import LAYERS, READ, Study, timm_model
from helpers.pooled_models import pooled_model
from helpers.siglip_folder import random_siglip, save_siglip
from helpers.weights_files import save

import cliptools as ct
from cliptools.errors import ModelError
from cliptools.models.text_encoder import encode_texts, tokenizer_of


@pytest.mark.parametrize("kind", ["vit", "mean"])
def test_every_command_on_a_tower_of_timm_s(kind: str, tmp_path: Path, run: Run) -> None:
    study = Study(tmp_path, timm_model(tmp_path / "model", kind), run)
    study.label()
    bundle = study.bundle("neurons", "--layers", LAYERS[kind], "--keep", "50%")
    study.every_consumer(bundle, tmp_path)
    assert study.done("explain", study.photos, "--text", "cat", "--text", "dog", *READ, "--bundle", bundle, "-f", "jsonl")


@pytest.mark.parametrize("kind", ["eva", "vitamin", "perception encoder"])
def test_a_pipeline_on_a_larger_tower(kind: str, tmp_path: Path, run: Run) -> None:
    pooled = kind == "perception encoder"
    folder = pooled_model(tmp_path / "model", "pe") if pooled else timm_model(tmp_path / "model", kind)
    study = Study(tmp_path, folder, run, pictures=4)
    study.label()
    layers = "9" if pooled else LAYERS[kind]
    study.main_consumers(study.bundle("neurons", "--effect", "second", "--layers", layers, "--keep", "10%"), tmp_path)


def test_every_command_on_a_siglip_of_transformers(tmp_path: Path, run: Run) -> None:
    """Its pictures leave a rest beside the patches."""
    study = Study(tmp_path, save_siglip(random_siglip(), tmp_path / "model"), run)
    study.label()
    neurons = study.bundle("neurons", "--layers", "1,2", "--effect", "second", "--keep", "50%")
    study.every_consumer(neurons, tmp_path)
    windows = ("--size", 40, "--stride", 8, "--bundle", neurons, "--template", "{}")
    study.done("segment", next(study.photos.rglob("*.png")), "--text", "dog", "--out-dir", tmp_path / "windows", *windows)
    pairs = study.bundle("pairs", "--layers", "1,2", "--keep", "5%")
    assert ct.read(pairs).header.settings["units"] == "pairs"
    by, stdin = ("--bundle", pairs), pairs.read_bytes()
    study.done("judge", study.photos, "--same-names", *READ, *by, "-f", "jsonl", "--no-cache")
    study.done("concepts", study.photos, *READ, *by, "-f", "jsonl")
    assert study.done("spurious", "--depict", "cat", "--predict", "dog", "--near", 1, "--no-cache", stdin=stdin)
    classes = ("--classes", study.classes, "--template", "{}", "--part", "attention", "--ablate", "none")
    study.run("ablate", study.photos, *READ, *by, *classes, "-f", "jsonl")
    study.done("shift", study.photos, "--concept", "cat", "--template", "{}", *READ, *by, "-f", "jsonl")
    study.done("top", study.photos, "--head", 2, "--raw", *READ, "-f", "jsonl", stdin=stdin)


CHARACTERS = [*string.ascii_lowercase, *string.digits, *"-,.'()"]
BERT = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 18, "hidden_act": "gelu"}


def biomed_model(folder: Path, text_name: str) -> Any:
    """Write BiomedCLIP's kind: timm's ViT, and BERT with an MLP as its projection, whose config.json is in the folder."""
    import open_clip
    from transformers import BertConfig, BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *CHARACTERS, *(f"##{character}" for character in CHARACTERS)]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    BertConfig(**BERT, vocab_size=len(words), max_position_embeddings=21).save_pretrained(folder)
    text = {"hf_tokenizer_name": text_name, "hf_proj_type": "mlp", "hf_pooler_type": "cls_last_hidden_state_pooler"}
    image = {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear"}
    config = {"embed_dim": 14, "vision_cfg": image, "text_cfg": text | {"hf_model_name": text_name, "context_length": 21}}
    local = text | {"hf_model_name": str(folder), "hf_model_pretrained": False}
    torch.manual_seed(0)
    clip = open_clip.model.CustomTextCLIP(**config | {"text_cfg": local})
    for value in clip.parameters():
        value.data = 0.3 * torch.randn_like(value) + (value.ndim == 1)
    save(clip.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    return clip.eval()


@torch.no_grad()
def test_a_text_tower_of_transformers_reads_its_padding_as_padding(tmp_path: Path) -> None:
    """Embeddings are those of transformers' own model and of open_clip's projection, one text at a time without padding."""
    clip = biomed_model(tmp_path / "model", "microsoft/NowhereBERT")
    model = ct.load_model(f"local-dir:{tmp_path / 'model'}", device="cpu")
    texts = ["A cat", "an (old) dog, 2", "x"]
    embeddings = encode_texts(model, texts)
    for text, embedding in zip(texts, embeddings, strict=True):
        tokens = tokenizer_of(model)([text])
        end = int((tokens[0] != 0).sum())
        assert tokens.shape == (1, 21) and tokens[0, 0] == 2 and tokens[0, end - 1] == 3 and end < 21
        hidden = clip.text.transformer(input_ids=tokens[:, :end]).last_hidden_state[:, 0]  # (1, width)
        expected = torch.nn.functional.normalize(clip.text.proj(hidden), dim=-1)[0]
        torch.testing.assert_close(embedding, expected, rtol=0, atol=1e-6)


def test_a_tokenizer_that_is_named_where_the_folder_has_none(tmp_path: Path) -> None:
    biomed_model(tmp_path / "other", "microsoft/NowhereBERT")
    biomed_model(tmp_path / "model", str(tmp_path / "other"))
    for path in (tmp_path / "model").glob("*.*"):
        if path.name.startswith(("tokenizer", "vocab")):
            path.unlink()
    model, other = (ct.load_model(f"local-dir:{tmp_path / name}", device="cpu") for name in ("model", "other"))
    assert torch.equal(tokenizer_of(model)(["a (cat)"]), tokenizer_of(other)(["a (cat)"]))
    assert torch.equal(encode_texts(model, ["a cat"]), encode_texts(other, ["a cat"]))


def test_every_command_on_biomedclip_s_kind(tmp_path: Path, run: Run) -> None:
    biomed_model(tmp_path / "model", "microsoft/NowhereBERT")
    study = Study(tmp_path, tmp_path / "model", run)
    study.label()
    study.every_consumer(study.bundle("neurons", "--layers", "3", "--keep", "50%"), tmp_path)


def test_a_text_tower_whose_configuration_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    biomed_model(tmp_path / "model", "microsoft/NowhereBERT")
    (tmp_path / "model" / "config.json").unlink()
    with monkeypatch.context() as patched, pytest.raises(ModelError, match="Please `pip install transformers`"):
        patched.setattr("open_clip.hf_model.transformers", None)
        patched.setattr("cliptools.models.load.complete_open_clip", lambda libraries: None)
        ct.load_model(f"local-dir:{tmp_path / 'model'}", device="cpu")
    reason = "the hub cannot be reached; put the config.json of its text tower microsoft/NowhereBERT into the folder"
    with pytest.raises(ModelError, match=reason):
        ct.load_model(f"local-dir:{tmp_path / 'model'}", device="cpu")
