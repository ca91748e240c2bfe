"""--template by name: equal to the explicit sentences, the names in records and headers, and the defaults."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from helpers.advgen_input import inside
from helpers.bundle import read
from PIL import Image
from safetensors.numpy import load

from cliptools.emoji.words import ZERO_SHOT_TEMPLATES
from cliptools.errors import CliptoolsError, TextError, UsageError
from cliptools.io.header import Header, digest
from cliptools.models.load import load_model
from cliptools.models.templates import (
    check_template_options,
    class_templates,
    recorded_templates,
    template_options,
    text_sentences,
)
from cliptools.models.text_encoder import encode_named, encode_texts
from cliptools.text.vocabularies import Pool

EIGHTY = tuple(template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES)
WRITTEN_OUT = [word for template in EIGHTY for word in ("--template", template)]
POOL = ("dog", "hourglass", "grapes", "boat")
SETTINGS = ("-f", "jsonl", "-q")


def written(name: str, *arguments: object, stdin: bytes = b"") -> bytes:
    ended = inside(name, *arguments, stdin=stdin)
    assert ended.returncode == 0, ended.stderr.decode()
    return ended.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return photographs, a pool, and effects of the tiny ViT and the tiny ResNet."""
    folder = tmp_path_factory.mktemp("templates")
    random = np.random.default_rng(8)
    (folder / "photos").mkdir()
    for i in range(8):
        Image.fromarray(random.integers(0, 256, (30, 34, 3)).astype(np.uint8)).save(folder / "photos" / f"{i}.png")
    (folder / "pool.txt").write_text("\n".join(POOL))
    return folder


@pytest.fixture(scope="module")
def effects(folder: Path, tiny_clip_dir: Path) -> bytes:
    return written("effects", folder / "photos", "--model", f"local-dir:{tiny_clip_dir}", "--top-images", 3, "-q")


@pytest.fixture(scope="module")
def named(folder: Path, effects: bytes) -> dict[str, Path]:
    """Return words by the value of --template."""
    asked = {"": (), "none": ("--template", "none"), "imagenet": ("--template", "imagenet"), "written": WRITTEN_OUT}
    asked["emoji"] = ("--template", "emoji")
    for name, options in asked.items():
        data = written("decompose", "--m", 2, "--pool", folder / "pool.txt", *options, "--no-cache", stdin=effects)
        (folder / f"named-{name}").write_bytes(data)
    return {name: folder / f"named-{name}" for name in asked}


def test_names_and_what_they_stand_for() -> None:
    assert len(EIGHTY) == 80 and text_sentences(POOL, ("imagenet",)) == (list(POOL), EIGHTY)
    assert text_sentences(POOL, ("emoji",)) == (["a dog", "an hourglass", "grapes", "a boat"], ZERO_SHOT_TEMPLATES)
    assert text_sentences(POOL, ("none",)) == text_sentences(POOL, ()) == (list(POOL), ())
    assert class_templates("ViT-B-32", ()) == class_templates("RN50", ()) == ("imagenet",)
    assert class_templates("emoji-vit2", ()) == class_templates("emoji-rn2", ()) == ("emoji",)
    assert class_templates("emoji-vit2", ("none",)) == ("none",) and class_templates("RN50", ("a {}",)) == ("a {}",)


@pytest.mark.parametrize(
    ("given", "said"),
    [((), []), (("none",), []), (("imagenet",), "imagenet"), (("emoji",), "emoji"), (("a {}", "{}"), ["a {}", "{}"])],
)
def test_records_name_them_and_are_read_again(given: tuple[str, ...], said: object) -> None:
    assert recorded_templates(given) == said
    assert text_sentences(POOL, template_options(recorded_templates(given))) == text_sentences(POOL, given)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (("imagenet", "a {}"), UsageError, "--template imagenet: is a set of templates"),
        (("a {}", "none"), UsageError, "--template none: is a set"),
        (("emoji", "emoji"), UsageError, "--template emoji: is a set"),
        (("ImageNet",), TextError, "template 'ImageNet': expected {} where the text goes, .* or imagenet, emoji, none"),
        (("a {}", "a photo"), TextError, "template 'a photo'"),
    ],
)
def test_names_among_others_and_what_is_no_name(given: tuple[str, ...], error: type[CliptoolsError], message: str) -> None:
    with pytest.raises(error, match=message):
        check_template_options(given)


def test_embeddings_are_those_of_the_sentences(tiny_clip_dir: Path) -> None:
    model = load_model(f"local-dir:{tiny_clip_dir}", device="cpu")
    pool = Pool("pool", POOL, digest(*POOL))
    by_name = {name: encode_named(model, pool, (name,)) for name in ("imagenet", "emoji", "none")}
    each = torch.stack([encode_texts(model, [template.replace("{}", text) for text in POOL]) for template in EIGHTY])
    expected = torch.nn.functional.normalize(each.mean(0), dim=1)
    torch.testing.assert_close(by_name["imagenet"], expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(by_name["none"], encode_texts(model, POOL), rtol=1e-6, atol=1e-7)
    sentences = ["a dog", "an hourglass", "grapes", "a boat"]
    torch.testing.assert_close(by_name["emoji"], encode_texts(model, sentences, ZERO_SHOT_TEMPLATES), rtol=1e-6, atol=1e-7)


def test_words_by_name_are_words_by_sentences(named: dict[str, Path]) -> None:
    """Paper 2's public code encodes the pool with CLIP's 80; the bare texts are the default."""
    tensors = {name: load(path.read_bytes()) for name, path in named.items()}
    for name, same in (("written", "imagenet"), ("none", "")):
        assert all(np.array_equal(tensors[name][key], tensors[same][key]) for key in tensors[same])
    assert not np.array_equal(tensors["imagenet"]["coefficient"], tensors[""]["coefficient"])
    said = {name: read(path.read_bytes()).header.settings["words"]["templates"] for name, path in named.items()}
    assert said == {"": [], "none": [], "imagenet": "imagenet", "written": list(EIGHTY), "emoji": "emoji"}


def test_concepts_encode_the_pool_as_the_header_says(folder: Path, named: dict[str, Path]) -> None:
    asked = ("--by", "text", "--limit", 2, "--no-cache")
    scores = {}
    for of, path in named.items():
        lines = written("concepts", folder / "photos", *asked, "--bundle", path, *SETTINGS).splitlines()
        scores[of] = [[(one["word"], one["score"]) for one in json.loads(line)["concepts"]] for line in lines]
    assert scores["imagenet"] == scores["written"] and scores[""] == scores["none"]
    assert scores["imagenet"] != scores[""] != scores["emoji"] != scores["imagenet"]


def test_words_are_reconstructed_in_the_templates_of_the_header(
    folder: Path, named: dict[str, Path], tiny_clip_dir: Path
) -> None:
    model = load_model(f"local-dir:{tiny_clip_dir}", device="cpu")
    paths = sorted((folder / "photos").iterdir())
    with torch.inference_mode():
        M = model.clip.encode_image(torch.stack([model.transform(Image.open(path)) for path in paths]))
    best = (M @ encode_texts(model, POOL).T).argmax(1).tolist()  # labels by which a random model is right
    labels = folder / "labels.csv"
    labels.write_text("image,label\n" + "".join(f"photos/{path.name},{POOL[j]}\n" for path, j in zip(paths, best, strict=True)))
    asked = ("--labels", labels, "--classes", folder / "pool.txt", "--template", "none", "--reconstruct", "words")
    cosines = {}
    for of in ("imagenet", "written", ""):
        untouched, record = map(json.loads, written("ablate", *asked, "--bundle", named[of], *SETTINGS).splitlines())
        assert untouched["top1"]["value"] == 1 and untouched["settings"]["templates"] == []
        cosines[of] = record["cosine"]
    assert cosines["imagenet"] == cosines["written"] != cosines[""]


def test_a_header_may_hold_a_name_or_sentences_and_nothing_else(named: dict[str, Path]) -> None:
    bundle = read(named["imagenet"].read_bytes())
    for strange in (7, ["a {}", 3], None):
        words = bundle.header.settings["words"] | {"templates": strange}
        header = replace(bundle.header, settings=bundle.header.settings | {"words": words})
        with pytest.raises(CliptoolsError, match=r"words `templates` .* expected a text or a list of texts"):
            Header.from_json(header.to_json(), "strange")


def segmented(folder: Path, bundle: Path, *options: object) -> tuple[np.ndarray, object]:
    """Return the heat map of the first photograph, and the templates in the header."""
    data = written("segment", folder / "photos" / "0.png", *options, "--bundle", bundle, "-f", "safetensors", "-q")
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["cliptools"]
    return load(data)["0.png"], json.loads(header)["templates"]


def test_heat_maps_are_of_the_eighty_by_default(folder: Path, named: dict[str, Path]) -> None:
    """The default is as in paper 1's code, whose class texts are the zero-shot classifier's; --template none: the bare text."""
    asked = ("--text", "dog", "--method", "signed", "--neurons", 9)
    default, said = segmented(folder, named[""], *asked)
    assert said == "imagenet"
    by_name, _ = segmented(folder, named[""], *asked, "--template", "imagenet")
    sentences, of_sentences = segmented(folder, named[""], *asked, *WRITTEN_OUT)
    bare, of_none = segmented(folder, named[""], *asked, "--template", "none")
    assert np.array_equal(default, by_name) and np.array_equal(default, sentences) and not np.array_equal(default, bare)
    assert of_sentences == list(EIGHTY) and of_none == []


def test_label_maps_too(folder: Path, tiny_resnet_dir: Path) -> None:
    pairs = folder / "pairs"
    written("effects", folder / "photos", "--model", f"local-dir:{tiny_resnet_dir}", "--top-images", 3, "-q", "-o", pairs)
    asked = ("--classes", folder / "pool.txt", "--sink", "off", "--size", 64)
    maps, said = segmented(folder, pairs, *asked)
    assert said == "imagenet" and np.array_equal(maps, segmented(folder, pairs, *asked, "--template", "imagenet")[0])
    bare, of_none = segmented(folder, pairs, *asked, "--template", "none")
    assert of_none == [] and not np.array_equal(maps, bare)


def test_spurious_words_in_templates(named: dict[str, Path]) -> None:
    asked = ("--depict", "boat", "--predict", "dog", "--near", 1, "--no-cache", *SETTINGS)
    found = {}
    for of, options in (
        ("imagenet", ("--template", "imagenet")),
        ("written", WRITTEN_OUT),
        ("", ()),
        ("none", ("--template", "none")),
    ):
        ended = inside("spurious", *asked, *options, "--by", "overlap", named[of])
        found[of] = [(r["word"], r["score"], r["settings"]["templates"]) for r in map(json.loads, ended.stdout.splitlines())]
    assert [r[:2] for r in found["imagenet"]] == [r[:2] for r in found["written"]] != [r[:2] for r in found[""]]
    assert {r[2] for r in found["imagenet"]} == {"imagenet"} and found["none"] == found[""] and found[""][0][2] == []


@pytest.mark.parametrize("name", ["decompose", "spurious", "segment", "ablate", "shift"])
def test_every_command_refuses_a_name_among_others(name: str, folder: Path, named: dict[str, Path]) -> None:
    more = {
        "spurious": ("--depict", "dog", "--predict", "boat"),
        "segment": (folder / "photos", "--text", "dog", "--bundle", named[""]),
        "ablate": (folder / "photos", "--bundle", named[""]),
        "shift": (folder / "photos", "--concept", "dog", "--bundle", named[""]),
    }
    ended = inside(name, *more.get(name, ()), "--template", "imagenet", "--template", "a {}", stdin=named[""].read_bytes())
    assert ended.returncode == 2 and b"--template imagenet: is a set of templates" in ended.stderr
    shown = inside(name, "--help")
    assert b"imagenet" in shown.stdout and b"none: the text alone" in b" ".join(shown.stdout.split())
