"""cliptools.explain and clip-explain on tiny models: margins, texts, files and misuse."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.advgen_input import inside, parsed
from helpers.tiny_suite import READ, SCENES, Suite, done
from helpers.tiny_suite import TEXTS as SUITE_TEXTS
from PIL import Image
from safetensors.numpy import load

import cliptools as ct
from cliptools.errors import CliptoolsError, StreamError, TextError, UsageError
from cliptools.front.explain_texts import Targets, open_targets
from cliptools.front.explained import Explanations
from cliptools.images.loader import open_images
from cliptools.models.text_encoder import encode_texts
from cliptools.render import figure_file
from cliptools.render.contact_sheet import signed_overlay

SHORT = ("{}",)


@pytest.fixture(scope="module")
def suite(tiny_clip_dir: Path, tiny_resnet_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Suite:
    """The scenes and the bundles of units with and without words, without the rest of the suite."""
    made = Suite(tmp_path_factory.mktemp("explained"), tiny_clip_dir, tiny_resnet_dir, ready=True)
    made.pool.write_text("\n".join(SUITE_TEXTS) + "\n")
    made.classes.write_text("cat\ndog, puppy\npizza\nsky\n")
    done("scenes", "--count", SCENES, "--size", 64, "--out-dir", made.scenes)
    for name in ("second", "pooled"):
        done("effects", *made.measured[name], "-o", made.bundle(name))
        done("decompose", "--pool", made.pool, "--m", 3, made.bundle(name), "-o", made.bundle(f"{name}-words"))
    return made


def explained(suite: Suite, bundle: str, *texts: str, **arguments: Any) -> Explanations:
    settings: dict[str, Any] = {"templates": SHORT, "device": "cpu", "batch_size": 4, "workers": 0, "head": 4}
    settings |= {} if bundle.endswith("words") else {"pool": list(SUITE_TEXTS)}  # with the default, 30,000 words are encoded
    return ct.explain(ct.read(suite.bundle(bundle)), str(suite.images), *texts, **settings | arguments)


def encoded(suite: Suite, model: ct.LoadedModel, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return unit embeddings [image, d] of the scenes and [text, d] of texts."""
    source = open_images([str(suite.images)])
    pictures = torch.stack([model.transform(source.load(i)) for i in range(len(source.names))])
    clip: Any = model.clip
    with torch.inference_mode():
        e = torch.nn.functional.normalize(clip.encode_image(pictures).double(), dim=1)
    return e, encode_texts(model, texts).double()


@pytest.mark.parametrize(("bundle", "kind"), [("second-words", "vit"), ("pooled-words", "resnet")])
def test_margins_and_their_sums(suite: Suite, bundle: str, kind: str) -> None:
    model = ct.load_model(getattr(suite, kind), device="cpu")
    result = explained(suite, bundle, "cat", "a red car", model=model, delete=0.5, draws=2)
    e, t = encoded(suite, model, ["cat", "a red car"])
    margins = 100 * (e @ (t[0] - t[1]))
    units = ct.read(suite.bundle(bundle))
    assert len(result) == len(result.images) == SCENES
    for record, image, margin in zip(result, result.images, margins.tolist(), strict=True):
        assert (record["a"], record["b"], record["image"]) == ("cat", "a red car", image.name)
        assert record["margin"] == pytest.approx(margin, abs=1e-3)
        assert 100 * (record["similarity"]["a"] - record["similarity"]["b"]) == pytest.approx(margin, abs=1e-3)
        assert sum(record["parts"].values()) == pytest.approx(record["margin"], abs=1e-3)
        assert sum(image.shares) == pytest.approx(record["parts"]["units"], abs=1e-3)
        for sums in (record["layers"], record["heads"]):
            assert sum(row["share"] for row in sums) == pytest.approx(record["parts"]["units"], abs=1e-3)
        excess = [unit["excess"] for unit in record["units"]]
        assert [abs(value) for value in excess] == sorted((abs(value) for value in excess), reverse=True)
        for unit, heat in zip(record["units"], image.maps, strict=True):
            keys = [unit.get(key, -1) for key in ("layer", "neuron", "head")]
            row = units["unit"].tolist().index(keys)
            assert unit["share"] == pytest.approx(float(image.shares[row]), abs=1e-4)
            assert heat.sum() + unit["first_token"] == pytest.approx(unit["share"], abs=1e-4)
            assert unit["share"] - unit["mean"] == pytest.approx(unit["excess"], abs=1e-4)
            assert heat[unit["peak"]["row"], unit["peak"]["column"]] == pytest.approx(unit["peak"]["share"], abs=1e-4)
            assert list(heat.shape) == unit["grid"] and unit["writes"][0].keys() == {"word", "coefficient"}
        curves = record["deletion"]["margins"]
        assert all(curve[0] == pytest.approx(margin, abs=1e-3) for curve in curves.values())
        assert record["deletion"]["counts"][-1] == round(units.units / 2)
    assert list(result[0]["parts"]) == ["units", "other_units", *(("heads", "mlps") if kind == "vit" else ()), "rest"]


def test_texts_are_chosen_by_classes(suite: Suite) -> None:
    names = ["cat", "dog", "pizza", "sky"]
    e, t = encoded(suite, ct.load_model(suite.vit, device="cpu"), names)
    ranks = (e @ t.T).argsort(dim=1, descending=True).tolist()
    for classes in (names, str(suite.classes)):
        result = explained(suite, "second-words", classes=classes)
        assert [(r["a"], r["b"]) for r in result] == [(names[first], names[second]) for first, second, *_ in ranks]
        assert all(record["margin"] >= 0 for record in result)
    result = explained(suite, "second-words", "pizza", classes=names)
    for record, order in zip(result, ranks, strict=True):
        assert record["a"] == "pizza" and record["b"] == next(names[j] for j in order if names[j] != "pizza")


def test_a_text_less_the_mean_of_a_vocabulary(suite: Suite) -> None:
    model = ct.load_model(suite.resnet, device="cpu")
    e, t = encoded(suite, model, ["dog", *SUITE_TEXTS])
    margins = 100 * (e @ (t[0] - t[1:].mean(0)))
    for bundle, pool in (("pooled-words", None), ("pooled", list(SUITE_TEXTS))):
        result = explained(suite, bundle, "dog", pool=pool, templates=())
        assert [record["margin"] for record in result] == pytest.approx(margins.tolist(), abs=1e-3)
        assert all(record["b"] is None for record in result)
    assert "dog − mean of the vocabulary" in result.table()


def test_words_without_decompose(suite: Suite) -> None:
    record = explained(suite, "second", "cat", "dog")[0]
    for unit in record["units"]:
        overlaps = [word["overlap"] for word in unit["writes"]]
        assert overlaps == sorted(overlaps, reverse=True) and len(unit["sees"]) == 3


def test_orders_differ_and_batches_do_not(suite: Suite) -> None:
    by_excess = explained(suite, "second-words", "cat", "dog", batch_size=1)
    assert by_excess[1]["units"][0]["share"] == pytest.approx(
        explained(suite, "second-words", "cat", "dog")[1]["units"][0]["share"], abs=1e-4
    )
    by_share = explained(suite, "second-words", "cat", "dog", by="share", layers=[1])
    for record in by_share:
        shares = [abs(unit["share"]) for unit in record["units"]]
        assert shares == sorted(shares, reverse=True) and {unit["layer"] for unit in record["units"]} == {1}
        area = record["deletion"]["area"]
        assert set(area) == {"explanation", "activity", "random"}
    for record in by_excess:
        side = 1 if record["margin"] >= 0 else -1
        area = {name: side * value for name, value in record["deletion"]["area"].items()}
        assert area["explanation"] <= min(area.values())


def test_the_command_writes_what_the_front_returns(suite: Suite, tmp_path: Path) -> None:
    words = ("explain", suite.images, "--text", "cat", "--text", "dog", "--template", "{}", "--head", 4, *READ)
    words += ("--bundle", suite.bundle("second-words"), "--device", "cpu")
    ended = inside(*words, "-f", "jsonl", "--figures", tmp_path / "f", "--figure-format", "svg", "--maps", tmp_path / "m")
    assert ended.returncode == 0, ended.stderr
    result, records = explained(suite, "second-words", "cat", "dog"), parsed(ended.stdout)
    for record in records:
        figure = record.pop("figure")
        assert figure == f"{Path(record['image']).with_suffix('')}.svg" and b"<svg" in (tmp_path / "f" / figure).read_bytes()
        for unit in record["units"]:
            with Image.open(tmp_path / "m" / unit.pop("map")) as overlay:
                assert min(overlay.size) >= 224
    assert records == list(result)
    tensors = inside(*words, "-f", "safetensors").stdout
    held = load(tensors)
    assert json.loads(bytes(held.pop("records"))) == json.loads(json.dumps(records))
    for image in result.images:
        assert np.array_equal(held.pop(f"{image.name}/share"), image.shares)
        assert np.array_equal(held.pop(f"{image.name}/maps"), image.maps)
    assert not held
    table = inside(*words, "-f", "table").stdout.decode()
    assert table.count("mean margin while") == SCENES and "cat − dog" in table


def test_figures(suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = explained(suite, "second-words", "cat", "$dog$ and a very long name of a thing", limit=1).images[0]
    for kind in figure_file.KINDS:
        image.save(tmp_path / f"a.{kind}")
        assert (tmp_path / f"a.{kind}").read_bytes() == image.figure(kind) != image.figure(kind, dark=True)
    with pytest.raises(UsageError, match="expected one of png, svg, pdf, found 'gif'"):
        image.save(tmp_path / "a.gif")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CliptoolsError, match="figures need matplotlib"):
        image.figure()


def test_figures_of_images_that_differ_in_their_endings(suite: Suite, tmp_path: Path) -> None:
    picture = Image.open(next(suite.images.iterdir()))
    (tmp_path / "images").mkdir()
    names = ("a.jpg", "a.png", "a.png.jpg", "a.png.png")
    for name in names:
        picture.save(tmp_path / "images" / name)
    words = (tmp_path / "images", "--text", "cat", "--text", "dog", "--bundle", suite.bundle("second-words"), "--device", "cpu")
    ended = inside("explain", *words, "--head", 1, "--draws", 1, "--figures", tmp_path / "why", "-f", "jsonl")
    assert ended.returncode == 0, ended.stderr.decode()
    figures = [record["figure"] for record in parsed(ended.stdout)]
    assert len(set(figures)) == len(names) and {path.name for path in (tmp_path / "why").iterdir()} == set(figures)


def test_overlays_are_red_and_blue() -> None:
    grey = Image.new("RGB", (8, 8), "#808080")
    pixels = np.array(signed_overlay(grey, np.array([[1.0, 0.0], [0.0, -0.5]], dtype=np.float32))).astype(int)
    assert pixels[0, 0, 0] - pixels[0, 0, 2] > 80 and pixels[7, 7, 2] - pixels[7, 7, 0] > 30
    assert len(np.unique(np.array(signed_overlay(grey, np.zeros((2, 2), dtype=np.float32))))) == 1


def test_misuse(suite: Suite, tmp_path: Path) -> None:
    with pytest.raises(StreamError, match="no units to explain by"):
        bundle = ct.read(suite.bundle("second"))
        ct.explain(bundle.select(np.arange(0)), str(suite.images), "cat", "dog", device="cpu")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="b='dog' without a"):
        ct.explain(bundle, str(suite.images), b="dog")
    with pytest.raises(TextError, match="expected at least two classes, found 1"):
        explained(suite, "second", "cat", classes=["cat"])
    bundle, model = ct.read(suite.bundle("second-words")), ct.load_model(suite.vit, device="cpu")
    with pytest.raises(TextError, match="have the same embedding"):
        open_targets(("cat", "cat "), None, None, SHORT, bundle, model, False)
    with pytest.raises(TextError, match="have the same embedding"):
        open_targets(("cat",), None, ["cat"], SHORT, bundle, model, False)
    with pytest.raises(TextError, match="expected another class"):
        Targets(("a", "b"), torch.eye(4)[[0, 0]]).of(torch.ones(1, 4))
    (tmp_path / "taken" / "scene-000000.png" / "a folder where a file should be").mkdir(parents=True)
    common = (suite.images, "--text", "cat", "--text", "dog", "--bundle", suite.bundle("second-words"), "--device", "cpu")
    ended = inside("explain", *common, "--figures", tmp_path / "taken", "-f", "jsonl")
    assert ended.returncode == 1 and b"could not be written" in ended.stderr
    ended = inside("explain", *common, "--maps", tmp_path / "one", "--figures", f"{tmp_path}/./one")
    assert ended.returncode == 2 and b"also the folder of --maps" in ended.stderr and not (tmp_path / "one").exists()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_text("no picture")
    (tmp_path / "bad" / "b.png").write_bytes(next(suite.images.iterdir()).read_bytes())
    ended = inside("explain", tmp_path / "bad", *common[1:], "-f", "jsonl")
    assert ended.returncode == 0 and [record["image"] for record in parsed(ended.stdout)] == ["b.png"]
    assert inside("explain", tmp_path / "bad", *common[1:], "--strict").returncode == 1
