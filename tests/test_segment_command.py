"""clip-segment and clip-segment-eval as processes: pictures, records, tensors, evaluation, errors, and meaning of the maps."""

import json
import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Run
from helpers.advgen_input import inside
from helpers.masked_images import save_pair, write_gtsegs
from helpers.pipes import on_terminal
from PIL import Image
from safetensors.numpy import load

from cliptools.cli.run.segment_eval import SegmentEvalOptions
from cliptools.cli.run.segment_eval import run as evaluate
from cliptools.cli.run.segment_images import folder_of, open_bundle, slugs
from cliptools.errors import CliptoolsError
from cliptools.front.heat_maps import load_segmenter
from cliptools.io.bundle import read_bundle
from cliptools.segmentation import VIT

SIDE = 96


@pytest.fixture(scope="module")
def neurons(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle of the embedded model."""
    path = tmp_path_factory.mktemp("segment") / "neurons.safetensors"
    done = run("effects", "--limit", 120, "--top-images", 20, "-o", path)
    assert done.returncode == 0, done.stderr.decode()
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a wide picture with a pizza at its right end, a tall one with a violin at its bottom, and a broken one."""
    place = tmp_path_factory.mktemp("pictures")
    for name, size, corner in (("pizza", (2 * SIDE, SIDE), (SIDE, 0)), ("violin", (SIDE, 2 * SIDE), (0, SIDE))):
        scene = place / f"scene-{name}"
        assert inside("scenes", "--caption", f"a {name}", "--seed", 5, "--size", SIDE, "--out-dir", scene).returncode == 0
        drawn = opened(next((scene / "images").iterdir())).convert("RGB")
        labels = np.asarray(opened(next((scene / "masks").iterdir())))
        image, mask = Image.new("RGB", size, drawn.getpixel((1, 1))), np.zeros(size[::-1], bool)
        image.paste(drawn, corner)
        mask[corner[1] : corner[1] + SIDE, corner[0] : corner[0] + SIDE] = labels > 0
        save_pair(place / "pairs", name, np.asarray(image), mask)
    (place / "broken").mkdir()
    for path in (place / "pairs/images").iterdir():
        (place / "broken" / path.name).write_bytes(path.read_bytes())
    (place / "broken" / "m.png").write_bytes(b"no picture")
    return place


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image


def lines(data: bytes) -> list[dict]:
    return [json.loads(line) for line in data.splitlines()]


def test_pictures_records_and_where_things_are(run: Run, neurons: Path, pictures: Path, tmp_path: Path) -> None:
    words = ("segment", pictures / "broken", "--text", "pizza", "--text", "violin", "--out-dir")
    done = run(*words, tmp_path / "out", stdin=neurons.read_bytes())
    assert done.returncode == 0, done.stderr.decode()
    said = done.stderr.decode()
    assert "m.png: skipped" in said and "2 images, 1 skipped" in said
    records = lines(done.stdout)
    assert [(r["image"], r["text"]) for r in records] == [
        (f"{name}.bmp", text) for name in ("pizza", "violin") for text in ("pizza", "violin")
    ]
    for record in records:
        mask = np.asarray(opened(tmp_path / "out" / record["mask"])) > 0
        labels = opened(tmp_path / "out" / record["label_map"])
        assert mask.shape == (record["height"], record["width"]) and labels.size == mask.shape[::-1]
        assert record["share"] == pytest.approx(mask.mean(), rel=1e-5)
        assert record["label_share"] == pytest.approx((np.asarray(labels) == record["label"]).mean(), rel=1e-5)
        assert opened(tmp_path / "out" / record["overlay"]).size == labels.size
        assert record["threshold"] == 0.5 and record["neurons"] == 200 and record["model"]["name"] == "emoji-vit2"
        if record["image"].startswith(record["text"]):
            truth = np.asarray(opened(pictures / "pairs/masks" / f"{record['text']}.png")) > 0
            assert (mask & truth).sum() / (mask | truth).sum() > 0.4, record
    assert records[0]["grid"] == [8, 16] and records[2]["grid"] == [16, 8]

    again = run(*words, tmp_path / "again", stdin=neurons.read_bytes())
    assert again.stdout == done.stdout and files(tmp_path / "again") == files(tmp_path / "out")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_resume_goes_on(run: Run, neurons: Path, pictures: Path, tmp_path: Path) -> None:
    words = ("segment", pictures / "pairs/images", "--text", "pizza", "--bundle", neurons, "--out-dir", tmp_path)
    first = run(*words)
    whole, kept = files(tmp_path), (tmp_path / "violin.pizza.mask.png").stat().st_mtime_ns
    for name in ("pizza.segments.json", "pizza.pizza.overlay.png"):
        (tmp_path / name).unlink()
    refused = inside(*words)
    assert refused.returncode == 1 and b"--resume" in refused.stderr and refused.stderr.count(b"\n") == 1
    resumed = run(*words, "--resume")
    assert resumed.stdout == first.stdout and files(tmp_path) == whole
    assert (tmp_path / "violin.pizza.mask.png").stat().st_mtime_ns == kept
    other = inside(*words, "--resume", "--threshold", 0.3)
    assert other.returncode == 1 and b"started with threshold 0.5, now asked for 0.3" in other.stderr
    (tmp_path / "pizza.segments.json").write_bytes(b"{")
    damaged = inside(*words, "--resume")
    assert damaged.returncode == 1 and b"damaged" in damaged.stderr and files(tmp_path).keys() == whole.keys()


def test_tensors_and_own_best_class(neurons: Path, pictures: Path) -> None:
    done = inside(
        "segment", pictures / "pairs/images", "--classes", "emoji", "--size", 100, "-f", "safetensors", "--bundle", neurons
    )
    assert done.returncode == 0, done.stderr.decode()
    maps = load(done.stdout)
    assert maps["pizza.bmp"].shape == (1, SIDE, 2 * SIDE) and maps["violin.bmp"].shape == (1, 2 * SIDE, SIDE)
    for heat in maps.values():
        assert heat.dtype == np.float32 and heat.min() == 0 and heat.max() == 1
    header = json.loads(done.stdout[8 : 8 + int.from_bytes(done.stdout[:8], "little")])["__metadata__"]["cliptools"]
    assert json.loads(header)["kind"] == "heat maps" and json.loads(header)["classes"]["count"] == 526
    records = lines(inside("segment", pictures / "pairs/images", "--classes", "emoji", "--bundle", neurons).stdout)
    texts = [record["text"] for record in records]
    assert len(texts) == 2 and "pizza" in texts


def test_windows(neurons: Path, pictures: Path) -> None:
    done = inside("segment", pictures / "pairs/images", "--text", "pizza", "--stride", 32, "--bundle", neurons)
    assert done.returncode == 0, done.stderr.decode()
    records = lines(done.stdout)
    assert [record["grid"] for record in records] == [[64, 128], [128, 64]]
    assert records[0]["stride"] == 32 and records[0]["box"][2] > SIDE


def options(**given: Any) -> SegmentEvalOptions:
    """Return options of clip-segment-eval, by default those of the command."""
    kept: dict[str, Any] = dict.fromkeys(field.name for field in fields(SegmentEvalOptions))
    kept |= {"thresholds": (), "backgrounds": (), "templates": (), "ignored": (), "strict": False, "batch_size": 16}
    return SegmentEvalOptions(**kept | {"device": "cpu", "output_format": "jsonl"} | given)


@pytest.mark.parametrize("method", VIT)
def test_every_method_evaluates(neurons: Path, pictures: Path, tmp_path: Path, method: str) -> None:
    place = {"paths": (str(pictures / "pairs"),), "bundle": neurons, "output": tmp_path / "out.jsonl"}
    evaluate(options(method=method, classes="emoji", **place))
    *each, whole = lines((tmp_path / "out.jsonl").read_bytes())
    assert len(each) == 2 and whole["all"] and whole["count"] == 2 and whole["method"] == method
    assert whole["map"] == pytest.approx(np.mean([one["map"] for one in each]), rel=1e-4) and whole["map"] > 0.6


def test_evaluation_of_scenes_pools_pixels(run: Run, neurons: Path, pictures: Path, tmp_path: Path) -> None:
    tar = inside("scenes", "--count", 4, "--seed", 9).stdout
    words = ("segment_eval", "-", "--threshold", "0.5", "--threshold", "mean", "--bundle", neurons)
    done = run(*words, stdin=tar)
    assert done.returncode == 0, done.stderr.decode()
    records = lines(done.stdout)
    assert [record["threshold"] for record in records[-2:]] == [0.5, "mean"]
    each = [record for record in records[:-2] if record["threshold"] == 0.5]
    assert records[-2]["count"] == len(each) and len({one["image"] for one in each}) == 4
    assert records[-2]["accuracy"] == pytest.approx(np.mean([one["accuracy"] for one in each]), rel=1e-4)
    assert records[-2]["map"] == records[-1]["map"] == pytest.approx(np.mean([one["map"] for one in each]), rel=1e-4)
    cut = inside(*words, stdin=tar[: len(tar) // 2])
    assert cut.returncode == 1 and b"tar" in cut.stderr and b"Traceback" not in cut.stderr
    table = inside(*words, "-f", "table", stdin=tar)
    assert table.stdout.startswith(b"method") and table.stdout.count(b"neurons") == 2


def test_gtsegs_agrees_with_the_same_pairs_as_files(neurons: Path, pictures: Path, tmp_path: Path) -> None:
    names = ("pizza", "violin")
    images = [np.asarray(opened(pictures / f"pairs/images/{name}.bmp")) for name in names]
    masks = [np.asarray(opened(pictures / f"pairs/masks/{name}.png")) > 0 for name in names]
    write_gtsegs(tmp_path / "gtsegs_ijcv.mat", images, masks)
    words = ("--text", "pizza", "--bundle", neurons)
    sources = (pictures / "pairs", tmp_path / "gtsegs_ijcv.mat")
    files_, mat = (lines(inside("segment_eval", source, *words).stdout) for source in sources)
    assert len(mat) == 3 and [one["map"] for one in files_] == [one["map"] for one in mat]
    nameless = inside("segment_eval", tmp_path / "gtsegs_ijcv.mat", "--bundle", neurons)
    assert nameless.returncode == 1 and b"name what they show by --text" in nameless.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no images named"),
        (("x.png",), "nothing to look for"),
        (("x.png", "--text", " "), "the text is empty"),
        (("x.png", "--text", "a", "--text", "a"), "the same text is given twice"),
        (("x.png", "--text", "a", "--classes", "emoji"), "give one of them"),
        (("-", "--text", "a"), "cannot both come from standard input"),
        (("x.png", "--text", "a", "--resume"), "--out-dir"),
        (("x.png", "--text", "a", "--threshold", "2"), "--threshold 2"),
        (("x", "--evaluate", "--out-dir", "y"), "clip-segment-eval"),
        (("tests/nowhere.png", "--text", "a"), "no such file"),
        (("clip-segment-eval", "a", "b", "--labels", "y"), "one folder of images"),
    ],
)
def test_refusals_are_one_line(arguments: tuple[str, ...], message: str) -> None:
    other = arguments[:1] == ("clip-segment-eval",)
    done = inside("segment_eval" if other else "segment", *arguments[other:], stdin=b"")
    assert done.returncode in (1, 2) and done.stdout == b""
    assert message in done.stderr.decode() and done.stderr.count(b"\n") == 1, done.stderr.decode()


def test_bundles_that_will_not_do(neurons: Path, tmp_path: Path) -> None:
    with neurons.open("rb") as stream:
        bundle = read_bundle(stream, "neurons")
    data = bundle.to_bytes()
    without = replace(bundle, tensors={key: value for key, value in bundle.tensors.items() if key != "direction"})
    narrow = bundle.with_tensors(
        bundle.header,
        embedding_mean=bundle["embedding_mean"][:7].copy(),
        embedding_covariance=bundle["embedding_covariance"][:7, :7].copy(),
        **{name: bundle[name][:, :7].copy() for name in ("direction", "mean", "read")},
    )
    heads = bundle.with_tensors(bundle.header, unit=np.where([True, True, False], bundle["unit"], 3).astype(np.int32))
    beyond = bundle.with_tensors(bundle.header, unit=(bundle["unit"] + np.array([0, 5000, 0])).astype(np.int32))
    other = replace(bundle, header=replace(bundle.header, model=bundle.header.model | {"sha256": "0" * 64}))
    for made, message in (
        (data[:-100], "truncated"),
        (b"", "empty input"),
        (without.to_bytes(), "without `direction`"),
        (narrow.to_bytes(), "width 7"),
        (bundle.select(np.zeros(0, int)).to_bytes(), "no neurons"),
        (heads.to_bytes(), "are not single neurons"),
        (beyond.to_bytes(), "that the model does not have"),
        (other.to_bytes(), "same name, another model"),
    ):
        (tmp_path / "bundle").write_bytes(made)
        with pytest.raises(CliptoolsError, match=message):
            chosen = options(text="pizza", bundle=tmp_path / "bundle")
            load_segmenter(open_bundle(chosen), chosen)


def test_strict_and_nothing_readable(neurons: Path, pictures: Path, tmp_path: Path) -> None:
    words = ("--text", "pizza", "--bundle", neurons)
    strict = inside("segment", pictures / "broken", "--strict", "--batch-size", 1, *words)
    assert strict.returncode == 1 and b"m.png" in strict.stderr
    (tmp_path / "a.png").write_bytes(b"x")
    none = inside("segment", tmp_path / "a.png", *words, "-o", tmp_path / "out.jsonl")
    assert none.returncode == 1 and b"not one image" in none.stderr and os.listdir(tmp_path) == ["a.png"]


def test_terminal_gets_a_table(neurons: Path, pictures: Path) -> None:
    words = ("cliptools.cli.segment", str(pictures / "pairs/images"), "--text", "pizza", "--bundle", str(neurons))
    code, shown = on_terminal(*words)
    assert code == 0 and "pizza.bmp" in shown and "score" in shown
    code, shown = on_terminal(*words, "-f", "safetensors")
    assert code == 2 and "garble the terminal" in shown


def test_names_out_of_archives_stay_below_the_folder() -> None:
    assert folder_of("a/b.jpg") == "a/b.jpg"
    assert not any(
        part in ("", ".", "..") for name in ("../../x.png", "/etc/x.png", "a/../b.png") for part in folder_of(name).split("/")
    )
    assert slugs(["a cat", "A  cat!", "犬", "///"]) == ["a-cat", "2-a-cat", "犬", "text"]
    assert slugs(["3 cats", "cats", "cats!", "CATS?"]) == ["3-cats", "cats", "4-cats", "5-cats"]
    assert len(set(slugs(["x", "2 x", "x!", "3-x", "x?"] * 3))) == 15
