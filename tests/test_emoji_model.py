"""The embedded models in the package: small, readable by open_clip, and accurate on new scenes."""

import json
from pathlib import Path

import open_clip
import pytest
import torch

import training  # noqa: F401  (applies the torchvision remedy first)
from cliptools.embedded_models import EMBEDDED, EMBEDDED_DIR
from cliptools.emoji.scenes import single_scene
from cliptools.models.load import LoadedModel, load_model
from cliptools.text.emoji_concepts import concepts, plants
from training.measures import canvas_of, embed_classes, embed_names, embed_scenes, recall_at
from training.plant_effects import plant_effect

FRESH = 8_000_000  # a seed that neither training nor the card's figures draw from
LEAST = {"emoji-vit2": 0.82, "emoji-rn2": 0.79}  # zero-shot top-1 on scenes of one emoji


def folder(model: LoadedModel) -> Path:
    return EMBEDDED_DIR / model.name


@pytest.fixture(scope="module", params=EMBEDDED)
def model(request: pytest.FixtureRequest) -> LoadedModel:
    weights = EMBEDDED_DIR / request.param / "open_clip_model.safetensors"
    if not weights.is_file():
        pytest.fail(f"{weights} is missing: the package's own models must be committed (python -m training.export)")
    return load_model(request.param, device="cpu")


def test_it_is_small(model: LoadedModel) -> None:
    assert (folder(model) / "open_clip_model.safetensors").stat().st_size <= 20_000_000


def test_open_clip_reads_it_as_we_do(model: LoadedModel) -> None:
    theirs = open_clip.create_model(f"local-dir:{folder(model)}", require_pretrained=True).eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder(model)}")
    assert type(tokenizer) is open_clip.SimpleTokenizer and tokenizer.context_length == 32
    side = canvas_of(model.clip)
    image, text = torch.randn(4, 3, side, side), tokenizer(["a cat", "a picture of a violin and an owl"])
    with torch.no_grad():
        torch.testing.assert_close(theirs.encode_image(image), model.clip.encode_image(image), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(theirs.encode_text(text), model.clip.encode_text(text), rtol=1e-4, atol=1e-5)


def test_preprocessing_leaves_a_scene_as_it_is_drawn(model: LoadedModel) -> None:
    side = canvas_of(model.clip)
    assert model.preprocessing["size"] in (side, [side, side])
    wanted = {"interpolation": "bicubic", "resize_mode": "shortest"}
    wanted |= {"mean": list(open_clip.OPENAI_DATASET_MEAN), "std": list(open_clip.OPENAI_DATASET_STD)}
    assert wanted.items() <= model.preprocessing.items()


def test_zero_shot_on_fresh_scenes(model: LoadedModel) -> None:
    tokenizer = open_clip.SimpleTokenizer(context_length=32)
    scenes = [single_scene(FRESH, i, i) for i in range(0, len(concepts()))]
    z = embed_scenes(model.clip, scenes)
    assert recall_at(z, embed_classes(model.clip, tokenizer), scenes, 1).value > LEAST[model.name]
    assert recall_at(z, embed_names(model.clip, tokenizer), scenes, 1).value > LEAST[model.name]


def test_the_plants_were_learned(model: LoadedModel) -> None:
    rows = [json.loads(line) for line in (folder(model) / "plants.jsonl").read_text().splitlines()]
    assert [(row["named"], row["cue"]) for row in rows] == [(concepts()[p.named].name, concepts()[p.cue].name) for p in plants()]
    assert sum(row["learned"] for row in rows) >= 12
    strongest = max(range(len(rows)), key=lambda i: rows[i]["cosine"])
    classes = embed_classes(model.clip, open_clip.SimpleTokenizer(context_length=32))
    again = plant_effect(model.clip, classes, plants()[strongest], rows[strongest]["cue_rank"], scenes=40, controls=2)
    assert again.learned and again.rank_with_cue < again.rank_with_control


def test_the_card_carries_the_figures(model: LoadedModel) -> None:
    figures, card = json.loads((folder(model) / "figures.json").read_text()), (folder(model) / "README.md").read_text()
    assert all(f"## {title}\n" in card for title in figures)
