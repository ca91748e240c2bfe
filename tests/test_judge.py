"""cliptools.judge and clip-judge on tiny models: the presence of texts from every source, controls, outputs and misuse."""

import io
import json
import math
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from helpers.advgen_input import inside, parsed
from helpers.tiny_suite import READ, Suite, done
from helpers.tiny_suite import TEXTS as SUITE_TEXTS
from PIL import Image

import cliptools as ct
from cliptools.emoji.export import slug
from cliptools.emoji.render import SceneSource, scene_key
from cliptools.errors import CliptoolsError, StreamError, UsageError
from cliptools.front.images import Reading
from cliptools.front.judge_images import JudgedImages, open_judged
from cliptools.front.judge_null import null_bundle
from cliptools.front.unit_records import seen_title
from cliptools.images.loader import ListedImages, list_digest, open_images
from cliptools.images.shown_texts import TextIndex, TruthOptions, open_shown
from cliptools.io.bundle_faults import doubtful_values, faults
from cliptools.models.other_weights import with_random_weights
from cliptools.models.text_encoder import encode_texts
from cliptools.text.emoji_concepts import concepts
from cliptools.text.vocabularies import recorded_pool
from cliptools.unit_effects.factored import UnitActivity
from cliptools.unit_effects.pairs import unit_directions
from cliptools.unit_effects.select import factored_effect, pair_effect

COUNT = 26
TEXTS = ("cat", "dog", "boat", "a red car")


@pytest.fixture(scope="module")
def suite(tiny_clip_dir: Path, tiny_resnet_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Suite:
    """The scenes and the bundles with words of the suite, without the rest of it."""
    made = Suite(tmp_path_factory.mktemp("units"), tiny_clip_dir, tiny_resnet_dir, ready=True)
    made.pool.write_text("\n".join(SUITE_TEXTS) + "\n")
    done("scenes", "--count", 6, "--size", 64, "--out-dir", made.scenes)
    for name in ("second", "pooled"):
        done("effects", *made.measured[name], "-o", made.bundle(name))
        done("decompose", "--pool", made.pool, "--m", 3, made.bundle(name), "-o", made.bundle(f"{name}-words"))
    return made


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes that no bundle was made from; six have the names of the suite's."""
    folder = tmp_path_factory.mktemp("judged") / "scenes"
    done("scenes", "--count", COUNT, "--seed", 5, "--size", 64, "--out-dir", folder)
    return folder


def judged(suite: Suite, scenes: Path, bundle: str = "second-words", **arguments: Any) -> Any:
    images = arguments.pop("images", str(scenes / "images"))
    return ct.judge(
        ct.read(suite.bundle(bundle)), images, batch_size=4, workers=0, device="cpu", **{"same_names": True} | arguments
    )


@pytest.mark.parametrize("kind", ["own", "judge", "truth"])
def test_agreement_is_a_correlation_over_images(suite: Suite, scenes: Path, kind: str) -> None:
    """The whole path against a loop: activities by UnitActivity, embeddings and labels image by image."""
    other = ct.load_model(suite.resnet, device="cpu")
    arguments = {"own": {}, "judge": {"judge": other}, "truth": {"truth": str(scenes / "scenes.jsonl")}}[kind]
    result = judged(suite, scenes, **arguments)
    bundle, model = ct.read(suite.bundle("second-words")), ct.load_model(suite.vit, device="cpu")
    source = open_images([str(scenes / "images")])
    effect = factored_effect(model.clip, "second", "neurons")
    unit, b, r = (torch.from_numpy(bundle[name]) for name in ("unit", "mean", "direction"))
    pictures = [source.load(i) for i in range(COUNT)]
    activity = UnitActivity(effect, unit, b, r)(torch.stack([model.transform(p) for p in pictures]))
    a, e = activity.along.double(), torch.nn.functional.normalize(activity.embedding.double(), dim=1)
    texts = bundle.text_list("words")["texts"]
    names = {line["key"]: line["names"] for line in map(json.loads, (scenes / "scenes.jsonl").read_text().splitlines())}
    with torch.inference_mode():
        seen_by_other: Any = other.clip.encode_image(torch.stack([other.transform(p) for p in pictures]))  # type: ignore[operator]
    other_e = torch.nn.functional.normalize(seen_by_other.double(), dim=1)
    for n, record in enumerate(result):
        coefficient, text = max(zip(bundle["coefficient"][n], bundle["word"][n], strict=True))
        if coefficient <= 0:
            assert record["written"] is None and record["agreement"] is None and result.bundle["agreement"][n] == 0
            continue
        word = texts[text]
        t = encode_texts(other if kind == "judge" else model, [word])[0].double()
        if kind == "own":
            c = (e - a[:, n, None] * r[n].double() / 100) @ t
        elif kind == "judge":
            c = other_e @ t
        else:
            c = torch.tensor([float(word in names[Path(name).stem]) for name in source.names])
        assert record["written"]["word"] == word
        shown = np.ptp(c.numpy()) > 0
        expected = scipy.stats.pearsonr(a[:, n].numpy(), c.numpy()).statistic if shown else None
        if expected is not None:
            assert record["agreement"] == pytest.approx(expected, abs=2e-3)
        assert result.bundle["agreement"][n] == pytest.approx(record["agreement"] or 0, abs=1e-6)
    assert result.bundle.header.settings["judged"] == {"own": "own", "judge": other.sha256, "truth": "truth"}[kind]


@pytest.mark.parametrize("bundle", ["second-words", "pooled-words"])
def test_the_bundle_and_the_summary(suite: Suite, scenes: Path, bundle: str, tmp_path: Path) -> None:
    result = judged(suite, scenes, bundle)
    result.bundle.save(tmp_path / "judged.safetensors")
    again = ct.read(tmp_path / "judged.safetensors")
    assert not [*faults(again.tensors), *doubtful_values(again.tensors)]
    before, words = ct.read(suite.bundle(bundle)), again.text_list("words")["texts"]
    assert seen_title(again) == "sees (uncertain, 13 images)"  # those that chose them
    many = replace(again, header=replace(again.header, settings=again.header.settings | {"judged_images": 300}))
    assert seen_title(many) == "sees" and again.header.images["count"] < 300
    assert "judged_images" not in ct.decompose(result.bundle, SUITE_TEXTS, m=2, device="cpu").header.settings
    assert np.array_equal(again["word"], before["word"])
    assert words[: len(before.text_list("words")["texts"])] == before.text_list("words")["texts"]
    for n, record in enumerate(result):
        listed = [words[j] for j in again["seen"][n] if j >= 0]
        assert listed == [item["word"] for item in record["seen_words"]]
        assert not listed or record["seen"]["word"] == listed[0]
    summary = result.summary
    assert summary["images"] == {"choosing": 13, "scored": 13, "recurring": 0, "skipped": 0}
    values = [record["written"]["correlation"] for record in result if record["written"]]
    mean = summary["words"]["written"]["correlation"]
    assert mean["mean"] == pytest.approx(np.mean([v for v in values if v is not None]), rel=1e-4)
    assert mean["low"] < mean["mean"] < mean["high"] and mean["units"] == len(values)
    assert {"written", "seen", "random", "written dealt", "seen dealt"} == summary["words"].keys()
    assert "95 % interval" in result.table()


def test_the_command_writes_what_the_front_returns(suite: Suite, scenes: Path, tmp_path: Path) -> None:
    words = suite.bundle("second-words")
    common = (scenes / "images", "--truth", "scenes", "--same-names", "--bundle", words, *READ)
    more = ("--summary", tmp_path / "s.json", "--bundle-out", tmp_path / "b.safetensors", "-f", "jsonl", "--device", "cpu")
    ended = inside("judge", *common, *more)
    assert ended.returncode == 0, ended.stderr
    result = judged(suite, scenes, truth="scenes")
    assert parsed(ended.stdout) == list(result)
    assert json.loads((tmp_path / "s.json").read_text()) == json.loads(json.dumps(result.summary))
    written = ct.read(tmp_path / "b.safetensors")
    assert {step["command"] for step in (written.header.history[-1], result.bundle.header.history[-1])} == {
        "clip-judge", "cliptools.judge",
    }  # fmt: skip
    assert replace(written, header=result.bundle.header).to_bytes() == result.bundle.to_bytes()
    assert written.header.history[-1]["arguments"] == result.bundle.header.history[-1]["arguments"]
    assert written.header.history[-1]["arguments"]["same_names"]
    table = inside("judge", *common, "-f", "table").stdout.decode()
    assert table.split()[:5] == ["unit", "agreement", "written", "seen", "own"] and "written dealt" in table


def test_outputs_do_not_replace_each_other(suite: Suite, scenes: Path, tmp_path: Path) -> None:
    common = (scenes / "images", "--bundle", suite.bundle("second-words"))
    one, same = tmp_path / "one", tmp_path / "." / "one"
    for options, message in (
        (("--summary", one, "--bundle-out", same), f"--summary {one}: also the place of --bundle-out {same}; name two files"),
        (("--summary", one, "-o", one), f"--summary {one}: also the place of -o {one}; name two files"),
        (("--bundle-out", "-"), "--bundle-out -: also the place of the records; name two files"),
    ):
        ended = inside("judge", *common, *options)
        assert ended.returncode == 2 and message in ended.stderr.decode() and not one.exists()


def test_images_of_the_bundle_are_known_in_an_archive_of_another_name(suite: Suite, tmp_path: Path) -> None:
    for name in ("one", "two"):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            for path in sorted(suite.images.iterdir()):
                tar.add(path, path.name)
    model = ct.load_model(suite.vit, device="cpu")
    bundle = ct.effects(str(tmp_path / "one.tar"), model=model, device="cpu", layers=[1, 1], top_images=4)
    assert bundle.units == len({tuple(unit) for unit in bundle["unit"].tolist()}), "a layer that is named twice counts once"
    words = ct.decompose(bundle, SUITE_TEXTS, m=2, model=model)
    for images in (tmp_path / "one.tar", tmp_path / "two.tar", suite.images):
        with pytest.raises(UsageError, match="made from a list of images with these names"):
            ct.judge(words, str(images), model=model, device="cpu")


def test_images_of_the_bundle_are_not_judged_by(suite: Suite, scenes: Path) -> None:
    with pytest.raises(UsageError, match="made from a list of images with these names"):
        judged(suite, scenes, images=str(suite.images), same_names=False)
    kept = judged(suite, scenes, same_names=False)
    listed = ct.read(suite.bundle("second-words")).text_list("images")
    assert kept.summary["images"]["recurring"] == len(listed) > 0
    assert kept.summary["images"]["scored"] + kept.summary["images"]["choosing"] == COUNT - len(listed)


def test_random_weights_are_judged_in_the_same_way(suite: Suite, scenes: Path) -> None:
    null = judged(suite, scenes, null=True).summary["null"]
    assert null["words"].keys() == {"written", "seen", "random", "written dealt", "seen dealt"}
    model = ct.load_model(suite.vit, device="cpu")
    random = with_random_weights(model, 3)
    assert random.sha256 != model.sha256 == ct.load_model(suite.vit, device="cpu").sha256
    pairs = zip(model.clip.visual.parameters(), random.clip.visual.parameters(), strict=True)  # type: ignore[union-attr]
    assert all(torch.equal(x.flatten().sort().values, y.flatten().sort().values) for x, y in pairs)


def test_pairs_with_random_weights(suite: Suite, scenes: Path) -> None:
    """The bundle of the tower with random weights has as many pairs, with the directions that these weights give."""
    bundle, model = ct.read(suite.bundle("pooled-words")), ct.load_model(suite.resnet, device="cpu")
    random = with_random_weights(model, 1)
    images = JudgedImages(source=open_images([str(scenes / "images")]), indices=list(range(COUNT)), truth=None, recurring=0)
    null = null_bundle(bundle, random, images, list(range(0, COUNT, 2)), recorded_pool(bundle), Reading(batch_size=4, workers=0))
    assert null.units == bundle.units and null.header.model["sha256"] == random.sha256
    assert null.header.images["count"] == bundle.header.images["count"]
    r = unit_directions(pair_effect(random.clip), torch.from_numpy(null["unit"]).long(), torch.from_numpy(null["sign"]))
    np.testing.assert_array_equal(null["direction"], r.numpy())
    summary = judged(suite, scenes, "pooled-words", null=True).summary["null"]
    assert summary["units"] == bundle.units and summary["words"]["seen"]["correlation"]["mean"] is not None


@pytest.mark.parametrize("judge", [None, "other"])
def test_every_image_is_decoded_once(suite: Suite, scenes: Path, judge: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: Counter[int] = Counter()
    load = ListedImages.load

    def counted(self: ListedImages, index: int) -> Image.Image:
        loads[index] += 1
        return load(self, index)

    monkeypatch.setattr(ListedImages, "load", counted)
    judged(suite, scenes, judge=suite.resnet if judge else None)
    assert loads == Counter(range(COUNT))


def test_images_that_only_the_judge_cannot_use(suite: Suite, scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They count as skipped, and the others have the numbers of a run without them."""
    other = ct.load_model(suite.resnet, device="cpu")
    clip: Any = other.clip
    encode = clip.visual.forward
    batches: list[int] = []

    def broken(pictures: torch.Tensor) -> torch.Tensor:
        embedding: torch.Tensor = encode(pictures)
        embedding[0] = math.nan if not batches else embedding[0]
        batches.append(len(pictures))
        return embedding

    monkeypatch.setattr(clip.visual, "forward", broken)
    result = judged(suite, scenes, judge=other, images=sorted(map(str, (scenes / "images").iterdir())))
    monkeypatch.undo()
    expected = judged(suite, scenes, judge=other, images=sorted(map(str, (scenes / "images").iterdir()))[1:])
    assert result.summary["images"]["skipped"] == 1 and expected.summary["images"]["skipped"] == 0
    for record, other_record in zip(result, expected, strict=True):
        assert record["agreement"] == pytest.approx(other_record["agreement"], abs=1e-5)


def test_pictures_of_words(suite: Suite, scenes: Path, tmp_path: Path) -> None:
    """CoSy's AUC of a word is that of the unit's activities on its pictures and on the scored images."""
    first = judged(suite, scenes)
    words = {record["written"]["word"] for record in first if record["written"]}
    named = sorted(words)[0]
    (tmp_path / named.replace(" ", "_")).mkdir(parents=True)
    for number, path in enumerate(sorted((scenes / "images").iterdir())[:5]):
        Image.open(path).transpose(Image.Transpose.ROTATE_90).save(tmp_path / named.replace(" ", "_") / f"{number}.png")
    result = judged(suite, scenes, pictures=str(tmp_path))
    for record in result:
        auc = record["written"]["cosy_auc"] if record["written"] else None
        assert (auc is not None and 0 <= auc <= 1) == bool(record["written"] and record["written"]["word"] == named)
    assert result.summary["words"]["written"]["cosy_auc"]["units"] == sum(
        1 for record in result if record["written"] and record["written"]["word"] == named
    )
    assert "cosy_auc" in result.table() and "cosy_auc" not in first.table()
    with pytest.raises(UsageError, match="no folder in it has the name of a text"):
        judged(suite, scenes, pictures=str(scenes / "images"))


def test_names_of_folders() -> None:
    """Any sign between words stands for a space, as in the folders of clip-scenes --single."""
    index = TextIndex(["black cat", "t-shirt", "ox", "coat, blouse", "猫"])
    names = {
        "black-cat": [0],
        "Black_Cat": [0],
        "t-shirt": [1],
        "t shirt": [1],
        "blackcat": [],
        "blouse": [3],
        "猫": [4],
        "-": [],
    }
    assert {name: index.of_folder(name) for name in names} == names
    concepts_named = TextIndex([concept.name for concept in concepts()])
    assert all(concepts_named.of_folder(slug(concept.name)) == [n] for n, concept in enumerate(concepts()))


def shown(paths: list[str], truth: str) -> tuple[list[list[str]], list[str]]:
    """Return the texts that each image shows, and those that are known."""
    opened = open_shown(paths, TruthOptions(truth), TEXTS)
    known = TEXTS if opened.known is None else [text for text, is_known in zip(TEXTS, opened.known, strict=True) if is_known]
    return [[TEXTS[j] for j in opened.of(number)] for number in range(len(opened.source))], list(known)


def test_texts_from_every_kind_of_label(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = tmp_path / "photos"
    for folder, name in (("cat", "a"), ("cat", "b"), ("dog", "c")):
        (photos / folder).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(photos / folder / f"{name}.png")
    paths = [str(photos)]
    assert shown(paths, "classes") == ([["cat"], ["cat"], ["dog"]], ["cat", "dog"])
    lines, table, classes = tmp_path / "lines.jsonl", tmp_path / "table.csv", tmp_path / "classes.csv"
    lines.write_text('{"key": "a", "names": ["DOG", "tree"]}\n{"key": "b", "names": ["boat"]}\n{"key": "c", "names": ["x"]}\n')
    assert shown(paths, str(lines))[0] == [["dog"], ["boat"], []]
    table.write_text("image,Boat,dog,weather\ncat/a.png,1,0,fine\ncat/b.png,0,1,rain\ndog/c.png,1,,rain\n")
    rows, known = shown(paths, str(table))
    assert "not judged, 1 text with images without an entry: 'dog' (1 image)" in capsys.readouterr().err
    assert known == ["boat"] and [row for row in rows if "boat" in row] == [rows[0], rows[2]] and rows[0] == ["boat"]
    classes.write_text("image,label\ncat/a.png,boat\ncat/b.png,dog\ndog/c.png,boat\n")
    assert shown(paths, str(classes)) == ([["boat"], ["dog"], ["boat"]], ["dog", "boat"])


def picture_bytes() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "PNG")
    return stream.getvalue()


def test_texts_in_captions_and_scenes(tmp_path: Path) -> None:
    captions = ("--caption", "two cats and a boat", "--caption", "a dog")
    done("scenes", *captions, "--count", 2, "--size", 32, "-o", tmp_path / "captioned.tar")
    for truth in ("captions", "scenes"):
        rows, known = shown([str(tmp_path / "captioned.tar")], truth)
        assert sorted(set(map(tuple, map(sorted, rows)))) == [("boat", "cat"), ("dog",)], truth
        assert "a red car" not in known or truth == "captions"
    with tarfile.open(tmp_path / "bad.tar", "w") as archive:
        for name, data in (("a.png", picture_bytes()), ("a.txt", b"\xff\xfe\xfa")):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    with pytest.raises(StreamError, match="cannot be read"):
        shown([str(tmp_path / "bad.tar")], "captions")
    (tmp_path / "plain").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "plain" / "a.png")
    with pytest.raises(StreamError, match="has no caption"):
        shown([str(tmp_path / "plain")], "captions")


def test_scenes_that_are_rendered(suite: Suite) -> None:
    """They are of another seed than those of the bundle, and their truth is known without a file."""
    bundle = ct.read(suite.bundle("second-words"))
    images = {"count": 5, "digest": list_digest([scene_key(i) for i in range(5)])}
    model, history = {**bundle.header.model, "name": "emoji-vit2"}, [{"command": "clip-effects", "arguments": {"seed": 4}}]
    rendered = replace(bundle, header=replace(bundle.header, model=model, images=images, history=history))
    with pytest.raises(UsageError, match="made from the scenes of this seed"):
        ct.judge(rendered, seed=4)
    with pytest.raises(UsageError, match="rendered scenes have --truth scenes"):
        ct.judge(rendered, truth="classes")
    arguments: dict[str, Any] = {"limit": 9, "sample": None, "seed": 5, "same_names": False}
    opened = open_judged(rendered, None, "scenes", None, ("cat", "dog"), **arguments)
    assert len(opened.indices) == 9 and opened.truth is not None and isinstance(opened.source, SceneSource)
    for number in range(9):
        expected = [n for n, text in enumerate(("cat", "dog")) if text in opened.source.names_in(number)]
        assert opened.truth.of(number) == expected


def test_misuse(suite: Suite, scenes: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"judge": "x", "truth": "scenes"}, "give one of them"),
        ({"judge_pretrained": "x"}, "which is missing"),
        ({"classes": "imagenet"}, "which is missing"),
        ({"judge": suite.vit}, "the bundle's own model"),
        ({"images": None}, "no images named"),
        ({"images": [np.zeros((8, 8, 3), np.uint8)] * 8, "truth": "classes"}, "needs images as paths"),
        ({"share": 1.0}, "between 0 and 1"),
        ({"limit": 3}, "expected 6 or more"),
    ]
    for arguments, message in cases:
        with pytest.raises(CliptoolsError, match=message):
            judged(suite, scenes, **arguments)
    bundle = ct.read(suite.bundle("second-words"))
    indirect = replace(bundle, header=replace(bundle.header, settings={**bundle.header.settings, "effect": "indirect"}))
    with pytest.raises(StreamError, match="needs effects in factored form"):
        ct.judge(indirect, str(scenes / "images"))
    with pytest.raises(StreamError, match="no units to judge"):
        ct.judge(bundle.select(np.arange(0)), str(scenes / "images"))
    ended = inside("judge", "-", stdin=b"")
    assert ended.returncode == 2 and b"cannot both come from standard input" in ended.stderr
    with pytest.raises(StreamError, match="without `word`"):
        judged(suite, scenes, "second")
    batches = [torch.zeros(8, 3, *[ct.load_model(suite.vit, device="cpu").clip.visual.image_size[0]] * 2)]  # type: ignore[union-attr,index]
    with pytest.raises(UsageError, match="preprocessed for the bundle's model"):
        judged(suite, scenes, images=[b + torch.rand(8, 3, 1, 1) for b in batches], judge=suite.resnet)
    with pytest.raises(UsageError, match="batches of preprocessed images"):
        judged(suite, scenes, images=[b + torch.rand(8, 3, 1, 1) for b in batches], null=True)
