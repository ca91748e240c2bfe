"""clip-ablate as a process: effect of changes on the embedded models' accuracy, and errors."""

import io
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Run
from helpers.bundle import read
from helpers.pipes import shell
from helpers.shift_command import lines, only_line

from cliptools.analysis.zero_shot import Share
from cliptools.emoji.render import single_scenes_for
from cliptools.front.ablate_records import ablate_table, setting_text
from cliptools.front.tables import rendered
from cliptools.images.tar import write_end, write_member
from cliptools.io.bundle import Bundle

IMAGES = 120
CLASSES = 526
ASKED = ("--ablate", "all,large,small,none", "--reconstruct", "pc,words", "--m", "1,6", "--each-layer", "--limit", IMAGES)


def ok(result: subprocess.CompletedProcess[bytes]) -> bytes:
    assert result.returncode == 0, result.stderr.decode()
    return result.stdout


def measured(record: dict) -> dict:
    return {key: record[key] for key in ("n", "top1", "top5", "agreement", "cosine")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ablate")


@pytest.fixture(scope="module")
def whole(folder: Path) -> bytes:
    """Return the output of a pipe of real processes: effects of emoji-vit2's default layers, their words, and the ablation."""
    effects = "clip-effects --limit 150 --top-images 40 -q | clip-decompose --m 6 -q"
    ended = shell(f"{effects} | tee {folder}/words.safetensors | clip-ablate {' '.join(map(str, ASKED))}")
    assert (
        ended.stderr.decode()
        .splitlines()[-1]
        .startswith(f"clip-ablate: {IMAGES} images, {CLASSES} classes, 21 settings of emoji-vit2 (")
    )
    return ok(ended)


@pytest.fixture(scope="module")
def words(whole: bytes, folder: Path) -> Path:
    return folder / "words.safetensors"


@pytest.fixture(scope="module")
def pairs(run: Run, folder: Path) -> dict[str, Path]:
    """Bundles of emoji-rn2: all pairs, the strongest fifth of them, and neurons."""
    made = {"pairs": (), "fifth": ("--keep", "20%"), "neurons": ("--units", "neurons")}
    for name, options in made.items():
        data = ok(run("effects", "--model", "emoji-rn2", "--limit", 40, "--top-images", 10, "-q", *options))
        (folder / f"{name}.safetensors").write_bytes(data)
    return {name: folder / f"{name}.safetensors" for name in made}


def test_default_layers_carry_the_answer_and_one_direction_brings_it_back(whole: bytes, words: Path) -> None:
    untouched, *records = lines(whole)
    bundle = read(words.read_bytes())
    assert untouched["ablate"] == "none" and untouched["layers"] == [] and "effect" not in untouched
    assert measured(untouched) | {"agreement": 1.0, "cosine": 1.0} == measured(untouched) and untouched["n"] == IMAGES
    kinds = [{"ablate": kind} for kind in ("all", "large", "small", "none")]
    kinds += [{"reconstruct": "pc", "components": 1}]
    kinds += [{"reconstruct": "words", "m": m, "along": "direction"} for m in (1, 6)]
    said = [{key: each[key] for key in ("ablate", "reconstruct", "components", "m", "along") if key in each} for each in records]
    assert said == kinds * 3 and [each["layers"] for each in records] == [[5, 6]] * 7 + [[5]] * 7 + [[6]] * 7
    assert all((each["effect"], each["units"], each["bundle"]) == ("second", "neurons", bundle.digest) for each in records)
    assert all(each["model"]["name"] == "emoji-vit2" and each["settings"]["classes"] == "emoji" for each in lines(whole))
    means, large, small, none, pc, one, six = (each["top1"]["value"] for each in records[:7])
    baseline = untouched["top1"]["value"]
    assert baseline > 0.8 and means < 0.02 and measured(records[3]) == measured(untouched) and none == baseline
    assert pc > baseline - 0.04 and records[4]["cosine"] > 0.97
    assert means < min(one, large, small) and max(one, large) < six  # a few large effects matter, and so do many texts
    for record in lines(whole):
        for top in ("top1", "top5"):
            hits = round(record[top]["value"] * IMAGES)
            assert Share(hits, IMAGES).interval() == pytest.approx((record[top]["low"], record[top]["high"]), abs=1e-5)
        assert record["top1"]["value"] <= record["top5"]["value"]


def test_the_same_hits_whatever_the_batch(run: Run, words: Path, whole: bytes) -> None:
    other = ok(run("ablate", *ASKED, "--bundle", words, "--batch-size", 23, "-q"))
    for now, before in zip(lines(other), lines(whole), strict=True):
        assert now | {"cosine": 0} == before | {"cosine": 0} and now["cosine"] == pytest.approx(before["cosine"], abs=1e-5)


def test_pairs_neurons_and_what_a_bundle_left_out(run: Run, pairs: dict[str, Path]) -> None:
    """One pass serves three bundles: pairs have rank one, and --keep of clip-ablate and of clip-effects select the same fifth."""
    asked = ("--reconstruct", "pc", "--keep", "20%,100%", "--limit", 50)
    bundles = [word for name in ("pairs", "fifth", "neurons") for word in ("--bundle", pairs[name])]
    untouched, *records = lines(ok(run("ablate", *asked, *bundles, "-q")))
    by = {(i // 2, record["keep"]): record for i, record in enumerate(records)}
    assert [by[i, 1.0]["units"] for i in range(3)] == ["pairs", "pairs", "neurons"] and "bundle" not in untouched
    assert measured(by[0, 1.0]) == measured(untouched) | {"cosine": by[0, 1.0]["cosine"]}
    assert by[0, 1.0]["cosine"] == pytest.approx(1, abs=1e-5)
    assert measured(by[1, 1.0]) == measured(by[0, 0.2]) | {"cosine": by[1, 1.0]["cosine"]}
    assert by[1, 1.0]["cosine"] == pytest.approx(by[0, 0.2]["cosine"], abs=1e-5) and by[1, 1.0]["cosine"] < 0.95
    assert by[1, 1.0]["settings"]["rest"] == 8192 - read(pairs["fifth"].read_bytes()).units
    assert by[2, 1.0]["cosine"] < by[0, 1.0]["cosine"]  # neurons have more than one direction
    assert by[2, 0.2]["top1"]["value"] < by[0, 0.2]["top1"]["value"]  # the paper's few pairs carry more than few neurons


def test_all_units_kept_is_the_untouched_model_and_equal_runs_give_equal_bytes(run: Run, words: Path) -> None:
    asked = ("--keep", "50%,100%", "--limit", 30, "-q")
    first = ok(run("ablate", *asked, stdin=words.read_bytes()))
    untouched, half, everything = lines(first)
    assert measured(everything) == measured(untouched) and everything["ablate"] == half["ablate"] == "rest"
    assert half["keep"] == 0.5 and half["cosine"] < 0.999
    assert ok(run("ablate", *asked, "--bundle", words)) == first


def test_three_ways_to_evaluate_words(run: Run, words: Path) -> None:
    """Each way has a record that names it; along the direction is the default. tests/test_ablation.py tests the formulas."""
    asked = ("--reconstruct", "words", "--m", "3,6", "--limit", 30, "--template", "{}", "-q")
    default = ok(run("ablate", *asked, stdin=words.read_bytes()))
    assert ok(run("ablate", *asked, "--words-along", "direction", stdin=words.read_bytes())) == default
    _, *records = lines(ok(run("ablate", *asked, "--words-along", "direction,texts,unit-texts", stdin=words.read_bytes())))
    kinds = [(each["along"], each["m"]) for each in records]
    assert kinds == [(along, m) for along in ("direction", "texts", "unit-texts") for m in (3, 6)]
    assert records[:2] == lines(default)[1:] and len({each["cosine"] for each in records}) == 6
    shown = [setting_text(each) for each in records]
    assert shown[::2] == ["3 words", "3 words along texts", "3 words along unit-texts"]


def test_indirect_effects_one_by_one_or_all_at_once(run: Run, folder: Path, words: Path) -> None:
    sampled = ("--effect", "indirect", "--layers", "6", "--sample-neurons", 12, "--limit", 30, "--top-images", 8, "-q")
    (folder / "indirect.safetensors").write_bytes(ok(run("effects", *sampled)))
    bundle = read((folder / "indirect.safetensors").read_bytes())
    assert bundle["token_mean"].shape == (12, 65) and bundle["token_mean"].dtype == np.float32
    bundles = ("--bundle", words, "--bundle", folder / "indirect.safetensors", "--layers", 6)
    result = run("ablate", *bundles, "--ablate", "all,joint", "--limit", 24)
    _, second, one_by_one, at_once = lines(ok(result))
    assert "clip-ablate: 24 forward passes and 288 partial ones" in result.stderr.decode()
    assert [record["effect"] for record in (second, one_by_one, at_once)] == ["second", "indirect", "indirect"]
    assert at_once["ablate"] == "joint" and 0.9 < at_once["cosine"] < 1 > one_by_one["cosine"] > second["cosine"]
    old = replace(bundle, tensors={name: value for name, value in bundle.tensors.items() if name != "token_mean"})
    result = run("ablate", stdin=old.to_bytes())
    assert "run clip-effects again" in only_line(result) and result.returncode == 1


@pytest.fixture(scope="module")
def tar() -> bytes:
    """Return scenes of the first eight classes, twice each, in one folder per class, and one file that is not a picture."""
    source, archive = single_scenes_for("emoji-vit2", CLASSES, 5), io.BytesIO()
    from cliptools.text.emoji_concepts import concepts

    for i, concept in enumerate(source.concept.tolist()[:48]):
        picture = io.BytesIO()
        source.load(i).save(picture, "PNG")
        write_member(archive, f"{concepts()[concept].name}/{i:03d}.png", picture.getvalue())
    write_member(archive, f"{concepts()[source.concept[0]].name}/broken.png", b"no picture")
    write_end(archive)
    return archive.getvalue()


def test_a_tar_of_folders_on_standard_input(run: Run, words: Path, tar: bytes) -> None:
    named = ("-", "--bundle", words, "--template", "a picture of {}", "--classes", "emoji")
    result = run("ablate", *named, stdin=tar)
    untouched, means = lines(ok(result))
    assert "broken.png: skipped" in result.stderr.decode() and "48 images, 1 skipped, 526 classes" in result.stderr.decode()
    assert untouched["n"] == 48 and untouched["top1"]["value"] > 0.6 > means["top1"]["value"]
    assert untouched["settings"]["templates"] == ["a picture of {}"]


def test_labels_that_do_not_match_are_refused(run: Run, words: Path, tmp_path: Path) -> None:
    """Every picture is in the folder of another class."""
    from cliptools.text.emoji_concepts import concepts

    source = single_scenes_for("emoji-vit2", 30, 5)
    for i, concept in enumerate(source.concept.tolist()):
        (tmp_path / concepts()[(concept + 7) % CLASSES].name).mkdir()
        source.load(i).save(tmp_path / concepts()[(concept + 7) % CLASSES].name / "0.png")
    target = tmp_path / "out.jsonl"
    result = run("ablate", tmp_path, "--classes", "emoji", "--bundle", words, "-o", target)
    said = only_line(result)
    assert result.returncode == 1 and not target.exists() and said.startswith("clip-ablate: the untouched model is right on ")
    assert "do not match; " in said and "is labelled" in said and "and taken for" in said


def test_a_table(whole: bytes) -> None:
    shown = rendered(*ablate_table(lines(whole))).decode()
    assert "top-1" in shown and "6 words" in shown and "5–6" in shown and f"{IMAGES} images, {CLASSES} classes" in shown
    assert setting_text({"effect": "pooled", "ablate": "rest", "keep": 0.2}) == "all but 20 % to means"
    assert setting_text({"effect": "pooled", "reconstruct": "pc", "components": 4, "keep": 0.5}) == "PC 1–4 of 50 %"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--ablate", "all,some"), 2, "found 'some'"),
        (("--reconstruct", "pca"), 2, "expected some of pc, words"),
        (("--components", "0", "--reconstruct", "pc"), 2, "expected numbers of at least 1"),
        (("--m", "4"), 2, "--m needs --reconstruct words"),
        (("--reconstruct", "pc", "--words-along", "texts"), 2, "--words-along needs --reconstruct words"),
        (("--reconstruct", "words", "--words-along", "unit"), 2, "expected some of direction, texts, unit-texts, found 'unit'"),
        (("--keep", "20"), 2, "expected a percentage like 20%"),
        (("-",), 2, "cannot both come from standard input: name --bundle FILE"),
        (("--template", "a photo"), 1, "expected {} where the text goes"),
        (("--effect", "first"), 2, "--effect first: standard input is a bundle with effect second"),
        (("--units", "heads"), 2, "--units heads: standard input is a bundle with units neurons"),
        (("--layers", "4"), 2, "the bundle has no layer 4"),
        (("--reconstruct", "pc", "--components", "2"), 2, "clip-effects --components 2"),
        (("--reconstruct", "words", "--m", "7"), 2, "has 6 words per unit"),
        (("--ablate", "joint"), 2, "needs a bundle of indirect effects"),
        (("--sample", "4"), 2, "--sample needs a PATH"),
        (("--labels", "folders"), 2, "name a PATH"),
        (("--limit", "4", "--sample", "4", "TAR"), 2, "give one of them"),
        (("no-such-folder",), 1, "no-such-folder: no such file or folder"),
    ],
)
def test_refusals(run: Run, words: Path, tar: bytes, tmp_path: Path, arguments: tuple[str, ...], code: int, said: str) -> None:
    if "TAR" in arguments:
        (tmp_path / "scenes.tar").write_bytes(tar)
    named = [str(tmp_path / "scenes.tar") if each == "TAR" else each for each in arguments]
    result = run("ablate", *named, stdin=words.read_bytes())
    assert said in only_line(result) and result.returncode == code


def test_refusals_of_bundles(run: Run, words: Path, pairs: dict[str, Path], tmp_path: Path) -> None:
    bundle = read(words.read_bytes())
    other = replace(bundle, header=replace(bundle.header, model=bundle.header.model | {"name": "ViT-B-32"}))
    bare = replace(bundle, tensors={name: bundle[name] for name in ("unit", "direction")})
    fifth = read(pairs["fifth"].read_bytes())
    lost: Bundle = fifth.select(np.arange(100))
    for data, said, code in (
        (words.read_bytes()[:-5], "truncated bundle", 1),
        (other.to_bytes(), "ViT-B-32 needs a PATH", 2),
        (bare.to_bytes(), "a bundle without effects", 1),
        (lost.to_bytes(), "has lost units since", 1),
    ):
        result = run("ablate", "--limit", 8, stdin=data)
        assert said in only_line(result) and result.returncode == code
    result = run("ablate", "--bundle", words, "--bundle", pairs["pairs"])
    assert (
        "bundle of model emoji-rn2, but the first bundle is of model emoji-vit2" in only_line(result) and result.returncode == 1
    )
    result = run("ablate", "--reconstruct", "words", "--bundle", pairs["pairs"])
    assert "run clip-decompose first" in only_line(result) and result.returncode == 1
