"""--preprocess and configs beside weights: the preprocessing of a model, which a pipe keeps."""

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.advgen_input import inside
from helpers.weights_files import local_dir, registered, save, state_of
from PIL import Image

from cliptools.errors import ModelError, UsageError
from cliptools.io.bundle import Bundle, read_bundle
from cliptools.io.header import NAMED, model_difference, recorded_model
from cliptools.models.load import load_model, load_recorded_model
from cliptools.models.preprocessing import parse_preprocess
from cliptools.models.text_encoder import encode_texts

SQUASH = {"mean": [0.5] * 3, "std": [0.25, 0.5, 0.75], "interpolation": "bilinear", "resize_mode": "squash"}
OPTION = "mean=inception,std=0.25/0.5/0.75,interpolation=bilinear,resize=squash"
OPENAI = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}


@pytest.fixture(scope="module", autouse=True)
def tiny_names(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with registered(tmp_path_factory.mktemp("configs")):
        yield


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, numbers = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i in range(12):
        pixels = numbers.integers(0, 256, (50 + 3 * i, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((90, 50)).save(folder / f"{i:02d}.png")
    return folder


def read(data: bytes) -> Bundle:
    return read_bundle(io.BytesIO(data), "test")


def same_tensors(one: Bundle, other: Bundle) -> None:
    assert one.tensors.keys() == other.tensors.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one.tensors)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mean=0.5", {"mean": [0.5] * 3}),
        ("std=0.2/0.3/0.4,resize=longest", {"std": [0.2, 0.3, 0.4], "resize_mode": "longest"}),
        (" interpolation = bilinear , mean = imagenet ", {"interpolation": "bilinear", "mean": [0.485, 0.456, 0.406]}),
        (OPTION, SQUASH),
        ("laion2b_s32b_b82k", {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}),
        ("openai", OPENAI | {"interpolation": "bicubic", "resize_mode": "shortest"}),
        ("ViT-B-16-SigLIP:webli,resize=shortest",
         {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}),
        ("ViT-H-14-quickgelu:dfn5b", OPENAI | {"interpolation": "bicubic", "resize_mode": "squash"}),
        ("mean=0,std=1", {"mean": [0.0] * 3, "std": [1.0] * 3}),
    ],
)  # fmt: skip
def test_forms_of_the_option(text: str, expected: dict[str, Any]) -> None:
    assert parse_preprocess(text, "ViT-L-14") == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nowhere", "'nowhere' is not a tag of ViT-L-14 .its tags: openai, "),
        ("ViT-B-99:openai", "'openai' is not a tag of ViT-B-99 .open_clip knows no tags of it"),
        ("mean=0.5,openai", "expected TAG, MODEL:TAG, or mean=0.5.*; found 'openai'"),
        ("", "'' is not a tag of ViT-L-14"),
        ("mean=0.5,", "found ''"),
        ("size=224", "found 'size=224'"),
        ("mean=0.5,mean=0.5", "mean is given twice, expected each setting once"),
        ("openai,std=0.2, std =0.3", "std is given twice"),
        ("resize=squash,mean=0.5,resize=squash", "resize is given twice"),
        ("mean=0.48,0.46,0.41", "found '0.46'; three numbers are written 0.48/0.46/0.41"),
        ("resize=crop", "resize is one of shortest, longest, squash, found 'crop'"),
        ("interpolation=nearest", "interpolation is one of bicubic, bilinear, found 'nearest'"),
        ("mean=a", "mean is a number, three as 0.48/0.46/0.41, or one of openai, imagenet, inception, found 'a'"),
        ("std=0.1/0.2", "std is a number, three as"),
        ("std=0", "std of pixels from 0 to 1 is above 1e-06 and at most 1, found 0$"),
        ("std=1e-300", "std of pixels from 0 to 1 is above 1e-06 and at most 1, found 1e-300$"),  # 0 in float32
        ("mean=123.7/116.3/103.5", "found 123.7; divide values for pixels from 0 to 255 by 255"),
        ("mean=-0.1", "mean of pixels from 0 to 1 is from 0 and at most 1, found -0.1"),
        ("std=nan", "found nan"),
        ("std=inf", "found inf"),
    ],
)
def test_values_that_cannot_be(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        parse_preprocess(text, "ViT-L-14")
    assert str(error.value).startswith(f"--preprocess {text}: ")


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("open_clip_config.json", {"preprocess_cfg": SQUASH}, SQUASH),
        ("open_clip_config.json", {"preprocess_cfg": {"mean": 0.5, "interpolation": "random"}}, {"mean": [0.5] * 3}),
        ("preprocessor_config.json",
         {"image_mean": [0.5] * 3, "image_std": [0.25, 0.5, 0.75], "resample": 2, "size": {"height": 32, "width": 32}}, SQUASH),
        ("preprocessor_config.json",
         {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"shortest_edge": 32}, "crop_size": 32},
         {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "shortest"}),
        ("preprocessor_config.json",
         {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": 32, "feature_extractor_type": "CLIPFeatureExtractor"},
         {"mean": [0.5] * 3, "resize_mode": "shortest", "interpolation": "bicubic"}),
        ("preprocessor_config.json",
         {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": 32, "image_processor_type": "ViTImageProcessor"},
         {"mean": [0.5] * 3, "resize_mode": "squash"}),
        ("preprocessor_config.json", {"do_normalize": False, "size": 32}, {"mean": [0.0] * 3, "std": [1.0] * 3})
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", ["file", "folder"])
def test_a_config_beside_the_weights_is_taken(
    name: str, settings: dict[str, Any], expected: dict[str, Any], form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = local_dir(tmp_path / "model", "Tiny-8")
    config = json.loads((folder / "open_clip_config.json").read_text())
    (folder / name).write_text(json.dumps((config if name.startswith("open") else {}) | settings))
    weights = folder / "open_clip_model.safetensors"
    model = load_model(*(("Tiny-8", str(weights)) if form == "file" else (f"local-dir:{folder}", None)), "cpu")
    assert expected.items() <= model.preprocessing.items() and model.preprocessing["size"] in (32, [32, 32])
    assert model.identity["sources"]["preprocessing"] == name
    assert "preprocessing" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "settings",
    [{"mean": "grey"}, {"mean": [0.5, 0.5]}, {"std": [0.0, 1, 1]}, {"interpolation": "box"}, {"resize_mode": 3}],
)
def test_a_damaged_config_beside_the_weights_is_named(settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"preprocess_cfg": settings}))
    path = save(state_of("Tiny-8"), tmp_path / "weights.pt")
    key = next(iter(settings))
    with pytest.raises(ModelError, match=f"open_clip_config.json: preprocessing `{key}` .*, expected (three|one of)"):
        load_model("Tiny-8", str(path), "cpu")


def test_transformers_larger_resize_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"shortest_edge": 36}, "do_center_crop": True}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config | {"crop_size": {"height": 32, "width": 32}}))
    load_model("Tiny-8", str(save(state_of("Tiny-8"), tmp_path / "weights.pt")), "cpu")
    assert "warning: preprocessor_config.json resizes to 36 pixels and crops 32; here" in capsys.readouterr().err


def test_without_a_config_the_default_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(state_of("Tiny-8"), tmp_path / "weights.safetensors")
    model = load_model("Tiny-8", str(path), "cpu")
    assert "no preprocessing is recorded beside weights.safetensors: OpenAI's mean and deviation are used; --preprocess sets" in (
        capsys.readouterr().err
    )
    assert OPENAI.items() <= model.preprocessing.items()
    assert model.identity["sources"]["preprocessing"] == "default (OpenAI's)"
    model = load_model("Tiny-8", str(path), "cpu", preprocess="mean=0.5")
    assert "preproc" not in capsys.readouterr().err
    assert model.preprocessing["mean"] == [0.5] * 3 and model.identity["sources"]["preprocessing"] == "--preprocess mean=0.5"


def test_a_name_that_speaks_of_a_tag_suggests_its_preprocessing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import open_clip

    tags = {"laion2b_s32b_b82k": {"quick_gelu": False, "fill_color": 3} | SQUASH, "plain": SQUASH | OPENAI}
    tags["plain"] |= {"interpolation": "bicubic", "resize_mode": "shortest"}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "Tiny-8", tags)
    state = state_of("Tiny-8")
    load_model("Tiny-8", str(save(state, tmp_path / "CLIP-laion2B-s32B-b82K.safetensors")), "cpu")
    expected = "but tag laion2b_s32b_b82k has mean 0.5, std 0.25/0.5/0.75, interpolation bilinear, resize squash: --preprocess l"
    assert expected in capsys.readouterr().err
    load_model("Tiny-8", str(save(state, tmp_path / "plain.safetensors")), "cpu")
    assert "OpenAI's mean and deviation are used, as of tag plain" in capsys.readouterr().err
    model = load_model("Tiny-8", str(tmp_path / "plain.safetensors"), "cpu", preprocess="laion2b_s32b_b82k")
    assert SQUASH.items() <= model.preprocessing.items() and model.preprocessing["fill_color"] == 0


def test_overriding_what_a_model_brings_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    model = load_model("emoji-vit2", None, "cpu", preprocess="resize=squash,std=0.5")
    assert (
        "warning: --preprocess resize=squash,std=0.5 overrides the preprocessing of the embedded model: std 0.5 instead of "
        in (capsys.readouterr().err)
    )
    record = recorded_model(model.identity)
    assert record["preprocessing"] == model.preprocessing and record["architecture"] == model.computes.digest
    again = load_recorded_model(record | {"precision": "fp32"}, "cpu", source="a record")
    assert again.identity == model.identity | {"sources": record["sources"]} and not capsys.readouterr().err
    load_model("emoji-vit2", None, "cpu", preprocess="resize=shortest")
    assert not capsys.readouterr().err  # as it is


def test_a_pipe_keeps_the_preprocessing(photos: Path, tiny_clip_dir: Path, tmp_path: Path) -> None:
    """Set by the option or by the folder's config, it gives the same tensors and records in every command."""
    (tmp_path / "pool.txt").write_text("".join(f"{word}\n" for word in ("cat", "dog", "boat", "tree", "red", "far")))
    config = json.loads((tiny_clip_dir / "open_clip_config.json").read_text())
    found = {}
    for name, preprocess, option in (("config", SQUASH, ()), ("option", {}, ("--preprocess", OPTION)), ("neither", {}, ())):
        folder = shutil.copytree(tiny_clip_dir, tmp_path / name)
        (folder / "open_clip_config.json").write_text(json.dumps(config | {"preprocess_cfg": preprocess}))
        common = ("--model", f"local-dir:{folder}", "--layers", "1,2", "--top-images", 5, "--device", "cpu", *option)
        effects = inside("effects", photos, *common, "-f", "safetensors")
        assert effects.returncode == 0, effects.stderr.decode()
        neurons = inside("decompose", "--m", 3, "--pool", tmp_path / "pool.txt", stdin=effects.stdout)
        (tmp_path / f"{name}.safetensors").write_bytes(neurons.stdout)
        bundle = tmp_path / f"{name}.safetensors"
        concepts = inside("concepts", photos, "--bundle", bundle, "--neurons", "all", "-f", "jsonl")
        assert (neurons.returncode, concepts.returncode) == (0, 0), neurons.stderr + concepts.stderr
        records = [json.loads(line) for line in concepts.stdout.splitlines()]
        found[name] = read(neurons.stdout), [{k: v for k, v in one.items() if k not in ("model", "bundle")} for one in records]
        assert ("preprocessing" in records[0]["model"]) == (name == "option")
    bundles = {name: bundle for name, (bundle, _) in found.items()}
    same_tensors(bundles["option"], bundles["config"])
    assert found["option"][1] == found["config"][1] != found["neither"][1]
    assert not np.array_equal(bundles["option"]["direction"], bundles["neither"]["direction"])
    models = {name: bundle.header.model for name, bundle in bundles.items()}
    assert models["option"]["architecture"] == models["config"]["architecture"] != models["neither"]["architecture"]
    assert models["option"]["sources"]["preprocessing"] == f"--preprocess {OPTION}"
    assert bundles["option"].header.history[0]["arguments"]["preprocess"] == OPTION
    other = bundles["option"].header.model | {"preprocessing": models["neither"]["preprocessing"]}
    with pytest.raises(ModelError, match=r"the same weights, another architecture"):
        load_recorded_model(other, "cpu")


def test_shards_of_a_file_keep_the_preprocessing(photos: Path, tmp_path: Path) -> None:
    path = save(state_of("Tiny-8"), tmp_path / "weights.safetensors")
    common = ("--model", "Tiny-8", "--pretrained", path, "--effect", "first", "--top-images", 4, "--device", "cpu")
    option = ("--preprocess", OPTION)
    whole = inside("effects", photos, *common, *option, "-o", tmp_path / "whole.safetensors")
    assert whole.returncode == 0, whole.stderr.decode()
    for i, more in enumerate((option, option, ()), 1):
        shard = f"{min(i, 2)}/2"
        part = inside("effects", photos, *common, *more, "--shard", shard, "-o", tmp_path / f"{i}.safetensors")
        assert part.returncode == 0, part.stderr.decode()
    merged = inside("merge", tmp_path / "1.safetensors", tmp_path / "2.safetensors", "--images", photos, "-f", "safetensors")
    assert merged.returncode == 0, merged.stderr.decode()
    one, other = read(merged.stdout), read((tmp_path / "whole.safetensors").read_bytes())
    assert one.header.model == other.header.model and SQUASH.items() <= one.header.model["preprocessing"].items()
    np.testing.assert_allclose(one["mean"], other["mean"], rtol=1e-5, atol=1e-6)
    assert np.array_equal(one["top_image"], other["top_image"])
    mixed = inside("merge", tmp_path / "1.safetensors", tmp_path / "3.safetensors", "-f", "safetensors")
    assert (
        mixed.returncode == 1 and b"another architecture (preprocessing interpolation bicubic instead of bilinear" in mixed.stderr
    )


def test_records_carry_it_to_the_pictures_that_are_judged(photos: Path, tmp_path: Path) -> None:
    model = load_model("emoji-vit2", None, "cpu", preprocess=OPTION)
    texts = encode_texts(model, ["panda", "cat"])
    margins = {}
    for name, record in (("option", recorded_model(model.identity)), ("none", recorded_model(load_model(device="cpu").identity))):
        lines = [{"depict": "panda", "predict": "cat", "file": str(path), "model": record} for path in sorted(photos.glob("*"))]
        text = "".join(json.dumps(line) + "\n" for line in lines).encode()
        judged = inside("advgen", "--images-only", "--device", "cpu", "-f", "jsonl", stdin=text)
        assert judged.returncode == 0, judged.stderr.decode()
        records = [json.loads(line) for line in judged.stdout.splitlines()]
        assert all(one["model"] == record for one in records)
        margins[name] = [one["margin"] for one in records]
    pixels = torch.stack([model.transform(Image.open(path)) for path in sorted(photos.glob("*"))])
    with torch.inference_mode():
        image = torch.nn.functional.normalize(model.clip.encode_image(pixels), dim=1)
    assert margins["option"] == pytest.approx((image @ (texts[1] - texts[0])).tolist(), abs=1e-5)
    assert margins["none"] != pytest.approx(margins["option"], abs=1e-3)


def test_a_judge_has_a_preprocessing_of_its_own(photos: Path, tmp_path: Path) -> None:
    record = recorded_model(load_model(device="cpu").identity)
    line = {"depict": "panda", "predict": "cat", "file": str(photos / "00.png"), "model": record}
    (tmp_path / "classes.txt").write_text("panda\ncat\nboat\n")
    common = ("--judge", "emoji-vit2", "--judge-classes", tmp_path / "classes.txt", "--device", "cpu", "-f", "jsonl")
    settings = []
    for option in ((), ("--judge-preprocess", OPTION)):
        judged = inside("advgen", "--images-only", *common, *option, stdin=json.dumps(line).encode())
        assert judged.returncode == 0, judged.stderr.decode()
        settings.append(json.loads(judged.stdout)["settings"])
    assert "judge_architecture" not in settings[0]
    assert settings[1]["judge_architecture"] == load_model("emoji-vit2", None, "cpu", preprocess=OPTION).computes.digest


@pytest.mark.parametrize("option", ["mean=0.5", "std=imagenet", "interpolation=bilinear", "resize=squash"])
def test_what_records_no_architecture_is_compared_by_its_preprocessing(option: str) -> None:
    """Records of the committed models have no architecture, and neither have bundles of earlier versions."""
    plain, other = (load_model("emoji-vit2", None, "cpu", preprocess=text).identity for text in (None, option))
    old, other_old = ({key: model[key] for key in (*NAMED, "precision", "preprocessing")} for model in (plain, other))
    usual = (plain, recorded_model(plain), old, recorded_model(old))
    assert "architecture" not in recorded_model(plain)
    for one in usual:
        assert all(model_difference(one, same) is None for same in usual)
        for another in (other, recorded_model(other), other_old):
            assert (model_difference(one, another) or "").startswith("the same weights, another ")
            assert (model_difference(another, one) or "").startswith("the same weights, another ")
        assert model_difference(one, {**old, "preprocessing": {"size": 64}}) is None  # says nothing of these settings
    same = load_model("emoji-vit2", None, "cpu", preprocess="resize=shortest").identity
    assert all(model_difference(one, recorded_model(same)) is None for one in usual)


def test_a_baseline_with_another_preprocessing_is_refused(photos: Path, tmp_path: Path) -> None:
    for name, option in (("plain", ()), ("option", ("--preprocess", "mean=0.5"))):
        effects = inside(
            "effects", photos, "--effect", "first", "--device", "cpu", *option, "-o", tmp_path / f"{name}.safetensors"
        )
        assert effects.returncode == 0, effects.stderr.decode()
    shift = ("shift", photos, "--concept", "cat", "--device", "cpu", "-f", "jsonl", "--bundle")
    for name, other in (("plain", "option"), ("option", "plain")):
        now = inside(*shift, tmp_path / f"{name}.safetensors", "-o", tmp_path / f"{name}.jsonl")
        assert now.returncode == 0, now.stderr.decode()
        (tmp_path / "before.jsonl").write_bytes((tmp_path / f"{name}.jsonl").read_bytes())
        held = inside(*shift, tmp_path / f"{other}.safetensors", "--baseline", tmp_path / "before.jsonl")
        assert held.returncode == 1 and b"another model: the same weights, another preprocessing (mean 0." in held.stderr


@pytest.mark.parametrize("preprocessing", ["openai", 3, ["mean"], None])
def test_a_preprocessing_that_is_none_is_not_compared(preprocessing: Any) -> None:
    model = {"name": "Tiny-8", "sha256": "0", "architecture": "1", "preprocessing": {"mean": [0.5] * 3}}
    other = {"sha256": "0", "architecture": "2", "preprocessing": preprocessing}
    reason = "activation, grid, preprocessing, norms, heads or pooling"
    assert model_difference(model, other) == f"the same weights, another architecture ({reason})"


@pytest.mark.parametrize("field", [{"architecture": 3}, {"preprocessing": "openai"}, {"sources": []}])
def test_damaged_models_of_records_are_named(field: dict[str, Any]) -> None:
    model = {"name": "emoji-vit2", "pretrained": None, "sha256": "0"} | field
    line = {"depict": "panda", "predict": "cat", "file": "a.png", "model": model}
    judged = inside("advgen", "--images-only", stdin=json.dumps(line).encode())
    assert judged.returncode == 1 and b"line 1: `model` should hold a text as architecture" in judged.stderr


def test_a_recorded_preprocessing_that_is_damaged(tmp_path: Path) -> None:
    recorded = load_model(device="cpu").identity
    damaged = recorded | {"preprocessing": recorded["preprocessing"] | {"mean": ["a"]}}
    with pytest.raises(ModelError, match=r"the recorded model: preprocessing `mean` .*, expected three numbers"):
        load_recorded_model(damaged, "cpu")
