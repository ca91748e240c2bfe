"""Pipelines on models that pool by attention, from folders: every command works on their bundles, or refuses in one line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run
from helpers.families import READ, Study
from helpers.pooled_models import pooled_model
from helpers.sheet import pictures_of_svg
from PIL import Image

import cliptools as ct
from cliptools.analysis.margin_passes import explained_tower
from cliptools.analysis.margin_tower import unit_maps
from cliptools.front.top_files import OUTLINE_SHARE
from cliptools.models.preprocessing import seen_picture
from cliptools.models.text_encoder import encode_texts, tokenizer_of
from cliptools.render.contact_sheet import outlined
from cliptools.unit_effects.select import recorded_effect


@pytest.fixture(scope="module", params=["siglip", "coca"])
def study(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, run: Run) -> Study:
    folder = tmp_path_factory.mktemp(request.param)
    return Study(folder, pooled_model(folder / "model", request.param), run)


def test_pairs_are_the_default_and_store_no_directions(study: Study) -> None:
    bundle = ct.read(study.bundle("pairs", "--keep", "50%"))
    settings = bundle.header.settings
    depth, heads = (6, 2) if "siglip" in str(study.folder) else (3, 2)
    assert (settings["effect"], settings["units"], settings["scale"]) == ("pooled", "pairs", "raw")
    assert settings["layers"][-1] == depth - 1 and set(bundle["unit"][:, 2]) == set(range(heads))
    assert "direction" not in bundle and "mean" not in bundle and set(np.unique(bundle["sign"])) <= {-1, 0, 1}
    model = ct.load_model(study.model, device="cpu")
    second = ct.effects(study.photos, model=model, effect="second", layers=[0], top_images=2, batch_size=4, workers=0)
    assert (
        second.header.settings["effect"] == "second"
        and second["direction"].shape[1]
        == model.clip.visual(torch.zeros(1, 3, *np.atleast_1d(model.clip.visual.image_size).repeat(2)[:2])).shape[1]
    )


def check_outlines(study: Study, bundle: Path) -> None:
    """Check that clip-sheet draws on each of its pictures an outline of the unit's map, as clip-top does."""
    made, model = ct.read(bundle), ct.load_model(study.model, device="cpu")
    tower = explained_tower(recorded_effect(model.clip, made.header.settings))
    sheet = study.folder / "outlines.svg"
    words = ("--sort", "index", "--head", 2, "--images-per-unit", 1, "--images-from", study.photos, "--outlines")
    study.done("sheet", *words, "-o", sheet, bundle)
    drawn = pictures_of_svg(sheet.read_bytes())
    assert len(drawn) == 2
    for row, shown in enumerate(drawn):
        photo = study.photos / made.text_list("images")[made["top_image"][row, 0]]
        pixels = model.transform(Image.open(photo).convert("RGB"))
        r = torch.from_numpy(made["direction"][row]) if "direction" in made else None
        heat = unit_maps(tower, tower.read(pixels[None]), torch.from_numpy(made["unit"][row]).long(), r)[0]
        assert heat.shape == tower.grid and float(heat.sum()) > 0
        expected = np.asarray(outlined(seen_picture(pixels, model.preprocessing), heat.float().numpy(), OUTLINE_SHARE))
        assert (shown == expected).all(-1).mean() > 0.98


def test_every_consumer_of_pairs(study: Study, tmp_path: Path) -> None:
    pairs = study.bundle("words", "--keep", "30%")
    by, stdin = ("--bundle", pairs), pairs.read_bytes()
    assert study.done("view", pairs, "-f", "jsonl")
    study.done("judge", study.photos, "--same-names", *READ, *by, "-f", "jsonl", "--no-cache")
    study.done("concepts", study.photos, *READ, *by, "-f", "jsonl")
    study.done("spurious", "--depict", "cat", "--predict", "dog", "--words", 3, "--no-cache", pairs)
    study.done("ablate", study.photos, *READ, *by, "--classes", study.classes, "-f", "jsonl")
    study.done("shift", study.photos, "--concept", "cat", *READ, *by, "-f", "jsonl")
    study.done("top", study.photos, "--head", 2, "--raw", *READ, "-f", "jsonl", stdin=stdin)
    study.done("sheet", "--head", 2, "--images-from", study.photos, "-o", tmp_path / "sheet.png", stdin=stdin)
    check_outlines(study, pairs)
    study.done("gallery", "--head", 2, "--images-from", study.photos, "-o", tmp_path / "page.html", stdin=stdin)
    photo = ("segment", study.photos / "cat" / "00.png", *by)
    for method in ("pairs", "neurons", "heads", "effects"):
        options = ("--method", method, "--top-pairs", 7, "--out-dir", tmp_path / f"{method}-maps")
        record = json.loads(study.done(*photo, "--text", "dog", *options))
        assert (record["method"], record["top_pairs"], record["text"]) == (method, 7, "dog")
        label_map = json.loads(study.done(*photo, "--classes", study.classes, "--method", method))
        assert sum(part["share"] for part in label_map["found"]) == pytest.approx(1, abs=1e-3), label_map
    assert study.done(*photo, "--classes", study.classes, "-f", "safetensors")
    assert "--neurons is for ViTs and bundles of neurons" in study.refused(*photo, "--text", "dog", "--neurons", 3)
    assert "--sink is for CLIP-ResNets" in study.refused(*photo, "--text", "dog", "--sink", "on")
    assert "with pairs, expected one of pairs" in study.refused(*photo, "--text", "dog", "--method", "signed")
    scenes = study.done("scenes", "--count", 2, "--size", 160)
    assert study.done("segment_eval", "-", *by, "--classes", "emoji", stdin=scenes)
    study.explained(tmp_path, pairs, "heads", "rest")
    edited = ("--sees", "cat", "--writes", "dog", "--template", "{}", "-o", tmp_path / "edited.safetensors")
    assert "cannot be edited" in study.refused("edit", *edited, stdin=stdin)


def test_every_consumer_of_neurons(study: Study, tmp_path: Path) -> None:
    second, neurons = study.bundle("second", "--effect", "second", "--layers", "1"), study.bundle("neurons", "--units", "neurons")
    for bundle in (second, neurons):
        check_outlines(study, bundle)
    maps = ("segment", study.photos / "cat" / "00.png", "--text", "dog", "--out-dir")
    for name, method, bundle in (
        ("a", "neurons", second),
        ("b", "effects", second),
        ("c", "signed", neurons),
        ("d", "effects", neurons),
    ):
        record = json.loads(study.done(*maps, tmp_path / name, "--bundle", bundle, "--method", method))
        assert (record["text"], record["method"]) == ("dog", method)
    last = ("--effect", "indirect", "--layers", 5 if "siglip" in str(study.folder) else 2, "--sample-neurons", 3)
    assert "which have no second-order effects" in study.refused(
        *maps, tmp_path / "f", "--bundle", study.bundle("last", *last), "--method", "effects"
    )
    assert "expected one of neurons, signed, effects" in study.refused(
        *maps, tmp_path / "e", "--bundle", second, "--method", "rollout"
    )
    study.explained(tmp_path, second, "heads", "mlps", "rest")
    study.explained(tmp_path, neurons, "heads", "rest")
    study.done("judge", study.photos, "--same-names", *READ, "--bundle", second, "-f", "jsonl", "--no-cache")
    study.done("ablate", study.photos, *READ, "--bundle", neurons, "--classes", study.classes, "-f", "jsonl")
    edited = ("--sees", "cat", "--writes", "dog", "--template", "{}", "--head", 3)
    study.done("edit", *edited, "-o", tmp_path / "null.safetensors", stdin=second.read_bytes())
    zero = ("--how", "zero", study.photos, "-o", tmp_path / "zero.safetensors")
    study.done("edit", *edited, *zero, stdin=neurons.read_bytes())


def test_every_consumer_of_heads(study: Study, tmp_path: Path) -> None:
    """Heads of the pooling, with sums of words and with TextSpan's, and heads of self-attention."""
    words = study.bundle("heads", "--units", "heads", "--layers", "0-2")
    by = ("--bundle", words)
    pooled = study.folder / "pooling.safetensors"
    effects = (study.photos, "--model", study.model, "--units", "heads", "--top-images", 2, "--quantile", 0.5, *READ)
    pooled.write_bytes(study.done("effects", *effects))
    settings = ct.read(pooled).header.settings
    depth = 6 if "siglip" in str(study.folder) else 3
    assert (settings["effect"], settings["scale"], settings["layers"]) == ("pooled", "raw", [depth])
    assert ct.read(pooled)["unit"].tolist() == [[depth, -1, head] for head in range(2)]
    span = study.done(
        "decompose", "--m", 2, "--method", "textspan", "--pool", study.pool, "--no-cache", stdin=pooled.read_bytes()
    )
    assert study.done("view", "-f", "jsonl", stdin=span)
    study.done("judge", study.photos, "--same-names", *READ, *by, "-f", "jsonl", "--no-cache")
    study.done("concepts", study.photos, *READ, *by, "-f", "jsonl")
    study.done("spurious", "--depict", "cat", "--predict", "dog", "--words", 1, "--near", 1, "--no-cache", words)
    for bundle in (words, pooled):
        check_outlines(study, bundle)
        ablated = study.done("ablate", study.photos, *READ, "--bundle", bundle, "--classes", study.classes, "-f", "jsonl")
        assert len(ablated.splitlines()) > 1
    study.explained(tmp_path, words, "mlps", "rest")
    study.explained(tmp_path, pooled, "rest")
    study.done("shift", study.photos, "--concept", "cat", "--units-per-concept", 2, *READ, *by, "-f", "jsonl")
    study.done("top", study.photos, "--head", 2, "--raw", *READ, "-f", "jsonl", stdin=span)
    study.done("sheet", "--head", 2, "--images-from", study.photos, "-o", tmp_path / "sheet.png", stdin=span)
    study.done("gallery", "--head", 2, "--images-from", study.photos, "-o", tmp_path / "page.html", stdin=span)
    lines = study.done("view", "--head", 1, words, "-f", "jsonl")
    zero = ("--how", "zero", study.photos, "-o", tmp_path / "edited.safetensors")
    assert "heads of a ViT that pools by attention cannot be edited: every token" in study.refused("edit", *zero, stdin=lines)
    maps = ("segment", study.photos / "cat" / "00.png", "--text", "dog", "--out-dir", tmp_path / "maps", *by)
    assert "are not single neurons" in study.refused(*maps)


def test_the_parts_of_a_pooling(study: Study) -> None:
    words = ("ablate", study.photos, *READ, "--bundle", study.bundle("part", "--keep", "2%"), "--classes", study.classes)
    words += ("--ablate", "none", "-f", "jsonl", "--part")
    if "coca" in str(study.folder):
        assert "has no MLP" in study.refused(*words, "attention")
        return
    for part in ("attention", "mlp", "both"):
        records = [json.loads(line) for line in study.done(*words, part).splitlines()]
        assert len(records) == 2 and all(record["settings"]["part"] == part for record in records), records
    assert "so it needs --ablate none alone" in study.refused(*words, "mlp", "--ablate", "all")


def test_shards_of_pairs_are_one_run(study: Study, tmp_path: Path) -> None:
    words = (study.photos, "--model", study.model, "--top-images", 2, "--quantile", 0.5, *READ)
    for number in (1, 2):
        study.done("effects", *words, "--shard", f"{number}/2", "-o", tmp_path / f"{number}.partial")
    merged = study.done("merge", *(tmp_path / f"{number}.partial" for number in (1, 2)), "--images", study.photos, *READ)
    (tmp_path / "merged.safetensors").write_bytes(merged)
    (tmp_path / "whole.safetensors").write_bytes(study.done("effects", *words))
    shards, whole = ct.read(tmp_path / "merged.safetensors"), ct.read(tmp_path / "whole.safetensors")
    for name in ("unit", "sign", "top_image"):
        np.testing.assert_array_equal(shards[name], whole[name])
    np.testing.assert_allclose(shards["mean_scalar"], whole["mean_scalar"], rtol=1e-4, atol=1e-5)


def test_a_perception_encoder(tmp_path: Path, run: Run) -> None:
    study = Study(tmp_path, pooled_model(tmp_path / "model", "pe"), run)
    for number in (3, 4, 5):
        next(study.photos.rglob(f"{number:02}.png")).unlink()
    bundle = ct.read(study.bundle("pairs", "--layers", "10,11"))
    assert bundle.units == 2 * 768 * 8 and "word" in bundle


def test_texts_are_encoded_as_by_open_clip(study: Study) -> None:
    """Padding is read by a tower that is not causal and pools at the last position, and texts are cleaned as its folder says."""
    import open_clip

    model: Any = ct.load_model(study.model, device="cpu")
    texts = ["a photo of cat", "Dog!", "pizza, rocket."]
    tokens = open_clip.get_tokenizer(study.model)(texts)
    plain, _, _ = open_clip.create_model_and_transforms(study.model)
    with torch.inference_mode():
        expected = torch.nn.functional.normalize(plain.eval().encode_text(tokens), dim=-1)
    assert torch.equal(tokenizer_of(model)(texts), tokens)
    torch.testing.assert_close(encode_texts(model, texts), expected, rtol=1e-5, atol=1e-6)
    alone = torch.cat([encode_texts(model, [text]) for text in texts])  # a short text is not cut
    torch.testing.assert_close(alone, expected, rtol=1e-5, atol=1e-6)
