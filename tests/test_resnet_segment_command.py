"""clip-segment and clip-segment-eval with a CLIP-ResNet: label maps, logits, evaluation against label PNGs and scenes."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Run
from PIL import Image
from safetensors.numpy import load
from sklearn.metrics import jaccard_score

from cliptools.cli.run.segment_eval import SegmentEvalOptions
from cliptools.cli.run.segment_eval import run as evaluate
from cliptools.cli.run.segment_images import open_bundle
from cliptools.cli.segment import main
from cliptools.errors import CliptoolsError, UsageError
from cliptools.front.label_maps import load_labeller, parse_backgrounds
from cliptools.images.segmentation.label_maps import IGNORED, Numbering
from cliptools.io.bundle import Bundle, read_bundle
from cliptools.models.load import load_model
from cliptools.text.classes import load_classes

CLASSES = "cat, kitten\ndog\npizza  # one a line\nsky, blue sky, clouds\nground\n"
SHORT = ("--template", "{}", "--sink", "off")  # neither 80 templates nor a measurement


@pytest.fixture(scope="module")
def place(run: Run, tiny_resnet_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return photographs of two shapes, a broken one, class names, and a bundle of pairs."""
    folder = tmp_path_factory.mktemp("resnet-segment")
    (folder / "photos").mkdir()
    random = np.random.default_rng(3)
    for i, size in enumerate(((96, 96), (128, 96), (96, 96))):
        coarse = random.integers(0, 256, (4, 4, 3)).astype(np.uint8)
        Image.fromarray(coarse).resize(size).save(folder / f"photos/{i}.png")
    (folder / "classes.txt").write_text(CLASSES)
    words = ("--model", f"local-dir:{tiny_resnet_dir}", "--top-images", 2, "--quantile", 0.6, "-q", "--workers", 0)
    done = run("effects", folder / "photos", *words, "-o", folder / "pairs.safetensors")
    assert done.returncode == 0, done.stderr.decode()
    (folder / "photos/broken.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def labelled(run: Run, place: Path) -> tuple[list[dict[str, Any]], Path]:
    """Return records and pictures of the photographs."""
    words = ("--classes", place / "classes.txt", "--size", 96, "--stride", 32, "--background", "0.28", *SHORT)
    done = run("segment", place / "photos", *words, "--out-dir", place / "out", "--bundle", place / "pairs.safetensors")
    assert done.returncode == 0, done.stderr.decode()
    assert "broken.png: skipped" in done.stderr.decode() and "3 images, 1 skipped" in done.stderr.decode()
    return lines(done.stdout), place / "out"


def lines(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.splitlines()]


def opened(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def options(place: Path, **given: Any) -> SegmentEvalOptions:
    """Return options of clip-segment-eval with short templates and small batches."""
    kept: dict[str, Any] = dict.fromkeys(field.name for field in fields(SegmentEvalOptions))
    kept |= {"backgrounds": (), "thresholds": (), "ignored": (), "templates": ("{}",), "sink": "off", "paths": ()}
    kept |= {"classes": str(place / "classes.txt"), "strict": False, "batch_size": 3, "device": "cpu"}
    return SegmentEvalOptions(**kept | {"bundle": place / "pairs.safetensors", "output_format": "jsonl"} | given)


def figures(place: Path, path: Path, **given: Any) -> list[dict[str, Any]]:
    target = place / "figures.jsonl"
    evaluate(options(place, paths=(str(path),), output=target, **given))
    return lines(target.read_bytes())


def test_label_maps_are_what_records_say(labelled) -> None:
    records, out = labelled
    assert [record["image"] for record in records] == ["0.png", "1.png", "2.png"]
    names = ["background", "cat", "dog", "pizza", "sky", "ground"]
    seen = set()
    for record in records:
        labels = opened(out / record["label_map"])
        assert labels.shape == (record["height"], record["width"]) and opened(out / record["overlay"]).shape[:2] == labels.shape
        assert record["method"] == "pairs" and record["pairs"] == 1152 and record["top_pairs"] == 156
        assert record["crop"] == 64 and record["stride"] == 32 and record["sink"] == {"repaired": False, "by": "option"}
        assert sum(each["share"] for each in record["found"]) == pytest.approx(1, rel=1e-4)
        for each in record["found"]:
            assert names[each["label"]] == each["class"]
            assert each["share"] == pytest.approx((labels == each["label"]).mean(), rel=1e-5)
            seen.add(each["label"])
    assert 0 in seen and len(seen) > 2


def test_logits_lead_to_the_same_labels(run: Run, place: Path, labelled) -> None:
    words = ("--classes", place / "classes.txt", "--size", 96, "--stride", 32, *SHORT, "-f", "safetensors")
    done = run("segment", place / "photos/1.png", *words, stdin=(place / "pairs.safetensors").read_bytes())
    assert done.returncode == 0, done.stderr.decode()
    logits = load(done.stdout)["1.png"]
    header = json.loads(done.stdout[8 : 8 + int.from_bytes(done.stdout[:8], "little")])["__metadata__"]["cliptools"]
    said = json.loads(header)
    assert said["kind"] == "logits" and said["label"] == [1, 1, 2, 3, 4, 4, 4, 5] and logits.shape == (8, 96, 128)
    labels = opened(labelled[1] / "1.labels.png")
    best = np.array(said["label"])[logits.argmax(0)]
    assert ((labels == best) | (labels == 0)).mean() > 0.9999 and (labels == best).any()


def here(*words: Any) -> Any:
    """Run the command within this process, which starts faster, and return its exit code."""
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return ended.value.code


def test_resume_goes_on(place: Path, labelled, tmp_path: Path) -> None:
    out = labelled[1]
    (out / "1.segments.json").unlink()
    pictures = [path for path in sorted(out.rglob("*.png")) if path.is_file()]
    before = [path.read_bytes() for path in pictures]
    kept = (out / "0.labels.png").stat().st_mtime_ns
    words = (place / "photos", "--classes", place / "classes.txt", "--size", 96, "--stride", 32, *SHORT, "--resume")
    words = (*words, "--out-dir", out, "--bundle", place / "pairs.safetensors", "-o", tmp_path / "out.jsonl")
    assert here(*words, "--background", "0.28") == 0
    assert lines((tmp_path / "out.jsonl").read_bytes()) == labelled[0]
    assert [path.read_bytes() for path in pictures] == before
    assert (out / "0.labels.png").stat().st_mtime_ns == kept
    assert here(*words, "--background", "0.3") == 1


def test_evaluation_against_label_pngs(place: Path, labelled, tmp_path: Path) -> None:
    """The truth differs from the label maps in known places; the PNGs' numbers start elsewhere and leave some pixels out."""
    random = np.random.default_rng(5)
    everything = []
    for name in ("0", "1"):
        found = opened(labelled[1] / f"{name}.labels.png").astype(int)
        truth = np.where(random.random(found.shape) < 0.3, random.integers(0, 6, found.shape), found)
        drawn = random.random(found.shape) < 0.1
        Image.fromarray(np.where(drawn, 7, truth + 9).astype(np.uint16)).save(tmp_path / f"{name}.png")
        everything.append((truth[~drawn], found[~drawn]))
    truth, found = (np.concatenate(part) for part in zip(*everything, strict=True))
    given = {"labels": tmp_path, "size": 96, "stride": 32, "first_label": 10, "ignored": (7,)}
    *each, whole = figures(place, place / "photos", backgrounds=("0.28",), **given)
    iou = jaccard_score(truth, found, average=None, labels=range(6))
    present = [i for i in range(6) if ((truth == i) | (found == i)).any()]
    assert len(each) == 2 and whole["all"] and whole["count"] == 2 and whole["skipped"] == 0
    assert whole["miou"] == pytest.approx(iou[present].mean(), abs=1e-5)
    assert whole["accuracy"] == pytest.approx((truth == found).mean(), abs=1e-5)
    assert list(whole["iou"].values()) == pytest.approx(iou[present].tolist(), abs=1e-5)
    *_, without = figures(place, place / "photos", **given)
    assert without["background"] is None and "background" not in without["iou"] and without["true_classes"] == 5
    *_, named = figures(place, place / "photos", backgrounds=("ground",), **given | {"ignored": (7, 14)})
    assert named["background"] == "ground" and "ground" in named["iou"] and named["true_classes"] == 5


def test_evaluation_of_scenes(run: Run, place: Path) -> None:
    """Scenes on standard input, which is read twice, give the same as a file; the classes are the names shown."""
    tar = run("scenes", "--count", 3, "--emoji", 2, "--seed", 9, "--size", 64).stdout
    words = ("--method", "maskclip", "--template", "{}", "--background", "none", "--background", "0.2")
    done = run("segment_eval", "-", *words, "--bundle", place / "pairs.safetensors", stdin=tar)
    assert done.returncode == 0, done.stderr.decode()
    records = lines(done.stdout)
    assert [record["background"] for record in records[-2:]] == [None, 0.2] and len(records) == 8
    assert records[-2]["true_classes"] == 6 and records[-1]["true_classes"] == 7 and records[-2]["classes"]["count"] == 6
    (place / "scenes.tar").write_bytes(tar)
    given = {"method": "maskclip", "sink": None, "classes": None, "backgrounds": ("none", "0.2")}
    assert figures(place, place / "scenes.tar", **given) == records


def test_heat_maps_of_single_texts(place: Path, tmp_path: Path) -> None:
    words = ("--text", "cat", "--sink", "off", "--bundle", place / "pairs.safetensors", "-o", tmp_path / "out.jsonl")
    assert here(place / "photos/1.png", *words) == 0
    (record,) = lines((tmp_path / "out.jsonl").read_bytes())
    assert record["method"] == "pairs" and record["grid"] == [2, 3] and record["threshold"] == 0.5 and record["top_pairs"] == 156


def refused(place: Path, **given: Any) -> str:
    chosen = options(place, **given)
    with pytest.raises(CliptoolsError) as caught:
        load_labeller(open_bundle(chosen), load_classes(str(chosen.classes), known=False), chosen, chosen.backgrounds)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_label_maps_refuse(place: Path, tmp_path: Path) -> None:
    assert "--top-pairs 1153: the bundle has 1152 pairs" in refused(place, top_pairs=1153)
    assert "--size 32: images would be smaller than the window (--crop 64)" in refused(place, size=32)
    assert "--crop 70: expected a multiple of 32" in refused(place, crop=70)
    assert "would leave gaps" in refused(place, stride=65)
    assert "the bundle's model is a CLIP-ResNet" in refused(place, method="chefer")
    assert "--background mouse: expected one of the classes" in refused(place, backgrounds=("mouse",))
    for text, message in (
        ("cat\ncat\n", "--center none"),
        ("cat\n", "--center none"),
        ("", "empty"),
    ):
        (tmp_path / "classes.txt").write_text(text)
        assert message in refused(place, classes=str(tmp_path / "classes.txt"))
    with pytest.raises(UsageError, match="leave out the other"):
        parse_backgrounds(("a", "0.1"), ["a"])
    with pytest.raises(UsageError, match="between 0 and 1"):
        parse_backgrounds(("1.5",), ["a"])


def test_bundles_without_pairs(place: Path) -> None:
    with (place / "pairs.safetensors").open("rb") as stream:
        bundle = read_bundle(stream, "pairs")
    neurons = bundle["unit"].copy()
    neurons[:, 2] = -1
    d = np.zeros((len(neurons), 20), np.float32)
    tensors = {key: value for key, value in bundle.tensors.items() if key not in ("sign", "mean_scalar")}
    made = Bundle(bundle.header, tensors | {"unit": neurons, "direction": d})
    (place / "neurons.safetensors").write_bytes(made.to_bytes())
    chosen = options(place, bundle=place / "neurons.safetensors")
    classes = load_classes(str(chosen.classes))
    with pytest.raises(CliptoolsError, match="needs neuron-head pairs"):
        load_labeller(open_bundle(chosen), classes, chosen, ())
    chosen = replace(chosen, method="qqkk")
    load_labeller(open_bundle(chosen), classes, chosen, ())


def test_a_vits_bundle_has_no_pairs(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (place / "pairs.safetensors").open("rb") as stream:
        header = read_bundle(stream, "pairs").header
    tensors = {"unit": np.array([[5, 0, -1]], np.int32), "direction": np.zeros((1, 120), np.float32)}
    path = place / "vit.safetensors"
    path.write_bytes(Bundle(replace(header, model=load_model("emoji-vit2", device="cpu").identity), tensors).to_bytes())
    for words, message in (
        (("--method", "pairs"), "--method pairs: the bundle's model is a CLIP-ViT, expected one of neurons, signed"),
        (("--top-pairs", 5), "--top-pairs is for CLIP-ResNets"),
    ):
        assert here(place / "photos/1.png", "--text", "cat", *words, "--bundle", path) == 2
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1


def test_labels_that_do_not_fit(place: Path, tmp_path: Path) -> None:
    Image.fromarray(np.full((96, 96), 6, np.uint8)).save(tmp_path / "0.png")
    with pytest.raises(CliptoolsError, match="0: label 6, expected 1 to 5 for 5 classes, 0 for the background"):
        figures(place, place / "photos", labels=tmp_path)
    Image.fromarray(np.full((96, 90), 1, np.uint8)).save(tmp_path / "0.png")
    with pytest.raises(CliptoolsError, match="no image with labels"):
        figures(place, place / "photos", labels=tmp_path)
    with pytest.raises(CliptoolsError, match=r"0: .*96 × 96 pixels, its labels 90 × 96"):
        figures(place, place / "photos", labels=tmp_path, strict=True)
    (tmp_path / "other.png").write_bytes((tmp_path / "0.png").read_bytes())
    with pytest.raises(CliptoolsError, match=r"without an image in .*, the first: other"):
        figures(place, place / "photos", labels=tmp_path)
    with pytest.raises(CliptoolsError, match="no such folder"):
        figures(place, place / "photos", labels=tmp_path / "nowhere")


def test_a_list_that_does_not_say_which_number_the_first_class_has(place: Path, tmp_path: Path) -> None:
    """Before, lists from 0, as in model configs and Pascal VOC, were read as if they began at 1, so that all were off by one."""
    lists = {
        "voc.txt": "__background__\ncat\ndog\n",
        "config.json": json.dumps({"id2label": {"0": "background", "1": "cat", "2": "dog"}}),
        "from-0.txt": "0: cat\n1: dog\n",
        "from-2.txt": "2: cat\n3: dog\n",
        "from-1.txt": "1: cat\n2: dog\n",
    }
    for name, text in lists.items():
        (tmp_path / name).write_text(text)
    truth = tmp_path / "truth"
    truth.mkdir()
    Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8).repeat(48, 0).repeat(48, 1)).save(truth / "0.png")

    def whole(name: str, **given: Any) -> dict[str, Any]:
        *_, last = figures(place, place / "photos", labels=truth, size=96, classes=str(tmp_path / name), **given)
        return {key: last[key] for key in ("miou", "accuracy", "iou")}

    for name in ("voc.txt", "config.json"):
        with pytest.raises(UsageError, match=r"first class is 'background', .*--background 'background'"):
            whole(name)
    for name, first in (("from-0.txt", 0), ("from-2.txt", 2)):
        with pytest.raises(UsageError, match=f"numbers from {first}, .*--first-label {first} if the PNGs have the list's"):
            whole(name)
    right = whole("from-1.txt")
    assert whole("from-0.txt", first_label=1) == right
    with pytest.raises(CliptoolsError, match=r"label 2, expected 0 to 1 for 2 classes, or a number left out \(255\)"):
        whole("from-0.txt", first_label=0)
    with_ground = whole("config.json", backgrounds=("background",))
    assert whole("voc.txt", backgrounds=("background",)) == with_ground and list(with_ground["iou"]) == [
        "background",
        "cat",
        "dog",
    ]


def test_numbers_of_label_pngs() -> None:
    pixels = np.array([[0, 1, 3, 255]])
    assert Numbering(3).labels(pixels, "a").tolist() == [[0, 1, 3, IGNORED]]
    assert Numbering(4, first=0).labels(pixels, "a").tolist() == [[1, 2, 4, IGNORED]]
    with pytest.raises(CliptoolsError, match="label 255, expected 1 to 3"):
        Numbering(3, ignored=()).labels(pixels, "a")


def test_refusals_are_one_line(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, classes = str(place / "pairs.safetensors"), str(place / "classes.txt")
    folder = str(place / "photos")
    for words, message in (
        ([folder, "--classes", classes, "--threshold", "0.5"], "--threshold is for heat maps"),
        ([folder, "--classes", classes, "--neurons", "5"], "--neurons is for ViTs"),
        ([folder, "--text", "cat", "--crop", "64"], "--crop is for label maps"),
        ([folder, "--text", "cat", "--evaluate"], "use clip-segment-eval"),
    ):
        assert here(*words, "--bundle", bundle) == 2
        said = capsys.readouterr()
        assert message in said.err and said.err.count("\n") == 1 and not said.out


def test_refusals_of_an_evaluation(place: Path) -> None:
    folder = (str(place / "photos"),)
    with pytest.raises(UsageError, match="name the classes by --classes"):
        evaluate(options(place, paths=folder, labels=place / "photos", classes=None))
    with pytest.raises(UsageError, match="--labels is for label maps"):
        evaluate(options(place, paths=folder, labels=place / "photos", classes=None, text="cat"))
