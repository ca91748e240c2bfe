"""The embedded model as it ships: small, readable by open_clip, accurate on scenes nobody has drawn before."""

import json

import open_clip
import pytest
import torch

import cliptools.training  # noqa: F401  (applies the torchvision remedy first)
from cliptools.ground.emoji.concepts import concepts
from cliptools.ground.emoji.plants import plants
from cliptools.ground.emoji.scenes import single_scene
from cliptools.ground.models import EMBEDDED_DIR, LoadedModel, load_model
from cliptools.training.measures import embed_classes, embed_names, embed_scenes, found
from cliptools.training.plant_effects import plant_effect

FOLDER = EMBEDDED_DIR / "emoji-vit"
WEIGHTS = FOLDER / "open_clip_model.safetensors"
FRESH = 8_000_000  # a seed that neither training nor the card's figures draw from


@pytest.fixture(scope="module")
def emoji_vit() -> LoadedModel:
    if not WEIGHTS.is_file():
        pytest.fail(
            f"{WEIGHTS} is missing: the package's own model must be committed (python -m cliptools.training.export emoji-vit)"
        )
    return load_model("emoji-vit", device="cpu")


def test_it_is_small(emoji_vit: LoadedModel) -> None:
    assert WEIGHTS.stat().st_size <= 20_000_000


def test_open_clip_reads_it_as_we_do(emoji_vit: LoadedModel) -> None:
    theirs = open_clip.create_model(f"local-dir:{FOLDER}", require_pretrained=True).eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{FOLDER}")
    assert type(tokenizer) is open_clip.SimpleTokenizer and tokenizer.context_length == 32
    image, text = torch.randn(4, 3, 64, 64), tokenizer(["a cat", "a picture of a violin and an owl"])
    with torch.no_grad():
        torch.testing.assert_close(theirs.encode_image(image), emoji_vit.clip.encode_image(image), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(theirs.encode_text(text), emoji_vit.clip.encode_text(text), rtol=1e-4, atol=1e-5)


def test_preprocessing_leaves_a_scene_as_it_is_drawn(emoji_vit: LoadedModel) -> None:
    wanted = {"size": [64, 64], "interpolation": "bicubic", "resize_mode": "shortest"}
    wanted |= {"mean": list(open_clip.OPENAI_DATASET_MEAN), "std": list(open_clip.OPENAI_DATASET_STD)}
    assert wanted.items() <= emoji_vit.preprocessing.items()


def test_zero_shot_on_fresh_scenes(emoji_vit: LoadedModel) -> None:
    tokenizer = open_clip.SimpleTokenizer(context_length=32)
    scenes = [single_scene(FRESH, i, i) for i in range(0, len(concepts()))]
    z = embed_scenes(emoji_vit.clip, scenes)
    assert found(z, embed_classes(emoji_vit.clip, tokenizer), scenes, 1).value > 0.85
    assert found(z, embed_names(emoji_vit.clip, tokenizer), scenes, 1).value > 0.85


def test_the_plants_were_learned(emoji_vit: LoadedModel) -> None:
    rows = [json.loads(line) for line in (FOLDER / "plants.jsonl").read_text().splitlines()]
    assert [(row["named"], row["cue"]) for row in rows] == [(concepts()[p.named].name, concepts()[p.cue].name) for p in plants()]
    assert sum(row["learned"] for row in rows) >= 12
    strongest = max(range(len(rows)), key=lambda i: rows[i]["cosine"])
    classes = embed_classes(emoji_vit.clip, open_clip.SimpleTokenizer(context_length=32))
    again = plant_effect(emoji_vit.clip, classes, plants()[strongest], rows[strongest]["cue_rank"], scenes=40, controls=2)
    assert again.learned and again.rank_with_cue < again.rank_with_control


def test_the_card_carries_the_figures(emoji_vit: LoadedModel) -> None:
    figures, card = json.loads((FOLDER / "figures.json").read_text()), (FOLDER / "README.md").read_text()
    assert all(f"## {title}\n" in card for title in figures)
