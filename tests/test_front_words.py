"""ct.concepts and ct.spurious: each gives what its command gives, from images, texts and classes of every kind."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.advgen_input import parsed
from helpers.tiny_suite import TEXTS, Case, Suite, run_case
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

import cliptools as ct
from cliptools.emoji.render import scenes_for
from cliptools.errors import CliptoolsError, ModelError, StreamError, TextError, UsageError
from cliptools.images.loader import open_images

READING: dict[str, Any] = {"batch_size": 4, "workers": 0, "device": "cpu"}
Records = list[dict[str, Any]]


def output(case: Case, *more: Any) -> bytes:
    """Return the standard output of a command line with further options."""
    ended = run_case(case, *more)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def described(suite: Suite, images: Any = None, name: str = "second-words", **arguments: Any) -> Records:
    """Return the concepts of the suite's images."""
    return ct.concepts(ct.read(suite.bundle(name)), suite.images if images is None else images, **READING | arguments)


CONCEPTS: dict[str, tuple[str, dict[str, Any]]] = {
    "concepts words": ("second-words", {"cache": False}),
    "concepts directions": ("second-words", {"by": "directions", "cache": False}),
    "concepts text": ("second-words", {"by": "text"}),
    "concepts all": ("second-words", {"neurons": "all"}),
    "concepts signed": ("second-words", {"score": "signed"}),
    "concepts pairs": ("pooled-words", {}),
}


@pytest.mark.parametrize("case", CONCEPTS)
def test_concepts_are_those_of_the_command(suite: Suite, case: str) -> None:
    name, arguments = CONCEPTS[case]
    records = described(suite, name=name, **arguments)
    assert list(records) == parsed(output(suite.cases()[case], "-f", "jsonl")) and len(records) == 6


MORE: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "random": (("--neurons", "random", "--seed", 3, "--words", 2), {"neurons": "random", "seed": 3, "words": 2}),
    "layers": (("--layers", "1,2", "--limit", 3), {"layers": [1, 2], "limit": 3}),
    "one layer of a sample": (("--layers", 2, "--sample", 4, "--seed", 5), {"layers": (2,), "sample": 4, "seed": 5}),
}


@pytest.mark.parametrize("setting", MORE)
def test_settings_of_concepts_are_those_of_the_command(suite: Suite, setting: str, tmp_path: Path) -> None:
    """Records, tables and files are equal to the byte."""
    options, arguments = MORE[setting]
    case, truth = suite.cases()["concepts words"], suite.scenes / "scenes.jsonl"
    records = described(suite, truth=truth, **arguments)
    records.save(tmp_path / "records.jsonl")
    assert (tmp_path / "records.jsonl").read_bytes() == output(case, *options, "--truth", truth, "-f", "jsonl")
    assert records.table() == output(case, *options, "--truth", truth, "-f", "table").decode().rstrip("\n")
    assert list(records.to_frame()["image"]) == [record["image"] for record in records]
    total = described(suite, truth=str(truth), evaluate=True, **arguments)
    assert list(total) == parsed(output(case, *options, "--truth", truth, "--evaluate", "-f", "jsonl"))
    table = output(case, *options, "--truth", truth, "--evaluate", "-f", "table").decode()
    assert total.table() == table.rstrip("\n")


def pictures(suite: Suite) -> list[Image.Image]:
    source = open_images([str(suite.images)])
    return [source.load(index) for index in range(len(source))]


def prepared(suite: Suite) -> torch.Tensor:
    transform = ct.load_model(suite.vit, device="cpu").transform
    return torch.stack([transform(picture) for picture in pictures(suite)])


KINDS: dict[str, Callable[[Suite], Any]] = {
    "paths": lambda suite: sorted(suite.images.iterdir()),
    "pictures": pictures,
    "arrays": lambda suite: np.stack([np.asarray(picture) for picture in pictures(suite)]),
    "tensor": prepared,
    "loader": lambda suite: DataLoader(TensorDataset(prepared(suite), torch.arange(6)), batch_size=4),
    "generator of batches": lambda suite: (pixels for pixels in prepared(suite).split(4)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_every_kind_have_the_same_concepts(suite: Suite, kind: str) -> None:
    """All neurons count, because the suite's thresholds are norms of its images: a rounding decides which are active."""
    expected = described(suite, neurons="all")
    records = described(suite, KINDS[kind](suite), neurons="all", model=ct.load_model(suite.vit, device="cpu"))
    names = [record["image"] for record in expected]
    assert [record["image"] for record in records] == (names if kind == "paths" else [f"image-{n:06d}" for n in range(6)])
    for record, other in zip(records, expected, strict=True):
        assert [concept["word"] for concept in record["concepts"]] == [concept["word"] for concept in other["concepts"]]
        scores, other_scores = ([concept["score"] for concept in each["concepts"]] for each in (record, other))
        np.testing.assert_allclose(scores, other_scores, rtol=1e-4)
        assert record["settings"] == other["settings"]


def test_some_of_the_batches(suite: Suite) -> None:
    """A sample of prepared pictures is that of the same pictures."""
    part: dict[str, Any] = {"sample": 3, "seed": 1}
    some, others = (described(suite, images, **part) for images in (prepared(suite), pictures(suite)))
    assert [record["image"] for record in some] == [record["image"] for record in others] and len(some) == 3


def test_scenes_of_the_bundle_without_images() -> None:
    model = ct.load_model("emoji-vit2", device="cpu")
    bundle = ct.decompose(ct.effects(limit=10, layers=[6], model=model), TEXTS, m=2, model=model)
    records = ct.concepts(bundle, model=model, limit=2)
    assert [record["image"] for record in records] == ["scene-000000", "scene-000001"]
    assert list(records) == list(ct.concepts(bundle, scenes_for("emoji-vit2", 10, 0), model=model, limit=2))


def test_a_vocabulary_of_ones_own(suite: Suite) -> None:
    for by in ("text", "directions"):
        file, listed = (described(suite, by=by, texts=texts) for texts in (suite.pool, iter(TEXTS)))
        assert [record["concepts"] for record in file] == [record["concepts"] for record in listed]
        assert file == described(suite, by=by) and listed[0]["settings"]["pool"] == "texts"
    (few, *_) = described(suite, by="text", texts=["cat", "a walrus"])
    assert {concept["word"] for concept in few["concepts"]} == {"cat", "a walrus"}


def test_truth_as_a_mapping(suite: Suite) -> None:
    lines = [json.loads(line) for line in (suite.scenes / "scenes.jsonl").read_text().splitlines()]
    truth = {line["key"]: line["names"] for line in lines}
    assert described(suite, truth=truth) == described(suite, truth=suite.scenes / "scenes.jsonl")
    for faulty, error, words in (
        ({"scene": ["cat"]}, StreamError, "truth: no line for"),
        ({"image-000000": "cat"}, UsageError, "truth: 'image-000000' has the text 'cat', expected a list of names"),
    ):
        with pytest.raises(error, match=words):
            described(suite, pictures(suite), truth=faulty)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"by": "neurons"}, "by='neurons': expected one of words, directions, text"),
        ({"words": 0}, "words=0: expected a number at least 1"),
        ({"seed": -1}, "seed=-1: expected"),
        ({"batch_size": 0}, "batch_size=0: expected"),
        ({"workers": -1}, "workers=-1: expected"),
        ({"evaluate": True}, "--evaluate needs --truth"),
        ({"by": "text", "neurons": "all"}, "--by text uses no neurons"),
        ({"texts": TEXTS}, "texts: by='words' takes the neurons' own texts"),
        ({"layers": [7]}, "--layers: the bundle has no layer 7"),
        ({"limit": 2, "sample": 2}, "give one of them"),
        ({"images": []}, "images: an empty list"),
    ],
)
def test_misuse_of_concepts(suite: Suite, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ct.concepts(ct.read(suite.bundle("second-words")), **{"images": suite.images} | READING | arguments)


def test_bundles_and_models_that_do_not_fit(suite: Suite) -> None:
    words = ct.read(suite.bundle("second-words"))
    with pytest.raises(StreamError, match="the bundle: a bundle without `word`; run clip-decompose first"):
        described(suite, name="second")
    with pytest.raises(StreamError, match="the bundle: a bundle without `word`; run clip-decompose first"):
        ct.spurious(ct.read(suite.bundle("second")), "cat", "dog")
    indirect = replace(words, header=replace(words.header, settings=words.header.settings | {"effect": "indirect"}))
    with pytest.raises(StreamError, match="a bundle of indirect effects"):
        ct.concepts(indirect, suite.images)
    other = ct.load_model(device="cpu")
    for call in (lambda: ct.concepts(words, suite.images, model=other), lambda: ct.spurious(words, "cat", "dog", model=other)):
        with pytest.raises(ModelError, match="is not the bundle's"):
            call()


def found(suite: Suite, *classes: str, name: str = "second-words", **arguments: Any) -> Records:
    """Return the spurious words of a bundle of the suite."""
    return ct.spurious(ct.read(suite.bundle(name)), *classes, device="cpu", **arguments)


SPURIOUS: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
    "spurious": ("second-words", ("cat", "dog"), {"words": 3}),
    "spurious classes": ("second-words", (), {"classes": "CLASSES", "words": 3, "head": 2, "cache": False}),
    "spurious overlap": ("second-words", ("cat", "dog"), {"by": "overlap"}),
    "spurious similar": ("second-words", ("cat", "dog"), {"by": "similar"}),
    "spurious pairs": ("pooled-words", ("cat", "dog"), {"words": 3}),
}


@pytest.mark.parametrize("case", SPURIOUS)
def test_spurious_words_are_those_of_the_command(suite: Suite, case: str, tmp_path: Path) -> None:
    name, classes, arguments = SPURIOUS[case]
    if "classes" in arguments:
        arguments = arguments | {"classes": suite.classes}
    records = found(suite, *classes, name=name, **arguments)
    records.save(tmp_path / "words.jsonl")
    command = suite.cases()[case]
    assert (tmp_path / "words.jsonl").read_bytes() == output(command, "-f", "jsonl")
    assert records.table() == output(command, "-f", "table").decode().rstrip("\n")
    assert list(records.to_frame()["word"]) == [record["word"] for record in records]


def test_settings_of_spurious_are_those_of_the_command(suite: Suite, tmp_path: Path) -> None:
    block_list, pairs = tmp_path / "blocked.txt", tmp_path / "pairs.csv"
    block_list.write_text("Pizza\ncrown\n")
    pairs.write_text("cat,dog\nboat,lemon\n")
    case = Case("spurious", ("--neurons", 9, "--layers", "1,2", "--near", 0.9), suite.bundle("second-words"))
    common: dict[str, Any] = {"neurons": 9, "layers": [1, 2], "near": 0.9}
    more = ("--exclude", "rocket", "--block-list", block_list, "--template", "a photo of a {}", "--by", "single")
    arguments = {"exclude": "rocket", "block_list": block_list, "templates": ["a photo of a {}"], "by": "single"}
    expected = parsed(output(case, "--depict", "cat", "--predict", "dog, puppy", *more))
    assert list(found(suite, "cat", "dog, puppy", **common, **arguments)) == expected and expected
    listed = found(suite, "cat", "dog, puppy", **common, **arguments | {"block_list": ["pizza", "CROWN"]})
    assert [record["word"] for record in listed] == [record["word"] for record in expected]
    assert listed[0]["exclusions"]["block_list"] == ["pizza", "CROWN"]
    expected = parsed(output(case, "--pairs-file", pairs, "--by", "random", "--seed", 2))
    for given in (pairs, str(pairs), [("cat", "dog"), ("boat", "lemon")]):
        assert list(found(suite, pairs=given, by="random", seed=2, **common)) == expected
    names = ["cat", "dog, puppy", "pizza", "sky"]
    assert found(suite, classes=names, head=2, words=3) == found(suite, classes=str(suite.classes), head=2, words=3)


def test_words_from_a_list_of_texts(suite: Suite) -> None:
    model = ct.load_model(suite.vit, device="cpu")
    bundle = ct.decompose(ct.read(suite.bundle("second")), TEXTS, m=3, model=model)
    listed = ct.spurious(bundle, "cat", "dog", texts=TEXTS, model=model)
    file = found(suite, "cat", "dog")
    assert [(record["word"], record["score"]) for record in listed] == [(record["word"], record["score"]) for record in file]
    with pytest.raises(UsageError, match="texts: texts is not the vocabulary 'texts' of the bundle's words"):
        ct.spurious(bundle, "cat", "dog", texts=TEXTS[1:], model=model)


@pytest.mark.parametrize(
    ("classes", "arguments", "error", "message"),
    [
        ((), {}, UsageError, "expected exactly one of: --depict with --predict"),
        (("cat",), {}, UsageError, "need each other"),
        (("cat", "dog"), {"classes": ["cat", "dog"]}, UsageError, "expected exactly one of"),
        (("cat", "dog"), {"head": 2}, UsageError, "--head 2 needs --classes"),
        (("cat", "dog"), {"words": 0}, UsageError, "words=0: expected"),
        (("cat", "dog"), {"near": 0.0}, UsageError, "near=0.0: expected"),
        (("cat", "dog"), {"near": 1.5}, UsageError, "near=1.5: expected"),
        ((), {"classes": ["cat", "cat"]}, UsageError, "--classes: expected at least two classes, found 1"),
        ((), {"pairs": ["cat", "dog"]}, UsageError, "pairs: item 0 is 'cat', expected a depicted and a predicted class"),
        ((), {"pairs": [("cat", "dog", "owl")]}, CliptoolsError, "pairs: item 0"),
        ((), {"pairs": []}, UsageError, "pairs: an empty list"),
        ((), {"pairs": [("cat", "dog"), ("cat", "dog")]}, TextError, "pairs: cat->dog is listed twice"),
        (("cat", "dog"), {"block_list": "no-such-file"}, TextError, "block list no-such-file: no such file"),
        (("cat", "dog"), {"model": "emoji-rn2"}, UsageError, "the bundle was made with"),
        (("cat", "dog"), {"layers": [7]}, UsageError, "--layers: the bundle has no layer 7"),
    ],
)
def test_misuse_of_spurious(
    suite: Suite, classes: tuple[str, ...], arguments: dict[str, Any], error: type[CliptoolsError], message: str
) -> None:
    with pytest.raises(error, match=message):
        found(suite, *classes, **arguments)
