"""Accuracy per group in clip-ablate: figures against loops over images, other weights of the model, and misuse."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.advgen_input import inside, parsed
from helpers.tiny_suite import Suite
from safetensors.torch import load_file, save_file

import cliptools as ct
from cliptools.analysis.zero_shot import Guessing, Tally, score
from cliptools.errors import CliptoolsError, ModelError, UsageError
from cliptools.front.ablate_groups import GroupFigures, HitTable, training_sizes
from cliptools.front.ablate_pass import _check_chance, _Result
from cliptools.front.ablate_records import setting_text
from cliptools.front.ablate_settings import AblateRequest
from cliptools.images.classification.grouped import GroupTask, ImageGroups
from cliptools.images.loader import open_images
from cliptools.models.text_encoder import encode_texts

COMMON: dict[str, Any] = {"templates": ["{}"], "batch_size": 4, "workers": 0, "device": "cpu"}
N, SETTINGS = 61, 3


def image_groups(tasks: bool) -> ImageGroups:
    of = np.random.default_rng(1).integers(0, 5, N)
    names = ("u/cat/sea", "u/dog/sea", "v/cat/sea", "v/cow/sea", "v/cow/sky")
    two = (GroupTask("u", (0, 1), (0, 2)), GroupTask("v", (2, 3, 4), (0, 1)))
    return ImageGroups(of, names, two if tasks else (GroupTask("", (0, 1, 2, 3, 4), (0, 1, 2)),))


@pytest.mark.parametrize("tasks", [False, True])
@pytest.mark.parametrize("templates", [0, 2])
def test_fields_against_loops(tasks: bool, templates: int) -> None:
    """Images are read in another order and in batches, and some not at all."""
    rng, groups = np.random.default_rng(2), image_groups(tasks)
    order = rng.permutation(N)[:50]
    hits = rng.random((SETTINGS, templates or 1, N)) < rng.random((SETTINGS, 1, 1))
    request = AblateRequest(groups="folders", train_sizes="7,0,1,2,3")
    figures = GroupFigures(groups, request, [(None, f"{k} {{}}") for k in range(templates)])  # type: ignore[misc]
    table = HitTable()
    for part in np.array_split(order, 7):
        table.add(part.tolist(), [torch.from_numpy(hits[:, k, part]) for k in range(templates or 1)])
    figures.compute(table)
    accuracy = np.empty((SETTINGS, templates or 1, 5))
    for s in range(SETTINGS):
        for k in range(templates or 1):
            for g in range(5):
                own = [i for i in order if groups.of[i] == g]
                accuracy[s, k, g] = sum(hits[s, k, i] for i in own) / len(own)
    count = np.array([sum(groups.of[i] == g for i in order) for g in range(5)])
    weight = np.array([7, 0, 1, 2, 3])

    def mean(s: int, name: str, only: int | None = None) -> float:
        values = []
        for k in range(templates or 1) if only is None else (only,):
            for task in groups.tasks:
                own = list(task.groups)
                a, n, w = accuracy[s, k, own], count[own], weight[own]
                of_task = {"worst": min(a), "average": sum(a * n) / sum(n), "weighted": sum(a * w) / sum(w)}
                values.append((of_task | {"gap": of_task["weighted"] - of_task["worst"]})[name])
        return sum(values) / len(values)

    for s in range(SETTINGS):
        record = figures.fields(s)
        assert [each["group"] for each in record["groups"]] == list(groups.names)
        assert [each["n"] for each in record["groups"]] == count.tolist()
        assert [each["value"] for each in record["groups"]] == pytest.approx(accuracy[s].mean(0), abs=1e-5)
        for name in ("worst", "average", "weighted", "gap"):
            assert record[name]["value"] == pytest.approx(mean(s, name), abs=1e-5)
            assert record[name]["low"] <= record[name]["value"] <= record[name]["high"]
            for k in range(templates):
                assert record["templates"][k][name]["value"] == pytest.approx(mean(s, name, k), abs=1e-5)
            if s:
                difference = record["difference"][name]
                assert difference["value"] == pytest.approx(mean(s, name) - mean(0, name), abs=2e-5)
        if s:
            differences = [each["value"] for each in record["difference"]["groups"]]
            assert differences == pytest.approx((accuracy[s] - accuracy[0]).mean(0), abs=1e-5)
        assert ("difference" in record) == (s > 0) and ("tasks" in record) == tasks
        assert ("group" in record["worst"]) == (not tasks)
    assert figures.settings == {"train_sizes": dict(zip(groups.names, (7, 0, 1, 2, 3), strict=True))}


def test_groups_without_images_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    groups = image_groups(tasks=True)
    figures, table = GroupFigures(groups, AblateRequest(groups="folders"), []), HitTable()
    numbers = np.flatnonzero(groups.of > 2).tolist()
    table.add(numbers, [torch.ones(1, len(numbers), dtype=torch.bool)])
    figures.compute(table)
    record = figures.fields(0)
    assert [each["group"] for each in record["groups"]] == ["v/cow/sea", "v/cow/sky"]
    assert [each["task"] for each in record["tasks"]] == ["v"]
    sized = GroupFigures(groups, AblateRequest(groups="folders", train_sizes="1,1,5,0,0"), [])
    with pytest.raises(UsageError, match="none of the groups that were read has a training image: v/cow/sea, v/cow/sky"):
        sized.compute(table)


def test_tasks_have_classes_of_their_own() -> None:
    groups = image_groups(tasks=True)
    figures = GroupFigures(groups, AblateRequest(groups="folders"), [])
    images: Any = SimpleNamespace(classes=[SimpleNamespace(name=name) for name in ("cat", "cow", "dog")])
    numbers = list(range(N))
    among = figures.among(images, numbers)
    assert among is not None
    for i in numbers:
        assert among[i].tolist() == ([True, False, True] if groups.of[i] < 2 else [True, True, False])
    rows = np.array([2 if groups.of[i] < 2 else 1 for i in numbers])
    assert figures.position(rows, numbers).tolist() == [1] * N and figures.guessing(images).classes == 2


def test_scores_among_some_classes() -> None:
    generator = torch.Generator().manual_seed(3)
    output, text = torch.randn(2, 17, 5, generator=generator), torch.randn(7, 5, generator=generator)
    among = torch.rand(17, 7, generator=generator) < 0.5
    label = torch.randint(0, 7, (17,), generator=generator)
    among[torch.arange(17), label] = True
    scored = score(output, text, label, among)
    for s in range(2):
        for b in range(17):
            allowed = [c for c in range(7) if among[b, c]]
            values = {c: float(output[s, b].double() @ text[c].double()) for c in allowed}
            assert scored.best[s, b] == max(values, key=values.__getitem__)
            assert scored.rank[s, b] == sum(value > values[int(label[b])] for value in values.values())
    constant = score(torch.zeros(1, 17, 5), text, label, among)
    several = among.sum(1) > 1
    assert (constant.rank[0, several] > 0).all()


def test_training_sizes() -> None:
    groups = ImageGroups(np.zeros(1, np.int64), ("a/x", "a/y"), (), {"a/x": 4, "a/y": 0})
    for given in ("3, 5", "a/y=5,a/x=3", {"a/y": 5, "a/x": 3}):
        assert training_sizes(given, groups) == {"a/x": 3, "a/y": 5}
    assert training_sizes("table", groups) == {"a/x": 4, "a/y": 0} and training_sizes(None, groups) is None
    bare = ImageGroups(groups.of, groups.names, ())
    two = ImageGroups(groups.of, groups.names, (GroupTask("s", (0,), (0, 1)), GroupTask("t", (1,), (0, 1))), groups.training)
    for given, source, message in (
        ("3", groups, "expected a number for each group"),
        ("a/x=3,b=5", groups, "expected a number for each group"),
        ("3,many", groups, "expected whole numbers"),
        ("0,0", groups, "expected whole numbers"),
        ("table", bare, "the groups come from no table"),
        ("4,0", two, "none of the groups a/y has a training image"),
        ("table", two, "none of the groups a/y has a training image"),
    ):
        with pytest.raises(UsageError, match=message):
            training_sizes(given, source)


@pytest.fixture(scope="module")
def birds(suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The suite's six photographs in two levels of folders."""
    folder = tmp_path_factory.mktemp("birds")
    for number, path in enumerate(sorted(suite.images.iterdir())):
        place = folder / ("cat", "pizza")[number % 2] / ("sea", "sky")[number // 2 % 2]
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place / path.name)
    return folder


@pytest.fixture(scope="module")
def repaired(suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other weights of the suite's ViT."""
    folder = Path(suite.vit.removeprefix("local-dir:"))
    weights = load_file(next(folder.glob("*.safetensors")))
    weights["visual.proj"] = torch.randn(weights["visual.proj"].shape, generator=torch.Generator().manual_seed(4))
    path = tmp_path_factory.mktemp("repaired") / "repaired.safetensors"
    save_file(weights, path)
    return path


def test_command_and_function_before_and_after(suite: Suite, birds: Path, repaired: Path) -> None:
    """Both models are measured on the same images; the other one against its own forward passes and a loop over images."""
    words = ("--groups", "folders", "--against", repaired, "--ablate", "all", "--train-sizes", "1,2,3,4", "--each-template")
    short = (
        "--template",
        "{}",
        "--template",
        "a photo of {}",
        "--batch-size",
        4,
        "--workers",
        0,
        "--bundle",
        suite.bundle("second"),
    )
    ended = inside("ablate", birds, *words, *short, "-f", "jsonl")
    assert ended.returncode == 0, ended.stderr.decode()
    untouched, means, other = parsed(ended.stdout)
    arguments = COMMON | {"templates": ["{}", "a photo of {}"], "ablate": "all", "against": repaired, "each_template": True}
    bundle = ct.read(suite.bundle("second"))
    records = ct.ablate(bundle, birds, groups="folders", train_sizes="1,2,3,4", **arguments)
    assert list(records) == [untouched, means, other]
    assert "against" not in means and other["against"]["sha256"] != other["model"]["sha256"] == untouched["model"]["sha256"]
    model = ct.load_model(suite.vit, device="cpu")
    model.clip.load_state_dict(load_file(repaired))
    source = open_images([str(birds)])
    pictures = torch.stack([model.transform(source.load(i)) for i in range(len(source))])
    with torch.inference_mode():
        embedding = model.clip.visual(pictures).double()
    names = ("cat", "pizza")
    for k, template in enumerate(("{}", "a photo of {}")):
        text = encode_texts(model, names, (template,)).double()
        best = (embedding @ text.T).argmax(1).tolist()
        right: dict[str, list[bool]] = {}
        for name, guess in zip(source.names, best, strict=True):
            right.setdefault(name.rpartition("/")[0], []).append(name.startswith(names[guess]))
        accuracy = {name: sum(hits) / len(hits) for name, hits in right.items()}
        assert other["templates"][k]["template"] == template
        assert other["templates"][k]["worst"]["value"] == pytest.approx(min(accuracy.values()), abs=1e-5)
        weights = {"cat/sea": 1, "cat/sky": 2, "pizza/sea": 3, "pizza/sky": 4}
        weighted = sum(accuracy[name] * weight for name, weight in weights.items()) / 10
        assert other["templates"][k]["weighted"]["value"] == pytest.approx(weighted, abs=1e-5)
    table = inside("ablate", birds, *words, *short, "-f", "table").stdout.decode()
    assert "against" in table and "worst" in table and "cat/sea" in table and records.table() == table.rstrip("\n")


def test_a_model_at_chance_in_groups_is_a_result() -> None:
    """A model that takes every image for one class is right on half of the images of equal groups."""
    guessing = Guessing(["ox", "violin"])
    guessing.add(np.repeat([0, 1], 24), np.ones(48, np.int64))
    images: Any = SimpleNamespace(classes_source="labels")
    assert _check_chance(_Result(Tally(1), guessing, None, grouped=True), images) == "chance"
    with pytest.raises(CliptoolsError, match=r"right on 24 of 48 images, .* do not match"):
        _check_chance(_Result(Tally(1), guessing, None, grouped=False), images)


def test_settings_under_a_mask_have_names() -> None:
    change = {"effect": "second", "ablate": "all"}
    names = [setting_text(record) for record in ({}, {"mask": "d"}, change, change | {"mask": "d"})]
    assert names == ["untouched", "masked", "means", "means, masked"]


def test_the_same_weights_differ_in_nothing(suite: Suite, birds: Path) -> None:
    """Groups as a list of values; without groups, the difference of accuracy."""
    folder = suite.vit.removeprefix("local-dir:")
    bundle, images = ct.read(suite.bundle("second")), sorted(birds.rglob("*.png"))
    labels, values = ([path.parts[place] for path in images] for place in (-3, -2))
    untouched, other = ct.ablate(bundle, images, labels, groups=values, against=f"local-dir:{folder}", **COMMON)
    same = ("n", "top1", "top5", "groups", "worst", "average", "gap")
    assert {key: other[key] for key in same} == {key: untouched[key] for key in same}
    assert other["agreement"] == 1 and other["cosine"] == pytest.approx(1, abs=1e-5)
    assert all(
        part["value"] == 0 and part["low"] < 0 < part["high"] for name, part in other["difference"].items() if name != "groups"
    )
    _, means, last = ct.ablate(bundle, images, labels, against=folder, ablate="all", **COMMON)
    assert set(means["difference"]) == {"top1"} and set(last["difference"]) == {"top1"}
    assert last["difference"]["top1"] == {
        "value": 0,
        "low": pytest.approx(-1.96 / 8, abs=1e-4),
        "high": pytest.approx(1.96 / 8, abs=1e-4),
    }


def test_misuse(suite: Suite, birds: Path, tmp_path: Path) -> None:
    bundle = ct.read(suite.bundle("second"))
    (tmp_path / "empty").mkdir()
    for arguments, kind, message in (
        ({"each_template": True}, UsageError, "--each-template needs --groups"),
        ({"train_sizes": "table"}, UsageError, "--train-sizes needs --groups"),
        ({"split": "test"}, UsageError, "--split needs --groups"),
        ({"split": "dev", "groups": "folders"}, UsageError, "split='dev': expected one of"),
        ({"groups": "folders", "labels": [0] * 6}, UsageError, "groups='folders': it is for images that paths name"),
        ({"groups": "folders", "train_sizes": "1,2"}, UsageError, "expected a number for each group"),
        ({"against": tmp_path / "none.safetensors"}, ModelError, r"--against .*none.safetensors: expected a file of weights"),
        ({"against": tmp_path / "empty"}, ModelError, "expected a file of weights, or a folder with one"),
    ):
        with pytest.raises(kind, match=message):
            ct.ablate(bundle, birds, **COMMON | arguments)
